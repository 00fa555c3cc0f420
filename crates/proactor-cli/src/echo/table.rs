//! The sessions by number: the number is the key that their packets carry.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::session::Session;

/// Sessions are allocated by this many at a time, and stay where they are.
const SEGMENT_SESSIONS: usize = 1024;
const SEGMENTS: usize = 1024;
/// How many sessions there can be.
pub(crate) const SESSION_LIMIT: usize = SEGMENT_SESSIONS * SEGMENTS;

/// Sessions that are allocated together.
type Segment = OnceLock<Box<[Mutex<Session>]>>;

/// A table that finds a session without a lock around the whole.
#[derive(Debug)]
pub(crate) struct SessionTable {
    segments: Box<[Segment]>,
    numbers: Mutex<Numbers>,
}

/// Which numbers are in use: all below `used` that are not vacant.
#[derive(Debug)]
struct Numbers {
    vacant: Vec<usize>,
    used: usize,
}

impl SessionTable {
    /// A table without sessions.
    pub(crate) fn new() -> Self {
        Self {
            segments: (0..SEGMENTS).map(|_| OnceLock::new()).collect(),
            numbers: Mutex::new(Numbers { vacant: Vec::new(), used: 0 }),
        }
    }

    /// Takes a number for a new session; `None` where all are in use.
    pub(crate) fn reserve(&self) -> Option<usize> {
        let mut numbers = self.numbers();
        if let Some(number) = numbers.vacant.pop() {
            return Some(number);
        }
        let number = numbers.used;
        let segment = self.segments.get(number / SEGMENT_SESSIONS)?;
        segment
            .get_or_init(|| (0..SEGMENT_SESSIONS).map(|_| Mutex::new(Session::vacant())).collect());
        numbers.used += 1;
        Some(number)
    }

    /// Gives the number of a session that is over back.
    pub(crate) fn release(&self, number: usize) {
        self.numbers().vacant.push(number);
    }

    /// Locks the session with this number.
    ///
    /// # Panics
    /// Where the number was never reserved: packets carry no other key.
    pub(crate) fn lock(&self, number: usize) -> MutexGuard<'_, Session> {
        let segment = self.segments[number / SEGMENT_SESSIONS].get().expect("a reserved number");
        segment[number % SEGMENT_SESSIONS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers that are or were in use.
    pub(crate) fn used(&self) -> std::ops::Range<usize> {
        0..self.numbers().used
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again() {
        let table = SessionTable::new();
        assert_eq!((table.reserve(), table.reserve()), (Some(0), Some(1)));
        table.release(0);
        assert_eq!((table.reserve(), table.reserve()), (Some(0), Some(2)));
        assert_eq!(table.used(), 0..3);
    }

    #[test]
    fn segments_follow_each_other() {
        let table = SessionTable::new();
        let last = (0..=SEGMENT_SESSIONS).map(|_| table.reserve().unwrap()).last().unwrap();
        assert_eq!(last, SEGMENT_SESSIONS);
        assert!(table.lock(last).is_over());
    }
}
