//! What the user types: `s3://bucket/prefix`, `file:///folder`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed URI of something mountable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteUri {
    /// `s3://bucket[/prefix]`; the prefix is empty or ends in `/`.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Key prefix: empty, or ending in `/`.
        prefix: String,
    },
    /// `file:///folder`.
    File {
        /// Absolute path of the folder.
        path: PathBuf,
    },
}

impl RemoteUri {
    /// The key prefix the mount's root stands for: empty, or ending in `/`.
    pub fn prefix(&self) -> &str {
        match self {
            RemoteUri::S3 { prefix, .. } => prefix,
            RemoteUri::File { .. } => "",
        }
    }
}

impl RemoteUri {
    /// The same bucket with another key prefix, which is empty or ends in `/`. A folder
    /// has none.
    pub fn with_prefix(&self, prefix: &str) -> RemoteUri {
        match self {
            RemoteUri::S3 { bucket, .. } => {
                RemoteUri::S3 { bucket: bucket.clone(), prefix: prefix.to_owned() }
            }
            RemoteUri::File { .. } => self.clone(),
        }
    }
}

impl fmt::Display for RemoteUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteUri::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            RemoteUri::S3 { bucket, prefix } => {
                write!(f, "s3://{bucket}/{}", prefix.trim_end_matches('/'))
            }
            RemoteUri::File { path } => write!(f, "file://{}", path.display()),
        }
    }
}

/// Why a text is not a URI that can be mounted. One line, with a next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UriError(String);

const EXAMPLES: &str = "use s3://BUCKET[/PREFIX] or file:///FOLDER";

impl FromStr for RemoteUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UriError(format!("{text:?} is not a URI: {EXAMPLES}")));
        };
        match scheme {
            "s3" => parse_s3(text, rest),
            "file" => parse_file(text, rest),
            _ => {
                Err(UriError(format!("{}:// is not supported: {EXAMPLES}", scheme.escape_debug())))
            }
        }
    }
}

fn parse_s3(text: &str, rest: &str) -> Result<RemoteUri, UriError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let valid = (3..=255).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b));
    if !valid {
        return Err(UriError(format!("{text:?} names no valid bucket: {EXAMPLES}")));
    }
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    Ok(RemoteUri::S3 { bucket: bucket.to_owned(), prefix })
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
            ("file:///data/", "file:///data", ""),
            ("file:///", "file:///", ""),
        ] {
            let uri: RemoteUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri.prefix(), prefix);
        }
    }

    #[test]
    fn refuses_with_a_next_step() {
        for text in ["bucket/prefix", "http://host/x", "s3://", "s3:///x", "s3://a b/c", "file://x"]
        {
            let error = text.parse::<RemoteUri>().unwrap_err().to_string();
            assert!(error.contains("://"), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    crate::fuzz::fuzz_tests!(uris);

    fn uris(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "URIs",
            corpus: ["s3://bucket/a/b/", "s3://my.bucket:arn", "file:///data/x", "file:///"]
                .map(Vec::from)
                .to_vec(),
            words: &["s3://", "file://", "/", "//", "..", "\u{0}", "\u{1b}[2J", "\n", "é"],
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
