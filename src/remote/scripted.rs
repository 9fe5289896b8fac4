//! A remote in memory that does what a test tells it to.
//!
//! Objects are put and deleted at any time, each put makes a new version, and
//! GETs hold on to a version as a store with `If-Match` does. Requests are
//! logged, can be held at a [`Gate`] and released one by one, and can be made to
//! fail in every way a network has. Nothing here waits for a clock unless it is
//! told to, so tests of concurrency need no sleeps:
//!
//! ```
//! # use warmfs::remote::scripted::{Fault, RequestKind, ScriptedRemote};
//! let remote = ScriptedRemote::new();
//! let meta = remote.put("data/a.bin", vec![7; 1000]);
//! remote.fail_next(RequestKind::Get, Fault::BreakAfter(400));
//! // ... read it through a RemoteClient ...
//! assert_eq!(remote.count(RequestKind::Get), 0);
//! assert_eq!(meta.size, 1000);
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::gate::Gate;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId, Version, VersionGuard,
};

/// Entries in a page unless the request or the test says otherwise; as S3.
const PAGE_KEYS: usize = 1000;

/// Bytes in a piece of a body unless the test says otherwise.
const PIECE_BYTES: usize = 64 << 10;

/// An object store in memory. Clones are the same store.
#[derive(Clone)]
pub struct ScriptedRemote {
    id: RemoteId,
    gate: Gate,
    state: Arc<Mutex<State>>,
}

struct State {
    objects: BTreeMap<String, (ObjectMeta, Bytes)>,
    puts: u64,
    log: Vec<Request>,
    queued: Vec<(RequestKind, VecDeque<Fault>)>,
    script: Option<Script>,
    latency: Duration,
    page_keys: usize,
    piece_bytes: usize,
    capabilities: Capabilities,
    fetches_first: bool,
}

type Script = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// The three kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// [`Remote::head`].
    Head,
    /// [`Remote::list`].
    List,
    /// [`Remote::get_range`].
    Get,
}

/// A request as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// HEAD of a key.
    Head(Key),
    /// A page of a listing.
    List(ListRequest),
    /// GET of a range, in bytes.
    Get(Key, Range<u64>),
}

impl Request {
    /// Its kind.
    pub fn kind(&self) -> RequestKind {
        match self {
            Request::Head(_) => RequestKind::Head,
            Request::List(_) => RequestKind::List,
            Request::Get(..) => RequestKind::Get,
        }
    }
}

/// What goes wrong with one request. Those about bodies leave HEAD and LIST
/// as they are.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request fails with this kind of error.
    Error(ErrorKind),
    /// The answer comes after this time.
    Delay(Duration),
    /// No answer ever comes.
    Hang,
    /// The body fails with [`ErrorKind::Transient`] after so many bytes.
    BreakAfter(u64),
    /// The body ends after so many bytes as if it were whole.
    ShortBody(u64),
    /// The body goes on for so many bytes past the range.
    LongBody(u64),
    /// The body delivers so many bytes and then nothing, without an end.
    StallAfter(u64),
    /// The body waits at the gate after so many bytes, then goes on.
    HoldAfter(u64, Gate),
    /// The response is for another version, with other bytes.
    OtherVersion,
    /// The response tells another total size.
    OtherSize,
}

impl Default for ScriptedRemote {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedRemote {
    /// An empty store, `scripted://store`.
    pub fn new() -> Self {
        Self::with_id("scripted://store")
    }

