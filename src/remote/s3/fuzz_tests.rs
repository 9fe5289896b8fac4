//! Fuzz targets for what a store answers: each answer goes through the SDK, as
//! it would from a socket, and through everything that is made of it here.

use std::sync::{Arc, Mutex};

use aws_sdk_s3::Config;
use aws_sdk_s3::config::{BehaviorVersion, StalledStreamProtectionConfig};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::region::Region;
use futures::StreamExt;
use tokio::runtime::Runtime;

use super::*;
use crate::fuzz::{Effort, Target, fuzz_tests};
use crate::remote::OBJECT_BYTES_MAX;

fuzz_tests!(listings, errors, headers, texts);

/// The SDK's own machinery for one request, and a listed object: some 700
/// bytes in its types and ours from as little as `<Contents/>`.
const MEMORY: (usize, usize) = (1 << 20, 512);

/// Answers every request with what was put there last.
#[derive(Clone, Debug, Default)]
struct Canned(Arc<Mutex<Answer>>);

#[derive(Clone, Debug, Default)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl HttpClient for Canned {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Canned {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.lock().unwrap().clone();
        let status = answer.status.try_into().unwrap();
        let mut response = HttpResponse::new(status, SdkBody::from(answer.body));
        for (name, value) in answer.headers {
            // What no header can hold, hyper refuses.
            let _ = response.headers_mut().try_append(name, value);
        }
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// A remote whose store says what the fuzzer wants.
struct Fuzzed {
    remote: S3Remote,
    canned: Canned,
    runtime: Runtime,
}

