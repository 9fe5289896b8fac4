//! A key of the caller's own, with which the store decrypts what was stored with it: SSE-C
//! of S3, customer-supplied keys of Google Cloud Storage, customer-provided keys of Azure.
//!
//! It comes in `WARMFS_CUSTOMER_KEY`, which travels as credentials do, or is in the file
//! that `--customer-key-file` names, which is read each time a remote is connected. It goes
//! along with each HEAD and GET, over https or to this machine only, and into no message
//! and no log. An object that is stored without it, or with another, is refused by the
//! store: asked again without, it would take two requests where one is promised.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::base_url::BaseUrl;
use super::blocking;
use super::{ErrorKind, RemoteError};
use crate::config::{CallerEnv, RemoteOptions};

/// What a user can do about an object and its key, whatever the store.
pub(super) const GIVE_KEY: &str =
    "it is encrypted with a key of your own; give --customer-key-file";
pub(super) const LEAVE_KEY_OUT: &str =
    "it is not encrypted with a key of your own; mount it without --customer-key-file";
pub(super) const OTHER_KEY: &str =
    "it is encrypted with another key of your own; give that one as --customer-key-file";

/// AES-256 is all that the stores offer.
const KEY_BYTES: usize = 32;

/// Most bytes of a file that are read. A key in base64 has 44, and perhaps a line's end.
const FILE_BYTES_MAX: u64 = 256;

/// A key, as stores take it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CustomerKey([u8; KEY_BYTES]);

impl CustomerKey {
    /// What stores call the algorithm.
    pub(super) const ALGORITHM: &str = "AES256";

    /// The caller's key for the store at `endpoint`, if there is one. `None` stands for an
    /// endpoint that is asked over https anyway.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no key, and for a store to which it would travel
    /// in the open.
    pub(super) async fn find(
        options: &RemoteOptions,
        env: &CallerEnv,
        endpoint: impl Into<Option<&BaseUrl>>,
    ) -> Result<Option<CustomerKey>, RemoteError> {
        let (key, named_by) = match (&options.customer_key_file, env.get(CallerEnv::CUSTOMER_KEY)) {
            (Some(path), _) => {
                let path = path.clone();
                (blocking(move || Self::read(&path)).await?, "--customer-key-file")
            }
            (None, Some(text)) => {
                let name = CallerEnv::CUSTOMER_KEY;
                let key = Self::parse(text.as_bytes()).map_err(|why| refuse(name, &why))?;
                (key, name)
            }
            (None, None) => return Ok(None),
        };
        match endpoint.into() {
            Some(endpoint) if !endpoint.is_confidential() => {
                let host = endpoint.host();
                let message = format!(
                    "{named_by}: a key is sent over https only; write the endpoint as \
                     https://{host}"
                );
                Err(RemoteError::new(ErrorKind::Invalid, message))
            }
            _ => Ok(Some(key)),
        }
    }

    /// The key in a file. Blocks.
    fn read(path: &Path) -> Result<CustomerKey, RemoteError> {
        let refuse = |why: String| refuse(&format!("--customer-key-file {}", path.display()), &why);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
        let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|error| refuse(error.to_string()))?;
        Self::parse(&bytes).map_err(refuse)
    }

    /// A key, or its base64. An error tells of it no more than how long it is.
    fn parse(bytes: &[u8]) -> Result<CustomerKey, String> {
        if let Ok(key) = bytes.try_into() {
            return Ok(CustomerKey(key));
        }
        let (found, of) = match BASE64.decode(bytes.trim_ascii()) {
            Ok(key) if key.len() == KEY_BYTES => return Self::parse(&key),
            Ok(key) => (key.len(), "its base64 is of"),
            Err(_) => (bytes.len(), "it has"),
        };
        Err(format!("{of} {found} bytes, and a key has {KEY_BYTES}, or is the base64 of them"))
    }

    /// The key in base64. A secret.
    pub(super) fn base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// What S3 tells by whether the key came as it was sent.
    pub(super) fn md5(&self) -> String {
        BASE64.encode(Md5::digest(self.0))
    }

    /// The same for others.
    pub(super) fn sha256(&self) -> String {
        BASE64.encode(Sha256::digest(self.0))
    }
}

fn refuse(named_by: &str, why: &str) -> RemoteError {
    let message = format!("{named_by}: {why}; `openssl rand -out FILE {KEY_BYTES}` makes a key");
    RemoteError::new(ErrorKind::Invalid, message)
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    /// Of 32 bytes `k`.
    const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

    #[test]
    fn a_key_is_32_bytes_or_their_base64() {
        let key = CustomerKey::parse(&[b'k'; 32]).unwrap();
        assert_eq!(key.base64(), KEY);
        for text in [KEY.to_owned(), format!("{KEY}\r\n")] {
            assert_eq!(CustomerKey::parse(text.as_bytes()).unwrap(), key);
        }
        for (wrong, words) in [
            ("", "is of 0 bytes"),
            ("c2VjcmV0", "is of 6 bytes"),
            ("secret secret secret secret secret", "has 34 bytes"),
        ] {
            let why = CustomerKey::parse(wrong.as_bytes()).unwrap_err();
            assert!(why.contains(words) && !why.contains("secret"), "{why}");
        }
        assert_eq!(format!("{:?}", Some(key)), "Some(CustomerKey)");
    }

    #[tokio::test]
    async fn a_key_goes_to_nobody_in_the_open() {
        let endpoint = |url| BaseUrl::parse("--endpoint-url", url).unwrap();
        let env: CallerEnv = [(CallerEnv::CUSTOMER_KEY, KEY)].into_iter().collect();
        for url in ["https://store", "http://127.0.0.1:9000", "http://localhost"] {
            let found = CustomerKey::find(&RemoteOptions::default(), &env, &endpoint(url)).await;
            assert!(found.unwrap().is_some(), "{url}");
        }
        let open = endpoint("http://store:9000");
        let error = CustomerKey::find(&RemoteOptions::default(), &env, &open).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.ends_with("https://store:9000"), "{error}");
        assert!(!error.message.contains(KEY), "{error}");
    }

    #[tokio::test]
    async fn the_file_comes_before_the_variable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let env: CallerEnv = [(CallerEnv::CUSTOMER_KEY, "no key")].into_iter().collect();
        let mut options = RemoteOptions::default();
        let error = CustomerKey::find(&options, &env, None).await.unwrap_err();
        assert!(error.message.starts_with("WARMFS_CUSTOMER_KEY: it has 6 bytes"), "{error}");
        options.customer_key_file = Some(path.clone());
        let error = CustomerKey::find(&options, &env, None).await.unwrap_err();
        assert!(error.message.contains("No such file"), "{error}");
        std::fs::write(&path, [b'k'; 32]).unwrap();
        let key = CustomerKey::find(&options, &env, None).await.unwrap().unwrap();
        assert_eq!(key.base64(), KEY);
        assert!(
            CustomerKey::find(&RemoteOptions::default(), &CallerEnv::default(), None)
                .await
                .unwrap()
                .is_none()
        );
    }

    fuzz_tests!(keys);

    fn keys(effort: Effort) {
        let target = Target {
            name: "a customer's key",
            corpus: [KEY.as_bytes(), &[b'k'; 32]].map(Vec::from).to_vec(),
            words: &["=", "==", "\n", "a2tr"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| CustomerKey::parse(input).is_ok());
    }
}
