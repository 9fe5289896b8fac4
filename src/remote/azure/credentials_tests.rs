//! Which credentials are taken, and what is said of those that are none.

use super::*;

const KEY: (&str, &str) = ("AZURE_STORAGE_KEY", "aGlkZGVu");
const SAS: (&str, &str) = ("AZURE_STORAGE_SAS_TOKEN", "?sv=2021-02-12&sp=rl&sig=hidden%3D");
const TENANT: (&str, &str) = ("AZURE_TENANT_ID", "tenant");
const CLIENT: (&str, &str) = ("AZURE_CLIENT_ID", "client");
const SECRET: (&str, &str) = ("AZURE_CLIENT_SECRET", "hidden");
const CLUSTER: (&str, &str) = ("AZURE_FEDERATED_TOKEN_FILE", "/var/run/token");
const SERVICE: [(&str, &str); 2] =
    [("IDENTITY_ENDPOINT", "http://localhost:1/msi"), ("IDENTITY_HEADER", "hidden")];

fn connected(text: &str) -> (&'static str, &str) {
    (CONNECTION_STRING, text)
}

async fn found(no_sign_request: bool, env: &[(&str, &str)]) -> Result<Found, RemoteError> {
    let options = RemoteOptions { no_sign_request, ..RemoteOptions::default() };
    let env: CallerEnv = env.iter().copied().collect();
    let http = HttpClient::open(&options, &env, None).await?;
    let endpoint = BaseUrl::parse("test", "https://account.blob.core.windows.net")?;
    let connection = connection_string("account", &env)?;
    find("account", &endpoint, connection, &options, &env, &http)
}

async fn kind(no_sign_request: bool, env: &[(&str, &str)]) -> String {
    match found(no_sign_request, env).await.unwrap() {
        Found::Given(signer) => format!("{signer:?}"),
        Found::Nothing(_) => "Nothing".to_owned(),
    }
}

#[tokio::test]
async fn the_first_that_is_there_decides() {
    let string = connected("AccountName=account;AccountKey=aGlkZGVu");
    let signed = connected("AccountName=account;SharedAccessSignature=sv=1&sig=hidden");
    assert_eq!(kind(false, &[]).await, "Nothing");
    assert_eq!(kind(true, &[string, KEY, SAS]).await, "Nobody");
    assert_eq!(kind(false, &[string, SAS]).await, "Key");
    assert_eq!(kind(false, &[signed, KEY]).await, "Signature");
    assert_eq!(kind(false, &[KEY, SAS]).await, "Key");
    assert_eq!(kind(false, &[("AZURE_STORAGE_ACCOUNT_KEY", KEY.1)]).await, "Key");
    assert_eq!(kind(false, &[SAS, TENANT, CLIENT, SECRET]).await, "Signature");
    assert_eq!(kind(false, &[TENANT, CLIENT, SECRET]).await, "Tokens");
    assert_eq!(kind(false, &[TENANT, CLIENT, CLUSTER]).await, "Tokens");
    assert_eq!(kind(false, &SERVICE).await, "Tokens");
    // They say who asks, and prove nothing.
    let names = [("AZURE_STORAGE_ACCOUNT", "other"), TENANT, CLIENT, SERVICE[0]];
    assert_eq!(kind(false, &names).await, "Nothing");
}

#[tokio::test]
async fn a_signature_is_cut_out_of_what_was_copied() {
    for text in [
        "sv=1&sig=hidden%3D",
        "?sv=1&sig=hidden%3D",
        " https://account.blob.core.windows.net/c?sv=1&sig=hidden%3D\n",
    ] {
        match found(false, &[(SIGNATURE, text)]).await.unwrap() {
            Found::Given(Signer::Signature(query)) => assert_eq!(&*query, "sv=1&sig=hidden%3D"),
            _ => panic!("{text}"),
        }
    }
}

#[tokio::test]
async fn what_is_given_by_half_is_refused_without_a_secret_in_the_message() {
    let other = connected("AccountName=other;AccountKey=aGlkZGVu");
    for (env, words) in [
        (&[connected("hidden")][..], "AZURE_STORAGE_CONNECTION_STRING has a part"),
        (&[connected("AccountName=account")], "neither an AccountKey"),
        (&[connected("AccountName=account;AccountKey=hidden!")], "is not base64"),
        (&[connected("SharedAccessSignature=hidden")], "no shared access signature"),
        (&[other], "is for the account \"other\"; mount az://other/"),
        (&[KEY, ("AZURE_STORAGE_ACCOUNT", "other")], "AZURE_STORAGE_KEY is for the account"),
        (&[("AZURE_STORAGE_KEY", "hidden!")], "AZURE_STORAGE_KEY: the key is not base64"),
        (&[(SIGNATURE, "hidden")], "no shared access signature"),
        (&[(SIGNATURE, "sv=1&sig=hid den")], "no shared access signature"),
        (&[SECRET, TENANT], "AZURE_CLIENT_ID is not set"),
        (&[CLUSTER, CLIENT], "AZURE_TENANT_ID is not set"),
        (
            &[CLIENT, TENANT, ("AZURE_CLIENT_CERTIFICATE_PATH", "/x")],
            "AZURE_CLIENT_CERTIFICATE_PATH",
        ),
        (&[TENANT, CLIENT, SECRET, ("AZURE_AUTHORITY_HOST", "http://login.example")], "https only"),
        (&[("IDENTITY_ENDPOINT", "http://example"), SERVICE[1]], "https only"),
        (&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "x")], "AZURE_POD_IDENTITY_AUTHORITY_HOST"),
    ] {
        let error = match found(false, env).await {
            Err(error) => error,
            Ok(_) => panic!("{env:?}"),
        };
        assert!(error.message.contains(words), "{error}");
        for secret in ["hid", "aGlkZGVu"] {
            assert!(!error.message.contains(secret), "{error}");
        }
    }
}
