//! Writes to the cache disk, behind the network.
//!
//! What was fetched is handed out first and written after. A few threads work a
//! queue off, so that a chunk costs no hand-over of its own while the disk keeps
//! up. The bytes that wait are in memory: once they are too many, the disk is
//! slower than the network, and [`Lag`] says who has to give way.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::readahead::WHOLE_OBJECT_MAX_BYTES;

/// Threads that write at once. More only queue in the kernel.
const WORKERS_MAX: usize = 8;

/// One thread for each so many bytes of memory, at most: a disk that hangs holds
/// what they are writing, the largest request each, and no more than half of all.
const MEMORY_PER_WORKER: u64 = 2 * WHOLE_OBJECT_MAX_BYTES;

/// Jobs in the queue for each thread at work before another one joins: they are
/// short while the disk keeps up, and each thread more costs a switch.
const JOBS_PER_WORKER: usize = 1;

/// How long a thread that has written everything rests before it ends: where small files
/// come one by one from a line, it writes a few at once, and none costs a wake-up.
const REST: Duration = Duration::from_millis(2);

/// Jobs that wait for the thread that rests. More bring another one.
const JOBS_AT_REST: usize = 8;

/// Percent of the memory that may be unwritten: above the first nothing is
/// prefetched, above the second readahead shrinks, above the third nothing more
/// is kept. The rest is for what is on its way from the network.
const PREFETCH_PERCENT: u64 = 25;
const AHEAD_PERCENT: u64 = 45;
const KEEP_PERCENT: u64 = 60;

/// Percent of it up to which writes go past the page cache: above, the disk is slower
/// than the network, and the page cache has more room for it than we have.
const DIRECT_PERCENT: u64 = 40;

/// Without a write that ended for so long, what is queued behind one that has not is
/// given up. Longer than a disk that works takes for the largest.
const HUNG: Duration = Duration::from_secs(1);

/// Who has to give way to the disk. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lag {
    /// Nobody: the disk keeps up.
    None,
    /// What nobody asked for is not fetched.
    Prefetch,
    /// Readers look less far ahead.
    Ahead,
    /// Readers are served, and what they get is not kept.
    Keep,
}

/// What the disk has still to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Writes that wait or are under way.
    pub jobs: u64,
    /// Bytes that were fetched and are neither on disk nor given up.
    pub bytes: u64,
}

/// Something to write.
pub(super) trait Job: Send {
    /// Does it. Blocks.
    fn run(self: Box<Self>);
    /// It will not be done: the memory of what it would write is wanted.
    fn give_up(self: Box<Self>);
}

/// Bytes that were fetched and are neither on disk nor given up.
#[derive(Debug)]
pub(super) struct Unwritten {
    writer: Arc<Writer>,
    bytes: u64,
}

/// The queue and its threads.
#[derive(Debug)]
pub(super) struct Writer {
    runtime: Handle,
    memory_bytes: u64,
    workers_max: usize,
    queue: Mutex<Queue>,
    settled: Condvar,
}

struct Queue {
    jobs: VecDeque<Box<dyn Job>>,
    workers: usize,
    /// One of them has nothing to do, and looks again in a moment.
    is_resting: bool,
    /// Bytes that were fetched and are neither on disk nor given up.
    unwritten_bytes: u64,
    /// When the last write ended, or the first one after a pause began.
    moved: Instant,
}

impl Queue {
    /// Threads that write, or are about to.
    fn at_work(&self) -> usize {
        self.workers - usize::from(self.is_resting)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("jobs", &self.jobs.len())
            .field("workers", &self.workers)
            .field("is_resting", &self.is_resting)
            .field("unwritten_bytes", &self.unwritten_bytes)
            .finish()
    }
}

impl Writer {
    /// A writer of what was fetched within `memory_bytes`.
    pub(super) fn new(runtime: Handle, memory_bytes: u64) -> Arc<Self> {
        let moved = Instant::now();
        let queue = Mutex::new(Queue {
            jobs: VecDeque::new(),
            workers: 0,
            is_resting: false,
            unwritten_bytes: 0,
            moved,
        });
        let workers_max = (memory_bytes / MEMORY_PER_WORKER).clamp(1, WORKERS_MAX as u64) as usize;
        Arc::new(Writer { runtime, memory_bytes, workers_max, queue, settled: Condvar::new() })
    }

