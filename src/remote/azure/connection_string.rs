//! A connection string: an account, where it is, and what opens it, in one line.
//!
//! <https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string>

use std::fmt;

/// The account of every emulator, and its key, which is no secret.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Where an emulator listens.
const EMULATOR_HOST: &str = "http://127.0.0.1";
const EMULATOR_PORT: u16 = 10000;

/// What a connection string says, as far as blobs need it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct ConnectionString {
    /// `AccountName`.
    pub(super) account: Option<String>,
    /// `AccountKey`.
    pub(super) key: Option<String>,
    /// `SharedAccessSignature`.
    pub(super) signature: Option<String>,
    /// `BlobEndpoint`, or what others of its parts make of it.
    pub(super) endpoint: Option<String>,
}

impl ConnectionString {
    /// Reads `NAME=VALUE;NAME=VALUE`, with names in any case.
    ///
    /// # Errors
    /// With what is wrong with it, and none of its values.
    pub(super) fn parse(text: &str) -> Result<ConnectionString, &'static str> {
        let mut found = ConnectionString::default();
        let (mut protocol, mut suffix, mut is_emulator, mut emulator) =
            ("https", None, false, None);
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or("has a part that is not NAME=VALUE")?;
            let value = value.trim();
            let text = Some(value.to_owned()).filter(|value| !value.is_empty());
            match name.trim().to_ascii_lowercase().as_str() {
                "accountname" => found.account = text,
                "accountkey" => found.key = text,
                "sharedaccesssignature" => found.signature = text,
                "blobendpoint" => found.endpoint = text,
                "endpointsuffix" => suffix = Some(value),
                "defaultendpointsprotocol" => protocol = value,
                "usedevelopmentstorage" => is_emulator = value.eq_ignore_ascii_case("true"),
                "developmentstorageproxyuri" => emulator = text,
                // Other services' endpoints.
                _ => {}
            }
        }
        if is_emulator {
            let host = emulator.unwrap_or_else(|| EMULATOR_HOST.to_owned());
            found.account = Some(EMULATOR_ACCOUNT.to_owned());
            found.key = Some(EMULATOR_KEY.to_owned());
            found.endpoint =
                Some(format!("{}:{EMULATOR_PORT}/{EMULATOR_ACCOUNT}", host.trim_end_matches('/')));
        }
        if found.endpoint.is_none()
            && let (Some(account), Some(suffix)) = (&found.account, suffix)
        {
            found.endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
        }
        match (&found.key, &found.signature) {
            (None, None) => Err("has neither an AccountKey nor a SharedAccessSignature"),
            (Some(_), _) if found.account.is_none() => Err("has an AccountKey but no AccountName"),
            _ => Ok(found),
        }
    }
}

/// All of it but names and places opens an account.
impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("account", &self.account)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    const FULL: &str = "DefaultEndpointsProtocol=https;AccountName=account;AccountKey=aGlkZGVu==;\
                        EndpointSuffix=core.chinacloudapi.cn";
    const SIGNED: &str = "BlobEndpoint=https://account.blob.core.windows.net/;\
                          SharedAccessSignature=sv=2021-02-12&ss=b&sig=hidden%3D";

    fn parse(text: &str) -> ConnectionString {
        ConnectionString::parse(text).unwrap()
    }

    #[test]
    fn the_documented_forms_are_understood() {
        let full = parse(FULL);
        assert_eq!(full.account.as_deref(), Some("account"));
        assert_eq!(full.key.as_deref(), Some("aGlkZGVu=="));
        assert_eq!(full.endpoint.as_deref(), Some("https://account.blob.core.chinacloudapi.cn"));
        let plain = parse("accountname=a1b;ACCOUNTKEY=YQ==;");
        assert_eq!((plain.endpoint, plain.key.as_deref()), (None, Some("YQ==")));
        let signed = parse(SIGNED);
        assert_eq!(signed.endpoint.as_deref(), Some("https://account.blob.core.windows.net/"));
        assert_eq!(signed.signature.as_deref(), Some("sv=2021-02-12&ss=b&sig=hidden%3D"));
        let own = parse("AccountName=a;AccountKey=YQ==;EndpointSuffix=x;BlobEndpoint=http://h/a");
        assert_eq!(own.endpoint.as_deref(), Some("http://h/a"));
    }

    #[test]
    fn an_emulator_has_an_account_that_all_know() {
        let emulator = parse("UseDevelopmentStorage=true");
        assert_eq!(emulator.account.as_deref(), Some(EMULATOR_ACCOUNT));
        assert_eq!(emulator.endpoint.as_deref(), Some("http://127.0.0.1:10000/devstoreaccount1"));
        let away = parse("UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://emulator/");
        assert_eq!(away.endpoint.as_deref(), Some("http://emulator:10000/devstoreaccount1"));
    }

    #[test]
    fn what_opens_nothing_is_refused_and_nothing_prints() {
        for text in
            ["", "hidden", "AccountName=a", "AccountKey=aGlkZGVu", "UseDevelopmentStorage=no"]
        {
            let error = ConnectionString::parse(text).unwrap_err();
            assert!(!error.contains("hidden") && !error.contains("aGlkZGVu"), "{error}");
        }
        let shown = format!("{:?} {:?}", parse(FULL), parse(SIGNED));
        assert!(!shown.contains("hidden") && !shown.contains("aGlkZGVu"), "{shown}");
    }

    fuzz_tests!(connection_strings);

    fn connection_strings(effort: Effort) {
        let target = Target {
            name: "Azure connection strings",
            corpus: [FULL, SIGNED, "UseDevelopmentStorage=true"].map(Vec::from).to_vec(),
            words: &[
                "AccountName=",
                "AccountKey=",
                "EndpointSuffix=",
                "BlobEndpoint=",
                "DevelopmentStorageProxyUri=",
                ";",
                "=",
                "\n",
            ],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| {
            match ConnectionString::parse(&String::from_utf8_lossy(input)) {
                Ok(found) => {
                    assert!(found.key.is_none() || found.account.is_some());
                    assert!(found.key.is_some() || found.signature.is_some());
                    true
                }
                Err(error) => {
                    assert!(!error.is_empty());
                    false
                }
            }
        });
    }
}
