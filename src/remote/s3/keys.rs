//! Keys to sign requests with. The SDK's providers say what they are; when they are
//! loaded, and when again, is [`crate::remote::token`]'s, as for every other remote: the
//! next keys are loaded before these end, and nobody waits for them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::error::credentials_error;
use crate::remote::RemoteError;
use crate::remote::answer::late;
use crate::remote::hook::FromJson;
use crate::remote::token::{Given, Token, TokenSource, Tokens};
use crate::remote::token_json::{end, text};

/// Time for loading keys. A role, an SSO token or a process may be behind them.
const LIMIT: Duration = Duration::from_secs(15);

/// Keys, loaded when they are needed.
pub(super) type Keys = Tokens<Credentials>;

/// The keys that one of the SDK's providers has.
pub(super) fn provided(provider: SharedCredentialsProvider, bucket: &str) -> Keys {
    let what = format!("s3://{bucket}");
    Tokens::new(Given::Source(Arc::new(Provided { provider, what })))
}

#[derive(Debug)]
struct Provided {
    provider: SharedCredentialsProvider,
    what: String,
}

#[async_trait]
impl TokenSource<Credentials> for Provided {
    async fn fetch(&self) -> Result<Token<Credentials>, RemoteError> {
        let loaded = timeout(LIMIT, self.provider.provide_credentials()).await;
        let loaded = loaded.map_err(|_| late(&format!("{}: its credentials", self.what), LIMIT))?;
        let keys = loaded.map_err(|error| credentials_error(&self.what, &error))?;
        let end = keys.expiry();
        Ok(Token::of(keys, end))
    }
}

/// Hands keys to the SDK, which signs with them.
#[derive(Debug)]
pub(super) struct Signer(pub(super) Keys);

impl ProvideCredentials for Signer {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let token = self.0.current().await.map_err(CredentialsError::provider_error)?;
            Ok(token.value().clone())
        })
    }
}

/// As `credential_process` of the AWS configuration prints them.
impl FromJson for Credentials {
    const NAME: &'static str = "key set, {\"AccessKeyId\": …, \"SecretAccessKey\": …, \"SessionToken\": …, \"Expiration\": …}";

    fn read(json: &[u8], now: SystemTime) -> Option<Token<Credentials>> {
        let object: Map<String, Value> = serde_json::from_slice(json).ok()?;
        let id = text(&object, &["AccessKeyId"])?;
        let secret = text(&object, &["SecretAccessKey"])?;
        let session = text(&object, &["SessionToken"]).map(str::to_owned);
        let end = end(&object, now).ok()?;
        Some(Token::of(Credentials::new(id, secret, session, end, "hook"), end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    const SET: &str = r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s","SessionToken":"t",
        "Expiration":"2100-01-01T00:00:00Z"}"#;

    #[test]
    fn a_key_set_is_read_whole_or_not_at_all() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_440_000);
        let token = Credentials::read(SET.as_bytes(), now).unwrap();
        let keys = token.value();
        assert_eq!((keys.access_key_id(), keys.secret_access_key()), ("AK", "s"));
        assert_eq!(keys.session_token(), Some("t"));
        assert_eq!(keys.expiry(), token.expires);
        assert_eq!(token.expires, Some(now + Duration::from_secs(4_800)));
        let fixed = br#"{"AccessKeyId":"AK","SecretAccessKey":"s"}"#;
        assert_eq!(Credentials::read(fixed, now).unwrap().expires, None);
        for half in [r#"{"AccessKeyId":"AK"}"#, r#"{"access_token":"t"}"#, "", "[]"] {
            assert!(Credentials::read(half.as_bytes(), now).is_none(), "{half}");
        }
    }

    fuzz_tests!(key_sets);

    fn key_sets(effort: Effort) {
        let target = Target {
            name: "key sets",
            corpus: vec![SET.into()],
            words: &["AccessKeyId", "Expiration", "\"", ":", "{", "}", "null", "-1"],
            inputs: 20_000,
            memory: (32 << 10, 96),
        };
        target.run(effort, |input| Credentials::read(input, SystemTime::now()).is_some());
    }
}
