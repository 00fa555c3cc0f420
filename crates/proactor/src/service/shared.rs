//! What all sessions of a service share: its limits, its list of sessions, its counters.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::changed::Changed;
use super::config::{Limits, Timeouts, WaterMarks};
use super::error::DisconnectReason;
use super::filter::{Filter, FilterError, FilterFactory, NoFilter};
use super::framing::Framing;
use super::handler::{HandlerResult, SessionHandler};
use super::phases::Phase;
use super::runtime::{Key, RuntimeShared};
use super::session::{Session, SessionCounters, SessionId, SessionShared};
use super::snapshot::{Counters, HandlerTime};
use crate::StreamSocket;
use crate::sync::{Mutex, lock};

/// Bytes that each session may have queued without asking the service's limit, so that short
/// messages of different sessions do not meet at one counter.
const UNCHARGED_BYTES: usize = 4 * 1024;

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
    /// `None` once the service has stopped: what the program gave it may hold sessions, which hold
    /// the service.
    factory: Mutex<Option<Arc<Factory>>>,
    pub(super) limits: Limits,
    pub(super) water_marks: WaterMarks,
    pub(super) timeouts: Timeouts,
    pub(super) nodelay: bool,
    /// Whether somebody wants to know when sends completed.
    pub(super) times_sends: bool,
    queued_bytes: AtomicUsize,
    pub(super) counters: Counters,
    pub(super) handler_time: HandlerTime,
    pub(super) state: Mutex<State>,
    /// Told of every change of the state that somebody may wait for.
    pub(super) changed: Changed,
    /// Called after a session's last callback.
    pub(super) end_hook: OnceLock<Box<EndHook>>,
    /// Called when no new connections are wanted any more.
    pub(super) close_hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Somebody asked for the end, and has not been heard.
    pub(super) stop_requested: bool,
    pub(super) forced: bool,
    /// In the order in which they began: all of them are told things in that order.
    pub(super) sessions: BTreeSet<Session>,
    /// Sessions, and connections that are about to be ones.
    pub(super) admitted: usize,
    pub(super) addresses: HashMap<IpAddr, usize>,
    /// What sessions moved that have ended.
    pub(super) past: SessionCounters,
    /// Sources other than sessions that are still open: listeners, connectors.
    pub(super) others: usize,
}

/// The handler of a connection that came when the service had stopped.
struct Late;

impl SessionHandler for Late {
    fn received(&mut self, session: &Session, _frame: &[u8]) -> HandlerResult {
        session.abort();
        Ok(())
    }
}

impl ServiceShared {
    /// Lets go of what the program gave the service to make handlers with.
    pub(super) fn drop_factory(&self) {
        let factory = lock(&self.factory).take();
        drop(factory);
    }

    pub(super) fn new(settings: Settings, runtime: Arc<RuntimeShared>) -> Arc<Self> {
        let timeouts = settings.timeouts;
        Arc::new(Self {
            name: settings.name,
            changed: Changed::new(&runtime.port),
            runtime,
            framing: settings.framing,
            filter: settings.filter,
            factory: Mutex::new(Some(Arc::from(settings.factory))),
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
                sessions: BTreeSet::new(),
                admitted: 0,
                addresses: HashMap::new(),
                past: SessionCounters::default(),
                others: 0,
            }),
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

    /// Bytes that are counted against the service's limit.
    #[cfg(feature = "sim")]
    pub(super) fn charged_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
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
        let factory = lock(&self.factory).clone();
        self.begin_session_with(key, stream, peer, id, |session| match factory {
            Some(factory) => factory(session),
            None => Box::new(Late),
        });
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
            state.sessions.insert(session.clone());
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
        if state.admitted >= self.limits.sessions + usize::from(planted!(SessionLimitOffByOne)) {
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
            state.sessions.take(&shared.id())
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

    pub(super) fn sessions(&self) -> Vec<Session> {
        lock(&self.state).sessions.iter().cloned().collect()
    }
}

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