    /// Runs `job` on a thread that may block, after those before it.
    pub(super) fn push(self: &Arc<Self>, job: Box<dyn Job>) {
        let mut queue = self.lock();
        queue.jobs.push_back(job);
        let at_rest = if queue.is_resting { JOBS_AT_REST } else { 0 };
        let is_short = queue.jobs.len() <= queue.at_work() * JOBS_PER_WORKER + at_rest;
        if is_short || queue.workers == self.workers_max {
            return;
        }
        queue.workers += 1;
        if queue.workers == 1 {
            queue.moved = Instant::now();
        }
        drop(queue);
        let worker = Worker(self.clone());
        self.runtime.spawn_blocking(move || worker.work());
    }

    /// Gives up what no thread has begun with, for readers who wait for its memory: while
    /// the disk is far behind, or does not move. More memory is held than is unwritten,
    /// since a flight's is given back as a whole, so little behind may be all there is.
    pub(super) fn give_up_queued(&self, now: Instant) {
        let is_behind = self.lag() >= Lag::Ahead;
        let mut queue = self.lock();
        if !is_behind && now.saturating_duration_since(queue.moved) < HUNG {
            return;
        }
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        jobs.into_iter().for_each(Job::give_up);
    }

    /// Jobs that wait or are at work, and the bytes that are not on disk yet.
    pub(super) fn backlog(&self) -> Backlog {
        let queue = self.lock();
        let jobs = (queue.jobs.len() + queue.at_work()) as u64;
        Backlog { jobs, bytes: queue.unwritten_bytes }
    }

