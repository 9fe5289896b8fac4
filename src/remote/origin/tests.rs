//! Two scripted stores, one of them a cluster, on a clock that only moves when all
//! wait.

use std::collections::HashSet;

use futures::StreamExt;

use super::*;
use crate::remote::scripted::{Fault, RequestKind, ScriptedRemote};

const KEY: &str = "k";

/// A store that is one, and what it is told besides.
#[derive(Debug, Default)]
struct Fake {
    store: ScriptedRemote,
    held: Mutex<HashSet<Key>>,
    looks: Mutex<usize>,
    prefetched: Mutex<Vec<Key>>,
    /// How long a look takes.
    look_takes: Mutex<Duration>,
}

#[async_trait]
impl Remote for Fake {
    fn id(&self) -> &RemoteId {
        self.store.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        self.store.head(key).await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        self.store.list(request).await
    }
    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        self.store.get_range(object, range).await
    }
}

#[async_trait]
impl Cluster for Fake {
    async fn holds(&self, key: &Key) -> Result<bool, RemoteError> {
        *self.looks.lock().unwrap() += 1;
        let takes = *self.look_takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        Ok(self.held.lock().unwrap().contains(key))
    }
    async fn prefetch(&self, key: &Key) -> Result<(), RemoteError> {
        self.prefetched.lock().unwrap().push(key.clone());
        Ok(())
    }
}

struct Setup {
    cluster: Arc<Fake>,
    origin: ScriptedRemote,
    metrics: Arc<RemoteMetrics>,
    both: Arc<WithOrigin>,
    object: ObjectMeta,
}

/// Both have one object of this size; its bytes tell where they came from.
fn setup(size: usize) -> Setup {
    let (cluster, origin) = (Arc::<Fake>::default(), ScriptedRemote::with_id("scripted://cloud"));
    let object = cluster.store.put(KEY, vec![b'c'; size]);
    assert_eq!(origin.put(KEY, vec![b'o'; size]), object);
    let metrics = Arc::<RemoteMetrics>::default();
    let both = WithOrigin::new(cluster.clone(), Arc::new(origin.clone()), Arc::clone(&metrics));
    Setup { cluster, origin, metrics, both: Arc::new(both), object }
}

impl Setup {
    /// Where the first bytes came from: `c` or `o`.
    async fn read(&self) -> Result<char, RemoteError> {
        let mut answer = self.both.get_range(&self.object, 0..10).await?;
        let piece = answer.body.next().await.unwrap()?;
        Ok(char::from(piece[0]))
    }

    fn fail(&self, kind: ErrorKind) {
        self.cluster.store.fail_next(RequestKind::Get, Fault::Error(kind));
    }

    fn gets(&self) -> (usize, usize) {
        (self.cluster.store.count(RequestKind::Get), self.origin.count(RequestKind::Get))
    }
}

