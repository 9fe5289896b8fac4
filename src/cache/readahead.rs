//! What to fetch beyond what was asked for. Pure.
//!
//! One [`Readahead`] per object, whoever reads it: forked readers share a file
//! description, and a mount without OPEN has no handles at all. A few streams
//! are followed at once, and reads may arrive a little out of order, as the
//! kernel's own readahead sends them.

use std::ops::Range;

use super::chunk_map::CHUNK_BYTES;

const MIB: u64 = 1 << 20;

/// Objects up to this size are fetched whole, in one request: another round
/// trip costs more than the bytes.
pub(super) const WHOLE_OBJECT_MAX_BYTES: u64 = 4 * MIB;

/// First window of a stream. Reading only a header costs no more than this.
const WINDOW_MIN_BYTES: u64 = 2 * MIB;

/// First window of a stream that does not begin at the beginning: two random
/// reads that happen to follow one another look like one.
const WINDOW_INNER_BYTES: u64 = MIB / 2;

/// Largest window: 48 requests of 2 MiB in flight give a store with 30 ms and
/// 50 MB/s a connection 1.3 GiB/s, more than two cores take.
pub(super) const WINDOW_MAX_BYTES: u64 = 96 * MIB;

/// Growth of a window whose reader keeps on: 2, 16, 96 MiB. Each step costs a
/// round trip, and doubling took a quarter of a 512 MiB object's time.
const WINDOW_GROWTH: u64 = 8;

/// Bounds of one request. Below, round trips dominate; above, too few
/// connections share the window.
const PART_MIN_BYTES: u64 = MIB;
const PART_MAX_BYTES: u64 = 2 * MIB;

/// Requests that a window is split into at least, if they are not too small for it.
const PARTS_MIN: u64 = 4;

/// How far from the expected offset a read still continues a stream: twice the
/// largest request of the kernel.
const REORDER_BYTES: u64 = 2 * MIB;

/// The same for its second read: in a random pattern more would often be met by chance.
const REORDER_FIRST_BYTES: u64 = 256 << 10;

/// Streams followed in one object; the one least recently read gives way.
const STREAMS_MAX: usize = 8;

/// What one read makes worth having.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes to have, chunk-aligned but for the object's end; covers the read.
    pub range: Range<u64>,
    /// Bytes to ask for in one request, a multiple of the chunk.
    pub part: u64,
}

/// The read pattern of one object.
#[derive(Debug)]
pub(super) struct Readahead {
    size: u64,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes to have beyond `next`; 0 until a second read proves the stream.
    window: u64,
    /// Where the window grows: half of it was read.
    grows_at: u64,
    /// End of what was planned so far.
    planned_until: u64,
}

impl Readahead {
    pub(super) fn new(size: u64) -> Self {
        Readahead { size, streams: Vec::new() }
    }

    /// A read of `len` bytes at `offset`, within the object; the window grows
    /// to `window_max` at most.
    pub(super) fn on_read(&mut self, offset: u64, len: u64, window_max: u64) -> Plan {
        if self.size <= WHOLE_OBJECT_MAX_BYTES {
            return Plan { range: 0..self.size, part: WHOLE_OBJECT_MAX_BYTES };
        }
        let end = offset + len;
        let size = self.size;
        let stream = self.stream_at(offset, end);
        stream.next = stream.next.max(end);
        let mut until = end;
        if stream.window > 0 {
            if stream.next >= stream.grows_at {
                stream.window *= WINDOW_GROWTH;
                stream.grows_at = stream.next + stream.window / 2;
            }
            stream.window = stream.window.min(window_max);
            // By whole requests: the window stays full, and they do not get small.
            let target = stream.next + stream.window;
            if target >= stream.planned_until + part_of(stream.window) || target >= size {
                until = target.max(end);
                stream.planned_until = until;
            }
        }
        let start = offset / CHUNK_BYTES * CHUNK_BYTES;
        let until = until.next_multiple_of(CHUNK_BYTES).min(self.size);
        let part = part_of(until - start);
        Plan { range: start..until, part: part / CHUNK_BYTES * CHUNK_BYTES }
    }

    /// What was planned from `offset` on was not asked for: plan it again later.
    pub(super) fn refused(&mut self, offset: u64) {
        for stream in &mut self.streams {
            if stream.planned_until > offset && stream.next <= offset {
                stream.planned_until = offset;
            }
        }
    }

