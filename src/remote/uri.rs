//! What the user types: `s3://bucket/prefix`, `gs://`, `az://`, `ais://`,
//! `file:///folder`.
//!
//! A prefix is taken as it stands, as the clouds' own tools do: `%20` is three
//! characters of it. Only what is copied from a browser, an `https://` address of
//! Azure's, is decoded.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed URI of something mountable. Each prefix is a key prefix: empty, or
/// ending in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteUri {
    /// `s3://bucket[/prefix]`.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Key prefix.
        prefix: String,
    },
    /// `gs://bucket[/prefix]`.
    Gcs {
        /// Bucket name.
        bucket: String,
        /// Key prefix.
        prefix: String,
    },
    /// `az://account/container[/prefix]`, and other ways to write the same.
    Azure {
        /// Storage account.
        account: String,
        /// Container in it.
        container: String,
        /// Key prefix.
        prefix: String,
    },
    /// `ais://bucket[/prefix]`, `ais://@provider/bucket[/prefix]`.
    Ais {
        /// The cloud behind the cluster; `None` for a bucket of its own.
        provider: Option<AisProvider>,
        /// Bucket name.
        bucket: String,
        /// Key prefix.
        prefix: String,
    },
    /// `file:///folder`.
    File {
        /// Absolute path of the folder.
        path: PathBuf,
    },
}

/// The clouds that an AIStore cluster can stand before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AisProvider {
    /// Amazon S3.
    Aws,
    /// Google Cloud Storage.
    Gcp,
    /// Azure Blob Storage.
    Azure,
    /// Oracle Object Storage.
    Oci,
}

impl AisProvider {
    const ALL: [AisProvider; 4] =
        [AisProvider::Aws, AisProvider::Gcp, AisProvider::Azure, AisProvider::Oci];

    /// Its name in URIs and in the cluster's API.
    pub fn as_str(self) -> &'static str {
        match self {
            AisProvider::Aws => "aws",
            AisProvider::Gcp => "gcp",
            AisProvider::Azure => "azure",
            AisProvider::Oci => "oci",
        }
    }
}

impl RemoteUri {
    /// The key prefix the mount's root stands for: empty, or ending in `/`.
    pub fn prefix(&self) -> &str {
        match self {
            RemoteUri::S3 { prefix, .. }
            | RemoteUri::Gcs { prefix, .. }
            | RemoteUri::Azure { prefix, .. }
            | RemoteUri::Ais { prefix, .. } => prefix,
            RemoteUri::File { .. } => "",
        }
    }

    /// Another prefix of the same bucket; a folder stays what it is.
    pub fn with_prefix(&self, other: &str) -> RemoteUri {
        let mut uri = self.clone();
        match &mut uri {
            RemoteUri::S3 { prefix, .. }
            | RemoteUri::Gcs { prefix, .. }
            | RemoteUri::Azure { prefix, .. }
            | RemoteUri::Ais { prefix, .. } => *prefix = other.to_owned(),
            RemoteUri::File { .. } => {}
        }
        uri
    }
}

impl fmt::Display for RemoteUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteUri::S3 { bucket, .. } => write!(f, "s3://{bucket}")?,
            RemoteUri::Gcs { bucket, .. } => write!(f, "gs://{bucket}")?,
            RemoteUri::Azure { account, container, .. } => write!(f, "az://{account}/{container}")?,
            RemoteUri::Ais { provider: None, bucket, .. } => write!(f, "ais://{bucket}")?,
            RemoteUri::Ais { provider: Some(provider), bucket, .. } => {
                write!(f, "ais://@{}/{bucket}", provider.as_str())?;
            }
            RemoteUri::File { path } => write!(f, "file://{}", path.display())?,
        }
        match self.prefix().trim_end_matches('/') {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

/// Why a text is not a URI that can be mounted. One line, with a next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UriError(String);

const EXAMPLES: &str = "use s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX], \
                        az://ACCOUNT/CONTAINER[/PREFIX], ais://[@PROVIDER/]BUCKET[/PREFIX] or \
                        file:///FOLDER";

/// Where the containers of a public account are, after the account's name.
const AZURE_HOSTS: [&str; 2] = [".blob.core.windows.net", ".dfs.core.windows.net"];

/// Containers that Azure itself names.
const AZURE_OWN: [&str; 3] = ["$root", "$web", "$logs"];

impl FromStr for RemoteUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UriError(format!("{:?} is not a URI: {EXAMPLES}", shown(text))));
        };
        match scheme {
            "s3" => {
                let (bucket, prefix) = in_bucket(text, rest, b"-._:")?;
                Ok(RemoteUri::S3 { bucket, prefix })
            }
            "gs" => {
                let (bucket, prefix) = in_bucket(text, rest, b"-._")?;
                Ok(RemoteUri::Gcs { bucket, prefix })
            }
            "az" => {
                let (account, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                azure(text, account, container, prefix)
            }
            "abfs" | "abfss" => parse_abfs(text, rest),
            "https" => parse_https(text, rest),
            "ais" => parse_ais(text, rest),
            "file" => parse_file(text, rest),
            _ => {
                Err(UriError(format!("{}:// is not supported: {EXAMPLES}", scheme.escape_debug())))
            }
        }
    }
}

