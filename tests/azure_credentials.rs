//! Where credentials for Azure come from, against token servers and metadata services
//! that say no, and what is told of those that do not work.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::azurite::{Azurite, KEY, signature};
use common::stub::{Reply, Request, Stub};
use serde_json::json;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::azure::AzureRemote;
use warmfs::remote::{ErrorKind, Key, ListRequest, Remote, RemoteError};

/// A metadata service that is not there, so that no test asks that of its machine.
const NO_MACHINE: (&str, &str) = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1");

const APPLICATION: [(&str, &str); 2] =
    [("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "client")];

const EMPTY: &str = "<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";

async fn connect_with(
    endpoint: &str,
    env: &[(&str, &str)],
    change: impl FnOnce(&mut RemoteOptions),
) -> Result<AzureRemote, RemoteError> {
    let mut options =
        RemoteOptions { endpoint_url: Some(endpoint.to_owned()), ..RemoteOptions::default() };
    change(&mut options);
    let env: CallerEnv = [NO_MACHINE].iter().chain(env).copied().collect();
    let connected =
        AzureRemote::connect("account", "container", &options, &env, &Arc::default()).await;
    match &connected {
        Ok(remote) => assert!(!format!("{remote:?}").contains("hidden"), "{remote:?}"),
        Err(error) => {
            assert!(!error.message.contains("hidden") && !error.message.contains('\n'), "{error}");
        }
    }
    connected
}

async fn connect(store: &Stub, env: &[(&str, &str)]) -> Result<AzureRemote, RemoteError> {
    connect_with(store.url(), env, |_| {}).await
}

async fn failure(store: &Stub, env: &[(&str, &str)]) -> RemoteError {
    connect(store, env).await.unwrap_err()
}

/// A refusal as the service words it.
fn refused(status: u16, code: &str) -> Reply {
    let body =
        format!("\u{feff}<Error><Code>{code}</Code><Message>said.\nRequestId:1</Message></Error>");
    Reply::new(status, &[("x-ms-error-code", code)], body)
}

/// A store that lets in whoever has `token`, and nobody else.
async fn store_for(token: &'static str) -> Stub {
    Stub::start(move |request| match request.header("authorization") {
        Some(given) if given == format!("Bearer {token}") => Reply::new(200, &[], EMPTY),
        Some(_) => refused(401, "InvalidAuthenticationInfo"),
        None => refused(404, "ResourceNotFound"),
    })
    .await
}

/// A server that gives `token` to all who ask.
async fn token_server(token: &'static str) -> Stub {
    Stub::start(move |_| token_reply(token)).await
}

fn token_reply(token: &str) -> Reply {
    let answer = json!({ "access_token": token, "expires_in": 3599, "token_type": "Bearer" });
    Reply::new(200, &[], answer.to_string())
}

/// A refusal as token servers word it, with all that they were sent.
fn no_token(request: &Request, status: u16, code: &str, number: u32) -> Reply {
    let sent = &request.body;
    let body = json!({
        "error": code,
        "error_description": format!("AADSTS{number}: hidden {sent} {}", request.head),
        "error_codes": [number],
    });
    Reply::new(status, &[], body.to_string())
}

// Keys and signatures.

#[tokio::test]
async fn keys_signatures_and_connection_strings_open_a_real_store() {
    let azurite = Azurite::start().await;
    azurite.create_container("container", false).await;
    azurite.create_container("public", true).await;
    azurite.put("container", "key", b"bytes".to_vec()).await;
    let sas = signature("rl");
    let account = "AccountName=devstoreaccount1";
    let by_key = format!("{account};AccountKey={KEY};BlobEndpoint={}", azurite.endpoint());
    let by_sas = format!("BlobEndpoint={};SharedAccessSignature={sas}", azurite.endpoint());
    let connect = async |container: &str, endpoint: Option<&str>, env: &[(&str, &str)]| {
        let env: CallerEnv = [NO_MACHINE].iter().chain(env).copied().collect();
        let endpoint_url = endpoint.map(str::to_owned);
        let options = RemoteOptions { endpoint_url, ..RemoteOptions::default() };
        AzureRemote::connect("devstoreaccount1", container, &options, &env, &Arc::default()).await
    };
    let bare = azurite.endpoint().strip_suffix("/devstoreaccount1").unwrap();
    for (endpoint, env) in [
        (Some(azurite.endpoint()), &[("AZURE_STORAGE_KEY", KEY)][..]),
        (Some(bare), &[("AZURE_STORAGE_KEY", KEY), ("AZURE_STORAGE_ACCOUNT", "devstoreaccount1")]),
        (None, &[("AZURE_STORAGE_KEY", KEY), ("AZURE_STORAGE_BLOB_ENDPOINT", azurite.endpoint())]),
        (Some(bare), &[("AZURE_STORAGE_SAS_TOKEN", &sas)]),
        (None, &[("AZURE_STORAGE_CONNECTION_STRING", &by_key)]),
        (None, &[("AZURE_STORAGE_CONNECTION_STRING", &by_sas)]),
    ] {
        let remote = connect("container", endpoint, env).await.unwrap();
        let object = remote.head(&Key("key".into())).await.unwrap();
        assert_eq!(object.size, 5);
        remote.get_range(&object, 1..3).await.unwrap();
    }

    assert!(connect("public", Some(bare), &[]).await.is_ok());
    let error = connect("container", Some(bare), &[]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
    assert!(error.message.contains("run `az login`, or set one of these"), "{error}");
    // Azurite says of all of these what the service says of a firewall, and so the mount
    // finds out; the service's words are below.
    let (wrong, forged) = (KEY.replace("Eby8", "AAAA"), sas.replace("sig=", "sig=AAAA"));
    for env in [("AZURE_STORAGE_KEY", wrong.as_str()), ("AZURE_STORAGE_SAS_TOKEN", &forged)] {
        let remote = connect("container", Some(bare), &[env]).await.unwrap();
        let error = remote.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        assert!(!error.message.contains("sig=") && !error.message.contains("AAAA"), "{error}");
    }
    // What a signature does not allow is no reason to doubt it: the mount finds out.
    let reader = signature("r");
    let remote = connect("container", Some(bare), &[("AZURE_STORAGE_SAS_TOKEN", &reader)]).await;
    let error = remote.unwrap().list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.message.contains("permissions rl"), "{error}");
}

#[tokio::test]
async fn a_signature_travels_in_the_query_and_nowhere_else() {
    let store = Stub::start(|request| match request.method() {
        "HEAD" => refused(403, "AuthenticationFailed"),
        _ => Reply::new(200, &[], EMPTY),
    })
    .await;
    let sas = [("AZURE_STORAGE_SAS_TOKEN", "?sv=2021-02-12&sp=rl&sig=hidden%2B%3D")];
    let remote = connect(&store, &sas).await.unwrap();
    let error = remote.head(&Key("k?y".into())).await.unwrap_err();
    assert!(!error.message.contains("hidden") && !error.message.contains("sig"), "{error}");
    let targets: Vec<_> = store.requests().iter().map(|r| r.target().to_owned()).collect();
    assert!(targets[0].starts_with("/account/container?restype=container&comp=list&"));
    assert!(
        targets[0].ends_with("&maxresults=1&delimiter=%2F&sv=2021-02-12&sp=rl&sig=hidden%2B%3D")
    );
    assert_eq!(targets[1], "/account/container/k%3Fy?sv=2021-02-12&sp=rl&sig=hidden%2B%3D");
    assert!(store.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn what_is_wrong_with_credentials_is_told_with_the_next_step() {
    let key = [("AZURE_STORAGE_KEY", "aGlkZGVu")];
    for (status, code, kind, words) in [
        (403, "AuthenticationFailed", ErrorKind::Credentials, "refresh or correct"),
        (401, "InvalidAuthenticationInfo", ErrorKind::Credentials, "refresh or correct"),
        (403, "KeyBasedAuthenticationNotPermitted", ErrorKind::Credentials, "az login"),
        (404, "ContainerNotFound", ErrorKind::NoSuchBucket, "check the container's name"),
    ] {
        let store = Stub::start(move |_| refused(status, code)).await;
        let error = failure(&store, &key).await;
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(code) && error.message.contains(words), "{error}");
        assert!(store.requests().iter().all(|request| request.header("authorization").is_some()));
    }
    let store = Stub::start(|_| {
        let body = "<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>hidden\
                    </AuthenticationErrorDetail></Error>";
        Reply::new(403, &[("date", "Mon, 05 Feb 2024 10:00:00 GMT")], body)
    })
    .await;
    let error = failure(&store, &key).await;
    assert!(error.message.contains("reads Mon, 05 Feb 2024 10:00:00 GMT"), "{error}");
    assert!(error.message.ends_with("set this machine's clock"), "{error}");

    let error = connect_with("http://account.invalid", &key, |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    assert!(error.message.contains("check the network and the account's name"), "{error}");
}

// Applications.

#[tokio::test]
async fn an_application_proves_itself_once_for_many_requests() {
    let (store, entra) = (store_for("t").await, token_server("t").await);
    let env = [("AZURE_CLIENT_SECRET", "hidden &+~"), ("AZURE_AUTHORITY_HOST", entra.url())];
    let remote = connect(&store, &[&APPLICATION[..], &env].concat()).await.unwrap();
    for _ in 0..3 {
        remote.list(&ListRequest::default()).await.unwrap();
    }
    let [request] = &entra.requests()[..] else { panic!("{:?}", entra.requests()) };
    assert_eq!((request.method(), request.target()), ("POST", "/tenant/oauth2/v2.0/token"));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    for (name, value) in [
        ("grant_type", "client_credentials"),
        ("scope", "https://storage.azure.com/.default"),
        ("client_id", "client"),
        ("client_secret", "hidden &+~"),
    ] {
        assert_eq!(request.parameter(name).as_deref(), Some(value));
    }
    assert_eq!(store.requests().len(), 4);
}

#[tokio::test]
async fn a_clusters_token_is_read_again_when_the_store_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "hidden-1\n").unwrap();
    let (store, entra) = (store_for("t2").await, {
        let count = AtomicUsize::new(0);
        Stub::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => token_reply("t1"),
            _ => token_reply("t2"),
        })
        .await
    });
    let env = [
        ("AZURE_FEDERATED_TOKEN_FILE", path.to_str().unwrap()),
        ("AZURE_AUTHORITY_HOST", entra.url()),
    ];
    // The first token is refused, and the second is not.
    connect(&store, &[&APPLICATION[..], &env].concat()).await.unwrap();
    let proofs = |at: usize| entra.requests()[at].parameter("client_assertion");
    assert_eq!(proofs(0).as_deref(), Some("hidden-1"));
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    assert_eq!(entra.requests()[1].parameter("client_assertion_type").as_deref(), Some(kind));

    fs::write(&path, "hidden-2").unwrap();
    connect(&store, &[&APPLICATION[..], &env].concat()).await.unwrap();
    assert_eq!(proofs(2).as_deref(), Some("hidden-2"));
    fs::remove_file(&path).unwrap();
    let error = failure(&store, &[&APPLICATION[..], &env].concat()).await;
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("AZURE_FEDERATED_TOKEN_FILE: /"), "{error}");
}

