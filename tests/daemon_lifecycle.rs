//! The daemon's life over its real socket, with an engine that needs neither
//! a kernel nor a remote: who may mount where, what an end leaves behind, and
//! when the daemon exits.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use warmfs::cache::{
    Evicted, NodeId, Pinned, PrefetchOrder, Prefetched, Progress, Refreshed, Scope, Tree, Verified,
};
use warmfs::config::{CacheOptions, CallerEnv, DaemonOptions, MountOptions, MountRequest};
use warmfs::control::cache_lock::{self, CacheLock};
use warmfs::control::client::Client;
use warmfs::control::wire::{
    CacheStatus, ErrorCode, ErrorReply, EvictReply, EvictRequest, MountReply, PinRequest,
    ProgressReport, UnmountReply, UnmountRequest, UpkeepLine, UpkeepReply, UpkeepRequest,
    VerifyRequest, WaitRequest,
};
use warmfs::daemon::engine::{ActiveMount, Before, Engine};
use warmfs::daemon::{self, Running, StartError, Supervision};
use warmfs::metrics::{CacheMetrics, MountMetrics, RemoteMetrics};
use warmfs::remote::later::Known;
use warmfs::remote::scripted::ScriptedRemote;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct FakeEngine {
    mounts: Mutex<Vec<Arc<FakeMount>>>,
    remote: RemoteMetrics,
    cache: CacheMetrics,
    /// If set, mounts wait for it.
    gate: Option<Arc<Notify>>,
    entered: Notify,
    /// Verifications under way.
    verifying: watch::Sender<usize>,
    saved: watch::Sender<bool>,
}

struct FakeMount {
    busy: Mutex<bool>,
    attached: Mutex<bool>,
    over: watch::Sender<bool>,
    metrics: MountMetrics,
}

#[async_trait]
impl Engine for FakeEngine {
    async fn mount(
        &self,
        request: &MountRequest,
        _: Option<Before>,
    ) -> Result<Arc<dyn ActiveMount>, ErrorReply> {
        assert!(request.dir.as_ref().is_none_or(|dir| dir.is_dir()), "the mount point is ready");
        self.entered.notify_one();
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        if request.uri.contains("missing") {
            return Err(ErrorReply::new(ErrorCode::NotFound, "no such bucket"));
        }
        let mount = Arc::new(FakeMount {
            busy: Mutex::new(false),
            attached: Mutex::new(true),
            over: watch::Sender::new(false),
            metrics: MountMetrics::default(),
        });
        mount.metrics.hit_bytes.add(7);
        self.mounts.lock().unwrap().push(Arc::clone(&mount));
        Ok(mount)
    }

    fn cache_status(&self) -> CacheStatus {
        CacheStatus { objects: 3, state: "ok".to_owned(), ..Default::default() }
    }

    fn remote_metrics(&self) -> &RemoteMetrics {
        &self.remote
    }

    fn cache_metrics(&self) -> &CacheMetrics {
        &self.cache
    }

    async fn evict(
        &self,
        _: &Scope,
        older_than: Option<Duration>,
        _: &Arc<Progress>,
    ) -> Result<Evicted, ErrorReply> {
        match older_than {
            Some(age) => Ok(Evicted { objects: age.as_secs(), ..Default::default() }),
            None => panic!("a defect in the engine"),
        }
    }

    /// Goes on until it is told to stop.
    async fn verify(
        &self,
        _: &Scope,
        _: bool,
        progress: &Arc<Progress>,
    ) -> Result<Verified, ErrorReply> {
        self.verifying.send_modify(|n| *n += 1);
        while !progress.is_cancelled() {
            progress.objects_done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!*self.saved.borrow(), "the cache is not closed under it");
        self.verifying.send_modify(|n| *n -= 1);
        Ok(Verified::default())
    }

    async fn pin(&self, _: &Arc<Tree>, _: NodeId, _: &Arc<Progress>) -> Result<Pinned, ErrorReply> {
        unreachable!("there is nothing to pin in a fake mount")
    }

    async fn prefetch(
        &self,
        _: &[(Arc<Tree>, NodeId)],
        _: PrefetchOrder,
        _: &Arc<Progress>,
    ) -> Result<Prefetched, ErrorReply> {
        unreachable!("there is nothing to fetch in a fake mount")
    }

