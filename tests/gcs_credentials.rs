//! Where tokens for Google Cloud Storage come from, against token servers that say no,
//! and metadata servers that are not there.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::stub::{Reply, Request, Stub};
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::gcs::GcsRemote;
use warmfs::remote::{ErrorKind, Key, Remote, RemoteError};

/// Longest that a metadata server which is not there may delay a connect, with
/// room for a busy machine.
const METADATA_DELAY: Duration = Duration::from_millis(1500);

/// Nobody's metadata server is asked unless the test has one.
const NO_METADATA: (&str, &str) = ("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false");

async fn connect(
    store: &Stub,
    env: &[(&str, &str)],
    change: impl FnOnce(&mut RemoteOptions),
) -> (Result<GcsRemote, RemoteError>, Arc<RemoteMetrics>) {
    let mut options =
        RemoteOptions { endpoint_url: Some(store.url().to_owned()), ..RemoteOptions::default() };
    change(&mut options);
    let env: CallerEnv = env.iter().copied().collect();
    let metrics = Arc::default();
    let connected = GcsRemote::connect("bucket", &options, &env, &metrics).await;
    if let Err(error) = &connected {
        assert!(!error.message.contains("hidden") && !error.message.contains('\n'), "{error}");
    }
    (connected, metrics)
}

fn empty() -> Reply {
    Reply::new(200, &[], r#"{"kind": "storage#objects"}"#)
}

/// A store that lets in whoever has `token`, and nobody else.
async fn store_for(token: &'static str) -> Stub {
    Stub::start(move |request| match request.header("authorization") {
        Some(given) if given == format!("Bearer {token}") => empty(),
        Some(_) => Reply::new(401, &[], r#"{"error": {"code": 401, "message": "Invalid"}}"#),
        None => {
            let message = "Anonymous caller does not have storage.objects.list access";
            Reply::new(
                401,
                &[],
                json!({ "error": { "code": 401, "message": message } }).to_string(),
            )
        }
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

fn refused(status: u16, code: &str) -> Reply {
    let body = json!({ "error": code, "error_description": "said\nthe server" });
    Reply::new(status, &[], body.to_string())
}

/// A folder with files of credentials.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: impl ToString) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content.to_string()).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The key of an account that nobody has.
fn key_pem() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("tests/common/keys/service-account.pem")).unwrap()
}

fn service_account(server: &Stub) -> Value {
    json!({
        "type": "service_account",
        "client_email": "reader@project.iam",
        "private_key_id": "key-1",
        "private_key": key_pem(),
        "token_uri": format!("{}/token", server.url()),
    })
}

fn user(server: &Stub) -> Value {
    json!({
        "type": "authorized_user",
        "client_id": "client",
        "client_secret": "hidden secret+",
        "refresh_token": "hidden/refresh",
        "quota_project_id": "other",
        "token_uri": format!("{}/token", server.url()),
    })
}

fn federation(server: &Stub, source: Value) -> Value {
    json!({
        "type": "external_account",
        "audience": "//iam/pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/sts", server.url()),
        "credential_source": source,
    })
}

#[tokio::test]
async fn a_token_server_that_is_ill_for_a_moment_costs_no_mount() {
    let files = Files::new();
    let store = store_for("t").await;
    let asked = AtomicUsize::new(0);
    let google = Stub::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => refused(503, "ill"),
        1 => Reply::reset(&[], b"{", 20),
        _ => token_reply("t"),
    })
    .await;
    connect_with(&store, &files.put("user.json", user(&google))).await.unwrap();
    assert_eq!(google.requests().len(), 3);
}