#[tokio::test]
async fn a_token_servers_no_is_told_by_its_number_and_nothing_is_tried_without() {
    for (status, code, number, words) in [
        (401, "invalid_client", 7000215, "set its value, not its id"),
        (401, "invalid_client", 7000222, "has expired"),
        (400, "unauthorized_client", 700016, "no such client"),
        (400, "invalid_request", 90002, "no such tenant"),
        (400, "invalid_grant", 50126, "AADSTS50126; refresh or correct the credentials"),
    ] {
        let entra = Stub::start(move |request| no_token(request, status, code, number)).await;
        let store = store_for("t").await;
        let env = [("AZURE_CLIENT_SECRET", "hidden"), ("AZURE_AUTHORITY_HOST", entra.url())];
        let error = failure(&store, &[&APPLICATION[..], &env].concat()).await;
        assert_eq!(error.kind, ErrorKind::Credentials);
        assert!(
            error.message.starts_with("the token of client client in tenant tenant"),
            "{error}"
        );
        assert!(error.message.contains(words), "{error}");
        assert!(store.requests().is_empty());
    }
    let (store, entra) =
        (store_for("t").await, Stub::start(|_| Reply::new(200, &[], "hidden")).await);
    let env = [("AZURE_CLIENT_SECRET", "hidden"), ("AZURE_AUTHORITY_HOST", entra.url())];
    let error = failure(&store, &[&APPLICATION[..], &env].concat()).await;
    assert!(error.message.contains("no token that can be understood"), "{error}");
}

