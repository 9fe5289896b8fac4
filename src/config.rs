//! Options, checked once, as they travel from the command line to the daemon.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

/// How to reach a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteOptions {
    /// An S3-compatible endpoint instead of AWS.
    pub endpoint_url: Option<String>,
    /// The bucket's region; discovered where it is not given.
    pub region: Option<String>,
    /// Named profile of the caller's AWS configuration.
    pub profile: Option<String>,
    /// Do not sign requests.
    pub no_sign_request: bool,
    /// The caller pays for requests and egress.
    pub requester_pays: bool,
    /// `bucket.endpoint` instead of `endpoint/bucket` with `endpoint_url`.
    pub virtual_host_style: bool,
    /// The project that pays for requests to Google Cloud Storage.
    pub billing_project: Option<String>,
    /// Certificates to trust besides the system's; absolute.
    pub ca_file: Option<PathBuf>,
    /// A key that the store decrypts with; absolute.
    pub customer_key_file: Option<PathBuf>,
    /// The URI of the cloud bucket that an AIStore cluster keeps copies of.
    pub origin: Option<String>,
    /// The shell command that prints credentials as JSON.
    #[serde(default)]
    pub credential_command: Option<String>,
}

/// How a mount looks and behaves. Two mounts with equal options are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// How to reach the remote.
    pub remote: RemoteOptions,
    /// How long a listing is trusted.
    pub metadata_ttl: Duration,
    /// Whether users other than the one who mounts may read.
    pub allow_other: bool,
    /// Whether no program may be run from it.
    #[serde(default)]
    pub noexec: bool,
    /// Owner shown for every file.
    pub uid: u32,
    /// Group shown for every file.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of folders.
    pub dir_mode: u16,
    /// How files are opened towards the kernel; see `docs/kernel.md`.
    pub open_mode: OpenModeOption,
    /// Where to write down every read, for the simulator.
    pub record_trace: Option<PathBuf>,
    /// What is fetched before anybody asks for it.
    pub warm: WarmOption,
    /// What may be asked of the remote.
    pub traffic: TrafficOptions,
}

/// What `warmfs mount` does without options, for root.
impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            remote: RemoteOptions::default(),
            metadata_ttl: Duration::from_secs(3_600),
            allow_other: false,
            noexec: false,
            uid: 0,
            gid: 0,
            file_mode: 0o444,
            dir_mode: 0o555,
            open_mode: OpenModeOption::default(),
            record_trace: None,
            warm: WarmOption::default(),
            traffic: TrafficOptions::default(),
        }
    }
}

/// `--warm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WarmOption {
    /// Files of folders that are being gone through.
    #[default]
    Auto,
    /// Nothing.
    Off,
    /// Everything below the mount, if it fits the cache.
    All,
}

/// Caps on what a mount asks of its remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficOptions {
    /// Bytes a second, on average; unlimited where it is not given.
    pub max_bandwidth: Option<u64>,
    /// Requests in flight at once; found out where it is not given.
    pub max_requests: Option<u32>,
    /// Bytes to download in all. Past this nothing is fetched ahead any more.
    pub max_download: Option<u64>,
    /// Past `max_download`, readers are refused too.
    pub max_download_strict: bool,
    /// A request that is late is not sent a second time.
    pub no_hedge: bool,
    /// What came as a whole is compared with the store's checksum, for one HEAD more.
    #[serde(default)]
    pub verify_remote: bool,
}

/// `--open-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OpenModeOption {
    /// The better one for the machine and the size of the files.
    #[default]
    Auto,
    /// Complete files are read by the kernel from the backing file itself.
    Passthrough,
    /// The kernel keeps pages and listings and never asks to open again.
    Cached,
}

/// The caller's environment, as far as a remote may need it. Its values are
/// secrets: they travel through the daemon's socket only, and never print.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerEnv(BTreeMap<String, String>);

