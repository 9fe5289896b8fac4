//! The files that lead to tokens, as `gcloud` and the console write them.
//!
//! Nothing in them is trusted to be there, and nothing of them becomes part of a
//! message but the names of fields. <https://google.aip.dev/auth/4110>, and 4112 to
//! 4117 for each kind.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use crate::remote::base_url::BaseUrl;

/// Where tokens are had unless the file says otherwise.
const GOOGLE_TOKENS: &str = "https://oauth2.googleapis.com/token";

/// A text that does not print.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::remote::gcs) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Who one is, and perhaps whose place one takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::remote::gcs) struct CredentialFile {
    pub(super) login: LoginKind,
    pub(super) impersonation: Option<Impersonation>,
    /// `quota_project_id`, the project that pays where somebody has to.
    pub(super) payer: Option<String>,
}

/// The ways to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LoginKind {
    /// `service_account`: a key of its own.
    Key {
        email: String,
        /// PKCS#8, as PEM.
        key: Secret,
        key_id: Option<String>,
        server: BaseUrl,
    },
    /// `authorized_user`, `external_account_authorized_user`: a person's login.
    Refresh { client: Client, token: Secret, server: BaseUrl, is_external: bool },
    /// `external_account`: a token of somebody whom Google was told to believe.
    Federation {
        audience: String,
        token_type: String,
        subject: Subject,
        server: BaseUrl,
        client: Option<Client>,
        workforce_project: Option<String>,
    },
}

/// An OAuth client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) id: String,
    pub(super) secret: Secret,
}

/// Where a foreign token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) place: Place,
    /// The field that holds it; `None` if it is all there is.
    pub(super) field: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Url {
        url: BaseUrl,
        /// What follows the `?`.
        query: Option<Secret>,
        headers: Vec<(String, Secret)>,
    },
}

/// A service account that lends its rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Impersonation {
    pub(super) url: BaseUrl,
    pub(super) delegates: Vec<String>,
}

type Parsed<T> = Result<T, String>;

impl CredentialFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// One line without a value of the file.
    pub(in crate::remote::gcs) fn parse(text: &str) -> Parsed<CredentialFile> {
        let json = serde_json::from_str(text).map_err(|_| "it is not JSON".to_owned())?;
        let fields = Fields(&json);
        if fields.text("type")? != "impersonated_service_account" {
            return Self::parse_login(&fields);
        }
        let source = Fields(&json["source_credentials"]);
        if source.text("type")? == "impersonated_service_account" {
            return Err("it impersonates twice, which \"delegates\" are for".to_owned());
        }
        let login = Self::parse_login(&source)?.login;
        let impersonation = fields.impersonation()?;
        if impersonation.is_none() {
            return Err(lacks(IMPERSONATION_URL));
        }
        Ok(CredentialFile { login, impersonation, payer: fields.optional(PAYER) })
    }

    fn parse_login(fields: &Fields<'_>) -> Parsed<CredentialFile> {
        let login = match fields.text("type")? {
            "service_account" => LoginKind::Key {
                email: fields.text("client_email")?.to_owned(),
                key: fields.secret("private_key")?,
                key_id: fields.optional("private_key_id"),
                server: fields.url("token_uri", Some(GOOGLE_TOKENS))?,
            },
            "authorized_user" => LoginKind::Refresh {
                client: fields.client()?,
                token: fields.secret("refresh_token")?,
                server: fields.url("token_uri", Some(GOOGLE_TOKENS))?,
                is_external: false,
            },
            "external_account_authorized_user" => LoginKind::Refresh {
                client: fields.client()?,
                token: fields.secret("refresh_token")?,
                server: fields.url("token_url", None)?,
                is_external: true,
            },
            "external_account" => LoginKind::Federation {
                audience: fields.text("audience")?.to_owned(),
                token_type: fields.text("subject_token_type")?.to_owned(),
                subject: Subject::parse(&Fields(&fields.0["credential_source"]))?,
                server: fields.url("token_url", None)?,
                client: fields.optional("client_id").map(|_| fields.client()).transpose()?,
                workforce_project: fields.optional("workforce_pool_user_project"),
            },
            _ => {
                return Err("its \"type\" is none that is known: service_account, \
                            authorized_user, impersonated_service_account, external_account, \
                            external_account_authorized_user"
                    .to_owned());
            }
        };
        let impersonation = fields.impersonation()?;
        Ok(CredentialFile { login, impersonation, payer: fields.optional(PAYER) })
    }
}