/// What may be repeated of a text: behind a `?` may be a signature.
fn shown(text: &str) -> &str {
    text.split('?').next().unwrap_or_default()
}

/// `bucket[/prefix]`; the bucket's name may hold `punctuation`.
fn in_bucket(text: &str, rest: &str, punctuation: &[u8]) -> Result<(String, String), UriError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let valid = (3..=255).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || punctuation.contains(&b));
    if !valid {
        return Err(UriError(format!("{:?} names no valid bucket: {EXAMPLES}", shown(text))));
    }
    Ok((bucket.to_owned(), folder(prefix)))
}

/// A key prefix with one `/` at its end, or none at all.
fn folder(prefix: &str) -> String {
    match prefix.trim_end_matches('/') {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    }
}

/// `container@account.dfs.core.windows.net/prefix`, as Hadoop writes it.
fn parse_abfs(text: &str, rest: &str) -> Result<RemoteUri, UriError> {
    let (place, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let parts = place.split_once('@');
    match parts.and_then(|(container, host)| Some((container, azure_account(host)?))) {
        Some((container, account)) => azure(text, account, container, prefix),
        None => Err(UriError(format!(
            "{:?} is not abfs://CONTAINER@ACCOUNT{}: write it as \
             az://ACCOUNT/CONTAINER[/PREFIX]",
            shown(text),
            AZURE_HOSTS[1],
        ))),
    }
}

/// `account.blob.core.windows.net/container/prefix`, as a browser shows it.
fn parse_https(text: &str, rest: &str) -> Result<RemoteUri, UriError> {
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(account) = azure_account(host) else {
        return Err(UriError(format!("https:// is supported for Azure only: {EXAMPLES}")));
    };
    if path.contains(['?', '#']) {
        return Err(UriError(format!(
            "what follows the ? of {:?} does not belong in a URI: put a signature into \
             AZURE_STORAGE_SAS_TOKEN",
            shown(text)
        )));
    }
    let Ok(path) = percent_encoding::percent_decode_str(path).decode_utf8() else {
        let message = format!("{text:?} is not UTF-8: write it as az://ACCOUNT/CONTAINER/PREFIX");
        return Err(UriError(message));
    };
    let (container, prefix) = path.split_once('/').unwrap_or((&path, ""));
    azure(text, account, container, prefix)
}

fn azure_account(host: &str) -> Option<&str> {
    AZURE_HOSTS.iter().find_map(|suffix| host.strip_suffix(suffix))
}

fn azure(text: &str, account: &str, container: &str, prefix: &str) -> Result<RemoteUri, UriError> {
    let refuse = |what: &str, rule: &str| {
        Err(UriError(format!("{:?} names no valid {what} ({rule}): {EXAMPLES}", shown(text))))
    };
    let is_small = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !(3..=24).contains(&account.len()) || !account.bytes().all(is_small) {
        return refuse("account", "3-24 small letters and digits");
    }
    let is_usual =
        (3..=63).contains(&container.len()) && container.bytes().all(|b| is_small(b) || b == b'-');
    if !is_usual && !AZURE_OWN.contains(&container) {
        return refuse("container", "3-63 small letters, digits and hyphens");
    }
    let (account, container) = (account.to_owned(), container.to_owned());
    Ok(RemoteUri::Azure { account, container, prefix: folder(prefix) })
}

fn parse_ais(text: &str, rest: &str) -> Result<RemoteUri, UriError> {
    let (provider, rest) = match rest.strip_prefix('@') {
        None => (None, rest),
        Some(named) => {
            let (name, rest) = named.split_once('/').unwrap_or((named, ""));
            let known = AisProvider::ALL.into_iter().find(|provider| provider.as_str() == name);
            let Some(provider) = known else {
                let known = AisProvider::ALL.map(AisProvider::as_str).join(", ");
                return Err(UriError(format!(
                    "{:?} names no provider that is known: use ais://@PROVIDER/BUCKET with one of \
                     {known}",
                    shown(text)
                )));
            };
            (Some(provider), rest)
        }
    };
    let (bucket, prefix) = in_bucket(text, rest, b"-._")?;
    Ok(RemoteUri::Ais { provider, bucket, prefix })
}

fn parse_file(text: &str, rest: &str) -> Result<RemoteUri, UriError> {
    if !rest.starts_with('/') {
        return Err(UriError(format!("{text:?} needs an absolute path: file:///FOLDER")));
    }
    let trimmed = rest.trim_end_matches('/');
    let path = if trimmed.is_empty() { "/" } else { trimmed };
    Ok(RemoteUri::File { path: PathBuf::from(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, shown, prefix) in [
            ("s3://bucket", "s3://bucket", ""),
            ("s3://bucket/", "s3://bucket", ""),
            ("s3://bucket/a/b", "s3://bucket/a/b", "a/b/"),
            ("s3://bucket/a/b//", "s3://bucket/a/b", "a/b/"),
            ("gs://my_bucket/a b%20", "gs://my_bucket/a b%20", "a b%20/"),
            ("az://account/cont-1", "az://account/cont-1", ""),
            ("az://account/$web/a?b/", "az://account/$web/a?b", "a?b/"),
            ("abfs://cont@account.dfs.core.windows.net", "az://account/cont", ""),
            ("abfss://cont@account.dfs.core.windows.net/a%20", "az://account/cont/a%20", "a%20/"),
            ("https://account.blob.core.windows.net/cont/a%20b/", "az://account/cont/a b", "a b/"),
            ("ais://bucket/a", "ais://bucket/a", "a/"),
            ("ais://@aws/bucket", "ais://@aws/bucket", ""),
            ("ais://@oci/bucket/a/b", "ais://@oci/bucket/a/b", "a/b/"),
            ("file:///data/", "file:///data", ""),
            ("file:///", "file:///", ""),
        ] {
            let uri: RemoteUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri.prefix(), prefix);
            assert_eq!(uri.with_prefix(prefix), uri);
        }
    }

    #[test]
    fn another_prefix_is_of_the_same_bucket() {
        for (text, other) in [
            ("s3://bucket/a", "s3://bucket/x/y"),
            ("az://account/cont", "az://account/cont/x/y"),
            ("ais://@gcp/bucket/a/b", "ais://@gcp/bucket/x/y"),
            ("file:///data", "file:///data"),
        ] {
            let uri: RemoteUri = text.parse().unwrap();
            assert_eq!(uri.with_prefix("x/y/").to_string(), other);
        }
    }

    #[test]
    fn refuses_with_a_next_step() {
        for text in [
            "bucket/prefix",
            "http://host/x",
            "s3://",
            "s3:///x",
            "s3://a b/c",
            "gs://a",
            "gs://bucket:x",
            "az://account",
            "az://Account/cont",
            "az://account/Cont",
            "az://account/$other",
            "az://cont@account.dfs.core.windows.net/x",
            "abfs://cont/x",
            "abfs://cont@account.dfs.example.com/x",
            "https://example.com/cont",
            "https://account.blob.core.windows.net/",
            "https://account.blob.core.windows.net/cont/%ff",
            "https://account.blob.core.windows.net/cont?sv=1&sig=hidden",
            "http://host/x?sig=hidden",
            "gs://?sig=hidden",
            "ais://",
            "ais://@other/bucket",
            "ais://@aws",
            "file://x",
        ] {
            let error = text.parse::<RemoteUri>().unwrap_err().to_string();
            assert!(error.contains("://"), "{error}");
            assert!(!error.contains('\n') && !error.contains("hidden"), "{error}");
        }
    }

    crate::fuzz::fuzz_tests!(uris);

    fn uris(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "URIs",
            corpus: [
                "s3://bucket/a/b/",
                "s3://my.bucket:arn",
                "gs://bucket/a",
                "az://account/container/a",
                "abfss://container@account.dfs.core.windows.net/a",
                "https://account.blob.core.windows.net/container/a%20b",
                "ais://bucket/a",
                "ais://@azure/bucket/a",
                "file:///data/x",
                "file:///",
            ]
            .map(Vec::from)
            .to_vec(),
            words: &[
                "s3://",
                "gs://",
                "az://",
                "abfs://",
                "https://",
                "ais://",
                "file://",
                "@aws/",
                "@",
                "$root",
                ".blob.core.windows.net",
                "%2F",
                "%0A",
                "%",
                "?",
                "#",
                "/",
                "//",
                "..",
                "\u{0}",
                "\u{1b}[2J",
                "\n",
                "é",
            ],
            inputs: 20_000,
            memory: (4 << 10, 64),
        };
        target.run(effort, |input| {
            let text = String::from_utf8_lossy(input);
            match text.parse::<RemoteUri>() {
                Ok(uri) => {
                    assert_eq!(uri.to_string().parse(), Ok(uri.clone()));
                    assert!(uri.prefix().is_empty() || uri.prefix().ends_with('/'));
                    true
                }
                Err(error) => {
                    assert!(!error.to_string().contains(char::is_control), "{error:?}");
                    false
                }
            }
        });
    }
}