    /// Whether nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.jobs.is_empty() && queue.at_work() == 0 && queue.unwritten_bytes == 0
    }

    /// `bytes` were fetched, and are on their way to the disk until the drop of
    /// what is returned.
    pub(super) fn landed(self: &Arc<Self>, bytes: u64) -> Unwritten {
        self.lock().unwritten_bytes += bytes;
        Unwritten { writer: self.clone(), bytes }
    }

    /// Waits until what was fetched is on disk, or for `limit`. Blocks.
    pub(super) fn settle(&self, limit: Duration) {
        let is_busy = |queue: &mut Queue| queue.unwritten_bytes > 0;
        let wait = self.settled.wait_timeout_while(self.lock(), limit, is_busy);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether the disk keeps up by itself.
    pub(super) fn is_prompt(&self) -> bool {
        !self.is_above(self.lock().unwritten_bytes, DIRECT_PERCENT)
    }

    fn is_above(&self, unwritten_bytes: u64, percent: u64) -> bool {
        unwritten_bytes > self.memory_bytes / 100 * percent
    }

    /// How far behind the disk is.
    pub(super) fn lag(&self) -> Lag {
        let unwritten = self.lock().unwritten_bytes;
        let is_above = |percent| self.is_above(unwritten, percent);
        match () {
            () if is_above(KEEP_PERCENT) => Lag::Keep,
            () if is_above(AHEAD_PERCENT) => Lag::Ahead,
            () if is_above(PREFETCH_PERCENT) => Lag::Prefetch,
            () => Lag::None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        let mut queue = self.writer.lock();
        queue.unwritten_bytes -= self.bytes;
        queue.moved = Instant::now();
        if queue.unwritten_bytes == 0 {
            self.writer.settled.notify_all();
        }
    }
}

/// A thread at work. One that ends by a panic is no longer counted either.
struct Worker(Arc<Writer>);

impl Worker {
    fn work(&self) {
        loop {
            let mut queue = self.0.lock();
            if queue.jobs.is_empty() && !queue.is_resting {
                queue.is_resting = true;
                drop(queue);
                std::thread::sleep(REST);
                queue = self.0.lock();
                queue.is_resting = false;
            }
            let Some(job) = queue.jobs.pop_front() else {
                // Under the lock: who pushes next sees one worker less.
                queue.workers -= 1;
                drop(queue);
                return;
            };
            drop(queue);
            let done = catch_unwind(AssertUnwindSafe(|| job.run()));
            if done.is_err() {
                tracing::error!("writing to the cache ended abnormally");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    struct Task<F> {
        run: F,
        given_up: Arc<AtomicUsize>,
    }

    impl<F: FnOnce() + Send> Job for Task<F> {
        fn run(self: Box<Self>) {
            (self.run)();
        }

        fn give_up(self: Box<Self>) {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task(run: impl FnOnce() + Send + 'static) -> Box<dyn Job> {
        Box::new(Task { run, given_up: Arc::default() })
    }

    async fn idle(writer: &Writer) {
        while !writer.is_idle() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn jobs_are_done_in_turn_and_a_panic_stops_nobody() {
        let writer = Writer::new(Handle::current(), 1 << 20);
        let (done, order) = mpsc::channel();
        for n in 0..JOBS_PER_WORKER {
            let (done, unwritten) = (done.clone(), writer.landed(7));
            writer.push(task(move || {
                done.send(n).unwrap();
                assert!(n != 1, "on purpose");
                drop(unwritten);
            }));
        }
        let order: Vec<_> = order.iter().take(JOBS_PER_WORKER).collect();
        assert_eq!(order, (0..JOBS_PER_WORKER).collect::<Vec<_>>());
        idle(&writer).await;
    }

    fn task_of(given_up: &Arc<AtomicUsize>) -> Box<dyn Job> {
        Box::new(Task { run: || {}, given_up: given_up.clone() })
    }

    /// A writer whose threads all wait until the sender is dropped, with `jobs`.
    fn hung(
        memory_bytes: u64,
        jobs: usize,
        given_up: &Arc<AtomicUsize>,
    ) -> (Arc<Writer>, mpsc::Sender<()>) {
        let writer = Writer::new(Handle::current(), memory_bytes);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..jobs {
            let gate = gate.clone();
            let run = move || {
                let _ = gate.lock().unwrap().recv();
            };
            writer.push(Box::new(Task { run, given_up: given_up.clone() }));
        }
        (writer, release)
    }

    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_the_least_urgent_first() {
        let memory = 1_000 * MEMORY_PER_WORKER;
        let (writer, release) = hung(memory, 100, &Arc::default());
        assert_eq!(writer.lock().workers, WORKERS_MAX);
        let (mut seen, mut unwritten) = (Vec::new(), Vec::new());
        for percent in [25, 45, 60] {
            let sum: u64 = unwritten.iter().map(|unwritten: &Unwritten| unwritten.bytes).sum();
            unwritten.push(writer.landed(memory / 100 * percent - sum));
            seen.push(writer.lag());
            unwritten.push(writer.landed(1));
        }
        seen.push(writer.lag());
        assert_eq!(seen, [Lag::None, Lag::Prefetch, Lag::Ahead, Lag::Keep]);
        drop(unwritten);
        writer.settle(Duration::MAX);
        assert_eq!(writer.lag(), Lag::None);
        drop(release);
        idle(&writer).await;
    }

    #[tokio::test]
    async fn what_a_hung_disk_has_not_begun_with_is_given_up_for_readers() {
        let given_up = Arc::<AtomicUsize>::default();
        let (writer, release) = hung(2 * MEMORY_PER_WORKER, 100, &given_up);
        assert_eq!(writer.lock().workers, 2, "no more than half of the memory hangs");
        while writer.lock().jobs.len() > 98 {
            tokio::task::yield_now().await;
        }
        let now = Instant::now();
        writer.give_up_queued(now);
        assert_eq!(given_up.load(Ordering::Relaxed), 0, "the disk may only be slow");
        let unwritten = writer.landed(2 * MEMORY_PER_WORKER);
        writer.give_up_queued(now);
        assert_eq!(given_up.load(Ordering::Relaxed), 98);
        drop(unwritten);
        writer.push(task_of(&given_up));
        writer.give_up_queued(now);
        assert_eq!(given_up.load(Ordering::Relaxed), 98);
        writer.give_up_queued(Instant::now() + HUNG);
        assert_eq!(given_up.load(Ordering::Relaxed), 99, "little is behind, and nothing moves");
        drop(release);
        idle(&writer).await;
    }
}