impl Subject {
    fn parse(source: &Fields<'_>) -> Parsed<Subject> {
        if !source.0["executable"].is_null() {
            return Err("it has a program run for its token; have one write a file, or use \
                        --credential-command"
                .to_owned());
        }
        let format = Fields(&source.0["format"]);
        let field = match format.optional("type").as_deref() {
            None | Some("text") => None,
            Some("json") => Some(format.text("subject_token_field_name")?.to_owned()),
            Some(_) => return Err("its \"format\" is neither text nor json".to_owned()),
        };
        Ok(Subject { place: Place::parse(source)?, field })
    }
}

impl Place {
    fn parse(source: &Fields<'_>) -> Parsed<Place> {
        if let Some(path) = source.optional("file") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Place::File(path)),
                false => Err("its \"file\" is no absolute path".to_owned()),
            };
        }
        let is_of_aws = !source.0["environment_id"].is_null();
        let Some(url) = source.optional("url").filter(|_| !is_of_aws) else {
            return Err("its \"credential_source\" is neither a file nor a url".to_owned());
        };
        let (url, query) = match url.split_once('?') {
            Some((url, query)) => (url.to_owned(), Some(Secret(query.to_owned()))),
            None => (url, None),
        };
        let headers = source.0["headers"].as_object().into_iter().flatten().map(|(name, value)| {
            let value = value.as_str().ok_or_else(|| "a \"headers\" is no text".to_owned())?;
            Ok((name.to_ascii_lowercase(), Secret(value.to_owned())))
        });
        Ok(Place::Url { url: base("url", &url)?, query, headers: headers.collect::<Parsed<_>>()? })
    }
}

const PAYER: &str = "quota_project_id";

const IMPERSONATION_URL: &str = "service_account_impersonation_url";

/// An object of the file.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn text(&self, name: &'static str) -> Parsed<&str> {
        let text = self.0[name].as_str().filter(|text| !text.is_empty());
        text.ok_or_else(|| lacks(name))
    }

    fn optional(&self, name: &'static str) -> Option<String> {
        self.text(name).ok().map(str::to_owned)
    }

    fn secret(&self, name: &'static str) -> Parsed<Secret> {
        self.text(name).map(|text| Secret(text.to_owned()))
    }

    fn url(&self, name: &'static str, default: Option<&str>) -> Parsed<BaseUrl> {
        match (self.text(name), default) {
            (Err(_), Some(default)) if self.0[name].is_null() => base(name, default),
            (text, _) => base(name, text?),
        }
    }

    fn client(&self) -> Parsed<Client> {
        Ok(Client { id: self.text("client_id")?.to_owned(), secret: self.secret("client_secret")? })
    }

    fn impersonation(&self) -> Parsed<Option<Impersonation>> {
        if self.0[IMPERSONATION_URL].is_null() {
            return Ok(None);
        }
        let delegates = self.0["delegates"].as_array().into_iter().flatten();
        let delegates = delegates.map(|name| name.as_str().map(str::to_owned));
        Ok(Some(Impersonation {
            url: self.url(IMPERSONATION_URL, None)?,
            delegates: delegates.collect::<Option<_>>().ok_or_else(|| lacks("delegates"))?,
        }))
    }
}

fn lacks(name: &str) -> String {
    format!("it has no usable {name:?}")
}

