//! The part of the engine that exchanges messages and ends connections.

use std::io::{self, IoSlice};

use super::args::Pace;
use super::connection::{SLICE_COUNT, Wrong};
use super::engine::Engine;
use super::slot::Phase;
use super::tally::ErrorKind;

/// A read that leaves room in its buffer has emptied the socket, and the poll will announce more.
/// This holds where the poll reports edges itself; elsewhere a read has to find nothing.
const SHORT_READ_EMPTIES: bool = cfg!(unix);

impl Engine {
    /// Does what a connection may do next: begin messages, stand in line, or end.
    pub(super) fn carry_on(&mut self, index: usize, now_ns: u64) {
        if self.slots[index].phase != Phase::Open {
            return;
        }
        if self.is_draining() {
            self.close_when_done(index, now_ns);
            return;
        }
        if !self.is_running() {
            return;
        }
        match self.shared.plan.pace {
            Pace::Closed => self.top_up(index, u64::MAX, now_ns),
            Pace::Open { .. } => self.enqueue_ready(index),
            Pace::Churn { messages } => {
                self.top_up(index, messages, now_ns);
                if self.slots[index].phase == Phase::Open
                    && self.slots[index].connection.begun_messages() == messages
                {
                    self.close_when_done(index, now_ns);
                }
            }
        }
    }

    /// Begins messages until the depth or the session's number is reached, and writes them together.
    fn top_up(&mut self, index: usize, messages: u64, now_ns: u64) {
        let connection = &self.slots[index].connection;
        if !connection.has_room() || connection.begun_messages() >= messages {
            return;
        }
        while self.slots[index].connection.has_room()
            && self.slots[index].connection.begun_messages() < messages
        {
            self.begin_message(index, now_ns, now_ns);
        }
        self.flush(index, now_ns);
    }

    /// Begins one message, whose latency will run from `due_ns`.
    pub(super) fn begin_message(&mut self, index: usize, due_ns: u64, now_ns: u64) {
        let fraction = self.shared.plan.stall_fraction;
        let stalled = fraction > 0.0 && self.random.chance(fraction);
        let slot = &mut self.slots[index];
        if slot.connection.outstanding() == 0 {
            // The time without progress counts from here, not from the last reply.
            slot.progress_ns = now_ns;
        }
        slot.connection.begin(due_ns, stalled);
    }

    /// Open loop: puts a connection with room at the end of the line.
    pub(super) fn enqueue_ready(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if !slot.is_ready && slot.phase == Phase::Open && slot.connection.has_room() {
            slot.is_ready = true;
            self.ready.push_back(index);
        }
    }

    /// Writes what has been begun, as far as the kernel takes it.
    pub(super) fn flush(&mut self, index: usize, now_ns: u64) {
        let shared = &self.shared;
        let slot = &mut self.slots[index];
        let Some(stream) = &mut slot.stream else {
            return;
        };
        slot.is_write_blocked = false;
        while slot.connection.unwritten() > 0 {
            let mut slices = [IoSlice::new(&[]); SLICE_COUNT];
            let count = slot.connection.gather(&shared.pattern, &mut slices);
            match stream.write(&slices[..count]) {
                Ok(bytes) => {
                    slot.connection.wrote(bytes);
                    slot.progress_ns = now_ns;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = self.await_room(index) {
                        self.break_off(index, &error);
                    }
                    return;
                }
                Err(error) => {
                    self.break_off(index, &error);
                    return;
                }
            }
        }
    }

    /// Reads and checks what has come. `is_ended` says that the poll has seen the end of the stream.
    pub(super) fn receive(&mut self, index: usize, is_ended: bool) {
        loop {
            let slot = &mut self.slots[index];
            let Some(stream) = &mut slot.stream else {
                return;
            };
            match stream.read(&mut self.buffer) {
                Ok(0) => {
                    self.ended(index);
                    return;
                }
                Ok(count) => {
                    self.received(index, count);
                    if SHORT_READ_EMPTIES && count < self.buffer.len() && !is_ended {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.break_off(index, &error);
                    return;
                }
            }
        }
    }

    /// Checks the first `count` bytes of the buffer, counts the replies that they complete, and
    /// carries on.
    fn received(&mut self, index: usize, count: usize) {
        let now_ns = self.shared.control.now_ns();
        let slot = &mut self.slots[index];
        let verified = slot.connection.verify(&self.shared.pattern, &self.buffer[..count]);
        slot.progress_ns = now_ns;
        while let Some(reply) = slot.connection.take_reply() {
            self.tally.reply(reply, now_ns, self.window);
        }
        match verified {
            Ok(()) => {
                self.tally.verified_bytes += count as u64;
                self.carry_on(index, now_ns);
            }
            Err(Wrong::Byte(line)) => self.fail(index, ErrorKind::WrongByte, || line),
            Err(Wrong::Extra(line)) => self.fail(index, ErrorKind::ExtraBytes, || line),
        }
    }

    /// Half-closes a connection that awaits no reply. The server is then expected to close.
    fn close_when_done(&mut self, index: usize, now_ns: u64) {
        let slot = &mut self.slots[index];
        if slot.connection.outstanding() > 0 {
            return;
        }
        if self.shared.plan.reset {
            self.end_session(index, now_ns);
            return;
        }
        let Some(stream) = &slot.stream else { return };
        let finished = stream.finish_sending();
        slot.phase = Phase::Closing;
        slot.progress_ns = now_ns;
        if let Err(error) = finished {
            self.break_off(index, &error);
        }
    }

    /// The server has ended its stream: in order if we had ended ours.
    fn ended(&mut self, index: usize) {
        let slot = &self.slots[index];
        if slot.phase == Phase::Closing {
            let now_ns = self.shared.control.now_ns();
            self.end_session(index, now_ns);
            return;
        }
        let (id, outstanding) = (slot.connection.id(), slot.connection.outstanding());
        self.fail(index, ErrorKind::ClosedEarly, || {
            format!("connection {id}, with {outstanding} replies outstanding")
        });
    }

    /// A connection ended as it should.
    fn end_session(&mut self, index: usize, now_ns: u64) {
        self.vacate(index);
        if !self.is_churn() {
            return;
        }
        self.tally.sessions += u64::from(self.window.holds(now_ns));
        if self.is_running() {
            self.waiting.push_back(index);
        }
    }

    /// A read or a write failed.
    fn break_off(&mut self, index: usize, error: &io::Error) {
        let slot = &self.slots[index];
        let (id, outstanding) = (slot.connection.id(), slot.connection.outstanding());
        let kind = match slot.phase {
            Phase::Closing => ErrorKind::BadClose,
            _ => ErrorKind::Broken,
        };
        self.fail(index, kind, || {
            format!("connection {id}, with {outstanding} replies outstanding: {error}")
        });
    }

    /// Counts an error and closes the connection. With churn another takes its place.
    pub(super) fn fail(&mut self, index: usize, kind: ErrorKind, detail: impl FnOnce() -> String) {
        self.tally.errors.add(kind, detail);
        self.vacate(index);
        if self.is_churn() && self.is_running() {
            self.waiting.push_back(index);
        }
    }

    /// Closes whatever a slot holds.
    pub(super) fn vacate(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.phase != Phase::Vacant {
            self.live -= 1;
        }
        if slot.phase == Phase::Connecting {
            self.connecting -= 1;
        }
        slot.phase = Phase::Vacant;
        slot.progress_ns = 0;
        // Closing a descriptor takes it out of the poll set.
        slot.stream = None;
    }
}
