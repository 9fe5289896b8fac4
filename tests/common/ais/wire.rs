//! Requests and answers, as they go over the wire.

use std::io;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::header::{self, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::faults::Trouble;
use super::objects::Bucket;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The clouds there are, and the cluster itself.
const PROVIDERS: [&str; 5] = ["ais", "aws", "gcp", "azure", "oci"];

/// A request, with its body.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query, as the client encoded them.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What a request is about.
#[derive(Debug)]
pub(super) enum Resource {
    Health,
    Bucket(String),
    Object(String, String),
    Unknown,
}

impl Asked {
    pub(super) async fn receive(request: Request<Incoming>) -> Result<Asked, hyper::Error> {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let body = body.collect().await?.to_bytes();
        Ok(Asked { method: parts.method, target, headers: parts.headers, body })
    }

    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A parameter of the query, decoded.
    pub(super) fn param(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let (_, value) = pairs.into_iter().find(|(found, _)| *found == name)?;
        Some(decode(&value.replace('+', " ")))
    }

    /// The range as it was asked for; empty for the whole.
    pub(super) fn range(&self) -> &str {
        self.header(header::RANGE).unwrap_or_default()
    }

    pub(super) fn resource(&self) -> Resource {
        let path = self.target.split('?').next().unwrap_or_default();
        if path == "/v1/health" {
            return Resource::Health;
        }
        if let Some(bucket) = path.strip_prefix("/v1/buckets/") {
            return Resource::Bucket(decode(bucket.trim_end_matches('/')));
        }
        let object = path.strip_prefix("/v1/objects/").and_then(|rest| rest.split_once('/'));
        match object {
            Some((bucket, name)) if !bucket.is_empty() && !name.is_empty() => {
                Resource::Object(decode(bucket), decode(name))
            }
            _ => Resource::Unknown,
        }
    }

    /// The bucket of that name and of the provider that the query tells.
    pub(super) fn bucket(&self, name: &str) -> Result<Bucket, Refusal> {
        let provider = self
            .param("provider")
            .ok_or_else(|| Refusal::bad_request("a bucket request needs a provider"))?;
        if !PROVIDERS.contains(&provider.as_str()) {
            return Err(Refusal::bad_request(format!("unknown provider {provider:?}")));
        }
        match self.param("namespace") {
            Some(namespace) if !namespace.is_empty() => {
                Err(Refusal::not_found(format!("no such namespace: {namespace}")))
            }
            _ => Ok(Bucket::new(&provider, name)),
        }
    }

    /// The body of a request that is an action.
    pub(super) fn action(&self) -> Result<(String, Value), Refusal> {
        if self.header(header::CONTENT_TYPE) != Some("application/json") {
            return Err(Refusal::bad_request("the body must be application/json"));
        }
        let mut body: Value = serde_json::from_slice(&self.body)
            .map_err(|error| Refusal::bad_request(format!("the body is no JSON: {error}")))?;
        let action = body["action"].as_str().unwrap_or_default().to_owned();
        Ok((action, body["value"].take()))
    }

    /// An error as the cluster words it; for HEAD in a header.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        let told = json!({
            "status": refusal.status.as_u16(),
            "message": refusal.message,
            "method": self.method.as_str(),
            "url_path": self.target.split('?').next(),
            "tcode": refusal.status.canonical_reason().unwrap_or_default().replace(' ', ""),
        });
        let mut answer = if self.method == Method::HEAD {
            let mut answer = plain(refusal.status, "");
            let value = HeaderValue::from_bytes(told.to_string().as_bytes());
            let value = value.unwrap_or(HeaderValue::from_static("{}"));
            answer.headers_mut().insert("hdr-error", value);
            answer
        } else {
            json_answer(refusal.status, &told)
        };
        for (name, value) in &refusal.headers {
            answer.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        answer
    }
}

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), headers: Vec::new() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Refusal {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Refusal {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn no_such_object(bucket: &Bucket, name: &str) -> Refusal {
        Self::not_found(format!("no such object: {bucket}/{name}"))
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.headers.push((name, value.into()));
        self
    }

    /// What a fault makes of a request, where it is a status.
    pub(super) fn of(trouble: &Trouble) -> Option<Refusal> {
        let refusal = |status| {
            Self::new(StatusCode::from_u16(status).unwrap(), "a fault that the test asked for")
        };
        match trouble {
            Trouble::Status(status) => Some(refusal(*status)),
            Trouble::RetryAfter(status, seconds) => {
                Some(refusal(*status).with("retry-after", seconds.to_string()))
            }
            _ => None,
        }
    }
}

/// Which bytes of `size` a `Range` names; `None` for the whole.
pub(super) fn parse_range(range: &str, size: u64) -> Result<Option<(u64, u64)>, Refusal> {
    if range.is_empty() {
        return Ok(None);
    }
    let unsatisfiable = || {
        let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("range {range:?}"));
        refusal.with("content-range", format!("bytes */{size}"))
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .and_then(|bounds| bounds.split_once('-'))
        .ok_or_else(unsatisfiable)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| unsatisfiable());
    let (first, end) = match (first, last) {
        ("", tail) => (size.saturating_sub(number(tail)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => (number(first)?, number(last)?.saturating_add(1).min(size)),
    };
    if first < end { Ok(Some((first, end))) } else { Err(unsatisfiable()) }
}

/// An answer of text.
pub(super) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(whole(text.into()));
    *answer.status_mut() = status;
    answer
}

/// An answer in JSON.
pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut answer = plain(status, value.to_string());
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

/// Leads the client elsewhere.
pub(super) fn redirect(status: StatusCode, location: &str) -> Response<Body> {
    let mut answer = plain(status, "see Location\n");
    let location = HeaderValue::from_bytes(location.as_bytes()).unwrap();
    answer.headers_mut().insert(header::LOCATION, location);
    answer
}

/// A body that comes as it should.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body that breaks off after `sent` bytes: with a reset, or by silence.
pub(super) fn broken(bytes: &Bytes, sent: usize, reset: bool) -> Body {
    let beginning = bytes.slice(..sent.min(bytes.len()));
    let beginning = stream::once(async { Ok(Frame::data(beginning)) });
    let end = stream::once(async move {
        // What hyper has is written when a body has nothing more for now.
        tokio::task::yield_now().await;
        if !reset {
            std::future::pending::<()>().await;
        }
        Err(io::ErrorKind::ConnectionReset.into())
    });
    StreamBody::new(beginning.chain(end)).boxed_unsync()
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
