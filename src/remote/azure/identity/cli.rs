//! Who is logged in to the Azure CLI: `az` is asked for a token.
//!
//! It is found on the caller's `PATH`, and gets what it needs of the caller's environment:
//! the daemon that runs it may have been started by another environment, for another mount.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::process::Command;

use super::{RESOURCE, token};
use crate::config::CallerEnv;
use crate::remote::program;
use crate::remote::token::{Token, TokenSource};
use crate::remote::{ErrorKind, RemoteError};

/// Time for `az`: it starts a large Python program, which asks a server.
const LIMIT: Duration = Duration::from_secs(15);

const WHAT: &str = "az account get-access-token";

/// Where programs are if the caller has no `PATH`: as a shell would say.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The caller's variables that it needs, besides those of proxies.
const VARIABLES: [&str; 5] = [
    "HOME",
    "PATH",
    // The authorities that a firewall before it needs.
    "REQUESTS_CA_BUNDLE",
    "AZURE_CONFIG_DIR",
    "AZURE_EXTENSION_DIR",
];

/// The tokens of whom the CLI knows.
#[derive(Debug)]
pub(in crate::remote::azure) struct Cli {
    program: PathBuf,
    env: CallerEnv,
}

impl Cli {
    /// The caller's CLI, if somebody has logged in to it.
    pub(in crate::remote::azure) async fn logged_in(env: &CallerEnv) -> Option<Cli> {
        let dir = match env.get("AZURE_CONFIG_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(env.get("HOME")?).join(".azure"),
        };
        let profile = tokio::fs::read(dir.join("azureProfile.json")).await.ok()?;
        let text = profile.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&profile);
        let profile: Value = serde_json::from_slice(text).ok()?;
        let is_any = profile["subscriptions"].as_array().is_some_and(|all| !all.is_empty());
        is_any.then(|| Cli { program: PathBuf::from("az"), env: env.clone() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["account", "get-access-token", "--output", "json", "--resource", RESOURCE]);
        // std looks for the program on this `PATH`, not on that of the process.
        command.env_clear().env("PATH", DEFAULT_PATH);
        let names = VARIABLES.into_iter().chain(CallerEnv::PROXIES);
        let given = names.filter_map(|name| Some((name, self.env.get(name)?)));
        command.envs(given);
        command
    }
}

#[async_trait]
impl TokenSource for Cli {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let ended = program::run(self.command(), WHAT, LIMIT).await?;
        if !ended.status.success() {
            let message = format!("{WHAT}: {}: {}; run `az login`", ended.status, ended.complaint);
            return Err(RemoteError::new(ErrorKind::Credentials, message));
        }
        token(&ended.printed, WHAT)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A CLI that is this script, in a home of its own.
    fn cli(script: &str) -> (tempfile::TempDir, Cli) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("az");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let home = dir.path().to_str().unwrap();
        let env = [
            ("HOME", home),
            ("PATH", "/usr/bin:/bin"),
            ("AZURE_STORAGE_KEY", "hidden"),
            ("NO_PROXY", "h"),
        ];
        let env = env.into_iter().collect();
        (dir, Cli { program, env })
    }

    #[tokio::test]
    async fn az_is_asked_with_the_callers_home_and_nothing_secret() {
        let (dir, cli) = cli(r#"echo "$@" > "$HOME/asked"; env > "$HOME/env"
            echo '{"accessToken":"hidden","expires_on":4102444800}'"#);
        let token = cli.fetch().await.unwrap();
        assert_eq!(token.secret(), "hidden");
        assert!(token.expires.is_some());
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let asked = "account get-access-token --output json --resource https://storage.azure.com\n";
        assert_eq!(read("asked"), asked);
        let env = read("env");
        assert!(env.contains("NO_PROXY=h") && !env.contains("hidden"), "{env}");
        assert!(!env.contains("CARGO"), "nothing of this process's own: {env}");
    }

    #[tokio::test]
    async fn az_is_found_on_the_callers_path_alone() {
        let (dir, mut cli) = cli("echo '{\"accessToken\":\"hidden\"}'");
        cli.program = PathBuf::from("az");
        let error = cli.fetch().await.unwrap_err();
        assert!(error.message.contains("see to its PATH"), "{error}");
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        cli.env = [("PATH", path.as_str())].into_iter().collect();
        assert_eq!(cli.fetch().await.unwrap().secret(), "hidden");
    }

    #[tokio::test]
    async fn its_complaint_says_what_to_run_and_its_output_nothing() {
        for script in [
            "echo hidden; echo 'Traceback\nERROR: Please sign in.' >&2; exit 1",
            "echo hidden",
            "yes hidden | head -c 300000; exit 0",
        ] {
            let (_dir, cli) = cli(script);
            let error = cli.fetch().await.unwrap_err();
            assert!(error.message.starts_with(WHAT), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
            if script.contains("exit 1") {
                assert_eq!(error.kind, ErrorKind::Credentials);
                assert!(
                    error.message.ends_with("ERROR: Please sign in.; run `az login`"),
                    "{error}"
                );
            }
        }
        let (dir, cli) = cli("");
        fs::remove_file(dir.path().join("az")).unwrap();
        let error = cli.fetch().await.unwrap_err();
        assert!(error.message.contains("cannot be run"), "{error}");
    }

    #[tokio::test]
    async fn a_login_is_known_by_its_profile() {
        let (dir, cli) = cli("");
        assert!(Cli::logged_in(&CallerEnv::default()).await.is_none());
        assert!(Cli::logged_in(&cli.env).await.is_none());
        let folder = dir.path().join(".azure");
        fs::create_dir(&folder).unwrap();
        for (profile, is_login) in [
            ("\u{feff}{\"subscriptions\": [{\"id\": \"x\"}]}", true),
            ("{\"subscriptions\": [{}]}", true),
            ("{\"subscriptions\": []}", false),
            ("{}", false),
            ("", false),
        ] {
            fs::write(folder.join("azureProfile.json"), profile).unwrap();
            assert_eq!(Cli::logged_in(&cli.env).await.is_some(), is_login, "{profile}");
            let dir = folder.to_str().unwrap();
            let env = [("AZURE_CONFIG_DIR", dir), ("HOME", "/nowhere")].into_iter().collect();
            assert_eq!(Cli::logged_in(&env).await.is_some(), is_login, "{profile}");
        }
    }
}
