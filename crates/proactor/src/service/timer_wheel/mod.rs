//! Timers by the million: a hierarchical timing wheel.
//!
//! Time is cut into ticks. The number of a tick, written with 64 as the base, has eleven digits; a
//! timer stands in the list of the highest digit in which its tick differs from the present one,
//! and of the value of that digit. Insert and remove touch one list. When the present tick reaches
//! a list, its timers move to the lists of lower digits, or are due: each moves at most eleven
//! times in its life, in practice once or twice. So the cost per timer is constant, however many
//! there are. (The scheme is from Varghese and Lauck, "Hashed and Hierarchical Timing Wheels",
//! 1987.)
//!
//! The wheel has no thread and no clock: it is told what time it is, so it runs on a virtual clock
//! as well.

mod list;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use list::{List, Slab};

/// Bits of one digit.
const DIGIT_BITS: u32 = 6;
/// Lists of one level: the values of a digit.
const LISTS: usize = 1 << DIGIT_BITS;
/// Digits of a tick's number.
const LEVELS: usize = u64::BITS.div_ceil(DIGIT_BITS) as usize;

/// A timing wheel that holds a value of type `T` for each timer.
///
/// A timer never expires before its deadline. It expires at the first [`advance`](Self::advance)
/// with a time of at least its deadline rounded up to a tick: so late by less than a tick, and by
/// however late `advance` is called. Timers expire in the order of their ticks, and those of one
/// tick in the order in which they were inserted.
///
/// It allocates only while there are more timers than ever before.
///
/// ```
/// use std::time::{Duration, Instant};
/// use proactor::service::timer_wheel::TimerWheel;
///
/// let start = Instant::now();
/// let mut wheel = TimerWheel::new(start, Duration::from_millis(1));
/// let ten = wheel.insert(start + Duration::from_millis(10), "ten");
/// let twenty = wheel.insert(start + Duration::from_millis(20), "twenty");
/// assert_eq!(wheel.remove(ten), Some("ten"));
///
/// let mut expired = Vec::new();
/// wheel.advance(start + Duration::from_millis(19), |value| expired.push(value));
/// assert!(expired.is_empty());
/// wheel.advance(start + Duration::from_millis(20), |value| expired.push(value));
/// assert_eq!(expired, ["twenty"]);
/// assert_eq!(wheel.remove(twenty), None);
/// ```
pub struct TimerWheel<T> {
    origin: Instant,
    tick_nanoseconds: u64,
    /// The present tick. All timers of earlier lists have been moved or are due.
    elapsed: u64,
    slab: Slab<T>,
    /// Timers whose tick has been reached.
    due: List,
    levels: Box<[Level; LEVELS]>,
    /// Bit n: level n holds a timer.
    occupied_levels: u16,
}

#[derive(Clone, Copy)]
struct Level {
    /// Bit n: list n holds a timer.
    occupied: u64,
    lists: [List; LISTS],
}

/// Names one timer of one wheel. A key is never used twice, so one that is kept after its timer
/// has expired or was removed is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey {
    index: u32,
    generation: u32,
}

impl TimerKey {
    /// The key as one number, never `u64::MAX`: no timer has the last index.
    pub(in crate::service) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key of which `bits` is the number.
    pub(in crate::service) fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// In which list a timer stands. It follows from the present tick and the timer's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Due,
    Wheel { level: usize, list: usize },
}

impl<T> TimerWheel<T> {
    /// An empty wheel whose time starts at `origin` and is counted in ticks of `tick`.
    ///
    /// A tick of 1 ms is right for timeouts of connections. A longer one saves wake-ups.
    ///
    /// # Panics
    /// Where `tick` is zero, or longer than 584 years.
    pub fn new(origin: Instant, tick: Duration) -> Self {
        let tick_nanoseconds =
            u64::try_from(tick.as_nanos()).expect("a tick is less than 584 years");
        assert!(tick_nanoseconds > 0, "a tick is longer than nothing");
        Self {
            origin,
            tick_nanoseconds,
            elapsed: 0,
            slab: Slab::new(),
            due: List::EMPTY,
            levels: Box::new([Level { occupied: 0, lists: [List::EMPTY; LISTS] }; LEVELS]),
            occupied_levels: 0,
        }
    }

    /// How many timers are pending.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether no timer is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a timer. One whose deadline has passed expires at the next
    /// [`advance`](Self::advance).
    ///
    /// # Panics
    /// Where the wheel holds 2^32 - 1 timers.
    pub fn insert(&mut self, deadline: Instant, value: T) -> TimerKey {
        let tick = self.tick_at_or_after(deadline);
        let (index, generation) = self.slab.insert(tick, value);
        self.link(index, tick);
        TimerKey { index, generation }
    }

    /// Takes a timer out before its time; `None` where it has expired or was removed.
    pub fn remove(&mut self, key: TimerKey) -> Option<T> {
        let tick = self.slab.tick(key.index, key.generation)?;
        self.unlink(key.index, tick);
        Some(self.slab.remove(key.index))
    }

    /// Gives a pending timer another deadline, and says whether it was pending. Its key stays.
    pub fn reschedule(&mut self, key: TimerKey, deadline: Instant) -> bool {
        let Some(tick) = self.slab.tick(key.index, key.generation) else { return false };
        self.unlink(key.index, tick);
        let tick = self.tick_at_or_after(deadline);
        self.slab.set_tick(key.index, tick);
        self.link(key.index, tick);
        true
    }

