//! What is found where. The profile's own ways to credentials are the SDK's;
//! requests made with what was found are in `tests/remote_wire.rs`.

use super::*;
use crate::remote::http::HttpClient;

async fn find(options: &RemoteOptions, env: &[(&str, &str)]) -> Result<Found, RemoteError> {
    let env: CallerEnv = env.iter().copied().collect();
    let http = HttpClient::open(options, &env, None).await?.for_sdk();
    CallerConfig::load(options, &env).await?.find(options, &env, &http, None)
}

async fn refused(env: &[(&str, &str)]) -> String {
    let error = find(&RemoteOptions::default(), env).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(!error.message.contains('\n') && !error.message.contains("hidden"), "{error}");
    error.message
}

#[tokio::test]
async fn nothing_configured_leaves_the_metadata_service() {
    let options = RemoteOptions::default();
    assert!(matches!(find(&options, &[]).await, Ok(Found::Nothing(Some(_)))));
    let disabled = [("AWS_EC2_METADATA_DISABLED", "TRUE")];
    assert!(matches!(find(&options, &disabled).await, Ok(Found::Nothing(None))));
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/config"), "[default]\nregion = eu-west-1\n").unwrap();
    let env = [("HOME", home.path().to_str().unwrap())];
    // A profile without credentials is no source of any, but has a region.
    assert!(matches!(find(&options, &env).await, Ok(Found::Nothing(Some(_)))));
    let config = CallerConfig::load(&options, &env.into_iter().collect()).await.unwrap();
    assert_eq!(config.get("region"), Some("eu-west-1"));
}

#[tokio::test]
async fn half_of_a_configuration_is_an_error() {
    let id = ("AWS_ACCESS_KEY_ID", "AKID");
    let secret = ("AWS_SECRET_ACCESS_KEY", "hidden");
    assert!(refused(&[id]).await.starts_with("AWS_SECRET_ACCESS_KEY is not set"));
    assert!(refused(&[secret]).await.starts_with("AWS_ACCESS_KEY_ID is not set"));
    assert!(refused(&[("AWS_SESSION_TOKEN", "hidden")]).await.contains("AWS_SESSION_TOKEN"));
    let token = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token");
    assert!(refused(&[token]).await.contains("AWS_ROLE_ARN"));
    let both = find(&RemoteOptions::default(), &[token, ("AWS_ROLE_ARN", "arn")]).await;
    assert!(matches!(both, Ok(Found::Named(_))));
}

#[tokio::test]
async fn no_signature_wins_over_everything() {
    let options = RemoteOptions {
        no_sign_request: true,
        profile: Some("missing".into()),
        ..RemoteOptions::default()
    };
    let env = [("AWS_ACCESS_KEY_ID", "AKID")];
    assert!(matches!(find(&options, &env).await, Ok(Found::Unsigned)));
}

#[tokio::test]
async fn another_processs_container_credentials_are_not_used() {
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/not-in-this-process");
    assert!(refused(&[uri]).await.contains("--profile"));
}

#[tokio::test]
async fn a_malformed_file_or_missing_profile_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[profile a]\nregion = x\n[broken\n").unwrap();
    let path = ("AWS_CONFIG_FILE", file.path().to_str().unwrap());
    assert!(refused(&[path]).await.contains("configuration files"));
    std::fs::write(file.path(), "[profile a]\nregion = x\n").unwrap();
    let message = refused(&[path, ("AWS_PROFILE", "b")]).await;
    assert!(message.contains("\"b\" (found: a)"), "{message}");
}

#[tokio::test]
async fn secrets_do_not_print() {
    let keys = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    let found = find(&RemoteOptions::default(), &keys).await.unwrap();
    assert!(!format!("{found:?}").contains("hidden"));
}

#[tokio::test]
async fn a_metadata_address_that_is_no_url_is_an_error() {
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "not a url")];
    let error = find(&RemoteOptions::default(), &env).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("not a url"), "{error}");
}
