//! Putting the packets of one receive in order again.
//!
//! The port queues and dequeues the packets of a connection in order, but two threads that have
//! dequeued neighbours can reach the session's lock in either order. So each packet has a number
//! ([`proactor::Completion::sequence`]), and one that comes too early waits here for those before
//! it. That takes no allocation while packets come in order.

/// A gate that lets items pass in the order of their numbers, starting at 0.
#[derive(Debug)]
pub(crate) struct InOrder<T> {
    next: u64,
    early: Vec<(u64, T)>,
}

impl<T> InOrder<T> {
    /// A gate that nothing has passed.
    pub(crate) const fn new() -> Self {
        Self { next: 0, early: Vec::new() }
    }

    /// Gives the item back if its turn has come, and else keeps it until [`next`](Self::next).
    pub(crate) fn offer(&mut self, sequence: u64, item: T) -> Option<T> {
        debug_assert!(sequence >= self.next, "packet {sequence} came twice");
        if sequence == self.next {
            self.next += 1;
            return Some(item);
        }
        self.early.push((sequence, item));
        None
    }

    /// The item whose turn has come by what passed before, if it is here.
    pub(crate) fn next(&mut self) -> Option<T> {
        let position = self.early.iter().position(|(sequence, _)| *sequence == self.next)?;
        self.next += 1;
        Some(self.early.swap_remove(position).1)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.early.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(numbers: &[u64]) -> Vec<u64> {
        let mut gate = InOrder::new();
        let mut passed = Vec::new();
        for &number in numbers {
            let mut turn = gate.offer(number, number);
            while let Some(item) = turn {
                passed.push(item);
                turn = gate.next();
            }
        }
        assert!(gate.is_empty(), "{gate:?}");
        passed
    }

    #[test]
    fn what_is_in_order_passes_at_once() {
        assert_eq!(pass(&[0, 1, 2, 3]), [0, 1, 2, 3]);
    }

    #[test]
    fn what_is_early_waits() {
        assert_eq!(pass(&[1, 0]), [0, 1]);
        assert_eq!(pass(&[3, 1, 0, 2, 5, 4]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(pass(&[4, 3, 2, 1, 0]), [0, 1, 2, 3, 4]);
    }
}
