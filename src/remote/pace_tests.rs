//! The pace over simulated stores: readers that ask, a store that counts.

use std::collections::BTreeMap;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How a store decides whom it refuses.
#[derive(Clone, Copy, Debug)]
enum Store {
    /// So many requests in each second of its clock.
    Window(f64),
    /// A bucket that fills at this rate and holds so many.
    Bucket(f64, f64),
    /// Everybody.
    Open,
    /// Nobody between these.
    Closed(Duration, Duration),
    /// Every so many requests one is refused, whatever the rate.
    Noisy(u64),
}

#[derive(Default)]
struct Counter {
    window: u64,
    in_window: f64,
    tokens: Option<f64>,
    at: Duration,
    asked: u64,
}

impl Store {
    fn accepts(self, count: &mut Counter, at: Duration) -> bool {
        count.asked += 1;
        match self {
            Store::Window(rate) => {
                let window = at.as_secs();
                if window != count.window {
                    (count.window, count.in_window) = (window, 0.0);
                }
                let accepts = count.in_window < rate;
                count.in_window += f64::from(u8::from(accepts));
                accepts
            }
            Store::Bucket(rate, size) => {
                let passed = (at - count.at).as_secs_f64();
                count.at = at;
                let tokens = (count.tokens.unwrap_or(size) + passed * rate).min(size);
                let accepts = tokens >= 1.0;
                count.tokens = Some(if accepts { tokens - 1.0 } else { tokens });
                accepts
            }
            Store::Open => true,
            Store::Closed(from, to) => at < from || at >= to,
            Store::Noisy(each) => !count.asked.is_multiple_of(each),
        }
    }
}

struct Outcome {
    accepted: u64,
    refused: u64,
    /// Accepted in each second.
    by_second: Vec<u64>,
    pace: Pace,
    now: Instant,
}

/// What happens next in a simulation, and to which reader.
#[derive(Clone, Copy)]
enum Event {
    Ask,
    Arrive(Instant),
    Answer(Instant, bool),
}

/// `readers` that ask without a pause, over a line with this round trip.
fn simulate(store: Store, readers: usize, round_trip: Duration, time: Duration) -> Outcome {
    let start = Instant::now();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut pace = Pace::new(start);
    let mut counter = Counter::default();
    let mut events = BTreeMap::new();
    for reader in 0..readers as u64 {
        events.insert((start, reader), Event::Ask);
    }
    let mut order = readers as u64;
    let (mut accepted, mut refused) = (0, 0);
    let mut by_second = vec![0; time.as_secs() as usize + 1];
    let mut now = start;
    while let Some(((at, _), event)) = events.pop_first() {
        now = at;
        if now > start + time {
            break;
        }
        let (due, next) = match event {
            Event::Ask => match pace.try_send(now) {
                Ok(()) => (now + round_trip / 2, Event::Arrive(now)),
                // A timer of a millisecond, as tokio has it.
                Err(until) => (until.max(now) + MS, Event::Ask),
            },
            Event::Arrive(sent) => {
                let accepts = store.accepts(&mut counter, now - start);
                (now + round_trip / 2, Event::Answer(sent, accepts))
            }
            Event::Answer(sent, true) => {
                pace.accepted(sent, now);
                accepted += 1;
                by_second[(now - start).as_secs() as usize] += 1;
                (now, Event::Ask)
            }
            Event::Answer(sent, false) => {
                pace.refused(sent, now, None);
                refused += 1;
                (now + (100 * MS).mul_f64(rng.f64()), Event::Ask)
            }
        };
        order += 1;
        events.insert((due, order), next);
    }
    Outcome { accepted, refused, by_second, pace, now }
}

#[test]
fn a_capped_store_is_used_up_with_few_refusals() {
    const SECONDS: u32 = 20;
    for cap in [50.0, 200.0, 1_000.0] {
        for (readers, trip) in [(8, 2), (8, 35), (64, 2), (64, 35), (64, 120)] {
            if readers as f64 * 1_000.0 / f64::from(trip) < 1.5 * cap {
                continue; // Never comes near the cap.
            }
            // The last bucket holds a tenth of a second: the search for its rate shows.
            let stores = [
                (Store::Window(cap), 0.9),
                (Store::Bucket(cap, cap), 0.9),
                (Store::Bucket(cap, cap / 10.0), 0.85),
            ];
            for (store, target) in stores {
                let out = simulate(store, readers, trip * MS, SECONDS * SECOND);
                let reached = out.accepted as f64 / f64::from(SECONDS) / cap;
                let vain = out.refused as f64 / (out.accepted + out.refused) as f64;
                println!(
                    "{store:?}, {readers} readers, {trip} ms: {reached:.2}, {vain:.3} refused"
                );
                assert!(reached >= target, "{store:?} {readers} {trip} ms: {:?}", out.by_second);
                assert!(vain <= 0.1, "{store:?} {readers} {trip} ms: {vain}");
            }
        }
    }
}

#[test]
fn a_store_that_never_refuses_is_never_held_back() {
    let out = simulate(Store::Open, 64, 30 * MS, 5 * SECOND);
    assert!(out.accepted >= 64 * 5 * 1_000 / 30 - 64, "{}", out.accepted);
    assert!(out.pace.rate().is_none());
}

#[test]
fn single_refusals_are_noise() {
    let out = simulate(Store::Noisy(100), 64, 30 * MS, 20 * SECOND);
    assert!(out.pace.rate().is_none_or(|rate| rate > 1_500.0), "{:?}", out.pace.rate());
    assert!(out.accepted > 35_000, "{}", out.accepted);
}

#[test]
fn a_store_that_was_closed_for_a_while_is_used_again() {
    let store = Store::Closed(2 * SECOND, 12 * SECOND);
    let out = simulate(store, 64, 30 * MS, 60 * SECOND);
    println!("closed: {} refused, {:?}", out.refused, out.by_second);
    // A probe a second or so, and what was under way.
    assert!(out.refused < 150, "{}", out.refused);
    let before = out.by_second[1];
    assert!(out.by_second[15] * 10 >= before * 8, "{:?}", out.by_second);
    assert!(out.by_second[58] * 10 >= before * 9, "{:?}", out.by_second);
}

#[test]
fn retry_after_holds_everybody_up_to_a_bound() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    pace.refused(now, now, Some(3 * SECOND));
    assert_eq!(pace.try_send(now), Err(now + 3 * SECOND));
    assert!(pace.is_throttled(now));
    assert_eq!(pace.try_send(now + 3 * SECOND), Ok(()));
    assert_eq!(pace.rate(), None, "one refusal is no rate");
    pace.refused(now, now, Some(3600 * SECOND));
    assert_eq!(pace.try_send(now + 3 * SECOND), Err(now + RETRY_AFTER_MAX));
    assert_eq!(pace.try_send(now + RETRY_AFTER_MAX), Ok(()));
}

#[test]
fn throttling_is_forgotten() {
    let out = simulate(Store::Bucket(50.0, 50.0), 64, 30 * MS, 10 * SECOND);
    let mut pace = out.pace;
    assert!(pace.rate().is_some_and(|rate| (40.0..60.0).contains(&rate)));
    let later = out.now + FORGET_AFTER;
    assert_eq!(pace.try_send(later), Ok(()));
    assert_eq!(pace.rate(), None);
    assert!(!pace.is_throttled(later));
}
