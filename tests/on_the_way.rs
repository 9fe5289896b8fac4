//! What goes wrong on the way to each cloud: one line that says what and what to do, the
//! same for all of them, and nothing secret sent to anybody else.

mod common;

use std::net::TcpListener;

use common::Warmfs;
use common::fronts::{Front, tls_file};
use common::stub::{Reply, Request, Stub};
use tokio::runtime::Runtime;

/// What no other host may see, in whichever form.
const HIDDEN: &str = "aGlkZGVu";

/// A cloud, and the credentials that it is mounted with.
struct Cloud {
    uri: &'static str,
    env: &'static [(&'static str, &'static str)],
}

const CLOUDS: [Cloud; 4] = [
    Cloud {
        uri: "s3://bucket/data",
        env: &[("AWS_ACCESS_KEY_ID", HIDDEN), ("AWS_SECRET_ACCESS_KEY", HIDDEN)],
    },
    Cloud { uri: "gs://bucket/data", env: &[("CLOUDSDK_AUTH_ACCESS_TOKEN", HIDDEN)] },
    Cloud { uri: "az://account/container/data", env: &[("AZURE_STORAGE_KEY", HIDDEN)] },
    Cloud { uri: "ais://bucket/data", env: &[("AIS_AUTHN_TOKEN", HIDDEN)] },
];

impl Cloud {
    /// The line with which a mount from `endpoint` fails. Nothing is left of it.
    fn refused(&self, endpoint: &str, env: &[(&str, &str)], options: &[&str]) -> String {
        let mut warmfs = Warmfs::new();
        for (name, value) in self.env.iter().chain(env) {
            warmfs.set_env(name, value);
        }
        let dir = warmfs.path("mount");
        let mount = ["mount", self.uri, dir.to_str().unwrap(), "--endpoint-url", endpoint];
        let line = warmfs.fails(&[&mount[..], options].concat());
        warmfs.assert_nothing_left(&["mount"]);
        assert!(!line.contains(HIDDEN) && !warmfs.log().contains(HIDDEN), "{line}");
        line
    }
}

fn assert_words(cloud: &Cloud, line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{}: {word:?} is not in: {line}", cloud.uri);
    }
}

#[test]
fn certificates_that_are_not_trusted() {
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(Stub::start(|_| Reply::empty_list()));
    let right = runtime.block_on(Front::tls(store.url(), "server.pem"));
    let expired = runtime.block_on(Front::tls(store.url(), "expired.pem"));
    let ca = tls_file("ca.pem");
    for cloud in &CLOUDS {
        let line = cloud.refused(&format!("https://{}", right.address()), &[], &[]);
        assert_words(cloud, &line, &["TLS", "authority with --ca-file"]);
        let options = ["--ca-file", ca.to_str().unwrap()];
        let line = cloud.refused(&format!("https://{}", expired.address()), &[], &options);
        assert_words(cloud, &line, &["TLS", "expired", "set this machine's clock"]);
    }
    assert!(store.requests().is_empty());
}

#[test]
fn a_proxy_that_is_not_there() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = format!("http://user:{HIDDEN}@{gone}");
    for cloud in &CLOUDS {
        let line = cloud.refused("http://store.invalid", &[("http_proxy", &proxy)], &[]);
        assert_words(cloud, &line, &["no connection", "check http_proxy", "NO_PROXY"]);
    }
}

#[test]
fn nobody_at_the_endpoint() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for cloud in &CLOUDS {
        let line = cloud.refused(&format!("http://{closed}"), &[], &[]);
        assert_words(cloud, &line, &["no connection", "refused", "check the network and"]);
    }
}

#[test]
fn an_endpoint_that_is_no_url() {
    for cloud in &CLOUDS {
        for endpoint in ["localhost:9000", "ftp://host", "http://"] {
            let line = cloud.refused(endpoint, &[], &[]);
            assert_words(cloud, &line, &["--endpoint-url", endpoint, "https://HOST"]);
        }
    }
}

#[test]
fn a_redirect_takes_nothing_secret_to_another_host() {
    let runtime = Runtime::new().unwrap();
    for status in [301, 302, 307, 308] {
        for cloud in &CLOUDS {
            let elsewhere = runtime.block_on(Stub::start(|_| Reply::new(404, &[], "")));
            // By another name, so that a port alone does not make it another host.
            let to = elsewhere.url().replace("127.0.0.1", "localhost");
            let answer = move |request: &Request| {
                let to = format!("{to}{}", request.target());
                Reply::new(status, &[("location", &to)], "")
            };
            let store = runtime.block_on(Stub::start(answer));
            cloud.refused(store.url(), &[], &[]);
            for request in elsewhere.requests() {
                assert!(!request.head.contains(HIDDEN), "{}: {}", cloud.uri, request.head);
                assert_eq!(request.header("authorization"), None, "{}", cloud.uri);
            }
            assert!(!store.requests().is_empty(), "{}", cloud.uri);
        }
    }
}

#[test]
fn redirects_in_a_circle_end() {
    let runtime = Runtime::new().unwrap();
    for cloud in &CLOUDS {
        let answer = |request: &Request| Reply::new(307, &[("location", request.target())], "");
        let store = runtime.block_on(Stub::start(answer));
        cloud.refused(store.url(), &[], &[]);
        // As often as a store that is ill is asked, and a few redirects of each.
        let asked = store.requests().len();
        assert!((1..=20).contains(&asked), "{}: {asked} requests", cloud.uri);
    }
}

#[test]
fn a_wrong_key() {
    let runtime = Runtime::new().unwrap();
    let said: [fn() -> Reply; 4] = [
        || Reply::s3_error(403, "SignatureDoesNotMatch", &[]),
        || {
            let body = r#"{"error": {"code": 401, "message": "Invalid Credentials"}}"#;
            Reply::new(401, &[], body)
        },
        || Reply::new(403, &[("x-ms-error-code", "AuthenticationFailed")], ""),
        || Reply::new(401, &[], r#"{"status": 401, "message": "token is invalid"}"#),
    ];
    let steps = ["--profile", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY", "AIS_AUTHN"];
    for ((cloud, said), step) in CLOUDS.iter().zip(said).zip(steps) {
        let store = runtime.block_on(Stub::start(move |_| said()));
        let line = cloud.refused(store.url(), &[], &[]);
        assert_words(cloud, &line, &["the store answered 40", step]);
    }
}