    /// When to call [`advance`](Self::advance) next; `None` where no timer is pending.
    ///
    /// Nothing expires before that time. Where the earliest timer is far off, the time may be
    /// before its deadline: the wheel then has to move it to a lower list. At most ten such calls
    /// come before the timer expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        let tick = if self.due.is_empty() { self.next_list()?.2 } else { self.elapsed };
        Some(self.instant_of(tick))
    }

    /// Moves the time on to `now` and gives the value of every timer that is due to `expire`. A
    /// time before the last one is taken as the last one.
    ///
    /// Where `expire` panics, its timer is gone, and the others are still there.
    pub fn advance(&mut self, now: Instant, mut expire: impl FnMut(T)) {
        while let Some(value) = self.pop(now) {
            expire(value);
        }
    }

    /// Takes one timer that is due at `now`: what [`advance`](Self::advance) does, one at a time,
    /// so that a lock around the wheel need not be held while a timer is handled.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        let now = self.tick_at_or_before(now);
        while self.due.is_empty() {
            match self.next_list() {
                Some((level, list, start)) if start <= now => self.enter(level, list, start),
                _ => {
                    // No list starts in between, so every timer stays where it belongs.
                    self.elapsed = self.elapsed.max(now);
                    return None;
                }
            }
        }
        let index = self.due.first();
        self.slab.unlink(&mut self.due, index);
        Some(self.slab.remove(index))
    }

    /// Takes all timers out, in no order.
    pub fn clear(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.due = List::EMPTY;
        self.occupied_levels = 0;
        for level in self.levels.iter_mut() {
            *level = Level { occupied: 0, lists: [List::EMPTY; LISTS] };
        }
        self.slab.clear()
    }

    /// The earliest list that holds a timer: its level, its number, and its first tick.
    ///
    /// Within a level all occupied lists are ahead of the present tick's own digit, and all of a
    /// level are before all of the next.
    fn next_list(&self) -> Option<(usize, usize, u64)> {
        if self.occupied_levels == 0 {
            return None;
        }
        let level = self.occupied_levels.trailing_zeros() as usize;
        let list = self.levels[level].occupied.trailing_zeros() as usize;
        let shift = level as u32 * DIGIT_BITS;
        let digit_and_below = (LISTS as u64 - 1) << shift | ((1 << shift) - 1);
        Some((level, list, self.elapsed & !digit_and_below | (list as u64) << shift))
    }

    /// The present tick becomes the first one of a list, whose timers move down or become due.
    fn enter(&mut self, level: usize, list: usize, start: u64) {
        debug_assert!(start > self.elapsed, "time goes on");
        self.elapsed = start;
        let mut moved = std::mem::replace(&mut self.levels[level].lists[list], List::EMPTY);
        self.vacate(level, list);
        if level == 0 {
            debug_assert!(self.due.is_empty(), "what was due is taken out first");
            self.due = moved;
            return;
        }
        while !moved.is_empty() {
            let index = moved.first();
            let tick = self.slab.unlink(&mut moved, index);
            self.link(index, tick);
        }
    }

    fn place(&self, tick: u64) -> Place {
        if tick <= self.elapsed {
            return Place::Due;
        }
        let highest_bit = (tick ^ self.elapsed).ilog2();
        let level = (highest_bit / DIGIT_BITS) as usize;
        let list = (tick >> (level as u32 * DIGIT_BITS)) as usize % LISTS;
        Place::Wheel { level, list }
    }

    fn link(&mut self, index: u32, tick: u64) {
        match self.place(tick) {
            Place::Due => self.slab.link(&mut self.due, index),
            Place::Wheel { level, list } => {
                self.slab.link(&mut self.levels[level].lists[list], index);
                self.levels[level].occupied |= 1 << list;
                self.occupied_levels |= 1 << level;
            }
        }
    }

    fn unlink(&mut self, index: u32, tick: u64) {
        match self.place(tick) {
            Place::Due => self.slab.unlink(&mut self.due, index),
            Place::Wheel { level, list } => {
                let tick = self.slab.unlink(&mut self.levels[level].lists[list], index);
                if self.levels[level].lists[list].is_empty() {
                    self.vacate(level, list);
                }
                tick
            }
        };
    }

    /// A list is empty now.
    fn vacate(&mut self, level: usize, list: usize) {
        self.levels[level].occupied &= !(1 << list);
        if self.levels[level].occupied == 0 {
            self.occupied_levels &= !(1 << level);
        }
    }

    fn nanoseconds_at(&self, instant: Instant) -> u64 {
        let passed = instant.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    fn tick_at_or_after(&self, instant: Instant) -> u64 {
        self.nanoseconds_at(instant).div_ceil(self.tick_nanoseconds)
    }

    fn tick_at_or_before(&self, instant: Instant) -> u64 {
        self.nanoseconds_at(instant) / self.tick_nanoseconds
    }

    fn instant_of(&self, tick: u64) -> Instant {
        let nanoseconds = tick.saturating_mul(self.tick_nanoseconds);
        let instant = self.origin.checked_add(Duration::from_nanos(nanoseconds));
        // Beyond what the clock can name: the next look is an ordinary one.
        instant.unwrap_or_else(|| self.origin + Duration::from_nanos(nanoseconds / 2))
    }
}

impl<T> fmt::Debug for TimerWheel<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TimerWheel")
            .field("len", &self.len())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}
