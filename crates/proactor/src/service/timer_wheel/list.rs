//! The timers in one vector, and lists of them by index.

/// No timer.
const NIL: u32 = u32::MAX;

/// A list of timers, linked in both directions through the slab.
#[derive(Clone, Copy)]
pub(super) struct List {
    first: u32,
    last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NIL, last: NIL };

    pub(super) fn is_empty(self) -> bool {
        self.first == NIL
    }

    pub(super) fn first(self) -> u32 {
        debug_assert!(!self.is_empty());
        self.first
    }
}

/// All timers, and the entries that are free.
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    first_free: u32,
    used: usize,
}

struct Entry<T> {
    /// Its neighbours in its list; a free entry uses `next` alone.
    previous: u32,
    next: u32,
    /// How often the entry was used before. An entry that has used up its generations is not used
    /// again, so no key ever names two timers.
    generation: u32,
    tick: u64,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), first_free: NIL, used: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// A new entry, in no list: its index and its generation.
    pub(super) fn insert(&mut self, tick: u64, value: T) -> (u32, u32) {
        self.used += 1;
        if self.first_free == NIL {
            let index = u32::try_from(self.entries.len()).unwrap_or(NIL);
            assert!(index != NIL, "a wheel holds less than 2^32 - 1 timers");
            let value = Some(value);
            self.entries.push(Entry { previous: NIL, next: NIL, generation: 0, tick, value });
            return (index, 0);
        }
        let index = self.first_free;
        let entry = &mut self.entries[index as usize];
        self.first_free = entry.next;
        entry.tick = tick;
        debug_assert!(entry.value.is_none(), "the free list names free entries");
        entry.value = Some(value);
        (index, entry.generation)
    }

    /// Takes the value of an entry that is in no list any more, and frees the entry.
    pub(super) fn remove(&mut self, index: u32) -> T {
        let value = self.entries[index as usize].value.take().expect("the entry is used");
        self.free(index);
        value
    }

    fn free(&mut self, index: u32) {
        self.used -= 1;
        let entry = &mut self.entries[index as usize];
        entry.previous = NIL;
        if entry.generation < u32::MAX {
            entry.generation += 1;
            entry.next = self.first_free;
            self.first_free = index;
        }
    }

    /// The tick of a timer, if it is pending.
    pub(super) fn tick(&self, index: u32, generation: u32) -> Option<u64> {
        let entry = self.entries.get(index as usize)?;
        (entry.generation == generation && entry.value.is_some()).then_some(entry.tick)
    }

    pub(super) fn set_tick(&mut self, index: u32, tick: u64) {
        self.entries[index as usize].tick = tick;
    }

    /// Appends an entry to a list.
    pub(super) fn link(&mut self, list: &mut List, index: u32) {
        let entry = &mut self.entries[index as usize];
        (entry.previous, entry.next) = (list.last, NIL);
        match list.last {
            NIL => list.first = index,
            last => self.entries[last as usize].next = index,
        }
        list.last = index;
    }

    /// Takes an entry out of the list that it is in, and gives its tick.
    pub(super) fn unlink(&mut self, list: &mut List, index: u32) -> u64 {
        let entry = &self.entries[index as usize];
        let (previous, next, tick) = (entry.previous, entry.next, entry.tick);
        match previous {
            NIL => {
                debug_assert_eq!(list.first, index, "the entry is in this list");
                list.first = next;
            }
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NIL => {
                debug_assert_eq!(list.last, index, "the entry is in this list");
                list.last = previous;
            }
            next => self.entries[next as usize].previous = previous,
        }
        tick
    }

    /// Frees all entries and gives their values.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = T> + use<T> {
        let mut values = Vec::with_capacity(self.used);
        for index in 0..self.entries.len() {
            if let Some(value) = self.entries[index].value.take() {
                values.push(value);
                self.free(index as u32);
            }
        }
        values.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_has_used_up_its_generations_is_not_used_again() {
        let mut slab = Slab::new();
        let (index, _) = slab.insert(0, 'a');
        slab.entries[index as usize].generation = u32::MAX;
        assert_eq!(slab.tick(index, u32::MAX), Some(0));
        assert_eq!(slab.remove(index), 'a');
        assert_eq!(slab.tick(index, u32::MAX), None);
        assert_ne!(slab.insert(0, 'b').0, index);
        assert_eq!(slab.len(), 1);
    }
}
