//! What happens to a session, put in order for one thread at a time.
//!
//! Packets of one session are dequeued by several threads, at the same time and in either order;
//! other threads send to it and disconnect it. All of that is noted here. The part of the session
//! that callbacks run on, its [`Core`], is here too while nobody runs: whoever notes something and
//! finds the core takes it out and runs, with no lock held; whoever does not find it leaves what it
//! noted to the one who has it, and who looks here once more before putting it back. So there are
//! never two callbacks at once, and no thread ever waits for another's callback.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::super::recycle::{KEPT_LIST_ENTRIES, Shelf};
use super::Message;
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
    /// What waits for a thread that runs; `None` where nothing does, as in an idle session.
    backlog: Option<Box<Backlog>>,
    /// The number of the next packet of the continuous receive.
    next_sequence: u64,
    /// Packets of sends that came to be known here.
    pub(super) noted_sends: u16,
    /// Bytes whose `sent` was not called yet.
    pub(super) sent_bytes: usize,
    /// A packet that makes a worker run the session is on its way.
    pub(super) scheduled: bool,
    /// `disconnected` was called, or is being called.
    pub(super) over: bool,
    /// A receive was started and its last packet has not come.
    pub(super) receiving: bool,
    pub(super) signals: Signals,
    pub(super) ending: Option<Ending>,
}

#[derive(Default)]
struct Backlog {
    /// Received, in order, not looked at yet.
    received: VecDeque<Received>,
    /// Received before its turn.
    early: Vec<(u64, Received)>,
    /// What `notify` was called with.
    messages: VecDeque<Message>,
}

thread_local! {
    // Boxed, because what is kept is what a session points to.
    #[allow(clippy::vec_box)]
    static LOCAL_BACKLOGS: RefCell<Vec<Box<Backlog>>> = const { RefCell::new(Vec::new()) };
}

static BACKLOGS: Shelf<Box<Backlog>> = Shelf::new(&LOCAL_BACKLOGS);

impl Backlog {
    fn is_empty(&self) -> bool {
        self.received.is_empty() && self.early.is_empty() && self.messages.is_empty()
    }

    /// Keeps the box, which is empty, for the next one.
    fn keep(self: Box<Self>) {
        let most = self.received.capacity().max(self.messages.capacity());
        if most.max(self.early.capacity()) <= KEPT_LIST_ENTRIES {
            BACKLOGS.keep(self);
        }
    }
}

impl Mailbox {
    /// Notes a packet of the continuous receive. Gives it back where it is next and nothing else
    /// waits, so that it need not be stored.
    pub(super) fn note_received(&mut self, sequence: u64, received: Received) -> Option<Received> {
        if sequence != self.next_sequence && !planted!(EarlyChunkAtOnce) {
            self.backlog().early.push((sequence, received));
            return None;
        }
        self.note_end(&received);
        self.next_sequence += 1;
        let nothing_waits = match &self.backlog {
            None => true,
            Some(backlog) => backlog.early.is_empty() && backlog.received.is_empty(),
        };
        if nothing_waits && self.core.is_some() {
            return Some(received);
        }
        self.backlog().received.push_back(received);
        while let Some(received) = self.take_early() {
            self.note_end(&received);
            self.next_sequence += 1;
            self.backlog().received.push_back(received);
        }
        None
    }

    /// The next packet, if it came before its turn.
    fn take_early(&mut self) -> Option<Received> {
        let early = &mut self.backlog.as_mut()?.early;
        let place = early.iter().position(|(sequence, _)| *sequence == self.next_sequence)?;
        Some(early.swap_remove(place).1)
    }

    fn backlog(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| BACKLOGS.take().unwrap_or_default())
    }

    fn close_backlog(&mut self) {
        if let Some(backlog) = self.backlog.take_if(|backlog| backlog.is_empty()) {
            backlog.keep();
        }
    }

    /// Whether something was received that was not looked at.
    pub(super) fn has_received(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.received.is_empty())
    }

    /// The next thing that was received.
    pub(super) fn take_received(&mut self) -> Option<Received> {
        let received = self.backlog.as_mut()?.received.pop_front();
        self.close_backlog();
        received
    }

    /// The failure of the connection, if it has failed, in place of all that came before: who has
    /// paused learns of a reset at once.
    pub(super) fn take_failure(&mut self) -> Option<Received> {
        let received = &mut self.backlog.as_mut()?.received;
        if !matches!(received.back(), Some(Received::End(Err(_)))) {
            return None;
        }
        let failure = received.pop_back()?;
        self.drop_received();
        Some(failure)
    }

    /// Puts back what is left of the last thing that was received.
    pub(super) fn put_back(&mut self, received: Received) {
        self.backlog().received.push_front(received);
    }

    /// Drops what was received.
    pub(super) fn drop_received(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.received.clear();
            self.close_backlog();
        }
    }

    /// Queues a message of `notify`; gives it back where `most` wait already.
    pub(super) fn put_message(&mut self, message: Message, most: usize) -> Result<(), Message> {
        let waiting = self.backlog.as_ref().map_or(0, |backlog| backlog.messages.len());
        if waiting >= most {
            return Err(message);
        }
        self.backlog().messages.push_back(message);
        Ok(())
    }

    /// The next message.
    pub(super) fn take_message(&mut self) -> Option<Message> {
        let message = self.backlog.as_mut()?.messages.pop_front();
        self.close_backlog();
        message
    }

    /// Takes all messages.
    pub(super) fn take_messages(&mut self) -> VecDeque<Message> {
        match &mut self.backlog {
            Some(backlog) => std::mem::take(&mut backlog.messages),
            None => VecDeque::new(),
        }
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
