//! From the key of a packet to what it is about.
//!
//! A packet of a continuous receive carries its key and nothing of the program's, so the way from
//! the key to the session is walked for each message. It takes the lock of one place and no other:
//! places never move, and segments of them are added, never removed.

use std::sync::{Arc, OnceLock};

use crate::Completion;
use crate::sync::{Mutex, lock};

/// Keys of this layer have the highest bit set; all others are the program's own.
const OWN_KEYS: usize = 1 << (usize::BITS - 1);
/// Places of the first segment; each further one has twice as many.
const FIRST_SEGMENT: usize = 64;
/// Enough for more places than there can be descriptors.
const SEGMENTS: usize = 26;

/// What packets go to.
pub(in crate::service) trait Source: Send + Sync {
    /// A packet with this source's key was dequeued by the calling worker.
    fn completed(self: Arc<Self>, completion: Completion);

    /// The port has closed and all workers are gone: no packet comes any more.
    fn abandoned(self: Arc<Self>);
}

type Place = Mutex<Option<Arc<dyn Source>>>;

/// The sources of one runtime.
pub(in crate::service) struct Registry {
    segments: [OnceLock<Box<[Place]>>; SEGMENTS],
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    indices: Vec<u32>,
    /// Every index from here on was never used.
    unused: u32,
}

/// A place of the registry, and so a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) struct Key(u32);

impl Key {
    /// The completion key of its packets.
    pub(in crate::service) fn completion_key(self) -> usize {
        OWN_KEYS | self.0 as usize
    }

    /// The place that a completion key names; `None` for the program's own keys.
    pub(super) fn from_completion_key(key: usize) -> Option<Self> {
        (key & OWN_KEYS != 0).then_some(Self((key & !OWN_KEYS) as u32))
    }

    fn position(self) -> (usize, usize) {
        let shifted = self.0 as usize + FIRST_SEGMENT;
        let segment = (shifted / FIRST_SEGMENT).ilog2() as usize;
        (segment, shifted - (FIRST_SEGMENT << segment))
    }
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS], free: Mutex::default() }
    }

    /// Takes a place, still empty.
    pub(in crate::service) fn reserve(&self) -> Key {
        let mut free = lock(&self.free);
        if let Some(index) = free.indices.pop() {
            return Key(index);
        }
        let key = Key(free.unused);
        free.unused += 1;
        let (segment, _) = key.position();
        self.segments[segment]
            .get_or_init(|| (0..FIRST_SEGMENT << segment).map(|_| Mutex::new(None)).collect());
        key
    }

    /// Packets with this key go to `source` from now on.
    pub(in crate::service) fn set(&self, key: Key, source: Arc<dyn Source>) {
        if let Some(place) = self.place(key) {
            // What was there is dropped outside the lock.
            drop(lock(place).replace(source));
        }
    }

    /// Gives a place back. Nothing may be in flight under its key.
    pub(in crate::service) fn release(&self, key: Key) {
        let Some(place) = self.place(key) else { return };
        drop(lock(place).take());
        lock(&self.free).indices.push(key.0);
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<dyn Source>> {
        lock(self.place(key)?).clone()
    }

    /// Empties every place.
    pub(super) fn take_all(&self) -> Vec<Arc<dyn Source>> {
        let places = self.segments.iter().filter_map(OnceLock::get).flatten();
        places.filter_map(|place| lock(place).take()).collect()
    }

    fn place(&self, key: Key) -> Option<&Place> {
        let (segment, offset) = key.position();
        self.segments.get(segment)?.get()?.get(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Source for Nothing {
        fn completed(self: Arc<Self>, _completion: Completion) {}
        fn abandoned(self: Arc<Self>) {}
    }

    #[test]
    fn each_key_has_a_place_of_its_own_and_given_back_ones_are_used_again() {
        let registry = Registry::new();
        let keys: Vec<Key> = (0..1000).map(|_| registry.reserve()).collect();
        for (index, &key) in keys.iter().enumerate() {
            assert!(registry.get(key).is_none(), "place {index} is empty");
            registry.set(key, Arc::new(Nothing));
            assert_eq!(Key::from_completion_key(key.completion_key()), Some(key));
        }
        registry.release(keys[500]);
        assert!(registry.get(keys[500]).is_none());
        assert_eq!(registry.reserve(), keys[500]);
        assert_eq!(registry.take_all().len(), 999);
        assert_eq!(Key::from_completion_key(17), None);
    }
}
