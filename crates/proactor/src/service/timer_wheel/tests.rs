//! The wheel against a sorted map, with times that make every level matter.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(1);

fn expired<T>(wheel: &mut TimerWheel<T>, now: Instant) -> Vec<T> {
    let mut values = Vec::new();
    wheel.advance(now, |value| values.push(value));
    values
}

#[test]
fn timers_expire_never_early_and_less_than_a_tick_late() {
    let start = Instant::now();
    for shift_us in [0, 1, 499, 999] {
        let shift = Duration::from_micros(shift_us);
        let mut wheel = TimerWheel::new(start, TICK);
        let deadline = start + Duration::from_millis(100) + shift;
        wheel.insert(deadline, ());
        let mut now = start;
        let at = loop {
            if !expired(&mut wheel, now).is_empty() {
                break now;
            }
            now += Duration::from_micros(1);
        };
        assert!(at >= deadline, "early");
        assert!(at < deadline + TICK, "late by a tick or more");
    }
}

#[test]
fn a_deadline_that_has_passed_is_due_at_once() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    let later = start + Duration::from_secs(5);
    assert_eq!(expired(&mut wheel, later), [""; 0]);
    wheel.insert(start, "at the origin");
    wheel.insert(later - Duration::from_secs(1), "before");
    wheel.insert(later, "now");
    assert!(wheel.next_deadline().unwrap() <= later);
    // A clock that seems to go back changes nothing.
    assert_eq!(expired(&mut wheel, start), ["at the origin", "before", "now"]);
    assert!(wheel.is_empty());
}

#[test]
fn timers_of_one_tick_expire_in_the_order_of_their_start() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    let deadline = start + Duration::from_secs(100);
    wheel.insert(deadline, 1);
    assert!(expired(&mut wheel, start + Duration::from_secs(99)).is_empty());
    // The first one has moved to a lower level by now; it is first all the same.
    wheel.insert(deadline, 2);
    assert!(expired(&mut wheel, deadline - TICK).is_empty());
    wheel.insert(deadline, 3);
    assert_eq!(expired(&mut wheel, deadline), [1, 2, 3]);
}

#[test]
fn a_key_is_good_for_one_timer() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    let first = wheel.insert(start, 1);
    assert_eq!(wheel.remove(first), Some(1));
    let second = wheel.insert(start, 2);
    assert_eq!(wheel.remove(first), None);
    assert!(!wheel.reschedule(first, start));
    assert_eq!(expired(&mut wheel, start), [2]);
    assert_eq!(wheel.remove(second), None);
}

#[test]
fn a_timer_that_is_put_off_again_and_again_costs_one_entry() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    let key = wheel.insert(start + Duration::from_secs(30), "idle");
    let mut now = start;
    for _ in 0..100_000 {
        now += Duration::from_millis(7);
        assert!(expired(&mut wheel, now).is_empty());
        assert!(wheel.reschedule(key, now + Duration::from_secs(30)));
    }
    assert_eq!(wheel.len(), 1);
    assert_eq!(expired(&mut wheel, now + Duration::from_secs(30)), ["idle"]);
}

#[test]
fn the_farthest_deadline_is_kept_and_can_be_removed() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, Duration::from_nanos(1));
    let mut far = start;
    for seconds in (0..63).rev().map(|bit| 1 << bit) {
        far = far.checked_add(Duration::from_secs(seconds)).unwrap_or(far);
    }
    let key = wheel.insert(far, "far");
    assert!(wheel.next_deadline().unwrap() > start + Duration::from_secs(3600));
    assert!(expired(&mut wheel, start + Duration::from_secs(1 << 32)).is_empty());
    assert_eq!(wheel.remove(key), Some("far"));
    assert_eq!(wheel.next_deadline(), None);
}

#[test]
fn a_panic_while_a_timer_is_handled_loses_that_timer_alone() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    for value in 0..3 {
        wheel.insert(start, value);
    }
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wheel.advance(start, |value| assert_ne!(value, 1, "on purpose"));
    }));
    assert!(caught.is_err());
    assert_eq!(expired(&mut wheel, start), [2]);
}

#[test]
fn clear_gives_all_values_and_no_key_stays_good() {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    let keys: Vec<_> =
        (0..100_u64).map(|n| wheel.insert(start + Duration::from_millis(n * n), n)).collect();
    let mut values: Vec<u64> = wheel.clear().collect();
    values.sort_unstable();
    assert_eq!(values, (0..100).collect::<Vec<_>>());
    assert_eq!((wheel.len(), wheel.next_deadline()), (0, None));
    wheel.insert(start, 7);
    assert!(keys.into_iter().all(|key| wheel.remove(key).is_none()));
    assert_eq!(expired(&mut wheel, start), [7]);
}

