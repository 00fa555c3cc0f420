//! What all sessions of a service share: its limits, its list of sessions, its counters, its end.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::config::{Limits, Timeouts, WaterMarks};
use super::error::{DisconnectReason, SendError};
use super::filter::{Filter, FilterError, FilterFactory, NoFilter};
use super::framing::{FrameHead, Framing};
use super::handler::SessionHandler;
use super::lock::lock;
use super::runtime::{Key, RuntimeShared};
use super::session::{Session, SessionCounters, SessionId, SessionShared};
use super::snapshot::{Counters, HandlerTime, RejectedCounters, ServiceSnapshot};
use crate::StreamSocket;

/// Bytes that each session may have queued without asking the service's limit, so that short
/// messages of different sessions do not meet at one counter.
const UNCHARGED_BYTES: usize = 4 * 1024;

/// How far the end of a service has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It serves.
    Running,
    /// No new sessions; those that are there were told and may end by themselves.
    Draining,
    /// The sessions that are left are disconnected in order.
    Disconnecting,
    /// The sessions that are left are aborted.
    Aborting,
    /// No session is left, and no listener.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Disconnecting => "disconnecting",
            Self::Aborting => "aborting",
            Self::Stopped => "stopped",
        })
    }
}

/// How a service came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Sessions that ended by themselves while the service drained.
    pub drained: usize,
    /// Sessions that were then disconnected in order.
    pub disconnected: usize,
    /// Sessions that had to be aborted.
    pub aborted: usize,
    /// Sessions whose handler was still in a callback when the last phase was over.
    pub left: usize,
    /// How long it took.
    pub elapsed: Duration,
}

type Factory = dyn Fn(&Session) -> Box<dyn SessionHandler> + Send + Sync;
type EndHook = dyn Fn(SessionId) + Send + Sync;

/// The settings of a service.
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) framing: Arc<dyn Framing>,
    pub(super) filter: Option<Arc<dyn FilterFactory>>,
    pub(super) factory: Box<Factory>,
    pub(super) limits: Limits,
    pub(super) water_marks: WaterMarks,
    pub(super) timeouts: Timeouts,
    pub(super) nodelay: bool,
}

pub(super) struct ServiceShared {
    pub(super) name: String,
    pub(super) runtime: Arc<RuntimeShared>,
    pub(super) framing: Arc<dyn Framing>,
    filter: Option<Arc<dyn FilterFactory>>,
    factory: Box<Factory>,
    pub(super) limits: Limits,
    pub(super) water_marks: WaterMarks,
    pub(super) timeouts: Timeouts,
    pub(super) nodelay: bool,
    /// Whether somebody wants to know when sends completed.
    pub(super) times_sends: bool,
    queued_bytes: AtomicUsize,
    pub(super) counters: Counters,
    pub(super) handler_time: HandlerTime,
    state: Mutex<State>,
    changed: Condvar,
    /// Called after a session's last callback.
    pub(super) end_hook: OnceLock<Box<EndHook>>,
    /// Called when no new connections are wanted any more.
    pub(super) close_hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct State {
    phase: Phase,
    /// Somebody asked for the end, and has not been heard.
    stop_requested: bool,
    forced: bool,
    sessions: HashMap<SessionId, Session>,
    /// Sessions, and connections that are about to be ones.
    admitted: usize,
    addresses: HashMap<IpAddr, usize>,
    /// What sessions moved that have ended.
    past: SessionCounters,
    /// Sources other than sessions that are still open: listeners, connectors.
    others: usize,
}

impl ServiceShared {
    pub(super) fn new(settings: Settings, runtime: Arc<RuntimeShared>) -> Arc<Self> {
        let timeouts = settings.timeouts;
        Arc::new(Self {
            name: settings.name,
            runtime,
            framing: settings.framing,
            filter: settings.filter,
            factory: settings.factory,
            limits: settings.limits,
            water_marks: settings.water_marks,
            times_sends: timeouts.write.is_some() || timeouts.heartbeat.is_some(),
            timeouts,
            nodelay: settings.nodelay,
            queued_bytes: AtomicUsize::new(0),
            counters: Counters::default(),
            handler_time: HandlerTime::default(),
            state: Mutex::new(State {
                phase: Phase::Running,
                stop_requested: false,
                forced: false,
                sessions: HashMap::new(),
                admitted: 0,
                addresses: HashMap::new(),
                past: SessionCounters::default(),
                others: 0,
            }),
            changed: Condvar::new(),
            end_hook: OnceLock::new(),
            close_hook: OnceLock::new(),
        })
    }

