//! nginx as an object store: files, and listings made beforehand, so that a
//! request costs it 40 to 70 us of CPU and a GiB a quarter of a second.
//!
//! Networks are made without a proxy in front of it:
//! - *bandwidth of a connection* is the kernel's: `SO_MAX_PACING_RATE` on the
//!   socket that listens, which connections inherit. nginx's own `limit_rate`
//!   counts in whole seconds: 50 MB at once, then a pause. The socket is made here
//!   and handed to nginx as its predecessor would, in the variable `NGINX`.
//! - *time to the first byte* is `echo_sleep` (libnginx-mod-http-echo), 28 us of
//!   CPU a request; the Lua module's `ngx.sleep` took 47 us. netem is not in every kernel.
//!   It delays requests, not the handshake of a connection.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{Backlog, listen};

use super::data::{BUCKET, Data, listing_name};
use super::process::{Running, children_of, usage};
use super::work::Work;
use super::{Failure, failed};

const ECHO: &str = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
/// Two hundred connections at once are normal here.
const BACKLOG: i32 = 1_024;
/// For nginx to answer after its start.
const START_MAX: Duration = Duration::from_secs(10);
/// Longer than any measurement: a store ends with its owner.
const LIFE_MAX: Duration = Duration::from_secs(4 * 3600);

/// How a store is reached, and how it behaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Line {
    /// To the first byte of an answer.
    pub(crate) delay: Duration,
    /// Bytes a second on one connection.
    pub(crate) rate: Option<u64>,
    pub(crate) tls: bool,
    /// Requests a second for objects; those above it get 503.
    pub(crate) requests_per_s_max: Option<u32>,
    /// One in a hundred requests for objects is answered so much later.
    pub(crate) stalled: Option<Duration>,
}

impl Line {
    pub(crate) fn loopback() -> Line {
        Line::default()
    }

    /// 30 ms to the first byte and 50 MB/s a connection.
    pub(crate) fn cloud() -> Line {
        Line { delay: Duration::from_millis(30), rate: Some(50_000_000), ..Line::default() }
    }

    pub(crate) fn tls() -> Line {
        Line { tls: true, ..Line::default() }
    }
}

/// A store that runs. It ends when dropped.
pub(crate) struct Store {
    running: Running,
    url: String,
    root: PathBuf,
    log: PathBuf,
    tls: bool,
}

/// What was asked of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) gets: u64,
    /// Body bytes of GETs, as far as the kernel took them.
    pub(crate) bytes: u64,
    pub(crate) heads: u64,
    pub(crate) lists: u64,
    /// Answered with 5xx.
    pub(crate) refused: u64,
}

impl Store {
    pub(crate) fn start(work: &Work, data: &Data, line: &Line) -> Result<Store, Failure> {
        let root = work.store();
        if !line.delay.is_zero() && !Path::new(ECHO).exists() {
            return Err(format!("{ECHO} is missing: apt-get install libnginx-mod-http-echo"));
        }
        if line.tls {
            make_certificates(&root)?;
        }
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("a port"))?;
        listen(&socket, Backlog::new(BACKLOG).expect("a small number"))
            .map_err(failed("listen"))?;
        // nginx takes it as it is: of two workers at one connection, one would wait in
        // accept(2), and all connections it has with it.
        socket.set_nonblocking(true).map_err(failed("a port"))?;
        pace(&socket, line.rate).map_err(failed("SO_MAX_PACING_RATE"))?;
        let address = socket.local_addr().map_err(failed("a port"))?.to_string();
        let log = work.folder("nginx").join("access.log");
        let config = root.join("nginx.conf");
        fs::write(&config, configuration(&root, &log, &address, data, line))
            .map_err(failed("nginx.conf"))?;
        // Only this child inherits it: the next is started after `socket` is closed.
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("fcntl"))?;
        let mut command = Command::new("nginx");
        command.env("NGINX", format!("{};", socket.as_raw_fd()));
        command.arg("-p").arg(&root).arg("-c").arg(&config).args(["-e", "stderr"]);
        let mut running =
            Running::start(&mut command, &log.with_file_name("nginx.log"), &root, LIFE_MAX)?;
        running.until("nginx with its workers", START_MAX, || log.exists())?;
        let scheme = if line.tls { "https" } else { "http" };
        Ok(Store { running, url: format!("{scheme}://{address}"), root, log, tls: line.tls })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The certificate to trust, if there is TLS.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.tls.then(|| self.root.join("ca.pem"))
    }

    /// CPU seconds of all its processes.
    pub(crate) fn cpu_s(&self) -> f64 {
        let workers = children_of(self.running.pid());
        workers.iter().map(|pid| usage(*pid).cpu_s).sum::<f64>() + self.running.usage().cpu_s
    }

    /// Where the log ends now.
    pub(crate) fn mark(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |file| file.len())
    }

    /// What was answered after a mark. What is still under way is not in it.
    pub(crate) fn counts_since(&self, mark: u64) -> Counts {
        let mut text = String::new();
        if let Ok(mut log) = fs::File::open(&self.log) {
            let _ = log.seek(SeekFrom::Start(mark));
            let _ = log.read_to_string(&mut text);
        }
        let mut counts = Counts::default();
        for line in text.lines() {
            counts.add(line);
        }
        counts
    }
}