    async fn unpin(&self, _: &Arc<Tree>, _: NodeId) -> Result<bool, ErrorReply> {
        unreachable!("there is nothing to unpin in a fake mount")
    }

    async fn refresh(
        &self,
        _: &Arc<Tree>,
        _: NodeId,
        _: &Arc<Progress>,
    ) -> Result<Refreshed, ErrorReply> {
        unreachable!("there is nothing to list in a fake mount")
    }

    async fn shutdown(&self) {
        self.saved.send_replace(true);
    }
}

impl FakeMount {
    /// What `umount` from outside does.
    fn end(&self) {
        *self.attached.lock().unwrap() = false;
        self.over.send_replace(true);
    }
}

#[async_trait]
impl ActiveMount for FakeMount {
    fn remote(&self) -> Known {
        Known::of(&ScriptedRemote::new())
    }

    fn warming(&self) -> warmfs::cache::Warming {
        warmfs::cache::Warming::default()
    }

    fn mode(&self) -> String {
        "fake".to_owned()
    }

    fn mode_reason(&self) -> String {
        "a test".to_owned()
    }

    fn metrics(&self) -> &MountMetrics {
        &self.metrics
    }

    async fn find(&self, path: &str) -> Result<Option<(Arc<Tree>, NodeId)>, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::NotFound, format!("asked for {path:?}")))
    }

    fn is_attached(&self) -> bool {
        *self.attached.lock().unwrap()
    }

    fn unmount(&self, lazy: bool) -> io::Result<()> {
        let busy = *self.busy.lock().unwrap();
        if busy && !lazy {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        *self.attached.lock().unwrap() = false;
        if !busy {
            self.over.send_replace(true);
        }
        Ok(())
    }

    async fn ended(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

/// A daemon with a cache of its own, and a folder for mount points.
struct Fixture {
    engine: Arc<FakeEngine>,
    running: Running,
    client: Client,
    tmp: tempfile::TempDir,
}

impl Fixture {
    async fn new(engine: FakeEngine) -> Fixture {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("cache")).unwrap();
        let engine = Arc::new(engine);
        let running = start(tmp.path(), &engine).await.unwrap();
        let client = Client::connect(&running.socket).await.unwrap().unwrap();
        Fixture { engine, running, client, tmp }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join(name)
    }

    async fn mount(&self, uri: &str, name: &str) -> Result<MountReply, ErrorReply> {
        self.client.mount(&request(uri, &self.dir(name))).await
    }

    async fn unmount(&self, name: &str, lazy: bool) -> Result<UnmountReply, ErrorReply> {
        self.client.unmount(&UnmountRequest { dir: self.dir(name), lazy }).await
    }

    fn fake(&self, index: usize) -> Arc<FakeMount> {
        Arc::clone(&self.engine.mounts.lock().unwrap()[index])
    }

    /// Waits for the daemon's exit and checks what it leaves.
    async fn assert_exits(self) {
        tokio::time::timeout(PATIENCE, self.running.finished).await.unwrap().unwrap();
        assert!(*self.engine.saved.borrow(), "the engine was asked to save");
        assert!(!self.running.socket.exists(), "the socket is gone");
        let cache = self.tmp.path().join("cache");
        assert!(CacheLock::try_take(&cache).unwrap().is_some(), "the lock is free");
        assert_eq!(cache_lock::read_record(&cache), None);
        let left = std::fs::read_dir(self.tmp.path()).unwrap().count();
        assert_eq!(left, 1, "only the cache is left");
    }
}

async fn start(tmp: &Path, engine: &Arc<FakeEngine>) -> Result<Running, StartError> {
    let cache = CacheOptions {
        dir: tmp.canonicalize().unwrap().join("cache"),
        size: None,
        memory: None,
        metadata: None,
    };
    let engine: Arc<dyn Engine> = Arc::clone(engine) as _;
    daemon::start(cache, DaemonOptions::default(), Supervision::default(), |_| async { Ok(engine) })
        .await
}

fn request(uri: &str, dir: &Path) -> MountRequest {
    let options = MountOptions::default();
    let env = CallerEnv::from_iter([("AWS_SECRET_ACCESS_KEY", "secret")]);
    MountRequest { uri: uri.to_owned(), dir: Some(dir.to_owned()), index: None, options, env }
}

#[tokio::test]
async fn mounts_come_and_go_and_the_last_takes_the_daemon() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    let reply = daemon.mount("s3://bucket/a/", "new/one").await.unwrap();
    assert_eq!((reply.uri.as_str(), reply.existed), ("s3://bucket/a", false));
    daemon.mount("s3://bucket/b", "two").await.unwrap();

    let status = daemon.client.status().await.unwrap();
    assert_eq!((status.schema, status.pid), (1, std::process::id()));
    let dirs: Vec<_> = status.mounts.iter().map(|mount| mount.dir.clone()).collect();
    assert_eq!(dirs, [daemon.dir("new/one"), daemon.dir("two")]);
    assert_eq!(status.mounts[0].reads.hit_bytes, 7);
    assert_eq!(status.cache.objects, 3);
    assert!(status.memory.rss_bytes > 0);

    let reply = daemon.unmount("new/one", false).await.unwrap();
    assert_eq!(reply, UnmountReply { daemon_exits: false, still_in_use: false });
    assert!(!daemon.dir("new").exists(), "what was created is removed");
    assert!(daemon.dir("two").exists());
    assert_eq!(daemon.unmount("new/one", false).await.unwrap_err().code, ErrorCode::NotMounted);

    let reply = daemon.unmount("two", false).await.unwrap();
    assert!(reply.daemon_exits);
    daemon.assert_exits().await;
}

