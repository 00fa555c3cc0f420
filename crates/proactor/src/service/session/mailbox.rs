//! What happens to a session, put in order for one thread at a time.
//!
//! Packets of one session are dequeued by several threads, at the same time and in either order;
//! other threads send to it and disconnect it. All of that is noted here. The part of the session
//! that callbacks run on, its [`Core`], is here too while nobody runs: whoever notes something and
//! finds the core takes it out and runs, with no lock held; whoever does not find it leaves what it
//! noted to the one who has it, and who looks here once more before putting it back. So there are
//! never two callbacks at once, and no thread ever waits for another's callback.

use std::collections::VecDeque;

use super::core::Core;
use super::receive::Plain;
use crate::{Error, PoolBuffer};

/// What a continuous receive brought.
pub(super) enum Received {
    Chunk(PoolBuffer),
    /// What a filter made of a chunk, or what is left of it.
    Plain(Plain),
    /// The peer has ended the stream in the filter's own protocol.
    FilterEnd,
    End(Result<(), Error>),
}

/// How a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// What is queued is sent first.
    Orderly,
    /// At once, with a reset.
    Abrupt,
}

/// Things to look at, set by whichever thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals(u8);

impl Signals {
    /// The session begins.
    pub(super) const BEGIN: Self = Self(1);
    /// The queue of sends crossed a mark.
    pub(super) const WATER: Self = Self(1 << 1);
    /// Nothing was sent for the time of a heartbeat.
    pub(super) const HEARTBEAT: Self = Self(1 << 2);
    /// The service drains.
    pub(super) const DRAINING: Self = Self(1 << 3);
    /// Receiving may go on, a send has ended, or an end was asked for: look at all of it.
    pub(super) const LOOK: Self = Self(1 << 4);

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

#[derive(Default)]
pub(super) struct Mailbox {
    /// At home unless a thread runs it, or it is over.
    pub(super) core: Option<Box<Core>>,
    /// A packet that makes a worker run the session is on its way.
    pub(super) scheduled: bool,
    /// `disconnected` was called, or is being called.
    pub(super) over: bool,
    /// A receive was started and its last packet has not come.
    pub(super) receiving: bool,
    pub(super) signals: Signals,
    pub(super) ending: Option<Ending>,
    /// Bytes whose `sent` was not called yet.
    pub(super) sent_bytes: usize,
    /// The number of the next packet of the continuous receive.
    next_sequence: u64,
    /// Received, in order, not looked at yet.
    pub(super) received: VecDeque<Received>,
    /// Received before its turn.
    early: Vec<(u64, Received)>,
    /// What `notify` was called with.
    pub(super) messages: VecDeque<super::Message>,
}

impl Mailbox {
    /// Notes a packet of the continuous receive. Gives it back where it is next and nothing else
    /// waits, so that it need not be stored.
    pub(super) fn note_received(&mut self, sequence: u64, received: Received) -> Option<Received> {
        if sequence != self.next_sequence {
            self.early.push((sequence, received));
            return None;
        }
        self.note_end(&received);
        self.next_sequence += 1;
        if self.early.is_empty() && self.received.is_empty() && self.core.is_some() {
            return Some(received);
        }
        self.received.push_back(received);
        while let Some(place) =
            self.early.iter().position(|(sequence, _)| *sequence == self.next_sequence)
        {
            let (_, received) = self.early.swap_remove(place);
            self.note_end(&received);
            self.next_sequence += 1;
            self.received.push_back(received);
        }
        None
    }

    fn note_end(&mut self, received: &Received) {
        if matches!(received, Received::End(_)) {
            self.receiving = false;
        }
    }

    /// There is more to do, later. `true`: the caller has to post a packet for it.
    #[must_use]
    pub(super) fn schedule_later(&mut self) -> bool {
        !std::mem::replace(&mut self.scheduled, true)
    }

    /// Notes a signal. `true`: the caller has to post a packet for it.
    #[must_use]
    pub(super) fn signal(&mut self, signals: Signals) -> bool {
        self.signals.add(signals);
        self.core.is_some() && !std::mem::replace(&mut self.scheduled, true)
    }
}