#[tokio::test]
async fn a_token_is_not_sent_where_it_can_be_read() {
    let entra = token_server("hidden").await;
    let env = [("AZURE_CLIENT_SECRET", "hidden"), ("AZURE_AUTHORITY_HOST", entra.url())];
    let env = [&APPLICATION[..], &env].concat();
    let error = connect_with("http://store.invalid", &env, |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("over https only"), "{error}");
    assert!(entra.requests().is_empty());
}

// Services and machines.

#[tokio::test]
async fn a_service_is_asked_with_its_header() {
    let (store, service) = (store_for("t").await, token_server("t").await);
    let endpoint = format!("{}/msi/token", service.url());
    let env = [
        ("IDENTITY_ENDPOINT", endpoint.as_str()),
        ("IDENTITY_HEADER", "hidden"),
        ("AZURE_CLIENT_ID", "client"),
    ];
    connect(&store, &env).await.unwrap();
    let [request] = &service.requests()[..] else { panic!("{:?}", service.requests()) };
    let query = "api-version=2019-08-01&resource=https%3A%2F%2Fstorage.azure.com&client_id=client";
    assert_eq!(request.target(), format!("/msi/token?{query}"));
    assert_eq!(request.header("x-identity-header"), Some("hidden"));

    let service = Stub::start(|request| no_token(request, 400, "invalid_request", 0)).await;
    let error = failure(&store, &[("IDENTITY_ENDPOINT", service.url()), env[1]]).await;
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("assign an identity"), "{error}");
}