    /// The stream that a read continues, or a new one; moved to the front.
    fn stream_at(&mut self, offset: u64, end: u64) -> &mut Stream {
        let known = self.streams.iter().position(|stream| {
            let far = if stream.window > 0 { REORDER_BYTES } else { REORDER_FIRST_BYTES };
            stream.next.abs_diff(offset) <= far
        });
        let stream = match known {
            Some(at) => {
                let mut stream = self.streams.remove(at);
                if stream.window == 0 {
                    stream.window = WINDOW_INNER_BYTES;
                    stream.grows_at = stream.next + WINDOW_INNER_BYTES / 2;
                }
                stream
            }
            None => {
                self.streams.truncate(STREAMS_MAX - 1);
                // Who begins at the beginning most often goes on.
                let window = if offset == 0 { WINDOW_MIN_BYTES } else { 0 };
                Stream { next: end, window, grows_at: end + window / 2, planned_until: end }
            }
        };
        self.streams.insert(0, stream);
        &mut self.streams[0]
    }
}

/// Bytes to ask for at once out of a window.
fn part_of(window: u64) -> u64 {
    (window / PARTS_MIN).clamp(PART_MIN_BYTES, PART_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn small_objects_are_fetched_whole() {
        let mut readahead = Readahead::new(110 * KIB);
        let plan = readahead.on_read(64 * KIB, 4 * KIB, WINDOW_MAX_BYTES);
        assert_eq!(plan.range, 0..110 * KIB);
        assert!(plan.part >= 110 * KIB);
    }

    #[test]
    fn a_header_costs_one_small_window() {
        let plan = Readahead::new(1 << 30).on_read(0, 64 * KIB, WINDOW_MAX_BYTES);
        assert!(plan.range.start == 0 && plan.range.end <= 4 * MIB, "{plan:?}");
    }

    #[test]
    fn a_stream_ramps_up_and_keeps_ahead() {
        let size = 1 << 30;
        let mut readahead = Readahead::new(size);
        let (mut planned, mut requests) = (0, 0);
        for offset in (0..size).step_by(128 << 10) {
            let plan = readahead.on_read(offset, 128 * KIB, WINDOW_MAX_BYTES);
            assert!(plan.range.start <= offset && plan.range.end >= offset + 128 * KIB);
            if plan.range.end > planned {
                requests += (plan.range.end - planned).div_ceil(plan.part);
                planned = plan.range.end;
            }
            if offset > 64 * MIB && planned < size {
                assert!(planned - offset >= 24 * MIB, "only {} ahead", planned - offset);
            }
        }
        assert_eq!(planned, size);
        assert!(requests <= 1024 / 2 + 8, "{requests} requests for 1 GiB");
    }

    #[test]
    fn random_reads_get_what_they_ask_for() {
        let size = 1 << 30;
        let mut readahead = Readahead::new(size);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut fetched = 0;
        for _ in 0..500 {
            let offset = 4 * MIB + rng.u64(..(size - 5 * MIB)) / 4096 * 4096;
            let plan = readahead.on_read(offset, 4 * KIB, WINDOW_MAX_BYTES);
            fetched += plan.range.end - plan.range.start;
        }
        // Two chunks where a read straddles them, and a rare false stream.
        assert!(fetched < 500 * 4 * CHUNK_BYTES, "{fetched}");
    }

    #[test]
    fn random_chunks_cost_little_more_than_themselves() {
        let size = 1 << 30;
        let mut readahead = Readahead::new(size);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut had = vec![false; (size / CHUNK_BYTES) as usize];
        for _ in 0..1_000 {
            let chunk = rng.u64(..size / CHUNK_BYTES);
            let plan = readahead.on_read(chunk * CHUNK_BYTES, CHUNK_BYTES, WINDOW_MAX_BYTES);
            for chunk in plan.range.start / CHUNK_BYTES..plan.range.end / CHUNK_BYTES {
                had[chunk as usize] = true;
            }
        }
        let fetched = had.into_iter().filter(|had| *had).count();
        assert!(fetched < 1_300, "{fetched}");
    }

    #[test]
    fn interleaved_and_reordered_streams_are_told_apart() {
        let mut readahead = Readahead::new(1 << 30);
        let starts = [0, 300 * MIB, 700 * MIB];
        let mut planned = starts;
        for step in 0..64 {
            let swapped = step ^ 1; // each pair of reads arrives in reverse
            for (start, planned) in starts.iter().zip(&mut planned) {
                let plan = readahead.on_read(start + swapped * 128 * KIB, 128 * KIB, 64 * MIB);
                *planned = plan.range.end.max(*planned);
            }
        }
        for (start, planned) in starts.iter().zip(planned) {
            assert!(planned - start > 16 * MIB, "{start}: {planned}");
        }
    }

    #[test]
    fn what_was_refused_is_planned_again() {
        let mut readahead = Readahead::new(1 << 30);
        let first = readahead.on_read(0, 128 * KIB, WINDOW_MAX_BYTES);
        readahead.refused(MIB);
        let second = readahead.on_read(128 * KIB, 128 * KIB, WINDOW_MAX_BYTES);
        assert!(second.range.end > first.range.end);
    }
}