    /// Counts what a session's queue has grown by against the limit of the service; `false` where
    /// that would be exceeded, and then nothing is counted.
    pub(super) fn charge(&self, before_bytes: usize, after_bytes: usize) -> bool {
        let bytes = charged(after_bytes) - charged(before_bytes);
        if bytes == 0 {
            return true;
        }
        let total = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if total > self.limits.service_queued_bytes {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes back what a session's queue has shrunk by.
    pub(super) fn discharge(&self, before_bytes: usize, after_bytes: usize) {
        let bytes = charged(before_bytes) - charged(after_bytes);
        if bytes > 0 {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Makes a session of a connection that was admitted and is associated under `key`.
    pub(super) fn begin_session(
        self: &Arc<Self>,
        key: Key,
        stream: StreamSocket,
        peer: Option<std::net::SocketAddr>,
        id: SessionId,
    ) {
        self.begin_session_with(key, stream, peer, id, |session| (self.factory)(session));
    }

    /// The same, with a handler that is made by `factory`.
    pub(super) fn begin_session_with(
        self: &Arc<Self>,
        key: Key,
        stream: StreamSocket,
        peer: Option<std::net::SocketAddr>,
        id: SessionId,
        factory: impl FnOnce(&Session) -> Box<dyn SessionHandler>,
    ) {
        let (filter, filter_error) = self.make_filter();
        let shared = SessionShared::new(id, key, peer, Arc::clone(self), stream, filter);
        let session = Session { shared: Arc::clone(&shared) };
        self.runtime.registry.set(key, Arc::clone(&shared) as _);
        let phase = {
            let mut state = lock(&self.state);
            state.sessions.insert(id, session.clone());
            state.phase
        };
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(service = self.name, session = id.get(), ?peer, "connected");
        let handler = catch_unwind(AssertUnwindSafe(|| factory(&session)));
        let decoder = self.framing.decoder();
        if let Some(error) = filter_error {
            shared.filter_failed(error);
        }
        if phase > Phase::Draining {
            // It slipped in while the service was stopping.
            shared.stop(phase < Phase::Aborting);
        }
        shared.begin(handler.ok(), decoder);
    }

    /// The filter of a new session, where the service has filters; and why it could not be made.
    fn make_filter(&self) -> (Option<Box<dyn Filter>>, Option<FilterError>) {
        let Some(factory) = &self.filter else { return (None, None) };
        match catch_unwind(AssertUnwindSafe(|| factory.filter())) {
            Ok(Ok(filter)) => (Some(filter), None),
            Ok(Err(error)) => (Some(Box::new(NoFilter)), Some(error)),
            Err(_) => {
                let error = FilterError::new("making a filter panicked");
                (Some(Box::new(NoFilter)), Some(error))
            }
        }
    }

    /// Reserves room for one more session of `peer`.
    pub(super) fn admit(&self, peer: Option<IpAddr>) -> bool {
        let mut state = lock(&self.state);
        let rejected = &self.counters;
        if state.phase != Phase::Running {
            rejected.rejected_stopping.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if state.admitted >= self.limits.sessions {
            rejected.rejected_sessions.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if let Some(peer) = peer {
            let limit = self.limits.sessions_per_address;
            let count = state.addresses.entry(network(peer)).or_default();
            if *count >= limit {
                rejected.rejected_address.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            *count += 1;
        }
        state.admitted += 1;
        true
    }

    /// Gives the room back that `admit` reserved.
    pub(super) fn leave(&self, peer: Option<IpAddr>) {
        Self::leave_locked(&mut lock(&self.state), peer);
    }

    fn leave_locked(state: &mut State, peer: Option<IpAddr>) {
        state.admitted -= 1;
        let Some(peer) = peer.map(network) else { return };
        if let Some(count) = state.addresses.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                state.addresses.remove(&peer);
            }
        }
    }

    /// A session's last callback has returned.
    pub(super) fn session_ended(&self, shared: &SessionShared, reason: &DisconnectReason) {
        self.counters.count_end(reason);
        let counters = shared.counters();
        let gone = {
            let mut state = lock(&self.state);
            state.past.received_bytes += counters.received_bytes;
            state.past.received_frames += counters.received_frames;
            state.past.sent_bytes += counters.sent_bytes;
            state.past.sent_frames += counters.sent_frames;
            Self::leave_locked(&mut state, shared.peer().map(|peer| peer.ip()));
            state.sessions.remove(&shared.id())
        };
        drop(gone);
        self.changed.notify_all();
        if let Some(hook) = self.end_hook.get() {
            hook(shared.id());
        }
    }

    /// A listener or connector is open.
    pub(super) fn other_opened(&self) {
        lock(&self.state).others += 1;
    }

    /// It is closed, and nothing of it is in flight.
    pub(super) fn other_closed(&self) {
        lock(&self.state).others -= 1;
        self.changed.notify_all();
    }

    /// Whether new connections are wanted.
    pub(super) fn is_running(&self) -> bool {
        lock(&self.state).phase == Phase::Running
    }

    fn sessions(&self) -> Vec<Session> {
        lock(&self.state).sessions.values().cloned().collect()
    }

    fn enter(&self, phase: Phase) -> usize {
        let left = {
            let mut state = lock(&self.state);
            state.phase = state.phase.max(phase);
            state.sessions.len()
        };
        tracing::info!(service = self.name, %phase, sessions = left, "service");
        self.changed.notify_all();
        left
    }

    /// Waits until everything is closed (`true`), the time is up, or the end is forced.
    fn wait_for_end(&self, time: Duration, unless_forced: bool) -> bool {
        let deadline = Instant::now().checked_add(time);
        let mut state = lock(&self.state);
        loop {
            if state.admitted == 0 && state.others == 0 {
                return true;
            }
            if unless_forced && state.forced {
                return false;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
        }
    }

    /// Waits until somebody asks for the end.
    pub(super) fn wait_for_request(&self) {
        let mut state = lock(&self.state);
        while !state.stop_requested && state.phase == Phase::Running {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Stops the service, phase by phase.
    pub(super) fn stop(&self, drain: Duration) -> StopReport {
        let began = Instant::now();
        let mut report = StopReport::default();
        let mut left = self.enter(Phase::Draining);
        if let Some(close) = self.close_hook.get() {
            close();
        }
        self.sessions().iter().for_each(|session| session.shared.drain());
        let on_worker = self.runtime.is_handling();
        // A callback cannot wait for callbacks.
        let time = |time| if on_worker { Duration::ZERO } else { time };
        let mut ended = self.wait_for_end(time(drain), true);
        if !ended {
            let now = self.enter(Phase::Disconnecting);
            report.drained = left.saturating_sub(now);
            left = now;
            self.sessions().iter().for_each(|session| session.shared.stop(true));
            // A little more than the sessions' own limit, after which they reset by themselves.
            let limit = self.timeouts.disconnect + Duration::from_millis(500);
            ended = self.wait_for_end(time(limit), true);
            if !ended && !on_worker {
                let now = self.enter(Phase::Aborting);
                report.disconnected = left.saturating_sub(now);
                left = now;
                self.sessions().iter().for_each(|session| session.shared.stop(false));
                ended = self.wait_for_end(ABORT_TIME, false);
                let now = lock(&self.state).sessions.len();
                report.aborted = left.saturating_sub(now);
                report.left = now;
            } else if ended {
                report.disconnected = left;
            }
        } else {
            report.drained = left;
        }
        if ended {
            self.enter(Phase::Stopped);
        } else if !on_worker {
            tracing::error!(
                service = self.name,
                sessions = report.left,
                "handlers are still in a callback"
            );
        }
        report.elapsed = began.elapsed();
        report
    }
}

/// How long aborted sessions are waited for: their last callbacks have to return.
const ABORT_TIME: Duration = Duration::from_secs(5);

fn charged(queued_bytes: usize) -> usize {
    queued_bytes.saturating_sub(UNCHARGED_BYTES)
}

/// Whom a limit per address counts as one: an IPv4 address, or a /64 network of IPv6 addresses,
/// because one peer usually has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
        address => address,
    }
}

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
            let sessions: Vec<Session> = state.sessions.values().cloned().collect();
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
