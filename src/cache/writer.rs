//! Writes to the cache disk, behind the network.
//!
//! What was fetched is handed out first and written after. A few threads work a
//! queue off, so that a chunk costs no hand-over of its own while the disk keeps
//! up. The bytes that wait are in memory: once they are too many, the disk is
//! slower than the network, and [`Lag`] says who has to give way.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

/// Threads that write at once. More only queue in the kernel.
const WORKERS_MAX: usize = 8;

/// Jobs in the queue for each thread at work before another one joins: they are
/// short while the disk keeps up, and each thread more costs a switch.
const JOBS_PER_WORKER: usize = 4;

/// Percent of the memory that may be unwritten: above the first nothing is
/// prefetched, above the second readahead shrinks, above the third nothing more
/// is kept. The rest is for what is on its way from the network.
const PREFETCH_PERCENT: u64 = 25;
const AHEAD_PERCENT: u64 = 45;
const KEEP_PERCENT: u64 = 60;

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

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The queue and its threads.
#[derive(Debug)]
pub(super) struct Writer {
    runtime: Handle,
    memory_bytes: u64,
    queue: Mutex<Queue>,
    settled: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    workers: usize,
    /// Bytes that were fetched and are neither on disk nor given up.
    unwritten_bytes: u64,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("jobs", &self.jobs.len())
            .field("workers", &self.workers)
            .field("unwritten_bytes", &self.unwritten_bytes)
            .finish()
    }
}

impl Writer {
    /// A writer of what was fetched within `memory_bytes`.
    pub(super) fn new(runtime: Handle, memory_bytes: u64) -> Arc<Self> {
        let queue = Queue { jobs: VecDeque::new(), workers: 0, unwritten_bytes: 0 };
        let queue = Mutex::new(queue);
        Arc::new(Writer { runtime, memory_bytes, queue, settled: Condvar::new() })
    }

    /// Runs `job` on a thread that may block, after those before it.
    pub(super) fn push(self: &Arc<Self>, job: Job) {
        let mut queue = self.lock();
        queue.jobs.push_back(job);
        let is_short = queue.jobs.len() <= queue.workers * JOBS_PER_WORKER;
        if is_short || queue.workers == WORKERS_MAX {
            return;
        }
        queue.workers += 1;
        drop(queue);
        let worker = Worker(self.clone());
        self.runtime.spawn_blocking(move || worker.work());
    }

    /// As [`Writer::push`], unless others write already.
    pub(super) fn push_if_idle(self: &Arc<Self>, job: Job) {
        if self.is_idle() {
            self.push(job);
        }
    }

    /// Whether nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.workers == 0 && queue.unwritten_bytes == 0
    }

    /// `bytes` were fetched, and are on their way to the disk.
    pub(super) fn landed(&self, bytes: usize) {
        self.lock().unwritten_bytes += bytes as u64;
    }

    /// `bytes` are on disk, or given up.
    pub(super) fn settled(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.unwritten_bytes -= bytes as u64;
        if queue.unwritten_bytes == 0 {
            self.settled.notify_all();
        }
    }

    /// Waits until what was fetched is on disk, or for `limit`. Blocks.
    pub(super) fn settle(&self, limit: Duration) {
        let is_busy = |queue: &mut Queue| queue.unwritten_bytes > 0;
        let wait = self.settled.wait_timeout_while(self.lock(), limit, is_busy);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// How far behind the disk is.
    pub(super) fn lag(&self) -> Lag {
        let unwritten = self.lock().unwritten_bytes;
        let is_above = |percent: u64| unwritten > self.memory_bytes / 100 * percent;
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

/// A thread at work. One that ends by a panic is no longer counted either.
struct Worker(Arc<Writer>);

impl Worker {
    fn work(&self) {
        loop {
            let mut queue = self.0.lock();
            let Some(job) = queue.jobs.pop_front() else {
                // Under the lock: who pushes next sees one worker less.
                queue.workers -= 1;
                drop(queue);
                return;
            };
            drop(queue);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            if done.is_err() {
                tracing::error!("writing to the cache ended abnormally");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_turn_and_a_panic_stops_nobody() {
        let writer = Writer::new(Handle::current(), 1 << 20);
        let (done, order) = mpsc::channel();
        for n in 0..JOBS_PER_WORKER {
            let done = done.clone();
            writer.push(Box::new(move || {
                done.send(n).unwrap();
                assert!(n != 1, "on purpose");
            }));
        }
        let order: Vec<_> = order.iter().take(JOBS_PER_WORKER).collect();
        assert_eq!(order, (0..JOBS_PER_WORKER).collect::<Vec<_>>());
        while !writer.is_idle() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_the_least_urgent_first() {
        let writer = Writer::new(Handle::current(), 1_000);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..100 {
            let gate = gate.clone();
            writer.push(Box::new(move || {
                let _ = gate.lock().unwrap().recv();
            }));
        }
        assert_eq!(writer.lock().workers, WORKERS_MAX);
        let mut seen = Vec::new();
        for bytes in [250, 199, 149, 1] {
            writer.landed(bytes);
            seen.push(writer.lag());
            writer.landed(1);
        }
        assert_eq!(seen, [Lag::None, Lag::Prefetch, Lag::Ahead, Lag::Keep]);
        writer.settled(603);
        writer.settle(Duration::MAX);
        assert_eq!(writer.lag(), Lag::None);
        drop(release);
        while !writer.is_idle() {
            tokio::task::yield_now().await;
        }
    }
}