#[tokio::test(start_paused = true)]
async fn the_cluster_is_asked_first_and_the_origin_where_it_cannot_serve() {
    let s = setup(100);
    assert_eq!(s.read().await, Ok('c'));
    assert_eq!(s.gets(), (1, 0));
    s.fail(ErrorKind::Transient);
    assert_eq!(s.read().await, Ok('o'));
    assert_eq!(s.gets(), (2, 1));
    // The client has counted one for each of the two reads itself.
    assert_eq!((s.metrics.get.requests.get(), s.metrics.from_origin.answers()), (1, 1));
    // What is an answer is one.
    for kind in [ErrorKind::NotFound, ErrorKind::Denied, ErrorKind::Changed, ErrorKind::Invalid] {
        s.fail(kind.clone());
        assert_eq!(s.read().await.unwrap_err().kind, kind);
    }
    assert_eq!(s.gets(), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn listings_and_heads_come_from_the_origin_too() {
    let s = setup(100);
    for n in 0..3 {
        s.cluster.store.put(&format!("{n}"), "x");
        s.origin.put(&format!("{n}"), "x");
    }
    s.cluster.store.fail_next(RequestKind::Head, Fault::Error(ErrorKind::Unreachable));
    assert_eq!(s.both.head(&s.object.key).await.unwrap(), s.object);
    let ask = |continuation: Option<String>| ListRequest {
        continuation,
        recursive: true,
        max_keys: Some(2),
        ..ListRequest::default()
    };
    for is_down in [false, true] {
        if is_down {
            let fault = Fault::Error(ErrorKind::Unreachable);
            s.cluster.store.fail_next(RequestKind::List, fault);
        }
        let (cluster, origin) = (&s.cluster.store, &s.origin);
        cluster.clear_requests();
        origin.clear_requests();
        let first = s.both.list(&ask(None)).await.unwrap();
        let rest = s.both.list(&ask(first.next.clone())).await.unwrap();
        let mut objects = first.objects;
        objects.extend(rest.objects);
        let keys: Vec<_> = objects.iter().map(|object| object.key.0.as_str()).collect();
        assert_eq!(keys, ["0", "1", "2", "k"]);
        let asked = (cluster.count(RequestKind::List), origin.count(RequestKind::List));
        assert_eq!(asked, if is_down { (1, 2) } else { (2, 0) });
    }
    // It goes on where it began, or not at all.
    let first = s.both.list(&ask(None)).await.unwrap();
    let fault = Fault::Error(ErrorKind::Unreachable);
    s.cluster.store.fail_next(RequestKind::List, fault);
    let error = s.both.list(&ask(first.next)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn another_version_of_the_origin_is_not_used() {
    let s = setup(100);
    // A store that does not refuse by itself is found out.
    for lie in [Fault::OtherVersion, Fault::OtherSize] {
        s.origin.fail_next(RequestKind::Get, lie);
        s.fail(ErrorKind::Transient);
        let error = s.read().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient);
        assert!(error.message.contains("the origin has another version"), "{error}");
    }
    s.origin.put(KEY, vec![b'x'; 100]);
    s.fail(ErrorKind::Transient);
    let error = s.read().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient);
    assert!(error.message.contains("; and the origin: "), "{error}");
    assert_eq!(s.metrics.from_origin.answers(), 0);
    // The cluster is asked where the origin has not what it was preferred for.
    let large = setup(64 << 20);
    large.origin.put(KEY, vec![b'x'; 64 << 20]);
    assert_eq!(large.read().await, Ok('c'));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_says_nothing_is_waited_for_a_while() {
    let s = setup(100);
    let start = Instant::now();
    s.cluster.store.fail_next(RequestKind::Get, Fault::Hang);
    assert_eq!(s.read().await, Ok('o'));
    assert_eq!(start.elapsed(), CLUSTER_LIMIT);
    s.origin.put(KEY, "other");
    s.cluster.store.fail_next(RequestKind::Get, Fault::Hang);
    assert!(s.read().await.unwrap_err().message.contains("no answer within 5 s"));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_gone_is_not_asked_each_time() {
    let s = setup(100);
    s.cluster.store.script(|_| Some(Fault::Error(ErrorKind::Unreachable)));
    for _ in 0..20 {
        assert_eq!(s.read().await, Ok('o'));
    }
    assert_eq!(s.gets(), (3, 20));
    // Where the origin cannot, the cluster is tried.
    s.origin.fail_next(RequestKind::Get, Fault::Error(ErrorKind::Denied));
    assert_eq!(s.read().await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(s.gets(), (4, 21));
    s.cluster.store.script(|_| None);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(s.read().await, Ok('c'));
}

#[tokio::test(start_paused = true)]
async fn a_large_cold_object_comes_from_the_origin_until_the_cluster_has_it() {
    let s = setup(64 << 20);
    *s.cluster.look_takes.lock().unwrap() = Duration::from_millis(5);
    let readers: Vec<_> = (0..8).map(|_| s.read()).collect();
    let answers = futures::future::join_all(readers).await;
    assert!(answers.iter().all(|answer| *answer == Ok('o')), "{answers:?}");
    assert_eq!((s.gets(), *s.cluster.looks.lock().unwrap()), ((0, 8), 1));
    tokio::task::yield_now().await;
    assert_eq!(*s.cluster.prefetched.lock().unwrap(), vec![s.object.key.clone()]);

    s.cluster.held.lock().unwrap().insert(s.object.key.clone());
    assert_eq!(s.read().await, Ok('o'), "nobody has looked yet");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(s.read().await, Ok('c'));
    assert_eq!(s.read().await, Ok('c'));
    assert_eq!(
        (*s.cluster.looks.lock().unwrap(), s.cluster.prefetched.lock().unwrap().len()),
        (2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_look_that_takes_long_is_not_waited_for() {
    let s = setup(64 << 20);
    *s.cluster.look_takes.lock().unwrap() = Duration::from_secs(60);
    let start = Instant::now();
    assert_eq!(s.read().await, Ok('c'));
    assert_eq!(start.elapsed(), LOOK_LIMIT);
    assert!(s.cluster.prefetched.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_origin_is_checked_before_it_is_used() {
    let env: CallerEnv = [("AIS_ENDPOINT", "http://127.0.0.1:9")].into_iter().collect();
    let refused = async |uri: &str, origin: &str| {
        let uri: RemoteUri = uri.parse().unwrap();
        let options = RemoteOptions { origin: Some(origin.to_owned()), ..RemoteOptions::default() };
        let error = crate::remote::connect(&uri, &options, &env, &Arc::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        error.message
    };
    for uri in ["ais://bucket", "s3://bucket", "file:///tmp"] {
        assert!(refused(uri, "s3://bucket").await.contains("ais://@PROVIDER/BUCKET"));
    }
    for (origin, why) in [
        ("bucket", "is not a URI"),
        ("ais://@aws/bucket", "the cloud's own bucket"),
        ("s3://bucket/other", "that of the mount"),
        ("file:///tmp", "no etags"),
    ] {
        let message = refused("ais://@aws/bucket/a/b", origin).await;
        assert!(message.contains(why) && message.starts_with("--origin"), "{message}");
    }
}
