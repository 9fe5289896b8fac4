//! The client over a scripted remote: every fault, and what must come of it.

use tokio::task::JoinHandle;

use super::*;
use crate::remote::gate::Gate;
use crate::remote::scripted::{Fault, Request, RequestKind, ScriptedRemote};

const KEY: &str = "data/a.bin";
const MS: Duration = Duration::from_millis(1);

struct Setup {
    remote: ScriptedRemote,
    metrics: Arc<RemoteMetrics>,
    client: Arc<RemoteClient>,
    object: ObjectMeta,
    bytes: Vec<u8>,
}

fn setup() -> Setup {
    let quick = Backoff { first_delay: MS, max_delay: MS, ..Backoff::default() };
    setup_with(Limits { backoff: quick, ..Limits::default() })
}

fn setup_with(limits: Limits) -> Setup {
    let remote = ScriptedRemote::new();
    remote.set_piece_bytes(1000);
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    let object = remote.put(KEY, bytes.clone());
    let metrics = Arc::new(RemoteMetrics::default());
    let client = RemoteClient::with_limits(Arc::new(remote.clone()), Arc::clone(&metrics), limits);
    Setup { remote, metrics, client: Arc::new(client), object, bytes }
}

impl Setup {
    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        read_all(&mut self.client.get_range(self.object.clone(), range, Class::Demand)).await
    }

    fn gets(&self) -> Vec<Range<u64>> {
        let range = |request| match request {
            Request::Get(_, range) => Some(range),
            _ => None,
        };
        self.remote.requests().into_iter().filter_map(range).collect()
    }
}

async fn read_all(reader: &mut RangeReader) -> Result<Vec<u8>, RemoteError> {
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        assert!(!piece.is_empty());
        all.extend_from_slice(&piece);
    }
    assert_eq!(reader.remaining(), 0);
    Ok(all)
}

#[tokio::test]
async fn reads_a_range_with_one_request() {
    let s = setup();
    assert_eq!(s.read(10..90_010).await.unwrap(), s.bytes[10..90_010]);
    assert_eq!(s.gets(), vec![10..90_010]);
    assert_eq!(s.metrics.get.requests.get(), 1);
    assert_eq!(s.metrics.get.bytes.get(), 90_000);
    assert_eq!(s.metrics.get.errors.get(), 0);
}

#[tokio::test]
async fn an_empty_range_makes_no_request() {
    let s = setup();
    assert!(s.read(5..5).await.unwrap().is_empty());
    assert_eq!(s.metrics.get.requests.get(), 0);
    assert_eq!(s.read(5..100_001).await.unwrap_err().kind, ErrorKind::Invalid);
    assert!(s.remote.requests().is_empty());
}

#[tokio::test]
async fn a_broken_or_short_body_goes_on_where_it_stopped() {
    let s = setup();
    s.remote.fail_next(RequestKind::Get, Fault::BreakAfter(1_500));
    s.remote.fail_next(RequestKind::Get, Fault::ShortBody(2_500));
    assert_eq!(s.read(100..9_000).await.unwrap(), s.bytes[100..9_000]);
    assert_eq!(s.gets(), [100..9_000, 1_600..9_000, 4_100..9_000]);
    assert_eq!(s.metrics.get.requests.get(), 3);
    assert_eq!(s.metrics.get.errors.get(), 2);
    assert_eq!(s.metrics.get.bytes.get(), 8_900);
}

#[tokio::test]
async fn no_response_and_a_stalled_body_are_given_up_and_made_again() {
    let s = setup_with(Limits { response: 30 * MS, stall: 30 * MS, ..Limits::default() });
    s.remote.fail_next(RequestKind::Get, Fault::Hang);
    s.remote.fail_next(RequestKind::Get, Fault::StallAfter(3_000));
    assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000]);
    assert_eq!(s.gets(), [0..9_000, 0..9_000, 3_000..9_000]);
    s.remote.fail_next(RequestKind::Head, Fault::Hang);
    assert_eq!(s.client.head(&s.object.key).await.unwrap(), s.object);
    assert_eq!(s.metrics.head.requests.get(), 2);
    assert_eq!(s.metrics.head.errors.get(), 1);
}

#[tokio::test]
async fn a_call_never_outlasts_the_limit_on_no_progress() {
    let s = setup_with(Limits { no_progress: 50 * MS, ..Limits::default() });
    s.remote.script(|_| Some(Fault::Hang));
    for error in [
        s.read(0..10).await.unwrap_err(),
        s.client.head(&s.object.key).await.unwrap_err(),
        s.client.list(&ListRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Transient);
        assert!(error.message.contains("no answer"), "{error}");
    }
    assert_eq!(s.remote.requests().len(), 3);
}

