//! A session with a filter between its bytes and its frames.
//!
//! What is received goes through the filter on the thread that has the core, what is sent on the
//! thread that starts the send, while nothing else is in flight: so the order of the wire is the
//! order in which the filter made it. The filter has a lock of its own, which is taken behind the
//! one of the queue of sends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::super::error::DisconnectReason;
use super::super::filter::{Filter, FilterError};
use super::super::recycle;
use super::core::Core;
use super::mailbox::{Ending, Received};
use super::outgoing::{Batch, Discarded, Outgoing};
use super::receive::Plain;
use super::{ENDING, Session, SessionShared};
use crate::sync::{MutexGuard, lock};
use crate::{PoolBuffer, SendBuffer};

/// What a filter may add to a piece that is sent: TLS needs less than half of it.
const OVERHEAD_BYTES: usize = 1024;

pub(super) struct Filtered {
    filter: Box<dyn Filter>,
    /// It was told that the session sends nothing more.
    end_sent: bool,
}

impl Filtered {
    pub(super) fn new(filter: Box<dyn Filter>) -> Self {
        Self { filter, end_sent: false }
    }

    pub(super) fn filter(&self) -> &dyn Filter {
        &*self.filter
    }
}

/// What came of a piece that was received.
struct Unfiltered {
    plain: Vec<u8>,
    outcome: Result<(), FilterError>,
    ready: bool,
    ended: bool,
    wants_to_send: bool,
}

impl SessionShared {
    /// Whether the session can send and receive frames: its filter's own protocol has begun.
    pub(super) fn is_ready(&self) -> bool {
        self.filter.as_ref().is_none_or(|filtered| lock(filtered).filter.is_ready())
    }

    /// Whether a send could be started.
    pub(super) fn has_to_send(&self, outgoing: &Outgoing) -> bool {
        match &self.filter {
            None => outgoing.is_waiting(),
            Some(filtered) => {
                let filtered = lock(filtered);
                let ready = filtered.filter.is_ready() && outgoing.is_waiting();
                ready || filtered.filter.wants_to_send()
            }
        }
    }

    /// Tells the filter that nothing more is sent; `true`: it has something to say about it.
    pub(super) fn end_filter(&self) -> bool {
        let Some(filtered) = &self.filter else { return false };
        let mut filtered = lock(filtered);
        if !std::mem::replace(&mut filtered.end_sent, true) {
            filtered.filter.end();
        }
        filtered.filter.wants_to_send()
    }

    /// Bytes as they came: what they mean is handed over.
    pub(super) fn look_at_filtered(
        self: &Arc<Self>,
        core: &mut Core,
        session: &Session,
        chunk: PoolBuffer,
    ) {
        if self.has(ENDING) || core.filter_ended {
            return;
        }
        let Unfiltered { plain, outcome, ready, ended, wants_to_send } = self.unfilter(&chunk);
        drop(chunk);
        if wants_to_send {
            self.flush();
        }
        if ready && !core.begun {
            self.connected(core, session);
        }
        let leftover = if plain.is_empty() {
            recycle::keep_buffer(plain);
            let now_ms = self.service.runtime.now_ms();
            self.times.note_received(now_ms, core.partial.len(), false);
            None
        } else {
            self.look_at_piece(core, session, Plain::new(plain))
        };
        if let Err(error) = outcome {
            tracing::debug!(session = self.id.0, peer = ?self.peer, %error, "a filter ends its session");
            // In order, so that what the filter has to say of it reaches the peer.
            self.request_end(DisconnectReason::Filter(error), Ending::Orderly);
        }
        let mut mailbox = lock(&self.mailbox);
        if ended {
            core.filter_ended = true;
            mailbox.put_back(Received::FilterEnd);
        }
        if let Some(leftover) = leftover {
            mailbox.put_back(leftover);
        }
    }

    fn unfilter(&self, chunk: &[u8]) -> Unfiltered {
        let mut plain = recycle::buffer();
        let filtered = self.filter.as_ref().expect("the session has a filter");
        let mut filtered = lock(filtered);
        let filter = &mut filtered.filter;
        let outcome = caught(|| filter.receive(chunk, &mut plain));
        Unfiltered {
            plain,
            outcome,
            ready: filter.is_ready(),
            ended: filter.has_ended(),
            wants_to_send: filter.wants_to_send(),
        }
    }

    /// Takes what goes out next, as it goes over the wire; in flight from now on. `None` where
    /// there is nothing.
    pub(super) fn take_filtered(&self, mut outgoing: MutexGuard<'_, Outgoing>) -> Option<Batch> {
        let filtered = self.filter.as_ref().expect("the session has a filter");
        let plain = {
            let filtered = lock(filtered);
            if filtered.filter.is_ready() && outgoing.is_waiting() {
                Some(outgoing.take_batch())
            } else if filtered.filter.wants_to_send() {
                outgoing.begin_flight();
                None
            } else {
                return None;
            }
        };
        drop(outgoing);
        let buffers = match plain {
            None => recycle::list(),
            Some(Batch::Many(buffers)) => buffers,
            Some(Batch::One(buffer)) => {
                let mut buffers = recycle::list();
                buffers.push(buffer);
                buffers
            }
        };
        let mut wire = recycle::buffer();
        wire.reserve(buffers.iter().map(SendBuffer::len).sum::<usize>() + OVERHEAD_BYTES);
        let outcome = {
            let filter = &mut lock(filtered).filter;
            caught(|| {
                for buffer in &buffers {
                    filter.send(buffer.as_slice(), &mut wire)?;
                }
                filter.take_output(&mut wire);
                Ok(())
            })
        };
        recycle::keep_list(buffers);
        if let Err(error) = outcome {
            self.send_failed(DisconnectReason::Filter(error));
            return None;
        }
        Some(Batch::One(SendBuffer::Owned(wire)))
    }

    /// The session ends before it has begun: what waits to be sent cannot be.
    pub(super) fn discard_unready(&self, outgoing: &mut Outgoing, discarded: &mut Discarded) {
        if !self.is_ready() {
            self.discard(outgoing, discarded);
        }
    }
}

/// A filter that panics has failed.
fn caught(act: impl FnOnce() -> Result<(), FilterError>) -> Result<(), FilterError> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(FilterError::new("the filter panicked")))
}