#[tokio::test]
async fn the_quota_project_of_a_login_pays_where_somebody_has_to() {
    const PROJECT: (&str, &str) = ("GOOGLE_CLOUD_PROJECT", "mine");
    const QUOTA: (&str, &str) = ("GOOGLE_CLOUD_QUOTA_PROJECT", "quota");
    let files = Files::new();
    let google = Stub::start(|request: &Request| match request.target() {
        "/impersonate" => {
            Reply::new(200, &[], r#"{"accessToken": "t", "expireTime": "2100-01-01T00:00:00Z"}"#)
        }
        _ => token_reply("t"),
    })
    .await;
    let login = user(&google);
    let mut unpaid = login.clone();
    unpaid["quota_project_id"] = Value::Null;
    let wrapped = json!({
        "type": "impersonated_service_account",
        "quota_project_id": "borrowed",
        "service_account_impersonation_url": format!("{}/impersonate", google.url()),
        "source_credentials": login,
    });
    let [login, unpaid, wrapped] =
        [("a", login), ("b", unpaid), ("c", wrapped)].map(|(name, file)| files.put(name, file));
    for (file, env, is_free, payers) in [
        (&login, &[PROJECT][..], false, &[None, Some("other")][..]),
        (&login, &[QUOTA, PROJECT], false, &[Some("quota")]),
        (&unpaid, &[PROJECT], false, &[None, Some("mine")]),
        (&wrapped, &[], false, &[None, Some("borrowed")]),
        // Nobody is billed who need not be.
        (&login, &[PROJECT], true, &[None]),
    ] {
        let store = Stub::start(move |request| match request.parameter("userProject") {
            None if !is_free => {
                let message = "Bucket is a requester pays bucket but no user project provided.";
                let error = json!({ "code": 400, "message": message,
                    "errors": [{ "reason": "required", "message": message }] });
                Reply::new(400, &[], json!({ "error": error }).to_string())
            }
            _ => empty(),
        })
        .await;
        let name = ("GOOGLE_APPLICATION_CREDENTIALS", file.as_str());
        let env: Vec<_> = [name, NO_METADATA].iter().chain(env).copied().collect();
        connect(&store, &env, |_| ()).await.0.unwrap();
        let named = |request: &Request| request.parameter("userProject");
        let named: Vec<_> = store.requests().iter().map(named).collect();
        assert_eq!(named.iter().map(Option::as_deref).collect::<Vec<_>>(), payers);
    }
}

async fn connect_with(store: &Stub, file: &str) -> Result<GcsRemote, RemoteError> {
    let env = [("GOOGLE_APPLICATION_CREDENTIALS", file), NO_METADATA];
    connect(store, &env, |_| ()).await.0
}

// Kinds of files.

#[tokio::test]
async fn a_service_account_signs_a_claim() {
    let (store, google) = (store_for("t").await, token_server("t").await);
    let files = Files::new();
    let file = files.put("key.json", service_account(&google));
    connect_with(&store, &file).await.unwrap();

    let request = &google.requests()[0];
    assert_eq!((request.method(), request.target()), ("POST", "/token"));
    let grant = request.parameter("grant_type").unwrap();
    assert_eq!(grant, "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let assertion = request.parameter("assertion").unwrap();
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_slice(key_pem().as_bytes()).unwrap();
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key())
        .verify(signed.as_bytes(), &decode(signature))
        .unwrap();
    let (head, claim) = signed.split_once('.').unwrap();
    let [head, claim] =
        [head, claim].map(|part| serde_json::from_slice::<Value>(&decode(part)).unwrap());
    assert_eq!(head, json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }));
    assert_eq!(claim["iss"], "reader@project.iam");
    assert_eq!(claim["aud"], format!("{}/token", google.url()));
    assert_eq!(claim["scope"], "https://www.googleapis.com/auth/devstorage.read_only");
    assert_eq!(claim["exp"].as_u64().unwrap() - claim["iat"].as_u64().unwrap(), 3600);
}

#[tokio::test]
async fn a_login_is_refreshed() {
    let (store, google) = (store_for("t").await, token_server("t").await);
    let files = Files::new();
    let file = files.put("user.json", user(&google));
    let remote = connect_with(&store, &file).await.unwrap();
    let form = |request: &Request, name| request.parameter(name).unwrap_or_default();
    let request = google.requests()[0].clone();
    assert_eq!(form(&request, "grant_type"), "refresh_token");
    assert_eq!(form(&request, "refresh_token"), "hidden/refresh");
    assert_eq!(form(&request, "client_id"), "client");
    assert_eq!(form(&request, "client_secret"), "hidden secret+");
    let _ = remote.head(&Key("k".into())).await;
    assert_eq!(google.requests().len(), 1, "one token for all requests");

    // A login of a workforce's says who it is in a header.
    let mut external = user(&google);
    external["type"] = json!("external_account_authorized_user");
    external["token_url"] = json!(format!("{}/sts", google.url()));
    connect_with(&store, &files.put("external.json", external)).await.unwrap();
    let request = google.requests()[1].clone();
    assert_eq!(request.target(), "/sts");
    assert_eq!(form(&request, "refresh_token"), "hidden/refresh");
    assert_eq!(form(&request, "client_secret"), "");
    let basic = request.header("authorization").unwrap();
    assert_eq!(basic, "Basic Y2xpZW50OmhpZGRlbiBzZWNyZXQr");
}