#[tokio::test]
async fn a_slow_caller_is_not_a_stalled_body() {
    let s = setup_with(Limits { stall: 40 * MS, ..Limits::default() });
    let mut reader = s.client.get_range(s.object.clone(), 0..50_000, Class::Demand);
    let mut all = Vec::new();
    for _ in 0..4 {
        all.extend(reader.next().await.unwrap().unwrap());
        // Not for synchronisation: the caller's slowness is what is tested.
        std::thread::sleep(20 * MS);
    }
    all.extend(read_all(&mut reader).await.unwrap());
    assert_eq!(all, s.bytes[..50_000]);
    assert_eq!(s.gets().len(), 1);
}

#[tokio::test]
async fn another_version_or_size_is_never_handed_out() {
    for fault in [Fault::OtherVersion, Fault::OtherSize] {
        let s = setup();
        s.remote.fail_next(RequestKind::Get, fault.clone());
        assert_eq!(s.read(0..9_000).await.unwrap_err().kind, ErrorKind::Changed);
        assert_eq!(s.gets().len(), 1, "a change is not worth a retry");

        s.remote.fail_next(RequestKind::Get, Fault::BreakAfter(2_000));
        s.remote.fail_next(RequestKind::Get, fault);
        let mut reader = s.client.get_range(s.object.clone(), 0..9_000, Class::Demand);
        for n in 0..2 {
            assert_eq!(reader.next().await.unwrap().unwrap(), s.bytes[n * 1000..][..1000]);
        }
        assert_eq!(reader.next().await.unwrap_err().kind, ErrorKind::Changed);
        assert_eq!(reader.next().await.unwrap_err().kind, ErrorKind::Changed);
    }
}

#[tokio::test]
async fn a_put_between_two_attempts_is_a_change() {
    let s = setup();
    s.remote.fail_next(RequestKind::Get, Fault::BreakAfter(1_000));
    let mut reader = s.client.get_range(s.object.clone(), 0..3_000, Class::Demand);
    reader.next().await.unwrap();
    s.remote.put(KEY, s.bytes.clone());
    assert_eq!(reader.next().await.unwrap_err().kind, ErrorKind::Changed);
}

#[tokio::test]
async fn a_body_longer_than_its_range_is_cut() {
    let s = setup();
    s.remote.fail_next(RequestKind::Get, Fault::LongBody(2_500));
    assert_eq!(s.read(0..1_500).await.unwrap(), s.bytes[..1_500]);
    assert_eq!(s.gets().len(), 1);
}

#[tokio::test]
async fn retries_what_may_pass_and_nothing_else() {
    let throttled = ErrorKind::Throttled { retry_after: Some(MS) };
    for kind in [throttled.clone(), ErrorKind::Transient, ErrorKind::Unreachable] {
        let s = setup();
        s.remote.fail_next(RequestKind::Get, Fault::Error(kind.clone()));
        s.remote.fail_next(RequestKind::Head, Fault::Error(kind.clone()));
        s.remote.fail_next(RequestKind::List, Fault::Error(kind));
        assert_eq!(s.read(0..10).await.unwrap(), s.bytes[..10]);
        assert_eq!(s.client.head(&s.object.key).await.unwrap(), s.object);
        assert_eq!(s.client.list(&ListRequest::default()).await.unwrap().prefixes, ["data/"]);
        for metrics in [&s.metrics.get, &s.metrics.head, &s.metrics.list] {
            assert_eq!((metrics.requests.get(), metrics.errors.get()), (2, 1));
        }
    }
    for kind in [ErrorKind::NotFound, ErrorKind::Denied, ErrorKind::Credentials] {
        let s = setup();
        s.remote.fail_next(RequestKind::Get, Fault::Error(kind.clone()));
        assert_eq!(s.read(0..10).await.unwrap_err().kind, kind);
        assert_eq!(s.gets().len(), 1);
    }
}

