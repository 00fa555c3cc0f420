//! The part of the engine that opens connections: in waves, each within its time.

use std::io;

use mio::{Interest, Token};

use super::control::duration_ns;
use super::engine::Engine;
use super::slot::Phase;
use super::stream::Stream;
use super::tally::ErrorKind;

/// Connects under way at once, over all threads. More would overflow a common listen backlog,
/// and a connect that the server's system has dropped is tried again only after a second.
const CONNECTS_AT_ONCE: usize = 256;
/// How long to wait before a full or refusing server is tried again.
const RETRY_NS: u64 = 5_000_000;

impl Engine {
    /// Begins connects for the slots that wait for one, as many as may be under way.
    pub(super) fn open_waiting(&mut self, now_ns: u64) {
        if self.shared.control.is_stopped_early() {
            return;
        }
        while let Some((not_before_ns, index)) = self.retries.front().copied()
            && not_before_ns <= now_ns
        {
            self.retries.pop_front();
            self.waiting.push_back(index);
        }
        let at_once = (CONNECTS_AT_ONCE / self.shared.plan.threads).max(1);
        while self.connecting < at_once
            && let Some(index) = self.waiting.pop_front()
        {
            self.begin_connect(index);
        }
    }

    fn begin_connect(&mut self, index: usize) {
        let now_ns = self.shared.control.now_ns();
        let slot = &mut self.slots[index];
        // A slot that is tried again goes on with the time of its first attempt.
        if slot.progress_ns == 0 {
            slot.progress_ns = now_ns;
        }
        match self.shared.connector.connect() {
            Ok(stream) => self.register(index, stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.retry_connect(index, now_ns)
            }
            Err(error) => self.connect_failed(index, &error),
        }
    }

    /// A Unix-domain server's backlog is full. Nothing announces when it no longer is.
    fn retry_connect(&mut self, index: usize, now_ns: u64) {
        let waited_ns = now_ns - self.slots[index].progress_ns;
        if waited_ns > duration_ns(self.shared.plan.connect_timeout) {
            self.connect_failed(index, &io::ErrorKind::TimedOut.into());
        } else {
            self.retries.push_back((now_ns + RETRY_NS, index));
        }
    }

    fn register(&mut self, index: usize, mut stream: Stream) {
        let interest = stream.first_interest();
        if let Err(error) = self.poll.registry().register(&mut stream, Token(index), interest) {
            self.connect_failed(index, &error);
            return;
        }
        let slot = &mut self.slots[index];
        slot.stream = Some(stream);
        slot.phase = Phase::Connecting;
        slot.announces_room = interest.is_writable();
        self.live += 1;
        self.connecting += 1;
        if !interest.is_writable() {
            // Such a stream connects at once or not at all.
            self.finish_connect(index);
        }
    }

    /// The poll says that something happened to a connect.
    pub(super) fn finish_connect(&mut self, index: usize) {
        let Some(stream) = &self.slots[index].stream else {
            return;
        };
        match stream.connect_result() {
            None => {}
            Some(Ok(())) => self.connected(index),
            Some(Err(error)) => self.connect_failed(index, &error),
        }
    }

    fn connected(&mut self, index: usize) {
        let now_ns = self.shared.control.now_ns();
        // Each thread counts in steps of the number of threads: no two sessions of a load have the same stream.
        let id = self.session_count * self.shared.plan.threads as u64 + self.thread as u64;
        self.session_count += 1;
        self.connecting -= 1;
        let is_churn = self.is_churn();
        let slot = &mut self.slots[index];
        let is_measured = !is_churn || self.window.holds(slot.progress_ns);
        if is_measured {
            self.tally.connect_latency.saturating_record(now_ns - slot.progress_ns);
        }
        self.tally.connects += 1;
        slot.phase = Phase::Open;
        slot.progress_ns = now_ns;
        slot.is_write_blocked = false;
        slot.connection.restart(id);
        if self.is_running() {
            self.carry_on(index, now_ns);
        }
    }

    /// Counts a connect that failed. With churn it is tried again, unless nothing ever accepts.
    pub(super) fn connect_failed(&mut self, index: usize, error: &io::Error) {
        let endpoint = self.shared.connector.endpoint();
        self.tally.errors.add(ErrorKind::of_connect(error), || match error.kind() {
            io::ErrorKind::TimedOut => format!("{endpoint}: no answer to a connect in time"),
            _ => format!("{endpoint}: {error}"),
        });
        self.vacate(index);
        let is_hopeless =
            self.tally.connects == 0 && (!self.is_churn() || self.tally.errors.total() > 16);
        if is_hopeless {
            self.has_given_up = true;
            self.waiting.clear();
            self.retries.clear();
        }
        if self.is_churn() && self.is_running() && !self.has_given_up {
            self.retries.push_back((self.shared.control.now_ns() + RETRY_NS, index));
        }
    }

    /// Asks the poll to say when there is room again, if it does not do so unasked.
    pub(super) fn await_room(&mut self, index: usize) -> io::Result<()> {
        let slot = &mut self.slots[index];
        slot.is_write_blocked = true;
        if slot.announces_room {
            return Ok(());
        }
        slot.announces_room = true;
        match &mut slot.stream {
            Some(stream) => {
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().reregister(stream, Token(index), both)
            }
            None => Ok(()),
        }
    }
}