#[tokio::test]
async fn somebody_elses_place_is_taken_with_an_own_token() {
    let store = store_for("borrowed").await;
    let google = Stub::start(|request| match request.target() {
        "/token" => token_reply("hidden-own"),
        _ => {
            let answer = json!({ "accessToken": "borrowed", "expireTime": "2199-01-01T00:00:00Z" });
            Reply::new(200, &[], answer.to_string())
        }
    })
    .await;
    let files = Files::new();
    let file = json!({
        "type": "impersonated_service_account",
        "service_account_impersonation_url": format!("{}/v1/a@b.iam:generateAccessToken", google.url()),
        "delegates": ["one", "two"],
        "source_credentials": user(&google),
    });
    connect_with(&store, &files.put("impersonated.json", file)).await.unwrap();
    let request = &google.requests()[1];
    assert_eq!((request.method(), request.target()), ("POST", "/v1/a@b.iam:generateAccessToken"));
    assert_eq!(request.header("authorization"), Some("Bearer hidden-own"));
    let expected = json!({
        "scope": ["https://www.googleapis.com/auth/devstorage.read_only"],
        "lifetime": "3600s",
        "delegates": ["one", "two"],
    });
    assert_eq!(serde_json::from_str::<Value>(&request.body).unwrap(), expected);
}