#[test]
fn a_million_timers_expire_in_order_and_allocate_once() {
    const TIMERS: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start, TICK);
    for round in 0..3 {
        let base = start + Duration::from_secs(4_000) * round;
        for index in 0..TIMERS {
            // An odd factor visits each residue once: all deadlines differ, in a scattered order.
            let delay_us = index.wrapping_mul(0x9E37_79B1) % (1 << 30);
            wheel.insert(base + Duration::from_micros(delay_us), delay_us / 1_000);
        }
        assert_eq!(wheel.len() as u64, TIMERS);
        let ticks = expired(&mut wheel, base + Duration::from_secs(2_000));
        assert_eq!(ticks.len() as u64, TIMERS);
        assert!(ticks.is_sorted());
        assert!(wheel.slab.capacity() as u64 <= TIMERS.next_power_of_two());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        delay_us: u64,
    },
    Remove {
        pick: usize,
    },
    Reschedule {
        pick: usize,
        delay_us: u64,
    },
    Advance {
        by_us: u64,
    },
    /// To the time that the wheel asks for.
    Wake,
}

/// Lengths of time from nothing to a day, all magnitudes alike.
fn span_us() -> impl Strategy<Value = u64> {
    (0_u32..37).prop_flat_map(|bits| 0..=1_u64 << bits)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => span_us().prop_map(|delay_us| Step::Insert { delay_us }),
        2 => any::<usize>().prop_map(|pick| Step::Remove { pick }),
        2 => (any::<usize>(), span_us())
            .prop_map(|(pick, delay_us)| Step::Reschedule { pick, delay_us }),
        2 => span_us().prop_map(|by_us| Step::Advance { by_us }),
        3 => Just(Step::Wake),
    ]
}

/// What the wheel does, done simply: sorted by tick, then by the order of the starts.
struct Model {
    start: Instant,
    present: u64,
    order: u64,
    timers: BTreeMap<(u64, u64), TimerKey>,
}

impl Model {
    fn tick(&self, deadline: Instant) -> u64 {
        // What is due already expires in the order in which it came.
        let ticks = (deadline - self.start).as_micros().div_ceil(TICK.as_micros());
        u64::try_from(ticks).unwrap().max(self.present)
    }

    fn insert(&mut self, deadline: Instant, key: TimerKey) {
        self.timers.insert((self.tick(deadline), self.order), key);
        self.order += 1;
    }

    fn pick(&self, pick: usize) -> Option<(u64, u64)> {
        let count = self.timers.len();
        (count > 0).then(|| *self.timers.keys().nth(pick % count).unwrap())
    }

    fn advance(&mut self, now: Instant) -> Vec<TimerKey> {
        let present = (now - self.start).as_micros() / TICK.as_micros();
        self.present = self.present.max(u64::try_from(present).unwrap());
        let later = self.timers.split_off(&(self.present + 1, 0));
        std::mem::replace(&mut self.timers, later).into_values().collect()
    }
}

proptest! {
    #[test]
    fn behaves_as_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let mut wheel = TimerWheel::new(start, TICK);
        let timers = BTreeMap::new();
        let mut model = Model { start, present: 0, order: 0, timers };
        // The value of a timer is its place in here.
        let mut keys: Vec<TimerKey> = Vec::new();
        for step in steps {
            match step {
                Step::Insert { delay_us } => {
                    let deadline = now + Duration::from_micros(delay_us);
                    let key = wheel.insert(deadline, keys.len());
                    prop_assert!(!keys.contains(&key), "a key is not used twice");
                    keys.push(key);
                    model.insert(deadline, key);
                }
                Step::Remove { pick } => if let Some(place) = model.pick(pick) {
                    let key = model.timers.remove(&place).unwrap();
                    let value = wheel.remove(key).expect("it is pending");
                    prop_assert_eq!(keys[value], key);
                    prop_assert_eq!(wheel.remove(key), None);
                },
                Step::Reschedule { pick, delay_us } => if let Some(place) = model.pick(pick) {
                    let key = model.timers.remove(&place).unwrap();
                    let deadline = now + Duration::from_micros(delay_us);
                    prop_assert!(wheel.reschedule(key, deadline));
                    model.insert(deadline, key);
                },
                Step::Advance { .. } | Step::Wake => {
                    now = match step {
                        Step::Advance { by_us } => now + Duration::from_micros(by_us),
                        _ => wheel.next_deadline().unwrap_or(now).max(now),
                    };
                    let values = expired(&mut wheel, now);
                    let expired_keys: Vec<_> = values.into_iter().map(|value| keys[value]).collect();
                    prop_assert_eq!(expired_keys, model.advance(now));
                }
            }
            prop_assert_eq!(wheel.len(), model.timers.len());
            // The time that it asks for is never after the earliest timer's.
            let asked = wheel.next_deadline().map(|asked| model.tick(asked));
            let earliest = model.timers.keys().next().map(|(tick, _)| *tick);
            prop_assert_eq!(asked.is_some(), earliest.is_some());
            prop_assert!(asked <= earliest, "{:?} is asked for, {:?} is due", asked, earliest);
        }
        // Whoever wakes when the wheel asks for it soon has them all.
        let (mut wakes, timers) = (0, wheel.len());
        while let Some(next) = wheel.next_deadline() {
            now = now.max(next);
            prop_assert_eq!(expired(&mut wheel, now).len(), model.advance(now).len());
            wakes += 1;
        }
        prop_assert!(wakes <= timers * LEVELS, "{} wakes for {} timers", wakes, timers);
    }
}
