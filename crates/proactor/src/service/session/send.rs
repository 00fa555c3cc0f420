//! The send path: into the queue from any thread, and out of it one gathered send at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::config::Overflow;
use super::super::error::{DisconnectReason, SendError};
use super::super::framing::FrameHead;
use super::super::recycle;
use super::mailbox::{Ending, Signals};
use super::outgoing::{Batch, Discarded, Outgoing, reclaim};
use super::run::Next;
use super::{OVER_MARK, SessionShared};
use crate::sync::{MutexGuard, lock};
use crate::{Completion, SendBuffer};

impl SessionShared {
    pub(super) fn send(&self, payload: &[u8]) -> Result<(), SendError> {
        self.queue_frame(payload.len(), |outgoing| outgoing.copy(payload))
    }

    /// A payload that is not copied.
    pub(super) fn send_whole(&self, payload: SendBuffer) -> Result<(), SendError> {
        if payload.is_empty() {
            // Its owner goes here, without the lock.
            return self.send(&[]);
        }
        self.queue_frame(payload.len(), |outgoing| outgoing.take(payload))
    }

    /// Queues a frame, of which `put` queues the payload.
    fn queue_frame(
        &self,
        payload_bytes: usize,
        put: impl FnOnce(&mut Outgoing),
    ) -> Result<(), SendError> {
        let framing = &*self.service.framing;
        let mut head = FrameHead::new();
        framing.head(payload_bytes, &mut head)?;
        let tail = framing.tail();
        self.queue(head.len() + payload_bytes + tail.len(), |outgoing| {
            outgoing.copy(&head);
            put(outgoing);
            outgoing.copy(tail);
        })
    }

    pub(super) fn send_encoded(&self, frames: Bytes) -> Result<(), SendError> {
        self.queue(frames.len(), |outgoing| outgoing.take(SendBuffer::Shared(frames)))
    }

