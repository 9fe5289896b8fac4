//! Credentials that somebody else gets for us, as JSON: what `--credential-command`
//! prints, and what is pushed over the socket ([`CallerEnv::CREDENTIALS`]).
//!
//! They come before everything else that is configured; what is pushed before what a
//! command prints, since it came later. The command is run by `/bin/sh` in the caller's
//! folder, with the caller's `PATH`, `HOME`, proxies and variables of the clouds, and
//! `WARMFS_URI`; [`super::token`] says when. What it prints never gets into a message.
//!
//! `docs/credentials.md` has the form of the JSON.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::process::Command;

use super::program;
use super::token::{Given, Secret, Token, TokenSource};
use super::{ErrorKind, RemoteError, token_json};
use crate::config::{CallerEnv, RemoteOptions};

/// Time for the command: it may ask a server, and that one another.
const LIMIT: Duration = Duration::from_secs(15);

const COMMAND: &str = "--credential-command";

/// What a remote takes for credentials, and finds in JSON.
pub(super) trait FromJson: Secret {
    /// What a user calls it.
    const NAME: &'static str;

    /// Reads what came at `now`.
    fn read(json: &[u8], now: SystemTime) -> Option<Token<Self>>;
}

impl FromJson for Arc<str> {
    const NAME: &'static str = "token, {\"access_token\": …, \"expires_in\": SECONDS}";

    fn read(json: &[u8], now: SystemTime) -> Option<Token> {
        token_json::token(json, now)
    }
}

/// What is given for `uri`, if something is.
///
/// # Errors
/// [`ErrorKind::Credentials`] for pushed credentials that cannot be understood.
pub(super) fn given<S: FromJson>(
    uri: String,
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<Option<Given<S>>, RemoteError> {
    if let Some(json) = env.get(CallerEnv::CREDENTIALS) {
        let token = S::read(json.as_bytes(), SystemTime::now());
        let token = token.ok_or_else(|| not_understood::<S>(CallerEnv::CREDENTIALS))?;
        return Ok(Some(Given::Token(token)));
    }
    Ok(options.credential_command.clone().map(|command| {
        Given::Source(Arc::new(CredentialCommand { command, uri, env: env.clone() }) as _)
    }))
}

#[derive(Debug)]
struct CredentialCommand {
    command: String,
    uri: String,
    env: CallerEnv,
}

#[async_trait]
impl<S: FromJson> TokenSource<S> for CredentialCommand {
    async fn fetch(&self) -> Result<Token<S>, RemoteError> {
        let ended = program::run(self.command(), COMMAND, LIMIT).await;
        // Whatever it is, somebody has to look at the command.
        let ended = ended.map_err(|error| refuse(error.message))?;
        if !ended.status.success() {
            let why = match ended.complaint.as_str() {
                "" => "and says nothing",
                complaint => complaint,
            };
            return Err(refuse(format!("{COMMAND}: it ends with {}: {why}", ended.status)));
        }
        S::read(&ended.printed, SystemTime::now()).ok_or_else(|| not_understood::<S>(COMMAND))
    }
}

impl CredentialCommand {
    fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        let ours = [CallerEnv::CREDENTIALS, CallerEnv::CUSTOMER_KEY];
        let given = self.env.iter().filter(|(name, _)| !ours.contains(name));
        command.arg("-c").arg(&self.command).env_clear().envs(given);
        command.env("WARMFS_URI", &self.uri);
        if let Some(dir) = self.env.get("PWD") {
            command.current_dir(dir);
        }
        command
    }
}

fn not_understood<S: FromJson>(what: &str) -> RemoteError {
    refuse(format!("{what}: that is no {} as JSON", S::NAME))
}

fn refuse(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Credentials, format!("{message}; see docs/credentials.md"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(command: &str) -> RemoteOptions {
        RemoteOptions { credential_command: Some(command.to_owned()), ..RemoteOptions::default() }
    }

    async fn fetch(command: &str, env: &CallerEnv) -> Result<Token, RemoteError> {
        match given::<Arc<str>>("gs://b".to_owned(), &options(command), env)?.unwrap() {
            Given::Source(source) => source.fetch().await,
            Given::Token(token) => Ok(token),
        }
    }

    #[tokio::test]
    async fn a_command_runs_as_the_caller_would_run_it() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_str().unwrap();
        let env: CallerEnv =
            [("PWD", here), ("PATH", "/usr/bin:/bin"), ("HOME", "/h")].into_iter().collect();
        let command = r#"env > env; printf '{"token":"%s","expires_in":60}' "$WARMFS_URI""#;
        let token = fetch(command, &env).await.unwrap();
        assert_eq!(token.secret(), "gs://b");
        assert!(token.expires.is_some());
        let env = std::fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(env.contains("HOME=/h\n"), "{env}");
        assert!(!env.contains("CARGO"), "nothing of this process's own: {env}");
    }

    #[tokio::test]
    async fn what_fails_says_why_and_repeats_nothing() {
        let none = CallerEnv::default();
        for (command, why) in [
            ("echo hidden; echo a >&2; echo 'no login' >&2; exit 3", "exit status: 3: no login"),
            ("false", "says nothing"),
            ("echo hidden", "no token"),
            (r#"echo '{"token":"hidden","expiry":"soon"}'"#, "no token"),
            ("/nowhere/hid", "not found"),
        ] {
            let error = fetch(command, &none).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Credentials);
            assert!(error.message.starts_with(COMMAND), "{error}");
            assert!(error.message.contains(why), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
        }
        let env = [("PWD", "/nowhere")].into_iter().collect();
        let error = fetch("true", &env).await.unwrap_err();
        assert!(error.message.contains("cannot be run"), "{error}");
    }

    #[tokio::test]
    async fn what_is_pushed_comes_first() {
        let pushed = |json| [(CallerEnv::CREDENTIALS, json)].into_iter().collect();
        let token = fetch("false", &pushed(r#"{"access_token":"t"}"#)).await.unwrap();
        assert_eq!(token.secret(), "t");
        let error = fetch("true", &pushed("hidden")).await.unwrap_err();
        assert!(error.message.starts_with("WARMFS_CREDENTIALS: that is no token"), "{error}");
        let nothing = RemoteOptions::default();
        let nothing = given::<Arc<str>>(String::new(), &nothing, &CallerEnv::default());
        assert!(nothing.unwrap().is_none());
    }
}
