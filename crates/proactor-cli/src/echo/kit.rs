//! What a worker keeps at hand, so that a round trip allocates nothing.

use proactor::{Operation, SendBuffer};

use super::totals::Tally;

/// How many spare parts of a kind a worker keeps. A packet of an operation that one worker started
/// may be dequeued by another, so stocks drift apart; what is above this is freed.
const STOCK: usize = 1024;

/// A worker's spare parts and its tally: its own, and so without a lock.
#[derive(Debug)]
pub(crate) struct Kit {
    operations: Vec<Operation>,
    gathers: Vec<Vec<SendBuffer>>,
    pub(crate) tally: Tally,
}

impl Kit {
    /// An empty kit, with room for a full stock.
    pub(crate) fn new() -> Self {
        Self {
            operations: Vec::with_capacity(STOCK),
            gathers: Vec::with_capacity(STOCK),
            tally: Tally::default(),
        }
    }

    /// An operation to start.
    pub(crate) fn take_operation(&mut self) -> Operation {
        self.operations.pop().unwrap_or_default()
    }

    /// Takes an operation back, with the buffers that it still owns.
    ///
    /// What was sent goes back to the port's pool here, and not when the operation is started
    /// again: the connection that the bytes came from is read further only then.
    pub(crate) fn keep_operation(&mut self, mut operation: Operation) {
        match operation.take_send_buffers() {
            Some(gather) => self.keep_gather(gather),
            None => drop(operation.take_send_buffer()),
        }
        if self.operations.len() < STOCK {
            self.operations.push(operation);
        }
    }

    /// An empty vector for the buffers of a gathered send.
    pub(crate) fn take_gather(&mut self) -> Vec<SendBuffer> {
        self.gathers.pop().unwrap_or_default()
    }

    /// Takes a vector back, and frees the buffers in it.
    pub(crate) fn keep_gather(&mut self, mut gather: Vec<SendBuffer>) {
        gather.clear();
        if gather.capacity() > 0 && self.gathers.len() < STOCK {
            self.gathers.push(gather);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_used_again() {
        let mut kit = Kit::new();
        let mut gather = kit.take_gather();
        gather.push(SendBuffer::from("bytes"));
        let capacity = gather.capacity();
        kit.keep_gather(gather);
        let gather = kit.take_gather();
        assert!(gather.is_empty());
        assert_eq!(gather.capacity(), capacity);
    }

    #[test]
    fn the_stock_is_bounded() {
        let mut kit = Kit::new();
        for _ in 0..2 * STOCK {
            kit.keep_operation(Operation::new());
        }
        assert_eq!(kit.operations.len(), STOCK);
    }
}