#[tokio::test]
async fn a_foreign_token_is_exchanged() {
    let store = store_for("t").await;
    let google = Stub::start(|request| match request.target() {
        "/sts" => token_reply("t"),
        "/mine?audience=a%2Fb" => Reply::new(200, &[], r#"{"value": "foreign"}"#),
        target => panic!("{target}"),
    })
    .await;
    let files = Files::new();
    let text = files.put("token", "foreign\n");
    let in_json = files.put("token.json", r#"{"id_token": "foreign"}"#);
    let from_json = |field| json!({ "type": "json", "subject_token_field_name": field });
    let url = format!("{}/mine?audience=a%2Fb", google.url());
    let headers = json!({ "Authorization": "bearer hidden", "Metadata": "True" });
    for source in [
        json!({ "file": text }),
        json!({ "file": in_json, "format": from_json("id_token") }),
        json!({ "url": url, "headers": headers, "format": from_json("value") }),
    ] {
        let file = files.put("federation.json", federation(&google, source));
        connect_with(&store, &file).await.unwrap();
        let request = google.requests().last().unwrap().clone();
        for (name, value) in [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", "//iam/pool"),
            ("scope", "https://www.googleapis.com/auth/devstorage.read_only"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", "foreign"),
        ] {
            assert_eq!(request.parameter(name).as_deref(), Some(value));
        }
        assert_eq!(request.header("authorization"), None);
    }
    let asked = &google.requests()[2];
    assert_eq!(asked.header("metadata"), Some("True"));
    assert_eq!(asked.header("authorization"), Some("bearer hidden"));
}

#[tokio::test]
async fn files_that_cannot_be_used_say_why() {
    let (store, google) = (store_for("t").await, token_server("t").await);
    let files = Files::new();
    let without = |file: Value, name: &str| {
        let mut file = file;
        file.as_object_mut().unwrap().remove(name);
        file
    };
    let with = |file: Value, name: &str, value: Value| {
        let mut file = file;
        file[name] = value;
        file
    };
    let impersonated = |source: Value| {
        json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": "http://127.0.0.1",
            "source_credentials": source,
        })
    };
    let program = json!({ "executable": { "command": "hidden" } });
    let of_aws = json!({ "environment_id": "aws1", "url": "http://127.0.0.1/hidden" });
    for (file, words) in [
        (json!("hidden"), "\"type\""),
        (json!({ "type": "gdch_service_account", "private_key": "hidden" }), "none that is known"),
        (without(user(&google), "refresh_token"), "\"refresh_token\""),
        (with(user(&google), "refresh_token", json!(["hidden"])), "\"refresh_token\""),
        (with(user(&google), "token_uri", json!("hidden")), "\"token_uri\""),
        (with(service_account(&google), "private_key", json!("hidden")), "private_key"),
        (federation(&google, program), "--credential-command"),
        (federation(&google, of_aws), "neither a file nor a url"),
        (federation(&google, json!({ "file": "hidden" })), "absolute"),
        (federation(&google, json!({ "file": "/nowhere" })), "/nowhere"),
        (impersonated(impersonated(user(&google))), "twice"),
        (with(impersonated(user(&google)), "delegates", json!(["hidden", 7])), "\"delegates\""),
        (without(impersonated(user(&google)), "source_credentials"), "\"type\""),
    ] {
        let path = files.put("file.json", file);
        let error = connect_with(&store, &path).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
        assert!(error.message.contains(words), "{words}: {error}");
        assert!(error.message.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{error}");
    }
    let large = user(&google).to_string() + &" ".repeat(70_000);
    for (content, words) in
        [("", "not JSON"), ("{", "not JSON"), ("\u{0}", "not JSON"), (&large, "too large")]
    {
        let error = connect_with(&store, &files.put("file.json", content)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let pipe = files.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = connect_with(&store, pipe.to_str().unwrap()).await.unwrap_err();
    assert!(error.message.contains("it is no file"), "{error}");
    let error = connect_with(&store, "/nowhere/file.json").await.unwrap_err();
    assert!(error.message.contains("/nowhere/file.json"), "{error}");
    assert!(store.requests().is_empty() && google.requests().is_empty());
}

// The order, and what never happens.

#[tokio::test]
async fn the_first_that_is_there_decides() {
    let google = Stub::start(|request| {
        let client = request.parameter("client_id").unwrap();
        token_reply(&client)
    })
    .await;
    let files = Files::new();
    let of = |client: &str| {
        let mut file = user(&google);
        file["client_id"] = json!(client);
        file
    };
    let named = files.put("named.json", of("named"));
    let token_file = files.put("token", "from-file\n");
    files.put("config/application_default_credentials.json", of("config"));
    files.put("home/.config/gcloud/application_default_credentials.json", of("home"));
    let (config, home) = (files.path("config"), files.path("home"));
    let (config, home) = (config.to_str().unwrap(), home.to_str().unwrap());
    let all = [
        ("GOOGLE_APPLICATION_CREDENTIALS", &*named, "named"),
        ("CLOUDSDK_AUTH_ACCESS_TOKEN", "from-variable", "from-variable"),
        ("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", &*token_file, "from-file"),
        ("CLOUDSDK_CONFIG", config, "config"),
        ("HOME", home, "home"),
    ];
    for first in 0..all.len() {
        let store = Stub::start(|_| empty()).await;
        let env: Vec<_> = all[first..].iter().map(|(name, value, _)| (*name, *value)).collect();
        connect(&store, &env, |_| ()).await.0.unwrap();
        let expected = format!("Bearer {}", all[first].2);
        assert_eq!(store.requests()[0].header("authorization"), Some(&*expected));
        connect(&store, &env, |options| options.no_sign_request = true).await.0.unwrap();
        assert_eq!(store.requests()[1].header("authorization"), None);
    }
    // A home is written with a tilde, too.
    let store = Stub::start(|_| empty()).await;
    let path = "~/.config/gcloud/application_default_credentials.json";
    let env = [("GOOGLE_APPLICATION_CREDENTIALS", path), ("HOME", home)];
    connect(&store, &env, |_| ()).await.0.unwrap();
    assert_eq!(store.requests()[0].header("authorization"), Some("Bearer home"));
}

#[tokio::test]
async fn an_emulator_gets_no_token() {
    let store = Stub::start(|_| empty()).await;
    let token = ("CLOUDSDK_AUTH_ACCESS_TOKEN", "hidden");
    for url in [store.url(), store.url().strip_prefix("http://").unwrap()] {
        let env = [("STORAGE_EMULATOR_HOST", url), token];
        connect(&store, &env, |options| options.endpoint_url = None).await.0.unwrap();
        assert_eq!(store.requests().last().unwrap().header("authorization"), None);
    }
    // Who names an endpoint means a store.
    let env = [("STORAGE_EMULATOR_HOST", "other.invalid"), token];
    connect(&store, &env, |_| ()).await.0.unwrap();
    assert!(store.requests().last().unwrap().header("authorization").is_some());
}

#[tokio::test]
async fn credentials_that_fail_never_become_anonymous() {
    let files = Files::new();
    for (status, code, kind) in [
        (400, "invalid_grant", ErrorKind::Credentials),
        (401, "invalid_client", ErrorKind::Credentials),
        (403, "unauthorized_client", ErrorKind::Credentials),
    ] {
        let store = Stub::start(|_| empty()).await;
        let google = Stub::start(move |_| refused(status, code)).await;
        let file = files.put("user.json", user(&google));
        let error = connect_with(&store, &file).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        for word in [code, "said the server", "gcloud auth application-default login", &file] {
            assert!(error.message.contains(word), "{word}: {error}");
        }
        assert!(store.requests().is_empty());
    }
    // A server that is ill is no reason to log in.
    let store = Stub::start(|_| empty()).await;
    let google = Stub::start(|_| refused(503, "ill")).await;
    let error = connect_with(&store, &files.put("user.json", user(&google))).await.unwrap_err();
    assert!(error.is_retryable() && !error.message.contains("gcloud"), "{error}");
    let host = google.url().strip_prefix("http://").unwrap();
    let said = format!("a token from {host}: the token server answered 503 ill");
    assert!(error.message.contains(&said), "{error}");
    assert!(store.requests().is_empty());
    // What is not the token server's answer is none.
    let store = Stub::start(|_| empty()).await;
    let google = Stub::start(|_| Reply::new(200, &[], r#"{"id_token": "hidden"}"#)).await;
    let file = files.put("user.json", user(&google));
    let error = connect_with(&store, &file).await.unwrap_err();
    assert!(error.message.contains("usable token"), "{error}");
    // A clock that is wrong is known by what the server says.
    let google = Stub::start(|_| {
        let said =
            json!({ "error": "invalid_grant", "error_description": "Check your iat and exp" });
        Reply::new(400, &[], said.to_string())
    })
    .await;
    let file = files.put("key.json", service_account(&google));
    let error = connect_with(&store, &file).await.unwrap_err();
    assert!(error.message.ends_with("set this machine's clock"), "{error}");
    assert!(store.requests().is_empty());
}

#[tokio::test]
async fn a_store_that_is_denied_to_a_token_is_no_anonymous_one() {
    let store = store_for("other").await;
    let env = [("CLOUDSDK_AUTH_ACCESS_TOKEN", "hidden"), NO_METADATA];
    let error = connect(&store, &env, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
    assert!(store.requests().iter().all(|request| request.header("authorization").is_some()));

    // Nobody who asks for it is sent away: objects may be public where the list is not.
    let anonymous = connect(&store, &[], |options| options.no_sign_request = true).await.0.unwrap();
    let error = anonymous.head(&Key("k".into())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.message.contains("not public"), "{error}");
}

// Tokens that end.

#[tokio::test]
async fn a_token_that_the_store_refuses_is_replaced_once() {
    let count = AtomicUsize::new(0);
    let google =
        Stub::start(move |_| token_reply(["t1", "t2", "t3"][count.fetch_add(1, Ordering::SeqCst)]))
            .await;
    let store = Stub::start(|request| match request.header("authorization") {
        Some("Bearer t1") if request.target().contains("fields=kind") => empty(),
        Some("Bearer t2") => {
            let body = r#"{"size": "1", "generation": "1"}"#;
            Reply::new(200, &[], body)
        }
        _ => Reply::new(401, &[], "Invalid Credentials"),
    })
    .await;
    let files = Files::new();
    let file = files.put("user.json", user(&google));
    let remote = connect_with(&store, &file).await.unwrap();
    remote.head(&Key("k".into())).await.unwrap();
    assert_eq!(google.requests().len(), 2);
    let tokens: Vec<_> = store
        .requests()
        .iter()
        .map(|request| request.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(tokens, ["Bearer t1", "Bearer t1", "Bearer t2"]);
}

#[tokio::test]
async fn a_new_login_is_found_in_the_file() {
    let store = Stub::start(|request| match request.header("authorization") {
        Some("Bearer old") if request.target().contains("fields=kind") => empty(),
        Some("Bearer new") => Reply::new(200, &[], r#"{"size": "1", "generation": "1"}"#),
        _ => Reply::new(401, &[], "Invalid Credentials"),
    })
    .await;
    let files = Files::new();
    let file = files.put("token", "old");
    let env = [("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", &*file), NO_METADATA];
    let remote = connect(&store, &env, |_| ()).await.0.unwrap();
    files.put("token", "new");
    remote.head(&Key("k".into())).await.unwrap();
}

// The metadata server.

/// Nothing configured, and a metadata server at this address.
fn only_metadata(url: &str) -> [(&str, &str); 1] {
    [("GCE_METADATA_HOST", url.strip_prefix("http://").unwrap_or(url))]
}

/// One that has a token, and a project without a name.
async fn metadata_server() -> Stub {
    Stub::start(|request| match request.target() {
        "/computeMetadata/v1/instance/service-accounts/default/token" => {
            assert_eq!(request.header("metadata-flavor"), Some("Google"));
            token_reply("machine")
        }
        _ => Reply::new(200, &[("metadata-flavor", "Google")], ""),
    })
    .await
}

#[tokio::test]
async fn a_public_bucket_does_not_wait_for_the_metadata_server() {
    let store = Stub::start(|_| empty()).await;
    let silent = Stub::start(|_| Reply::silence()).await;
    for url in [silent.url(), "192.0.2.1"] {
        let start = Instant::now();
        let (remote, metrics) = connect(&store, &only_metadata(url), |_| ()).await;
        remote.unwrap();
        assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
        assert_eq!(metrics.list.requests.get(), 1);
        assert_eq!(store.requests().last().unwrap().header("authorization"), None);
    }
}

#[tokio::test]
async fn a_metadata_server_that_is_not_there_costs_a_second_at_most() {
    let silent = Stub::start(|_| Reply::silence()).await;
    let missing = Stub::start(|_| Reply::new(404, &[], "<html>not found</html>")).await;
    let failing = Stub::start(|_| Reply::new(500, &[], "")).await;
    let nonsense = Stub::start(|_| Reply::new(200, &[], "<html>log in</html>")).await;
    // The last one: an address of a network that is for documentation only.
    for url in [silent.url(), missing.url(), failing.url(), nonsense.url(), "192.0.2.1"] {
        let store = store_for("machine").await;
        let start = Instant::now();
        let error = connect(&store, &only_metadata(url), |_| ()).await.0.unwrap_err();
        assert!(start.elapsed() < METADATA_DELAY, "{url}: {:?}", start.elapsed());
        assert_eq!(error.kind, ErrorKind::Credentials);
        for word in ["gcloud auth", "GOOGLE_APPLICATION_CREDENTIALS", "--no-sign-request"] {
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(store.requests().len(), 1);
    }
}

#[tokio::test]
async fn the_machines_token_is_used_when_the_bucket_wants_one() {
    let (store, metadata) = (store_for("machine").await, metadata_server().await);
    let (remote, metrics) = connect(&store, &only_metadata(metadata.url()), |_| ()).await;
    remote.unwrap();
    assert_eq!(metrics.list.requests.get(), 2);
    assert_eq!(metadata.requests().len(), 1, "{:?}", metadata.requests());
}

#[tokio::test]
async fn a_login_that_comes_later_is_found_by_the_next_mount() {
    let store = store_for("machine").await;
    let count = AtomicUsize::new(0);
    let metadata = Stub::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(404, &[], "no login yet"),
        _ => token_reply("machine"),
    })
    .await;
    let env = only_metadata(metadata.url());
    let error = connect(&store, &env, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
    connect(&store, &env, |_| ()).await.0.unwrap();
}

#[tokio::test]
async fn the_metadata_server_is_not_asked_against_the_callers_will() {
    let store = store_for("machine").await;
    let metadata = metadata_server().await;
    let mut env = only_metadata(metadata.url()).to_vec();
    env.push(NO_METADATA);
    let error = connect(&store, &env, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(!error.message.contains("metadata"), "{error}");
    assert!(metadata.requests().is_empty());
}

#[tokio::test]
async fn a_metadata_server_that_is_no_host_is_named() {
    let store = Stub::start(|_| empty()).await;
    let error = connect(&store, &[("GCE_METADATA_HOST", "a b")], |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("GCE_METADATA_HOST"), "{error}");
}