impl CallerEnv {
    /// Credentials as JSON, of the form that `--credential-command` prints. Also how
    /// they are pushed over the socket.
    pub const CREDENTIALS: &str = "WARMFS_CREDENTIALS";
    /// A key that the store decrypts with, in base64.
    pub const CUSTOMER_KEY: &str = "WARMFS_CUSTOMER_KEY";
    /// How the clouds' own variables begin, all of which are taken along.
    const PREFIXES: [&str; 5] = ["AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_", "AIS_"];
    /// Those that name proxies, and what is reached without one.
    pub const PROXIES: [&str; 8] = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ];
    /// What is taken along besides.
    const NAMES: [&str; 10] = [
        Self::CREDENTIALS,
        Self::CUSTOMER_KEY,
        // Where programs that are run for the caller begin.
        "PWD",
        "HOME",
        // Programs that are run for the caller are the caller's.
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "GCE_METADATA_HOST",
        "STORAGE_EMULATOR_HOST",
        "IDENTITY_ENDPOINT",
        "IDENTITY_HEADER",
    ];
    /// Those of them that name a file or a folder.
    const PATHS: [&str; 15] = [
        "REQUESTS_CA_BUNDLE",
        "AWS_CA_BUNDLE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_CONFIG",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
        "AZURE_CONFIG_DIR",
        "AZURE_CLIENT_CERTIFICATE_PATH",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AIS_AUTHN_TOKEN_FILE",
        "AIS_CLIENT_CA",
        "AIS_CRT",
        "AIS_CRT_KEY",
    ];

    /// Takes what remotes may need out of this process's environment.
    pub fn from_process() -> Self {
        let dir = std::env::current_dir().unwrap_or_default();
        // What a shell says of it need not be so.
        let here = ("PWD".into(), dir.clone().into_os_string());
        let mut env = Self::from_vars(std::env::vars_os().chain([here]), &dir);
        // Services, and what mount(8) runs at boot, may have none.
        if env.get("HOME").is_none()
            && let Ok(Some(user)) = User::from_uid(Uid::effective())
            && let Some(home) = user.dir.to_str()
        {
            env.0.insert("HOME".to_owned(), home.to_owned());
        }
        env
    }

    /// Paths are made absolute in `dir`: the daemon works in another folder.
    /// What is not UTF-8 is left out.
    fn from_vars(vars: impl Iterator<Item = (OsString, OsString)>, dir: &Path) -> Self {
        let taken = vars.filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            let is_path = Self::PATHS.contains(&name.as_str());
            // `~/` is the home, which is the remote's to look up.
            let value = match is_path && !value.is_empty() && !value.starts_with('~') {
                true => dir.join(value).into_os_string().into_string().ok()?,
                false => value,
            };
            Self::is_taken(&name).then_some((name, value))
        });
        CallerEnv(taken.collect())
    }

    /// Whether a variable is taken along.
    pub fn is_taken(name: &str) -> bool {
        Self::NAMES.contains(&name) || Self::PROXIES.contains(&name) || Self::may_be_secret(name)
    }

    /// Whether a variable may hold a secret: any of the clouds' own, and two of ours.
    pub fn may_be_secret(name: &str) -> bool {
        [Self::CREDENTIALS, Self::CUSTOMER_KEY].contains(&name)
            || Self::PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The same without one variable.
    pub fn without(&self, name: &str) -> CallerEnv {
        let mut rest = self.0.clone();
        rest.remove(name);
        CallerEnv(rest)
    }

    /// Whether a remote finds the same in both: where the caller is, and what programs
    /// there are, is about none.
    pub fn is_same_login(&self, other: &CallerEnv) -> bool {
        let login = |env: &CallerEnv| env.without("PWD").without("PATH");
        login(self) == login(other)
    }

    /// All of it, for a program that is run in the caller's name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a variable; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for CallerEnv {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        CallerEnv(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl fmt::Debug for CallerEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Where an index file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexSource {
    /// An absolute path.
    File(PathBuf),
    /// The URI of an object.
    Uri(String),
}

impl fmt::Display for IndexSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexSource::File(path) => write!(f, "{}", path.display()),
            IndexSource::Uri(uri) => f.write_str(uri),
        }
    }
}

/// A mount, asked for over the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// What to mount, as the user wrote it.
    pub uri: String,
    /// Where: an absolute path that may not exist yet. `None` for a view, which has no
    /// folder: its files are read at the socket.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// An index file to take the listing of the dataset from.
    #[serde(default)]
    pub index: Option<IndexSource>,
    /// How.
    pub options: MountOptions,
    /// The caller's credentials and configuration.
    pub env: CallerEnv,
}

impl MountRequest {
    /// What other requests know it by: its mount point, or the URI of a view. These cannot
    /// be taken for each other, since a mount point is absolute; below each lie its files.
    pub fn place(&self) -> &Path {
        self.dir.as_deref().unwrap_or(Path::new(&self.uri))
    }
}

/// What a daemon does besides serving its cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonOptions {
    /// `--metrics-listen`: where `GET /metrics` is answered over TCP.
    pub metrics_listen: Option<SocketAddr>,
}

/// Where the cache lies and how large it may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The cache directory, absolute.
    pub dir: PathBuf,
    /// `--cache-size` in bytes; by default what the disk has free, less a reserve.
    pub size: Option<u64>,
    /// `--memory-limit`: bytes in flight between the remote, the readers and
    /// the disk; by default a part of the machine's memory.
    pub memory: Option<u64>,
    /// `--metadata-memory`: memory for what is known of files and folders.
    pub metadata: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn the_callers_variables_are_taken_along() {
        let vars = [
            ("AWS_PROFILE", "work"),
            ("AWS_CONFIG_FILE", "here/config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "~/keys"),
            ("AWS_CA_BUNDLE", "/ca.pem"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "adc.json"),
            ("AZURE_STORAGE_ACCOUNT", "a"),
            ("AIS_AUTHN_TOKEN_FILE", "../token"),
            ("no_proxy", "host"),
            ("WARMFS_CUSTOMER_KEY", "key"),
            ("WARMFS_CACHE_DIR", "/cache"),
            ("PATH", "/bin"),
            ("PAGER", "less"),
        ];
        let vars = vars.map(|(name, value)| (name.into(), value.into()));
        let odd = [
            (OsString::from("LESS"), OsString::from_vec(vec![0xff])),
            (OsString::from_vec(vec![0xff]), OsString::from("x")),
        ];
        let env = CallerEnv::from_vars(vars.into_iter().chain(odd), Path::new("/at"));
        assert_eq!(env.get("AWS_PROFILE"), Some("work"));
        assert_eq!(env.get("AWS_CONFIG_FILE"), Some("/at/here/config"));
        assert_eq!(env.get("AWS_SHARED_CREDENTIALS_FILE"), Some("~/keys"));
        assert_eq!(env.get("AWS_CA_BUNDLE"), Some("/ca.pem"));
        assert_eq!(env.get("GOOGLE_APPLICATION_CREDENTIALS"), Some("/at/adc.json"));
        assert_eq!(env.get("AIS_AUTHN_TOKEN_FILE"), Some("/at/../token"));
        assert_eq!(env.get("no_proxy"), Some("host"));
        assert_eq!(env.get("PATH"), Some("/bin"));
        assert_eq!(env.get(CallerEnv::CUSTOMER_KEY), Some("key"));
        assert_eq!(env.0.len(), 10);
        assert!(!format!("{env:?}").contains("\"key"), "values do not print");
    }
}