    fn queue(&self, bytes: usize, put: impl FnOnce(&mut Outgoing)) -> Result<(), SendError> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.refusing {
            return Err(SendError::Closed);
        }
        let before = outgoing.queued_bytes();
        let limits = &self.service.limits;
        let counted = if planted!(QueueLimitIgnored) { 0 } else { bytes };
        let full = if before.saturating_add(counted) > limits.session_queued_bytes {
            Some(SendError::SessionFull)
        } else if !self.service.charge(before, before + bytes) {
            Some(SendError::ServiceFull)
        } else {
            None
        };
        if let Some(error) = full {
            drop(outgoing);
            self.service.counters.refused_sends.fetch_add(1, Ordering::Relaxed);
            if limits.overflow == Overflow::Disconnect {
                self.request_end(DisconnectReason::QueueFull, Ending::Abrupt);
            }
            return Err(error);
        }
        outgoing.sent_frames += 1;
        if bytes == 0 {
            return Ok(());
        }
        if before == 0 {
            outgoing.begin_queue(self.service.runtime.now_ms());
        }
        put(&mut outgoing);
        let marks = &self.service.water_marks;
        let crossed = !outgoing.is_over_mark() && outgoing.queued_bytes() > marks.high_bytes;
        if crossed {
            outgoing.crossings = outgoing.crossings.wrapping_add(1);
            if marks.pause_receiving {
                self.flags.fetch_or(OVER_MARK, Ordering::SeqCst);
            }
        }
        if outgoing.in_flight {
            drop(outgoing);
        } else {
            self.start_send(outgoing);
        }
        if crossed {
            self.signal(Signals::WATER);
        }
        Ok(())
    }

    /// Starts a send of what waits, where there is something and nothing is in flight.
    pub(super) fn flush(&self) {
        let outgoing = lock(&self.outgoing);
        if !outgoing.in_flight && self.has_to_send(&outgoing) {
            self.start_send(outgoing);
        }
    }

    pub(super) fn start_send(&self, mut outgoing: MutexGuard<'_, Outgoing>) {
        let Some(stream) = outgoing.stream.clone() else { return };
        // Nobody else starts one while this one is in flight, so the order is kept.
        let batch = if self.filter.is_none() {
            let batch = outgoing.take_batch();
            drop(outgoing);
            batch
        } else {
            let Some(batch) = self.take_filtered(outgoing) else { return };
            batch
        };
        let operation = recycle::operation();
        let started = match batch {
            Batch::One(buffer) => stream.send(operation, buffer),
            Batch::Many(list) => stream.send_vectored(operation, list),
        };
        if let Err(rejected) = started {
            self.send_failed(DisconnectReason::Failed(rejected.error()));
        }
    }

    /// What was to be in flight is not, and no packet tells of it.
    pub(super) fn send_failed(&self, reason: DisconnectReason) {
        // First, and nothing of the queue stays: no other thread may send what comes behind the gap.
        self.request_end(reason, Ending::Abrupt);
        let mut discarded = Discarded::default();
        {
            let mut outgoing = lock(&self.outgoing);
            self.send_ended(&mut outgoing, 0);
            self.discard(&mut outgoing, &mut discarded);
        }
        drop(discarded);
        // An end that was under way already may wait for just that send.
        self.signal(Signals::LOOK);
    }

    /// Accounts for the end of the send in flight, of which `moved_bytes` went out.
    pub(super) fn send_ended(&self, outgoing: &mut Outgoing, moved_bytes: usize) {
        let before = outgoing.queued_bytes();
        outgoing.flight_ended(moved_bytes);
        self.service.discharge(before, outgoing.queued_bytes());
    }

    /// The packet of a send.
    pub(super) fn send_completed(self: &Arc<Self>, completion: Completion) {
        let bytes = completion.bytes();
        let error = completion.error();
        reclaim(completion);
        if let Some(error) = error {
            // First: whoever then finds that nothing waits must not take it for sent, and tell the
            // peer the orderly end of a stream that lacks its last part.
            self.request_end(DisconnectReason::Failed(error), Ending::Abrupt);
        }
        let mut crossed = false;
        // Goes last, when no lock is held any more.
        let mut discarded = Discarded::default();
        let mut outgoing = lock(&self.outgoing);
        self.send_ended(&mut outgoing, bytes);
        outgoing.completed_sends = outgoing.completed_sends.wrapping_add(1);
        if error.is_some() {
            self.discard(&mut outgoing, &mut discarded);
            drop(outgoing);
        } else {
            if self.service.times_sends {
                let now_ms = self.service.runtime.now_ms();
                outgoing.progress_ms = now_ms;
            }
            if outgoing.is_over_mark()
                && outgoing.queued_bytes() <= self.service.water_marks.low_bytes
            {
                outgoing.crossings = outgoing.crossings.wrapping_add(1);
                self.flags.fetch_and(!OVER_MARK, Ordering::SeqCst);
                crossed = !planted!(LowWaterLost);
            }
            if self.has_to_send(&outgoing) {
                self.start_send(outgoing);
            } else {
                drop(outgoing);
            }
        }
        let mut mailbox = lock(&self.mailbox);
        mailbox.noted_sends = mailbox.noted_sends.wrapping_add(1);
        mailbox.sent_bytes += bytes;
        mailbox.signals.add(if crossed { Signals::WATER } else { Signals::LOOK });
        if let Some(core) = mailbox.core.take() {
            let next =
                Next::Signals(mailbox.signals.take(), std::mem::take(&mut mailbox.sent_bytes));
            drop(mailbox);
            self.run(core, Some(next));
        }
    }

    /// Takes out what waits to be sent, to be dropped without the lock.
    pub(super) fn discard(&self, outgoing: &mut Outgoing, discarded: &mut Discarded) {
        let before = outgoing.queued_bytes();
        outgoing.discard(discarded);
        if !planted!(DiscardNotCounted) {
            self.service.discharge(before, outgoing.queued_bytes());
        }
    }
}