/// A URL of the file, which is not repeated: it may be anything. Its path has an `@`
/// where it names an account.
fn base(name: &str, url: &str) -> Parsed<BaseUrl> {
    let host = url.find("://").map_or(0, |scheme| scheme + "://".len());
    let path = url[host..].find('/').map_or(url.len(), |path| host + path);
    let server = BaseUrl::parse(name, &url[..path]).ok();
    let base = server.and_then(|server| server.at(&url[path..]));
    base.ok_or_else(|| format!("its {name:?} is no usable URL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    /// One of each kind; whatever must not be shown has `hidden` in it.
    const FILES: [&str; 5] = [
        r#"{"type": "service_account", "client_email": "a@b", "private_key_id": "k",
            "private_key": "hidden"}"#,
        r#"{"type": "authorized_user", "client_id": "c", "client_secret": "hidden",
            "refresh_token": "hidden"}"#,
        r#"{"type": "external_account_authorized_user", "client_id": "c", "client_secret":
            "hidden", "refresh_token": "hidden", "token_url": "https://sts/token"}"#,
        r#"{"type": "impersonated_service_account", "delegates": ["d"],
            "service_account_impersonation_url": "https://iam/accounts/a@b:generate",
            "source_credentials": {"type": "authorized_user", "client_id": "c",
            "client_secret": "hidden", "refresh_token": "hidden"}}"#,
        r#"{"type": "external_account", "audience": "a", "subject_token_type": "t",
            "token_url": "https://sts/token", "credential_source": {"url":
            "http://h/x?hidden", "headers": {"Metadata": "hidden"}, "format": {"type": "json",
            "subject_token_field_name": "f"}}}"#,
    ];

    #[test]
    fn every_kind_is_read_and_none_prints_its_secrets() {
        for text in FILES {
            let printed = format!("{:?}", CredentialFile::parse(text).unwrap());
            assert!(!printed.contains("hidden"), "{printed}");
        }
    }

    #[test]
    fn a_federation_may_end_as_somebody_else() {
        let text =
            FILES[4].replacen('{', r#"{"service_account_impersonation_url": "https://i","#, 1);
        let file = CredentialFile::parse(&text).unwrap();
        assert_eq!(file.impersonation.unwrap().url.as_str(), "https://i");
        assert!(CredentialFile::parse(FILES[4]).unwrap().impersonation.is_none());
    }

    #[test]
    fn tokens_are_had_of_google_unless_the_file_says_otherwise() {
        let server = |text: &str| match CredentialFile::parse(text).unwrap().login {
            LoginKind::Key { server, .. } | LoginKind::Refresh { server, .. } => {
                server.as_str().to_owned()
            }
            LoginKind::Federation { server, .. } => server.as_str().to_owned(),
        };
        assert_eq!(server(FILES[1]), GOOGLE_TOKENS);
        let own = FILES[1].replacen('{', r#"{"token_uri": "https://own/t","#, 1);
        assert_eq!(server(&own), "https://own/t");
        let wrong = FILES[1].replacen('{', r#"{"token_uri": 7,"#, 1);
        assert!(CredentialFile::parse(&wrong).unwrap_err().contains("token_uri"));
    }

    fuzz_tests!(files);

    fn files(effort: Effort) {
        let target = Target {
            name: "credential files",
            corpus: FILES.map(Vec::from).to_vec(),
            words: &[
                "\"type\"",
                "\"url\"",
                "\"file\"",
                "\"executable\"",
                "\"headers\"",
                "\"delegates\"",
                "\"source_credentials\"",
                "{",
                "}",
                "[",
                "]",
                ",",
                ":",
                "null",
                "7",
                "\"\"",
                "\\n",
                "\u{1b}[2J",
            ],
            inputs: 20_000,
            memory: (64 << 10, 128),
        };
        target.run(effort, |input| match CredentialFile::parse(&String::from_utf8_lossy(input)) {
            Ok(_) => true,
            Err(why) => {
                assert!(!why.contains("hidden") && !why.contains(char::is_control), "{why:?}");
                false
            }
        });
    }
}
