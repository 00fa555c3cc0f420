//! The handle of a service.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::error::SendError;
use super::framing::FrameHead;
use super::phases::Phase;
use super::session::{Session, SessionId};
use super::shared::ServiceShared;
use super::snapshot::{RejectedCounters, ServiceSnapshot};
use crate::sync::lock;

/// A handle of a service, for handlers and for other threads. It does not keep the service running.
#[derive(Clone)]
pub struct ServiceHandle {
    shared: Arc<ServiceShared>,
}

impl ServiceHandle {
    pub(super) fn new(shared: Arc<ServiceShared>) -> Self {
        Self { shared }
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How far its end has come.
    pub fn phase(&self) -> Phase {
        lock(&self.shared.state).phase
    }

    /// Asks for the end: whoever is in [`run`](super::ServerService::run) stops the service. A
    /// second call forces it: the sessions that are left are aborted without more waiting. This is
    /// what a program calls at its first and second signal to end.
    pub fn request_stop(&self) {
        {
            let mut state = lock(&self.shared.state);
            state.forced |= state.stop_requested || state.phase > Phase::Running;
            state.stop_requested = true;
        }
        self.shared.changed.notify_all();
    }

    /// How many sessions there are.
    pub fn session_count(&self) -> usize {
        lock(&self.shared.state).sessions.len()
    }

    /// The session with this id.
    pub fn session(&self, id: SessionId) -> Option<Session> {
        lock(&self.shared.state).sessions.get(&id).cloned()
    }

    /// The sessions as they are now.
    pub fn sessions(&self) -> Vec<Session> {
        self.shared.sessions()
    }

    /// Makes a frame of `payload` that can be sent to any number of sessions of this service with
    /// [`Session::send_encoded`].
    ///
    /// # Errors
    /// [`SendError::Frame`].
    pub fn encode(&self, payload: &[u8]) -> Result<Bytes, SendError> {
        let framing = &self.shared.framing;
        let mut head = FrameHead::new();
        framing.head(payload.len(), &mut head)?;
        let tail = framing.tail();
        let mut frame = BytesMut::with_capacity(head.len() + payload.len() + tail.len());
        frame.extend_from_slice(&head);
        frame.extend_from_slice(payload);
        frame.extend_from_slice(tail);
        Ok(frame.freeze())
    }

    /// Sends a frame with this payload to every session, and says how many took it. The payload is
    /// copied once.
    ///
    /// # Errors
    /// [`SendError::Frame`]. Sessions that refuse it are left out.
    pub fn broadcast(&self, payload: &[u8]) -> Result<usize, SendError> {
        let frame = self.encode(payload)?;
        let sessions = self.sessions();
        Ok(sessions.iter().filter(|session| session.send_encoded(frame.clone()).is_ok()).count())
    }

    /// Counters, and how it stands now. Looks at each session.
    pub fn snapshot(&self) -> ServiceSnapshot {
        let (sessions, past, phase) = {
            let state = lock(&self.shared.state);
            let sessions: Vec<Session> = state.sessions.iter().cloned().collect();
            (sessions, state.past, state.phase)
        };
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut snapshot = ServiceSnapshot {
            name: self.shared.name.clone(),
            phase,
            sessions: sessions.len(),
            accepted: load(&counters.accepted),
            rejected: RejectedCounters {
                sessions: load(&counters.rejected_sessions),
                address: load(&counters.rejected_address),
                stopping: load(&counters.rejected_stopping),
                failed: load(&counters.rejected_failed),
            },
            accept_pauses: load(&counters.accept_pauses),
            disconnected: counters.ends(),
            received_bytes: past.received_bytes,
            received_frames: past.received_frames,
            sent_bytes: past.sent_bytes,
            sent_frames: past.sent_frames,
            queued_bytes: 0,
            sessions_over_mark: 0,
            refused_sends: load(&counters.refused_sends),
            refused_notifications: load(&counters.refused_notifications),
            panics: load(&counters.panics),
            handler_p50: self.shared.handler_time.percentile(50.0),
            handler_p99: self.shared.handler_time.percentile(99.0),
        };
        for session in &sessions {
            let counters = session.counters();
            snapshot.received_bytes += counters.received_bytes;
            snapshot.received_frames += counters.received_frames;
            snapshot.sent_bytes += counters.sent_bytes;
            snapshot.sent_frames += counters.sent_frames;
            snapshot.queued_bytes += counters.queued_bytes as u64;
            snapshot.sessions_over_mark += usize::from(session.shared.is_over_mark());
        }
        snapshot
    }
}

impl fmt::Debug for ServiceHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServiceHandle").field("name", &self.name()).finish_non_exhaustive()
    }
}
