//! From requests to answers.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::response::Builder;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::faults::Fault;
use super::log::{Entry, Op};
use super::objects::{self, ListQuery, NoSuchBucket, Object};
use super::request::{self, Selection, Target};
use super::throttle::{Ending, StoreBody};
use super::{Access, Connection, Shared, xml};

/// The largest object that a PUT may bring: it is held in memory.
const PUT_BYTES_MAX: usize = 1 << 30;
/// Where the bucket says it is, unless a region is required.
const DEFAULT_REGION: &str = "us-east-1";
const REGION_HEADER: &str = "x-amz-bucket-region";

/// An error as S3 words it.
#[derive(Debug)]
struct S3Error {
    status: StatusCode,
    code: String,
    message: &'static str,
    retry_after_s: Option<u64>,
}

impl S3Error {
    fn new(status: StatusCode, code: &str, message: &'static str) -> Self {
        S3Error { status, code: code.to_owned(), message, retry_after_s: None }
    }

    fn no_such_key() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist.")
    }

    fn invalid_argument(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }
}

impl From<NoSuchBucket> for S3Error {
    fn from(_: NoSuchBucket) -> Self {
        let message = "The specified bucket does not exist";
        Self::new(StatusCode::NOT_FOUND, "NoSuchBucket", message)
    }
}

/// One request, as far as it is understood.
#[derive(Debug)]
struct Asked<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    target: Target,
    headers: HeaderMap,
    op: Op,
    /// HEAD: everything but the body.
    headers_only: bool,
    entry: Arc<Entry>,
    fault: Option<Fault>,
}

