//! The sources that a worker serves, by token.
//!
//! An epoll event carries a token, not a pointer: an event that was fetched before its source went
//! away resolves to nothing.

use std::sync::Arc;

/// A table of shared objects with generation-checked tokens.
pub(crate) struct Residents<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    count: usize,
}

struct Slot<T> {
    generation: u32,
    resident: Option<Arc<T>>,
}

/// The token of the worker's own wake-up descriptor; no table hands it out.
pub(crate) const WAKE_TOKEN: u64 = u64::MAX;
/// The first of the tokens of workers that are followed, by index; no table hands them out.
pub(crate) const FOLLOW_TOKEN: u64 = (u32::MAX as u64) << 32;

impl<T> Residents<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), count: 0 }
    }

    /// Takes a resident in and returns its token.
    pub(crate) fn insert(&mut self, resident: Arc<T>) -> u64 {
        self.count += 1;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 sources");
                self.slots.push(Slot { generation: 0, resident: None });
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        assert!(slot.resident.is_none(), "a free slot is empty");
        slot.resident = Some(resident);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The resident that `token` names, if it is still here.
    pub(crate) fn get(&self, token: u64) -> Option<&Arc<T>> {
        let slot = self.slots.get(token as u32 as usize)?;
        if u64::from(slot.generation) == token >> 32 { slot.resident.as_ref() } else { None }
    }

    /// Lets a resident go; its token names nothing from now on.
    pub(crate) fn remove(&mut self, token: u64) -> Option<Arc<T>> {
        let index = token as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != token >> 32 {
            return None;
        }
        let resident = slot.resident.take()?;
        // The last generation would meet `FOLLOW_TOKEN`; such a slot is retired for good.
        slot.generation = slot.generation.wrapping_add(1);
        if slot.generation != u32::MAX {
            self.free.push(index);
        }
        self.count -= 1;
        Some(resident)
    }

    /// How many residents there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Every resident, with its token.
    pub(crate) fn all_with_tokens(&self) -> impl Iterator<Item = (u64, &Arc<T>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let token = u64::from(slot.generation) << 32 | index as u64;
            slot.resident.as_ref().map(|resident| (token, resident))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_dies_with_its_resident() {
        let mut residents = Residents::new();
        let first = residents.insert(Arc::new(1));
        assert_eq!(residents.remove(first).as_deref(), Some(&1));
        let second = residents.insert(Arc::new(2));
        assert_ne!(first, second);
        assert!(residents.get(first).is_none());
        assert!(residents.remove(first).is_none());
        assert_eq!(residents.get(second).map(|resident| **resident), Some(2));
        assert_eq!(residents.len(), 1);
    }
}