    /// An empty store with an identity of its own.
    pub fn with_id(id: &str) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            puts: 0,
            log: Vec::new(),
            queued: Vec::new(),
            script: None,
            latency: Duration::ZERO,
            page_keys: PAGE_KEYS,
            piece_bytes: PIECE_BYTES,
            capabilities: Capabilities {
                version_guard: VersionGuard::IfMatch,
                list_start_after: true,
            },
            fetches_first: false,
        };
        ScriptedRemote {
            id: RemoteId(id.to_owned()),
            gate: Gate::open(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Puts an object, or a new version of it.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectMeta {
        let bytes = bytes.into();
        let mut state = self.lock();
        state.puts += 1;
        let meta = ObjectMeta {
            key: Key(key.to_owned()),
            size: bytes.len() as u64,
            version: Version(format!("v{}", state.puts)),
            mtime: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + state.puts),
        };
        state.objects.insert(key.to_owned(), (meta.clone(), bytes));
        meta
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    /// What HEAD would answer, without a request.
    pub fn meta(&self, key: &str) -> Option<ObjectMeta> {
        self.lock().objects.get(key).map(|(meta, _)| meta.clone())
    }

    /// Makes the next request of `kind` go wrong; calls queue up.
    pub fn fail_next(&self, kind: RequestKind, fault: Fault) {
        let mut state = self.lock();
        match state.queued.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, queue)) => queue.push_back(fault),
            None => state.queued.push((kind, VecDeque::from([fault]))),
        }
    }

    /// Asks `script` about each request for which nothing is queued. It must
    /// not call this remote.
    pub fn script(&self, script: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// Delays every answer.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Sets the most entries in a page.
    pub fn set_page_keys(&self, keys: usize) {
        self.lock().page_keys = keys.max(1);
    }

    /// Sets the size of the pieces that bodies come in.
    pub fn set_piece_bytes(&self, bytes: usize) {
        self.lock().piece_bytes = bytes.max(1);
    }

    /// Says that an object is fetched as a whole before its first byte is sent.
    pub fn set_fetches_first(&self) {
        self.lock().fetches_first = true;
    }

    /// Sets what the remote says it can do. `list_start_after: false` makes it
    /// ignore [`ListRequest::start_after`].
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.lock().capabilities = capabilities;
    }

    /// Where every request waits after it is logged. Open at first.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Every request so far, in the order received.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().log.clone()
    }

    /// The number of requests of `kind` so far.
    pub fn count(&self, kind: RequestKind) -> usize {
        self.lock().log.iter().filter(|request| request.kind() == kind).count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.lock().log.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a request, waits as it must, and says what goes wrong with it.
    async fn arrive(&self, request: Request) -> Result<Option<Fault>, RemoteError> {
        let what = format!("{request:?}");
        let (fault, latency) = {
            let mut state = self.lock();
            let fault = state.next_fault(&request);
            state.log.push(request);
            (fault, state.latency)
        };
        self.gate.pass().await;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fault {
            Some(Fault::Error(kind)) => {
                Err(RemoteError::new(kind, format!("{what}: fails as scripted")))
            }
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            Some(Fault::Hang) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

impl State {
    fn next_fault(&mut self, request: &Request) -> Option<Fault> {
        let kind = request.kind();
        let queued = self.queued.iter_mut().find(|(k, _)| *k == kind);
        if let Some(fault) = queued.and_then(|(_, queue)| queue.pop_front()) {
            return Some(fault);
        }
        self.script.as_mut().and_then(|script| script(request))
    }

    fn list(&self, request: &ListRequest) -> ListPage {
        let mut page = ListPage::default();
        let limit = request.max_keys.map_or(self.page_keys, usize::from).clamp(1, self.page_keys);
        let start_after =
            request.start_after.as_deref().filter(|_| self.capabilities.list_start_after);
        let after = request.continuation.as_deref().or(start_after);
        let mut last: Option<String> = None;
        for (key, (meta, _)) in self.objects.range(request.prefix.clone()..) {
            let Some(rest) = key.strip_prefix(&request.prefix) else { break };
            // Like S3, a key `dir/` is folded into the prefix it spells.
            let slash = rest.find('/').filter(|_| !request.recursive);
            let folded = match slash {
                Some(slash) => &key[..request.prefix.len() + slash + 1],
                None => key.as_str(),
            };
            if after.is_some_and(|after| folded <= after) || last.as_deref() == Some(folded) {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.next = last;
                return page;
            }
            last = Some(folded.to_owned());
            if slash.is_some() {
                page.prefixes.push(folded.to_owned());
            } else {
                page.objects.push(meta.clone());
            }
        }
        page
    }
}

#[async_trait]
impl Remote for ScriptedRemote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        self.lock().capabilities
    }

    fn fetches_first(&self) -> bool {
        self.lock().fetches_first
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let fault = self.arrive(Request::Head(key.clone())).await?;
        let mut meta = self.meta(&key.0).ok_or_else(|| not_found("HEAD", key))?;
        if let Some(Fault::OtherVersion) = fault {
            meta.version.0.push_str("-other");
        }
        Ok(meta)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        self.arrive(Request::List(request.clone())).await?;
        Ok(self.lock().list(request))
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let fault = self.arrive(Request::Get(object.key.clone(), range.clone())).await?;
        let state = self.lock();
        let Some((meta, bytes)) = state.objects.get(&object.key.0) else {
            return Err(not_found("GET", &object.key));
        };
        if meta.version != object.version || range.start > range.end || range.end > meta.size {
            let message = format!("GET {}: it is now {}", object.key.0, meta.version.0);
            return Err(RemoteError::new(ErrorKind::Changed, message));
        }
        let mut answer = (meta.version.clone(), meta.size);
        let mut bytes = bytes.slice(range.start as usize..range.end as usize);
        match &fault {
            Some(Fault::OtherVersion) => {
                answer.0.0.push_str("-other");
                bytes = bytes.iter().map(|byte| !byte).collect();
            }
            Some(Fault::OtherSize) => answer.1 += 1,
            Some(Fault::LongBody(more)) => {
                bytes = bytes.iter().copied().chain((0..*more).map(|_| 0xEE)).collect();
            }
            _ => {}
        }
        let body = body(bytes, state.piece_bytes, fault);
        Ok(RangeBody { version: answer.0, total_size: answer.1, body })
    }
}

/// A body in pieces that goes wrong as `fault` says.
fn body(
    mut bytes: Bytes,
    piece_bytes: usize,
    fault: Option<Fault>,
) -> BoxStream<'static, Result<Bytes, RemoteError>> {
    let good = match &fault {
        Some(Fault::BreakAfter(n) | Fault::ShortBody(n))
        | Some(Fault::StallAfter(n) | Fault::HoldAfter(n, _)) => {
            bytes.split_to(bytes.len().min(*n as usize))
        }
        _ => std::mem::take(&mut bytes),
    };
    let good = pieces(good, piece_bytes);
    match fault {
        Some(Fault::BreakAfter(_)) => {
            let error = RemoteError::new(ErrorKind::Transient, "the body breaks off as scripted");
            good.chain(stream::iter([Err(error)])).boxed()
        }
        Some(Fault::StallAfter(_)) => good.chain(stream::pending()).boxed(),
        Some(Fault::HoldAfter(_, gate)) => {
            let rest = stream::once(async move {
                gate.pass().await;
                pieces(bytes, piece_bytes)
            });
            good.chain(rest.flatten()).boxed()
        }
        _ => good,
    }
}

fn pieces(mut bytes: Bytes, size: usize) -> BoxStream<'static, Result<Bytes, RemoteError>> {
    let next = move || (!bytes.is_empty()).then(|| Ok(bytes.split_to(bytes.len().min(size))));
    stream::iter(std::iter::from_fn(next)).boxed()
}

fn not_found(verb: &str, key: &Key) -> RemoteError {
    RemoteError::new(ErrorKind::NotFound, format!("{verb} {}: there is no such object", key.0))
}

impl fmt::Debug for ScriptedRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedRemote").field("id", &self.id).finish_non_exhaustive()
    }
}