impl Counts {
    /// `GET 206 1048576 /bench/key`.
    fn add(&mut self, line: &str) {
        let mut fields = line.splitn(4, ' ');
        let mut next = || fields.next().unwrap_or_default();
        let (method, status, bytes, uri) = (next(), next(), next(), next());
        let path = uri.split('?').next().unwrap_or_default().trim_matches('/');
        if status.starts_with('5') {
            self.refused += 1;
        }
        match method {
            "GET" if path == BUCKET => self.lists += 1,
            "GET" => {
                self.gets += 1;
                self.bytes += bytes.parse::<u64>().unwrap_or_default();
            }
            "HEAD" => self.heads += 1,
            _ => {}
        }
    }
}

fn pace(socket: &TcpListener, rate: Option<u64>) -> std::io::Result<()> {
    let Some(rate) = rate else { return Ok(()) };
    // SAFETY: the option is a number that outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A CA of our own, and a certificate of it for 127.0.0.1.
fn make_certificates(root: &Path) -> Result<(), Failure> {
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=warmfs bench CA' \
            -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost' > san
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -extfile san -out server.pem";
    let output = Command::new("sh").arg("-c").arg(script).current_dir(root).output();
    let output = output.map_err(failed("openssl"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("openssl: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn configuration(root: &Path, log: &Path, address: &str, data: &Data, line: &Line) -> String {
    let root = root.display();
    let (echo, delayed) = if line.delay.is_zero() && line.stalled.is_none() {
        (String::new(), false)
    } else {
        (format!("load_module {ECHO};"), true)
    };
    let delay = line.delay.as_secs_f64();
    let stalled = delay + line.stalled.unwrap_or_default().as_secs_f64();
    let share = if line.stalled.is_some() { "1%" } else { "0.01%" };
    let stalls = format!("split_clients $request_id $delay {{ {share} {stalled}; * {delay}; }}");
    let (zone, limit) = line.requests_per_s_max.map_or_else(Default::default, |rate| {
        // A fifth of a second's worth may come at once; the rest is refused, not queued.
        let burst = rate / 5;
        let zone = format!("limit_req_zone $server_name zone=all:1m rate={rate}r/s;");
        (zone, format!("limit_req zone=all burst={burst} nodelay; limit_req_status 503;"))
    });
    let tls = if line.tls {
        format!("ssl_certificate {root}/server.pem; ssl_certificate_key {root}/server.key;")
    } else {
        String::new()
    };
    let ssl = if line.tls { "ssl" } else { "" };
    let (bucket, objects) = if delayed {
        (
            format!("echo_sleep {delay}; echo_exec $listing;"),
            format!("{limit} echo_sleep $delay; echo_exec /.raw$uri;"),
        )
    } else {
        // A folder is no key: without try_files nginx would redirect to it.
        ("rewrite ^ $listing last;".to_owned(), format!("{limit} try_files $uri @nokey;"))
    };
    format!(
        r#"{echo}
user root; worker_processes 2; daemon off; pid {root}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  log_format counts "$request_method $status $body_bytes_sent $request_uri";
  access_log {log} counts; error_log stderr crit;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 3600s; keepalive_requests 100000000;
  default_type application/octet-stream;
  {stalls}
  {zone}
  map $args $kind {{ default all; "~(^|&)delimiter=(/|%2[Ff])" folder; }}
  map $args $page {{ default 0; "~(^|&)continuation-token=([0-9]+)" $2; }}
  map $arg_prefix $folder {{ default none;
{prefixes}  }}
  map $args $listing {{ default /.lists/$kind/$folder.$page.xml; "~(^|&)location" /.lists/location.xml; }}
  server {{
    listen {address} {ssl}; server_name bench; root {root}; {tls}
    location = /{BUCKET} {{ {bucket} }}
    location = /{BUCKET}/ {{ {bucket} }}
    location /{BUCKET}/ {{ {objects} }}
    location /.lists/ {{ internal; types {{}} default_type application/xml; etag off; add_header x-amz-bucket-region us-east-1; }}
    location /.raw/ {{ internal; try_files $uri @nokey; }}
    location @nokey {{ default_type application/xml; return 404 "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"; }}
  }}
}}
"#,
        log = log.display(),
        prefixes = prefix_map(&data.prefixes()),
    )
}

/// Prefixes as they are, and as clients write them into a query.
fn prefix_map(prefixes: &[String]) -> String {
    let mut map = String::new();
    for prefix in prefixes {
        let name = listing_name(prefix);
        map.push_str(&format!("    \"{prefix}\" {name};\n"));
        if prefix.contains('/') {
            map.push_str(&format!("    \"{}\" {name};\n", prefix.replace('/', "%2F")));
        }
    }
    map
}