impl Fuzzed {
    fn new() -> Fuzzed {
        let canned = Canned::default();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(canned.clone())
            .region(Region::new("us-east-1"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .allow_no_auth()
            .endpoint_url("http://store")
            .force_path_style(true)
            .build();
        let remote = S3Remote {
            id: RemoteId("s3://store/bucket".to_owned()),
            bucket: "bucket".to_owned(),
            client: Client::from_conf(config),
            keys: None,
            payer: None,
            customer_key: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fuzzed = Fuzzed { remote, canned, runtime };
        // Whatever is set up once is not the first input's memory.
        let _ = fuzzed.list(200, Vec::new(), b"");
        fuzzed
    }

    fn answer(&self, status: u16, headers: Vec<(String, String)>, body: &[u8]) {
        *self.canned.0.lock().unwrap() = Answer { status, headers, body: body.to_vec() };
    }

    fn list(
        &self,
        status: u16,
        headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Result<ListPage, RemoteError> {
        self.answer(status, headers, body);
        let request = ListRequest { prefix: "p/".to_owned(), ..ListRequest::default() };
        self.runtime.block_on(self.remote.list(&request))
    }

    fn head(&self) -> Result<ObjectMeta, RemoteError> {
        self.runtime.block_on(self.remote.head(&Key("key".to_owned())))
    }

    /// The first `range` of an object, as its bytes and what was said of it.
    fn get(&self, range: Range<u64>) -> Result<(RangeBody, usize), RemoteError> {
        let object = ObjectMeta {
            key: Key("key".to_owned()),
            size: 100,
            version: Version("v".to_owned()),
            mtime: SystemTime::UNIX_EPOCH,
        };
        self.runtime.block_on(async {
            let mut answer = self.remote.get_range(&object, range).await?;
            let mut bytes = 0;
            while let Some(piece) = answer.body.next().await {
                bytes += piece?.len();
            }
            Ok((answer, bytes))
        })
    }
}

fn check_error(error: &RemoteError) {
    assert!(!error.message.contains(char::is_control), "{:?}", error.message);
    // A person reads it: the store's own words have their bound.
    assert!(error.message.chars().count() < 1_200, "{}", error.message);
}

const XML_WORDS: &[&str] = &[
    "<Contents>",
    "</Contents>",
    "<Contents/>",
    "<Key>",
    "</Key>",
    "<Size>",
    "</Size>",
    "<ETag>",
    "<IsTruncated>true</IsTruncated>",
    "<NextContinuationToken>t</NextContinuationToken>",
    "<!DOCTYPE a [<!ENTITY b \"cc\">]>",
    "&b;",
    "&#0;",
    "&#x1b;",
    "&lt;",
    "<![CDATA[",
    "<!--",
    "%0A",
    "%1B",
    "%ff",
    "9999-12-31T23:59:59.999Z",
    "-1",
];

fn listings(effort: Effort) {
    let listing = |inner: &str| {
        format!(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3\"><Name>bucket</Name>\
             <EncodingType>url</EncodingType>{inner}</ListBucketResult>"
        )
        .into_bytes()
    };
    let object = "<Contents><Key>p/a+b%2Bc%0A</Key><Size>17</Size><ETag>&quot;e&quot;</ETag>\
                  <LastModified>2024-01-02T03:04:05.000Z</LastModified></Contents>";
    let more = "<IsTruncated>true</IsTruncated>\
                <NextContinuationToken>t</NextContinuationToken>";
    let folder = "<CommonPrefixes><Prefix>p/%01/</Prefix></CommonPrefixes>";
    let corpus =
        [String::new(), object.to_owned(), object.repeat(5), format!("{object}{folder}{more}")];
    let target = Target {
        name: "listings",
        corpus: corpus.iter().map(|inner| listing(inner)).collect(),
        words: XML_WORDS,
        inputs: 5_000,
        memory: MEMORY,
    };
    let fuzzed = Fuzzed::new();
    target.run(effort, |input| match fuzzed.list(200, Vec::new(), input) {
        Ok(page) => {
            assert!(page.objects.iter().all(|object| object.size <= OBJECT_BYTES_MAX));
            assert!(page.next.is_none_or(|token| token.len() <= input.len()));
            true
        }
        Err(error) => {
            check_error(&error);
            false
        }
    });
}

/// A status, then the body that comes with it.
fn errors(effort: Effort) {
    const STATUSES: [u16; 14] =
        [200, 204, 206, 301, 304, 307, 400, 401, 403, 404, 412, 416, 500, 503];
    let body = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>said the store\
                 </Message><Region>eu-west-1</Region><RequestId>7</RequestId></Error>";
    let corpus = (0..STATUSES.len() as u8).map(|at| [&[at], &body[..]].concat()).collect();
    let target = Target {
        name: "error answers",
        corpus,
        words: &["<Error>", "<Code>", "</Code>", "NoSuchKey", "AccessDenied", "&#x1b;", "&#10;"],
        inputs: 5_000,
        memory: MEMORY,
    };
    let fuzzed = Fuzzed::new();
    target.run(effort, |input| {
        let (at, body) = input.split_first().unwrap_or((&0, &[]));
        let status = STATUSES[usize::from(*at) % STATUSES.len()];
        let listed = fuzzed.list(status, Vec::new(), body);
        let results = [listed.err(), fuzzed.head().err(), fuzzed.get(0..9).err()];
        results.iter().flatten().for_each(check_error);
        matches!(&results[0], Some(error) if error.message.contains("said the store"))
    });
}

/// Lines of `name: value`, then the body.
fn headers(effort: Effort) {
    let corpus = [
        "etag: \"v\"\ncontent-range: bytes 10-19/100\ncontent-length: 10\n\n0123456789",
        "etag: W/\"v\"\ncontent-length: 30\n\n012345678901234567890123456789",
        "etag: v\ncontent-length: 100\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\n\n",
        "retry-after: 7\nx-amz-bucket-region: eu-west-3\ncontent-encoding: gzip\n\n<Error/>",
        "retry-after: Sun, 06 Nov 9994 08:49:37 GMT\nx-amz-request-id: 7\n\n",
    ];
    let target = Target {
        name: "headers",
        corpus: corpus.map(Vec::from).to_vec(),
        words: &[
            "content-range: ",
            "bytes ",
            "*/",
            "/*",
            "content-length: ",
            "etag: ",
            "last-modified: ",
            "\n",
            "GMT",
            "\"",
        ],
        inputs: 3_000,
        memory: MEMORY,
    };
    let fuzzed = Fuzzed::new();
    target.run(effort, |input| {
        let end = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
        let (head, body) = input.split_at(end);
        let head = String::from_utf8_lossy(head);
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        let fields: Vec<_> = fields.map(|(a, b)| (a.to_ascii_lowercase(), b.to_owned())).collect();
        let mut accepted = false;
        for status in [206, 503] {
            fuzzed.answer(status, fields.clone(), body);
            match fuzzed.get(10..20) {
                Ok((answer, bytes)) => {
                    assert!(bytes <= 10, "{bytes}");
                    assert!(answer.total_size <= OBJECT_BYTES_MAX);
                    accepted = true;
                }
                Err(error) => check_error(&error),
            }
            match fuzzed.head() {
                Ok(meta) => assert!(meta.size <= OBJECT_BYTES_MAX),
                Err(error) => check_error(&error),
            }
        }
        accepted
    });
}

/// What is read besides XML.
fn texts(effort: Effort) {
    let target = Target {
        name: "encoded keys and etags",
        corpus: ["a+b%2Bc%25d%0Ae%C3%A9/f", "W/\"v\""].map(Vec::from).to_vec(),
        words: &["%", "%0", "%ff", "+", "\"", "W/"],
        inputs: 20_000,
        memory: (4 << 10, 16),
    };
    target.run(effort, |input| {
        let text = String::from_utf8_lossy(input);
        assert!(!Version::from_etag(&text).0.starts_with('"'));
        !decode(&text).is_empty()
    });
}