/// A machine's metadata service: it answers who says that it is meant with `token`.
async fn machine(token: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Stub {
    Stub::start(move |request| match request.header("metadata") {
        Some("true") => token(request),
        _ => no_token(request, 400, "invalid_request", 0),
    })
    .await
}

#[tokio::test]
async fn a_machine_is_asked_for_what_nobody_may_read() {
    let (store, machine) = (store_for("t").await, machine(|_| token_reply("t")).await);
    let at_machine = (NO_MACHINE.0, machine.url());
    connect(&store, &[at_machine]).await.unwrap();
    let target = "/metadata/identity/oauth2/token?api-version=2018-02-01\
                  &resource=https%3A%2F%2Fstorage.azure.com";
    let asked = machine.requests();
    assert_eq!(asked.iter().map(Request::target).collect::<Vec<_>>(), [target, target]);
    assert!(store.requests()[0].header("authorization").is_none(), "tried without first");

    // What is public is read without, as is whatever the caller says is.
    let public = Stub::start(|_| Reply::new(200, &[], EMPTY)).await;
    connect(&public, &[at_machine]).await.unwrap();
    let unsigned = |options: &mut RemoteOptions| options.no_sign_request = true;
    let key = ("AZURE_STORAGE_KEY", "aGlkZGVu");
    connect_with(public.url(), &[at_machine, key], unsigned).await.unwrap();
    assert!(public.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_machine_without_an_identity_or_of_another_cloud_is_told() {
    let store = store_for("t").await;
    let bare = machine(|request| no_token(request, 400, "invalid_request", 0)).await;
    let error = failure(&store, &[(NO_MACHINE.0, bare.url())]).await;
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("assign an identity to this machine"), "{error}");
    // Other clouds do not know the question; some answer anything with a page.
    for status in [200, 401, 403, 404] {
        let other = Stub::start(move |_| Reply::new(status, &[], "<html>")).await;
        let error = failure(&store, &[(NO_MACHINE.0, other.url())]).await;
        assert!(error.message.contains("no credentials were found"), "{error}");
        assert_eq!(other.requests().len(), 1);
    }
    // With a token that the store does not take, the store's word counts.
    let other = machine(|_| token_reply("other")).await;
    let error = failure(&store, &[(NO_MACHINE.0, other.url())]).await;
    assert!(error.message.contains("InvalidAuthenticationInfo"), "{error}");
}
