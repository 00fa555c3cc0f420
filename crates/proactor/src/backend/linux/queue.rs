//! Queues of operations and buffers that are nearly always empty or hold one item: they take little
//! room and no memory of their own until they hold more, because every connection has several.

use std::collections::VecDeque;

/// A queue without memory of its own until something was put in. It keeps it from then on.
pub(crate) struct LateQueue<T> {
    // A plain deque takes 32 bytes in each connection, used or not.
    #[allow(clippy::box_collection)]
    items: Option<Box<VecDeque<T>>>,
}

impl<T> LateQueue<T> {
    pub(crate) const fn new() -> Self {
        Self { items: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.as_ref().map_or(0, |items| items.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn push_back(&mut self, item: T) {
        self.items.get_or_insert_default().push_back(item);
    }

    fn push_front(&mut self, item: T) {
        self.items.get_or_insert_default().push_front(item);
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        self.items.as_mut()?.pop_front()
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut T> {
        self.items.as_mut()?.front_mut()
    }

    pub(crate) fn clear(&mut self) {
        if let Some(items) = &mut self.items {
            items.clear();
        }
    }
}

/// A queue whose first item lies in the queue itself, and the others, if any, behind it.
pub(crate) struct ShortQueue<T> {
    /// `None` only where the whole queue is empty.
    first: Option<T>,
    others: LateQueue<T>,
}

impl<T> ShortQueue<T> {
    pub(crate) const fn new() -> Self {
        Self { first: None, others: LateQueue::new() }
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    pub(crate) fn push_back(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.others.push_back(item);
        }
    }

    pub(crate) fn push_front(&mut self, item: T) {
        if let Some(second) = self.first.replace(item) {
            self.others.push_front(second);
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let next = self.others.pop_front();
        std::mem::replace(&mut self.first, next)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(self.others.items.iter().flat_map(|items| items.iter()))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(self.others.items.iter_mut().flat_map(|items| items.iter_mut()))
    }

    pub(crate) fn get_mut(&mut self, position: usize) -> Option<&mut T> {
        match position {
            0 => self.first.as_mut(),
            _ => self.others.items.as_mut()?.get_mut(position - 1),
        }
    }

    /// Takes the item at a position out; those behind it move up.
    pub(crate) fn remove(&mut self, position: usize) -> Option<T> {
        match position {
            0 => self.pop_front(),
            _ => self.others.items.as_mut()?.remove(position - 1),
        }
    }

    /// Takes all items out, from a position on.
    pub(crate) fn drain_from(&mut self, position: usize) -> impl Iterator<Item = T> + '_ {
        let first = if position == 0 { self.first.take() } else { None };
        let others = self.others.items.as_mut().map(|items| {
            let start = position.saturating_sub(1).min(items.len());
            items.drain(start..)
        });
        first.into_iter().chain(others.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_queue_of_any_length() {
        // The same steps on a plain deque.
        let (mut short, mut plain) = (ShortQueue::new(), VecDeque::new());
        let mut random = 7_u64;
        for item in 0..10_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(item);
            let draw = random >> 40;
            let position = (draw >> 4) as usize % (plain.len() + 1);
            match draw % 8 {
                0..=2 => {
                    short.push_back(item);
                    plain.push_back(item);
                }
                3 => {
                    short.push_front(item);
                    plain.push_front(item);
                }
                4 | 5 => assert_eq!(short.pop_front(), plain.pop_front()),
                6 => assert_eq!(short.remove(position), plain.remove(position)),
                _ if draw % 64 == 7 => {
                    let taken: Vec<_> = short.drain_from(position).collect();
                    assert_eq!(taken, plain.drain(position..).collect::<Vec<_>>());
                }
                _ => assert_eq!(short.get_mut(position), plain.get_mut(position)),
            }
            assert_eq!(short.len(), plain.len());
            assert_eq!(short.is_empty(), plain.is_empty());
            assert_eq!(short.front(), plain.front());
            assert_eq!(short.front_mut(), plain.front_mut());
            assert!(short.iter().eq(plain.iter()) && short.iter_mut().eq(plain.iter_mut()));
        }
    }
}
