//! The way that finished operations take.

use std::collections::VecDeque;

use super::central::Central;
use crate::port::Completion;

/// Where finished operations go: to the queue of the worker that works, or to the shared one.
pub(crate) struct Sink<'a> {
    pub(crate) central: &'a Central,
    pub(crate) local: Option<&'a mut VecDeque<Completion>>,
    /// Packets that were queued through this.
    pub(crate) pushed: usize,
}

impl<'a> Sink<'a> {
    /// A way into the queue of a worker, or else into the shared one.
    pub(crate) fn new(central: &'a Central, local: Option<&'a mut VecDeque<Completion>>) -> Self {
        Self { central, local, pushed: 0 }
    }

    /// Whether the worker has packets of its own at hand.
    pub(crate) fn has_local(&self) -> bool {
        self.local.as_ref().is_some_and(|local| !local.is_empty())
    }

    /// Queues a packet.
    pub(crate) fn push(&mut self, packet: Completion) {
        self.pushed += 1;
        if let Some(local) = &mut self.local
            && self.central.queued() == 0
        {
            local.push_back(packet);
            return;
        }
        if let Err(dropped) = self.central.push(packet) {
            // The port is closed: the operation is freed without a packet (rule 21). The caller
            // may hold locks that the operation's context must not meet, so it is dropped later.
            match &mut self.local {
                Some(local) => local.push_back(dropped),
                None => self.central.keep_late(dropped),
            }
        }
    }
}