/// Answers one request.
pub(super) async fn answer(
    shared: &Shared,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<StoreBody> {
    let (parts, incoming) = request.into_parts();
    let target = Target::parse(&parts.uri, &parts.headers);
    let utf8 = target.is_ok();
    let target = target.unwrap_or_default();
    let op = target.op(&parts.method);
    let name =
        if op == Op::List { target.param("prefix").unwrap_or_default() } else { &target.key };
    let entry = shared.log.arrived(parts.method.as_str(), op, &target.bucket, name);
    let fault = shared.faults.take(op, name);
    let headers_only = parts.method == Method::HEAD;
    let headers = parts.headers;
    let asked = Asked { shared, connection, target, headers, op, headers_only, entry, fault };

    asked.wait().await;
    let answered = if utf8 {
        asked.carry_out(incoming).await
    } else {
        Err(S3Error::new(StatusCode::BAD_REQUEST, "InvalidURI", "Couldn't parse the URI."))
    };
    let response = answered.unwrap_or_else(|error| asked.error(&error));
    asked.entry.answered(response.status().as_u16());
    response
}

impl Asked<'_> {
    /// Lets the time to the first byte pass.
    async fn wait(&self) {
        let options = &self.shared.options;
        let delay = match self.op {
            Op::List => options.list_page_delay.unwrap_or(options.ttfb),
            _ => options.ttfb,
        };
        let delay = match &self.fault {
            Some(Fault::Delay(extra)) => delay + *extra,
            Some(Fault::NoAnswer) => std::future::pending::<Duration>().await,
            _ => delay,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    async fn carry_out(&self, incoming: Incoming) -> Result<Response<StoreBody>, S3Error> {
        if let Some(Fault::Status { status, code, retry_after_s }) = &self.fault {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            let mut error = S3Error::new(status, code, "A fault rule says so.");
            error.retry_after_s = *retry_after_s;
            return Err(error);
        }
        self.check_access()?;
        let buckets = &self.shared.buckets;
        let Target { bucket, key, .. } = &self.target;
        if !matches!(self.op, Op::CreateBucket | Op::Other) && !buckets.exists(bucket) {
            return Err(NoSuchBucket.into());
        }
        match self.op {
            Op::List => self.list(),
            Op::Get | Op::Head => match buckets.get(bucket, key)? {
                Some(object) => self.object(&object),
                None => Err(S3Error::no_such_key()),
            },
            Op::Put => self.put(incoming).await,
            Op::Delete => {
                buckets.delete(bucket, key);
                Ok(self.empty(Response::builder().status(StatusCode::NO_CONTENT)))
            }
            Op::HeadBucket => Ok(self.empty(Response::builder())),
            Op::CreateBucket => {
                buckets.create(bucket);
                Ok(self.empty(Response::builder()))
            }
            Op::Other => Err(S3Error::new(
                StatusCode::NOT_IMPLEMENTED,
                "NotImplemented",
                "This store does not do that.",
            )),
        }
    }

    fn check_access(&self) -> Result<(), S3Error> {
        let options = &self.shared.options;
        let signer = request::signer(&self.target, &self.headers);
        let forbidden = |code, message| Err(S3Error::new(StatusCode::FORBIDDEN, code, message));
        let access = self.shared.access.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (&access, &signer) {
            (Access::Public, _) => {}
            (Access::Key(_), None) => return forbidden("AccessDenied", "Access Denied"),
            (Access::Key(id), Some(signer)) if signer.access_key_id != *id => {
                let message = "The AWS Access Key Id you provided does not exist in our records.";
                return forbidden("InvalidAccessKeyId", message);
            }
            (Access::Key(_), Some(_)) => {}
        }
        match (&options.required_region, &signer) {
            (Some(region), Some(signer)) if signer.region != *region => Err(if self.headers_only {
                S3Error::new(StatusCode::MOVED_PERMANENTLY, "PermanentRedirect", "")
            } else {
                let message = "The authorization header is malformed; the region is wrong";
                let code = "AuthorizationHeaderMalformed";
                S3Error::new(StatusCode::BAD_REQUEST, code, message)
            }),
            _ => Ok(()),
        }
    }

    fn object(&self, object: &Object) -> Result<Response<StoreBody>, S3Error> {
        let wrong_etag = self.fault == Some(Fault::WrongEtag);
        let holds = |name| request::etag_matches(&self.headers, name, &object.etag);
        if holds(header::IF_MATCH) == Some(false) && !wrong_etag {
            return Err(S3Error::new(
                StatusCode::PRECONDITION_FAILED,
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
            ));
        }
        let etag = if wrong_etag { "0123456789abcdef0123456789abcdef" } else { &object.etag };
        let head = Response::builder()
            .header(header::ETAG, format!("\"{etag}\""))
            .header(header::LAST_MODIFIED, httpdate::fmt_http_date(object.modified))
            .header(header::ACCEPT_RANGES, "bytes");
        if holds(header::IF_NONE_MATCH) == Some(true) {
            return Ok(self.empty(head.status(StatusCode::NOT_MODIFIED)));
        }
        let head = head.header(header::CONTENT_TYPE, "binary/octet-stream");
        let size = object.body.len() as u64;
        let selection = match self.fault {
            Some(Fault::IgnoreRange) => Selection::All,
            _ => request::selection(&self.headers, size),
        };
        match selection {
            Selection::All => Ok(self.with_body(head, object.body.clone())),
            Selection::Unsatisfiable => Err(S3Error::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "InvalidRange",
                "The requested range is not satisfiable",
            )),
            Selection::Part(range) => {
                self.entry.ranged(range.clone());
                let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let head =
                    head.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, told);
                // Within the object, whose size is a usize.
                let body = object.body.slice(range.start as usize..range.end as usize);
                Ok(self.with_body(head, body))
            }
        }
    }

    fn list(&self) -> Result<Response<StoreBody>, S3Error> {
        let param = |name| self.target.param(name);
        let max_keys = match param("max-keys").map(str::parse::<usize>) {
            None => self.shared.options.page_keys_max,
            Some(Ok(wanted)) => wanted.min(self.shared.options.page_keys_max),
            Some(Err(_)) => return Err(S3Error::invalid_argument("max-keys is not a number")),
        };
        let continued_after = match param("continuation-token") {
            None => None,
            Some(token) => Some(last_entry_of(token).ok_or_else(|| {
                S3Error::invalid_argument("The continuation token provided is incorrect")
            })?),
        };
        let query = ListQuery {
            prefix: param("prefix").unwrap_or_default().to_owned(),
            delimiter: param("delimiter").unwrap_or_default().to_owned(),
            after: continued_after.or_else(|| {
                param("start-after").filter(|after| !after.is_empty()).map(str::to_owned)
            }),
            max_entries: max_keys,
        };
        let listing = self.shared.buckets.list(&self.target.bucket, &query)?;
        let header = xml::ListHeader {
            bucket: &self.target.bucket,
            prefix: &query.prefix,
            delimiter: &query.delimiter,
            start_after: param("start-after"),
            continuation: param("continuation-token"),
            next_continuation: listing.more_after.as_deref().map(token_after),
            max_keys,
            url_encoded: param("encoding-type") == Some("url"),
        };
        Ok(self.xml(Response::builder(), xml::listing(&header, &listing)))
    }

    async fn put(&self, incoming: Incoming) -> Result<Response<StoreBody>, S3Error> {
        let collected = Limited::new(incoming, PUT_BYTES_MAX).collect().await;
        let body = collected.map(|body| body.to_bytes()).map_err(|_| {
            let message = "The body ended early, or is more than 1 GiB.";
            S3Error::new(StatusCode::BAD_REQUEST, "IncompleteBody", message)
        })?;
        let says = |name: &str, what: &str| {
            let value = self.headers.get(name).and_then(|value| value.to_str().ok());
            value.is_some_and(|value| value.contains(what))
        };
        let chunked =
            says("content-encoding", "aws-chunked") || says("x-amz-content-sha256", "STREAMING-");
        let body = if chunked {
            let payload = request::decode_aws_chunked(&body);
            Bytes::from(payload.ok_or_else(|| S3Error::invalid_argument("malformed chunks"))?)
        } else {
            body
        };
        let etag = objects::etag_of(&body);
        let Target { bucket, key, .. } = &self.target;
        if !self.shared.buckets.put(bucket, key.clone(), body, etag.clone()) {
            return Err(NoSuchBucket.into());
        }
        Ok(self.empty(Response::builder().header(header::ETAG, format!("\"{etag}\""))))
    }

    fn error(&self, error: &S3Error) -> Response<StoreBody> {
        let required_region = self.shared.options.required_region.as_deref();
        let wrong_region = error.code == "AuthorizationHeaderMalformed";
        let region = if wrong_region { required_region } else { None };
        let resource = format!("/{}/{}", self.target.bucket, self.target.key);
        let mut head = Response::builder().status(error.status);
        if let Some(seconds) = error.retry_after_s {
            head = head.header(header::RETRY_AFTER, seconds);
        }
        self.xml(head, xml::error(&error.code, error.message, &resource, region))
    }

    fn xml(&self, head: Builder, xml: String) -> Response<StoreBody> {
        self.with_body(head.header(header::CONTENT_TYPE, "application/xml"), Bytes::from(xml))
    }

    fn empty(&self, head: Builder) -> Response<StoreBody> {
        self.finish(head, StoreBody::whole(Bytes::new(), None, self.entry.clone()))
    }

    fn with_body(&self, head: Builder, bytes: Bytes) -> Response<StoreBody> {
        if self.headers_only {
            return self.empty(head.header(header::CONTENT_LENGTH, bytes.len()));
        }
        let body =
            |bytes| StoreBody::whole(bytes, self.connection.pacer.clone(), self.entry.clone());
        let broken_off = |reset| Ending::BreakOff { reset };
        let body = match &self.fault {
            Some(Fault::ResetAfter(sent)) => {
                body(bytes).ending_after(*sent, broken_off(Some(self.connection.reset.clone())))
            }
            Some(Fault::CloseAfter(sent)) => body(bytes).ending_after(*sent, broken_off(None)),
            Some(Fault::StallAfter(sent)) => body(bytes).ending_after(*sent, Ending::Stall),
            Some(Fault::ShortBody(sent)) => {
                let sent = usize::try_from(*sent).unwrap_or(usize::MAX).min(bytes.len());
                body(bytes.slice(..sent))
            }
            Some(Fault::FlipByte(at)) => {
                let mut flipped = bytes.to_vec();
                if let Some(byte) = usize::try_from(*at).ok().and_then(|at| flipped.get_mut(at)) {
                    *byte = !*byte;
                }
                body(Bytes::from(flipped))
            }
            _ => body(bytes),
        };
        self.finish(head, body)
    }

    fn finish(&self, head: Builder, body: StoreBody) -> Response<StoreBody> {
        let region = self.shared.options.required_region.as_deref().unwrap_or(DEFAULT_REGION);
        // A header value that is none, such as an etag with a line break in it,
        // can only have been chosen by a caller in this process.
        let mut response = head.body(body).unwrap_or_else(|_| {
            let body = StoreBody::whole(Bytes::new(), None, self.entry.clone());
            let mut response = Response::new(body);
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        });
        if let Ok(region) = HeaderValue::from_str(region) {
            response.headers_mut().insert(REGION_HEADER, region);
        }
        response.headers_mut().insert("server", HeaderValue::from_static("warmfs-embedded"));
        response
    }
}

/// The token of the page after the entry `last`: opaque to clients, and proof
/// against whatever a key may hold.
fn token_after(last: &str) -> String {
    last.bytes().map(|byte| format!("{byte:02x}")).collect::<String>() + "-1"
}

fn last_entry_of(token: &str) -> Option<String> {
    let hex = token.strip_suffix("-1")?;
    if hex.len() % 2 == 1 || !hex.is_ascii() {
        return None;
    }
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok());
    String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for last in ["", "a", "é/\u{1}\r\n&+ "] {
            assert_eq!(last_entry_of(&token_after(last)).as_deref(), Some(last));
        }
        for wrong in ["", "61", "6-1", "zz-1", "ff-1", "é-1"] {
            assert_eq!(last_entry_of(wrong), None, "{wrong}");
        }
    }
}