#[tokio::test]
async fn attempts_end_but_progress_renews_them() {
    let s = setup();
    s.remote.script(|_| Some(Fault::BreakAfter(10)));
    let error = s.read(0..9_000).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient);
    assert_eq!(s.gets().len(), 5);

    let bytes: Vec<u8> = (0..(8 << 20) + 5_u32).map(|n| (n >> 8) as u8).collect();
    let object = s.remote.put("large", bytes.clone());
    s.remote.set_piece_bytes(256 << 10);
    s.remote.script(|_| Some(Fault::BreakAfter(1 << 20)));
    let size = object.size;
    let mut reader = s.client.get_range(object, 0..size, Class::Demand);
    assert!(read_all(&mut reader).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_missing_name_is_an_answer() {
    let s = setup();
    let error = s.client.head(&Key("nothing".into())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(s.metrics.head.requests.get(), 1);
    assert_eq!(s.metrics.head.errors.get(), 0);
}

#[tokio::test]
async fn a_dropped_call_loses_no_bytes() {
    let s = setup();
    let gate = Gate::closed();
    s.remote.fail_next(RequestKind::Get, Fault::HoldAfter(2_000, gate.clone()));
    let mut reader = s.client.get_range(s.object.clone(), 0..5_000, Class::Demand);
    let mut all = Vec::new();
    for _ in 0..2 {
        all.extend(reader.next().await.unwrap().unwrap());
    }
    tokio::select! {
        biased;
        _ = reader.next() => panic!("the body is held"),
        () = gate.wait_for_held(1) => {}
    }
    gate.release_all();
    all.extend(read_all(&mut reader).await.unwrap());
    assert_eq!(all, s.bytes[..5_000]);
    assert_eq!(s.gets().len(), 1);
}

// Hedges, pace and caps, on a clock that only moves when all wait.

/// A client as a mount has it, of a store that answers in 30 ms.
fn mounted(traffic: &TrafficOptions) -> Setup {
    let s = setup();
    s.remote.set_latency(30 * MS);
    let (remote, metrics) = (Arc::new(s.remote.clone()), Arc::clone(&s.metrics));
    let client = RemoteClient::for_mount(remote, metrics, Endpoint::new(true), traffic);
    Setup { client: Arc::new(client), ..s }
}

/// The same, with its latencies known and hedges earned.
async fn mounted_for_a_while() -> Setup {
    let s = mounted(&TrafficOptions::default());
    for _ in 0..60 {
        assert_eq!(s.read(0..1_000).await.unwrap(), s.bytes[..1_000]);
    }
    s.remote.clear_requests();
    s
}

impl Setup {
    fn hedges(&self) -> (u64, u64) {
        (self.metrics.hedges_sent.get(), self.metrics.hedges_won.get())
    }
}

#[tokio::test(start_paused = true)]
async fn one_stall_in_a_hundred_is_not_felt() {
    let s = mounted(&TrafficOptions::default());
    let mut asked = 0;
    s.remote.script(move |_| {
        asked += 1;
        (asked % 100 == 50).then_some(Fault::Delay(Duration::from_secs(5)))
    });
    let mut times = Vec::new();
    for n in 0..3_000 {
        let start = Instant::now();
        assert_eq!(s.read(n..n + 9_000).await.unwrap(), s.bytes[n as usize..][..9_000]);
        times.push(start.elapsed());
    }
    times.sort();
    let (p50, p99) = (times[1_500], times[2_970]);
    println!("p50 {p50:?}, p99 {p99:?}, GETs {}, hedges {:?}", s.gets().len(), s.hedges());
    assert!(p99 <= 3 * p50, "{p50:?} {p99:?}");
    assert!(s.gets().len() <= 3_150, "{}", s.gets().len());
    assert_eq!(s.metrics.get.requests.get(), s.gets().len() as u64);
    assert_eq!(s.metrics.get.bytes.get(), 3_000 * 9_000);
    assert!(s.hedges().1 >= 20, "{:?}", s.hedges());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fetches_first_is_waited_for() {
    let s = setup();
    s.remote.set_latency(MS);
    s.remote.set_fetches_first();
    let (remote, metrics) = (Arc::new(s.remote.clone()), Arc::clone(&s.metrics));
    let traffic = TrafficOptions::default();
    let client = RemoteClient::for_mount(remote, metrics, Endpoint::new(true), &traffic);
    let s = Setup { client: Arc::new(client), ..s };
    for _ in 0..60 {
        s.read(0..1_000).await.unwrap();
    }
    s.remote.clear_requests();
    s.remote.fail_next(RequestKind::Get, Fault::Delay(Duration::from_secs(90)));
    assert_eq!(s.read(0..1_000).await.unwrap(), s.bytes[..1_000]);
    assert_eq!((s.gets().len(), s.hedges().0), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_read_on_from_a_second_get() {
    let s = mounted_for_a_while().await;
    s.remote.fail_next(RequestKind::Get, Fault::StallAfter(2_500));
    let start = Instant::now();
    assert_eq!(s.read(100..50_000).await.unwrap(), s.bytes[100..50_000]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(s.gets(), [100..50_000, 2_600..50_000]);
    assert_eq!((s.hedges(), s.metrics.get.errors.get()), ((1, 1), 0));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_fails_leaves_the_first_get_alone() {
    let kinds = [
        Fault::OtherVersion,
        Fault::OtherSize,
        Fault::Error(ErrorKind::Transient),
        Fault::Error(ErrorKind::Throttled { retry_after: None }),
        Fault::ShortBody(0),
    ];
    for fault in kinds {
        let s = mounted_for_a_while().await;
        s.remote.fail_next(RequestKind::Get, Fault::Delay(Duration::from_secs(1)));
        s.remote.fail_next(RequestKind::Get, fault.clone());
        assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000], "{fault:?}");
        assert_eq!(s.gets().len(), 2);
        assert_eq!((s.hedges(), s.metrics.get.errors.get()), ((1, 0), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn two_gets_that_hang_are_given_up_early_and_made_again() {
    let s = mounted_for_a_while().await;
    for _ in 0..2 {
        s.remote.fail_next(RequestKind::Get, Fault::Hang);
    }
    let start = Instant::now();
    assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000]);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(s.gets().len(), 3);
    assert_eq!(s.metrics.retries.no_answer.get(), 1);
    assert_eq!(s.metrics.get.errors.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_for_good_is_an_error_within_the_limit() {
    let s = mounted_for_a_while().await;
    s.remote.script(|_| Some(Fault::Hang));
    let start = Instant::now();
    assert_eq!(s.read(0..9_000).await.unwrap_err().kind, ErrorKind::Transient);
    let took = start.elapsed();
    assert!((30 * 1_000 * MS..=NO_PROGRESS_LIMIT).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_last_moment_does_not_prolong_the_limit() {
    let s = mounted(&TrafficOptions::default());
    s.remote.set_latency(Duration::from_secs(9));
    // 38 s, refused; 10 s without an answer; one after 9 s, and then nothing.
    let wish = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(10)) };
    for fault in [Fault::Error(wish.clone()), Fault::Error(wish), Fault::Hang] {
        s.remote.fail_next(RequestKind::Get, fault);
    }
    s.remote.script(|_| Some(Fault::StallAfter(0)));
    let start = Instant::now();
    assert_eq!(s.read(0..9_000).await.unwrap_err().kind, ErrorKind::Transient);
    let took = start.elapsed();
    assert!((59 * 1_000 * MS..=NO_PROGRESS_LIMIT).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn no_hedge_is_sent_to_a_store_that_throttles() {
    let s = mounted_for_a_while().await;
    let slow_down = Fault::Error(ErrorKind::Throttled { retry_after: None });
    s.remote.fail_next(RequestKind::Get, slow_down);
    s.remote.fail_next(RequestKind::Get, Fault::Delay(Duration::from_secs(1)));
    assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000]);
    assert_eq!((s.gets().len(), s.hedges()), (2, (0, 0)));
    assert_eq!((s.metrics.throttled.get(), s.metrics.retries.throttled.get()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_refusals_is_ridden_out_and_a_lasting_one_is_an_error() {
    let s = mounted(&TrafficOptions::default());
    let throttled = ErrorKind::Throttled { retry_after: None };
    for _ in 0..12 {
        for kind in [RequestKind::Get, RequestKind::Head, RequestKind::List] {
            s.remote.fail_next(kind, Fault::Error(throttled.clone()));
        }
    }
    assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000]);
    assert_eq!(s.client.head(&s.object.key).await.unwrap(), s.object);
    assert_eq!(s.client.list(&ListRequest::default()).await.unwrap().prefixes, ["data/"]);
    assert_eq!(s.metrics.throttled.get(), 36);
    let kind = throttled.clone();
    s.remote.script(move |_| Some(Fault::Error(kind.clone())));
    let start = Instant::now();
    assert_eq!(s.read(0..9_000).await.unwrap_err().kind, throttled);
    assert!(start.elapsed() <= NO_PROGRESS_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn retry_after_holds_back_the_other_requests_too() {
    let s = mounted(&TrafficOptions::default());
    let wish = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(4)) };
    s.remote.fail_next(RequestKind::Get, Fault::Error(wish));
    let start = Instant::now();
    let told = tokio::spawn({
        let mut reader = s.client.get_range(s.object.clone(), 0..10, Class::Demand);
        async move { read_all(&mut reader).await }
    });
    tokio::time::sleep(100 * MS).await;
    s.client.head(&s.object.key).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(4), "{:?}", start.elapsed());
    told.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_strict_cap_on_downloads_refuses_and_asks_nothing() {
    let max_download = Some(20_000);
    for max_download_strict in [false, true] {
        let traffic =
            TrafficOptions { max_download, max_download_strict, ..TrafficOptions::default() };
        let s = mounted(&traffic);
        let mut begun = s.client.get_range(s.object.clone(), 0..30_000, Class::Demand);
        begun.next().await.unwrap();
        assert!(!s.client.may_speculate(1), "the rest is in flight");
        assert!(!s.client.download().is_reached);
        read_all(&mut begun).await.unwrap();
        let told = Download { bytes: 30_000, cap: max_download, is_reached: true };
        assert_eq!(s.client.download(), told);
        let after = s.read(0..10).await;
        if max_download_strict {
            assert_eq!(after.unwrap_err().kind, ErrorKind::Capped);
            assert_eq!(s.gets().len(), 1);
        } else {
            assert_eq!(after.unwrap(), s.bytes[..10]);
        }
        assert!(!s.client.may_speculate(1));
    }
}

/// With so much a second, and whatever else a mount has by default.
fn mounted_at(bytes_per_s: u64) -> Setup {
    mounted(&TrafficOptions { max_bandwidth: Some(bytes_per_s), ..TrafficOptions::default() })
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_our_own_cap_is_no_stall() {
    // A piece each 100 s: longer than a call may wait for the store.
    let s = mounted_at(10);
    s.remote.fail_next(RequestKind::Get, Fault::BreakAfter(3_000));
    let start = Instant::now();
    assert_eq!(s.read(0..9_000).await.unwrap(), s.bytes[..9_000]);
    assert!(start.elapsed() > Duration::from_secs(700), "{:?}", start.elapsed());
    // Nor does it use up the time of what comes after it: an attempt again.
    assert_eq!(s.gets(), [0..9_000, 3_000..9_000]);
    assert_eq!(s.metrics.get.errors.get(), 1);
}

/// The end of a GET of `range`, for `class`.
fn finished(s: &Setup, range: Range<u64>, urgency: impl Into<Urgency>) -> JoinHandle<Instant> {
    let mut reader = s.client.get_range(s.object.clone(), range, urgency);
    tokio::spawn(async move {
        read_all(&mut reader).await.unwrap();
        Instant::now()
    })
}

#[tokio::test(start_paused = true)]
async fn a_reader_has_the_line_before_what_nobody_waits_for() {
    // What all of them ask for takes 410 s.
    let s = mounted_at(10_000);
    let prefetched: Vec<_> = (0..40).map(|_| finished(&s, 0..100_000, Class::Prefetch)).collect();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let start = Instant::now();
    let ahead = finished(&s, 0..50_000, Class::Ahead);
    let reader = finished(&s, 0..50_000, Class::Demand);
    let (reader, ahead) = (reader.await.unwrap() - start, ahead.await.unwrap() - start);
    // Five seconds each, and what was charged before its size was known.
    assert!(reader < Duration::from_secs(8), "{reader:?}");
    assert!(reader < ahead && ahead < Duration::from_secs(14), "{ahead:?}");
    for one in prefetched {
        assert!(one.await.unwrap() - start > Duration::from_secs(300));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_comes_to_wait_for_has_the_line_too() {
    let s = mounted_at(10_000);
    let others: Vec<_> = (0..40).map(|_| finished(&s, 0..100_000, Class::Ahead)).collect();
    let urgency = Urgency::from(Class::Prefetch);
    let wanted = finished(&s, 0..50_000, urgency.clone());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let start = Instant::now();
    urgency.raise(Class::Demand);
    let wanted = wanted.await.unwrap() - start;
    assert!(wanted < Duration::from_secs(8), "{wanted:?}");
    assert!(others.iter().all(|other| !other.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_cap_on_requests_holds_for_all_kinds() {
    let s = mounted(&TrafficOptions { max_requests: Some(1), ..TrafficOptions::default() });
    let held = s.client.requests().acquire(Class::Prefetch, 1).await;
    let head = tokio::spawn({
        let (client, key) = (s.client.clone(), s.object.key.clone());
        async move { client.head(&key).await }
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(s.remote.requests().is_empty());
    drop(held);
    assert_eq!(head.await.unwrap().unwrap(), s.object);
}