#[tokio::test]
async fn the_same_again_is_success_and_anything_else_is_refused() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket/a", "one").await.unwrap();
    assert!(daemon.mount("s3://bucket/a/", "one").await.unwrap().existed);
    assert_eq!(daemon.engine.mounts.lock().unwrap().len(), 1);

    let refusal = daemon.mount("s3://bucket/b", "one").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::MountPoint);
    assert!(refusal.to_string().contains("in use by s3://bucket/a: `warmfs unmount"), "{refusal}");

    let mut other = request("s3://bucket/a", &daemon.dir("one"));
    other.options.file_mode = 0o400;
    let refusal = daemon.client.mount(&other).await.unwrap_err();
    assert!(refusal.to_string().contains("with other options"), "{refusal}");

    daemon.unmount("one", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn a_failed_first_mount_leaves_nothing() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    let error = daemon.mount("s3://missing", "a/b").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    daemon.assert_exits().await;
}

#[tokio::test]
async fn a_failed_second_mount_leaves_the_first() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    daemon.mount("s3://missing", "two").await.unwrap_err();
    assert!(!daemon.dir("two").exists());
    assert_eq!(daemon.client.status().await.unwrap().mounts.len(), 1);
    daemon.unmount("one", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn a_busy_mount_needs_lazy_and_lives_until_its_last_user_goes() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    *daemon.fake(0).busy.lock().unwrap() = true;
    let refusal = daemon.unmount("one", false).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    assert!(refusal.to_string().contains("--lazy"), "{refusal}");

    let reply = daemon.unmount("one", true).await.unwrap();
    assert_eq!(reply, UnmountReply { daemon_exits: false, still_in_use: true });
    assert!(!daemon.dir("one").exists(), "the folder is free at once");
    assert!(daemon.client.status().await.unwrap().mounts[0].detached);
    assert!(!daemon.mount("s3://bucket", "one").await.unwrap().existed, "and can be used again");

    daemon.fake(0).end();
    daemon.unmount("one", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn an_outside_umount_ends_a_mount_and_tells_who_waits() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    let wait = WaitRequest { dir: daemon.dir("one") };
    let waiter = daemon.client.clone();
    let waiting = tokio::spawn(async move { waiter.wait(&wait).await });
    daemon.fake(0).end();
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().ok();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn after_an_outside_lazy_umount_the_folder_is_mounted_anew() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    *daemon.fake(0).attached.lock().unwrap() = false;
    assert!(!daemon.mount("s3://bucket", "one").await.unwrap().existed);
    assert_eq!(daemon.client.status().await.unwrap().mounts.len(), 2);
    daemon.fake(0).end();
    daemon.unmount("one", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn after_an_outside_lazy_umount_nothing_else_is_unmounted() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    *daemon.fake(0).attached.lock().unwrap() = false;
    let refusal = daemon.unmount("one", false).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NotMounted);
    assert!(!*daemon.fake(0).over.borrow(), "the kernel was not asked");
    daemon.fake(0).end();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn concurrent_requests_for_one_folder_make_one_mount() {
    let gate = Arc::new(Notify::new());
    let engine = FakeEngine { gate: Some(Arc::clone(&gate)), ..Default::default() };
    let daemon = Fixture::new(engine).await;
    let requests: Vec<_> = (0..8)
        .map(|_| {
            let client = daemon.client.clone();
            let request = request("s3://bucket", &daemon.dir("one"));
            tokio::spawn(async move { client.mount(&request).await.unwrap().existed })
        })
        .collect();
    daemon.engine.entered.notified().await;
    gate.notify_one();
    let mut fresh = 0;
    for request in requests {
        fresh += usize::from(!request.await.unwrap());
    }
    assert_eq!((fresh, daemon.engine.mounts.lock().unwrap().len()), (1, 1));
    daemon.unmount("one", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn an_interrupted_client_leaves_no_mount() {
    let gate = Arc::new(Notify::new());
    let engine = FakeEngine { gate: Some(Arc::clone(&gate)), ..Default::default() };
    let daemon = Fixture::new(engine).await;
    let client = daemon.client.clone();
    let request = request("s3://bucket", &daemon.dir("one"));
    let interrupted = tokio::spawn(async move { client.mount(&request).await });
    daemon.engine.entered.notified().await;
    interrupted.abort();
    assert!(interrupted.await.unwrap_err().is_cancelled());
    // The server learns of the closed connection before it is asked again.
    daemon.client.status().await.unwrap();
    gate.notify_one();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn bad_mount_points_are_refused() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "held").await.unwrap();
    std::fs::create_dir(daemon.dir("full")).unwrap();
    std::fs::write(daemon.dir("full/file"), "").unwrap();
    for (name, word) in [
        ("full", "not empty"),
        ("full/file", "not a folder"),
        ("cache", "overlap"),
        ("cache/below", "overlap"),
    ] {
        let refusal = daemon.mount("s3://bucket", name).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::MountPoint);
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
    let refusal = daemon.mount("ftp://x", "two").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Invalid);
    let relative = daemon.client.mount(&request("s3://bucket", Path::new("a"))).await;
    assert_eq!(relative.unwrap_err().code, ErrorCode::Invalid);
    std::fs::remove_dir_all(daemon.dir("full")).unwrap();
    daemon.unmount("held", false).await.unwrap();
    daemon.assert_exits().await;
}

#[tokio::test]
async fn a_second_daemon_finds_the_first_and_a_third_its_place() {
    let daemon = Fixture::new(FakeEngine::default()).await;
    daemon.mount("s3://bucket", "one").await.unwrap();
    match start(daemon.tmp.path(), &daemon.engine).await {
        Err(StartError::AlreadyServed(socket)) => assert_eq!(socket, daemon.running.socket),
        other => panic!("{other:?}"),
    }
    let found = Client::of_cache(&daemon.dir("cache")).await.unwrap().unwrap();
    assert_eq!(found.daemon().pid, std::process::id());

    // The first lets go while the third waits for the lock.
    daemon.unmount("one", false).await.unwrap();
    let engine = Arc::new(FakeEngine::default());
    let third = start(daemon.tmp.path(), &engine).await.unwrap();
    let client = Client::connect(&third.socket).await.unwrap().unwrap();
    client.mount(&request("s3://missing", &daemon.dir("one"))).await.unwrap_err();
    tokio::time::timeout(PATIENCE, third.finished).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dead_daemons_socket_is_in_nobodys_way() {
    let tmp = tempfile::tempdir().unwrap();
    let cache = tmp.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let socket = warmfs::control::runtime_dir::socket_path(&cache.canonicalize().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut lock = CacheLock::try_take(&cache).unwrap().unwrap();
    lock.write_record(&cache_lock::LockRecord { pid: 1, socket: socket.clone(), supervisor: 0 })
        .unwrap();
    drop(lock);
    assert!(Client::of_cache(&cache).await.unwrap().is_none());

    let engine = Arc::new(FakeEngine::default());
    let running = start(tmp.path(), &engine).await.unwrap();
    assert_eq!(running.socket, socket);
    let client = Client::connect(&running.socket).await.unwrap().unwrap();
    client.mount(&request("s3://missing", &tmp.path().join("m"))).await.unwrap_err();
    tokio::time::timeout(PATIENCE, running.finished).await.unwrap().unwrap();
}

fn verify_all() -> UpkeepRequest {
    UpkeepRequest::Verify(VerifyRequest::default())
}

/// Starts a verification and returns once it has told twice how far it is.
async fn verify_behind(
    client: &Client,
) -> tokio::task::JoinHandle<Result<UpkeepReply, ErrorReply>> {
    let client = client.clone();
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel::<ProgressReport>();
    let task = tokio::spawn(async move {
        client
            .upkeep(&verify_all(), &mut |line| {
                if let UpkeepLine::Progress(report) = line {
                    let _ = sender.send(report);
                }
            })
            .await
    });
    let first = reports.recv().await.unwrap();
    let later = tokio::time::timeout(PATIENCE, async {
        loop {
            let report = reports.recv().await.unwrap();
            if report.objects_done > first.objects_done {
                return report;
            }
        }
    });
    later.await.unwrap();
    task
}

async fn verifying(fixture: &Fixture, n: usize) {
    let mut verifying = fixture.engine.verifying.subscribe();
    tokio::time::timeout(PATIENCE, verifying.wait_for(|now| *now == n)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_few_and_stop_with_their_clients() {
    let fixture = Fixture::new(FakeEngine::default()).await;
    fixture.mount("s3://bucket", "mount").await.unwrap();
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(verify_behind(&fixture.client).await);
    }
    let refusal = fixture.client.upkeep(&verify_all(), &mut |_| {}).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    assert!(refusal.hint.is_some());
    for (gone, job) in jobs.into_iter().enumerate() {
        job.abort();
        verifying(&fixture, 3 - gone).await;
    }
    // Their places are free again.
    let job = verify_behind(&fixture.client).await;
    fixture.unmount("mount", false).await.unwrap();
    let error = job.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ShuttingDown, "{error}");
    verifying(&fixture, 0).await;
    fixture.assert_exits().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_about_the_innermost_mount() {
    let fixture = Fixture::new(FakeEngine::default()).await;
    fixture.mount("s3://outer", "mount").await.unwrap();
    fixture.mount("s3://inner", "mount/inner").await.unwrap();
    let ask = async |path: PathBuf| {
        let request = UpkeepRequest::Pin(PinRequest { path });
        fixture.client.upkeep(&request, &mut |_| {}).await.unwrap_err()
    };
    for (path, rest) in [
        ("mount", "asked for \"\""),
        ("mount/a/b", "asked for \"a/b\""),
        ("mount/inner/c", "asked for \"c\""),
        ("mount/innermost", "asked for \"innermost\""),
    ] {
        assert_eq!(ask(fixture.dir(path)).await.message, rest);
    }
    let error = ask(fixture.dir("elsewhere")).await;
    assert_eq!(error.code, ErrorCode::NotMounted);
    assert!(error.to_string().contains("warmfs status"), "{error}");
    assert_eq!(ask("relative".into()).await.code, ErrorCode::NotMounted);

    let evict = |older_than_s| UpkeepRequest::Evict(EvictRequest { path: None, older_than_s });
    let done = fixture.client.upkeep(&evict(Some(60)), &mut |_| {}).await.unwrap();
    assert_eq!(done, UpkeepReply::Evict(EvictReply { objects: 60, ..Default::default() }));
    let defect = fixture.client.upkeep(&evict(None), &mut |_| {}).await.unwrap_err();
    assert_eq!(defect.code, ErrorCode::Internal);
    fixture.unmount("mount/inner", false).await.unwrap();
    fixture.unmount("mount", false).await.unwrap();
    fixture.assert_exits().await;
}
