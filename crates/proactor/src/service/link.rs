//! One connection that is kept: connected, waiting to connect again, or connecting.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::config::Backoff;
use super::dial::Dial;
use super::runtime::{Key, Source, Timed};
use super::session::SessionId;
use super::shared::ServiceShared;
use super::timer_wheel::TimerKey;
use crate::sync::{Mutex, lock};
use crate::{Completion, Operation, StreamSocket};

/// Where to connect to.
pub(super) enum Target {
    Address(SocketAddr),
    #[cfg(unix)]
    Path(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            #[cfg(unix)]
            Self::Path(path) => path.display().fmt(formatter),
        }
    }
}

/// All connections of one client.
pub(super) struct Links {
    /// Weakly: the service holds this.
    service: Weak<ServiceShared>,
    links: Vec<Arc<Link>>,
    by_session: Mutex<HashMap<SessionId, usize>>,
    /// Attempts for connections that are not kept.
    dials: Mutex<Vec<Weak<Dial>>>,
    targets: Vec<Target>,
    /// Each attempt takes the next one.
    next_target: AtomicUsize,
    backoff: Backoff,
}

pub(super) struct Link {
    all: Weak<Links>,
    index: usize,
    state: Mutex<State>,
}

struct State {
    place: Place,
    /// Attempts and short sessions in a row.
    failures: u32,
}

enum Place {
    /// Not started, or in between.
    Idle,
    Connecting {
        key: Key,
        stream: StreamSocket,
        began: Instant,
        timer: TimerKey,
    },
    Connected {
        since: Instant,
    },
    Waiting {
        until: Instant,
        timer: TimerKey,
    },
    Closed,
}

impl Links {
    pub(super) fn new(
        service: &Arc<ServiceShared>,
        targets: Vec<Target>,
        connections: usize,
        backoff: Backoff,
    ) -> Arc<Self> {
        Arc::new_cyclic(|all| Self {
            service: Arc::downgrade(service),
            links: (0..connections)
                .map(|index| {
                    let state = State { place: Place::Idle, failures: 0 };
                    Arc::new(Link { all: Weak::clone(all), index, state: Mutex::new(state) })
                })
                .collect(),
            by_session: Mutex::default(),
            dials: Mutex::default(),
            targets,
            next_target: AtomicUsize::new(0),
            backoff,
        })
    }

    pub(super) fn start(&self) {
        let Some(service) = self.service.upgrade() else { return };
        for link in &self.links {
            service.other_opened();
            link.connect(self, &service);
        }
    }

    /// No connection is wanted any more.
    pub(super) fn close(&self) {
        let Some(service) = self.service.upgrade() else { return };
        self.links.iter().for_each(|link| link.close(&service));
        let dials = std::mem::take(&mut *lock(&self.dials));
        dials.iter().filter_map(Weak::upgrade).for_each(|dial| dial.cancel());
    }

    /// Has an attempt end with the service.
    pub(super) fn watch(&self, service: &ServiceShared, dial: &Arc<Dial>) {
        {
            let mut dials = lock(&self.dials);
            if dials.len() == dials.capacity() {
                // Before it grows: those that are over go.
                dials.retain(|dial| dial.strong_count() > 0);
            }
            dials.push(Arc::downgrade(dial));
        }
        if !service.is_running() {
            dial.cancel();
        }
    }

    /// A session is over: its link connects again.
    pub(super) fn session_ended(&self, id: SessionId) {
        let index = lock(&self.by_session).remove(&id);
        if let (Some(index), Some(service)) = (index, self.service.upgrade()) {
            self.links[index].disconnected(self, &service);
        }
    }

    /// How long to wait after so many failures in a row.
    fn wait(&self, service: &ServiceShared, failures: u32) -> Duration {
        let doubled = self.backoff.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let wait = doubled.min(self.backoff.longest);
        let random = service.runtime.port.random() >> 11;
        let part = random as f64 / (1_u64 << 53) as f64;
        wait.mul_f64(1.0 - self.backoff.jitter.clamp(0.0, 1.0) * part)
    }
}

impl Link {
    fn connect(self: &Arc<Self>, all: &Links, service: &Arc<ServiceShared>) {
        if !service.is_running() {
            return self.closed(service);
        }
        let target =
            &all.targets[all.next_target.fetch_add(1, Ordering::Relaxed) % all.targets.len()];
        let key = service.runtime.registry.reserve();
        if let Err(error) = self.try_connect(service, target, key) {
            tracing::debug!(service = service.name, %target, %error, "cannot connect");
            service.runtime.registry.release(key);
            self.failed(all, service);
        }
    }

    fn try_connect(
        self: &Arc<Self>,
        service: &Arc<ServiceShared>,
        target: &Target,
        key: Key,
    ) -> io::Result<()> {
        let port = &service.runtime.port;
        let stream = match target {
            Target::Address(address) => {
                let stream = StreamSocket::for_peer(port, address, key.completion_key())?;
                stream.set_nodelay(service.nodelay)?;
                stream
            }
            #[cfg(unix)]
            Target::Path(_) => StreamSocket::for_unix(port, key.completion_key())?,
        };
        let began = port.now();
        let limit = service.timeouts.connect;
        let deadline = began.checked_add(limit).unwrap_or_else(|| began + FAR);
        let me: Weak<Self> = Arc::downgrade(self);
        let timer = service.runtime.start_timer(deadline, me);
        service.runtime.registry.set(key, Arc::clone(self) as _);
        // Before the connect is started: its packet may be handled before the call has returned.
        let same = stream.clone();
        lock(&self.state).place = Place::Connecting { key, stream: same, began, timer };
        let started = match target {
            Target::Address(address) => stream.connect(Operation::new(), *address),
            #[cfg(unix)]
            Target::Path(path) => stream.connect_unix(Operation::new(), path),
        };
        if let Err(rejected) = started {
            service.runtime.cancel_timer(timer);
            lock(&self.state).place = Place::Idle;
            return Err(rejected.into());
        }
        Ok(())
    }

    /// The packet of a connect.
    fn connect_ended(self: &Arc<Self>, completion: &Completion) {
        let Some(all) = self.all.upgrade() else { return };
        let Some(service) = all.service.upgrade() else { return };
        let before = std::mem::replace(&mut lock(&self.state).place, Place::Idle);
        let Place::Connecting { key, stream, timer, .. } = before else { return };
        service.runtime.cancel_timer(timer);
        if let Some(error) = completion.error() {
            tracing::debug!(service = service.name, %error, "cannot connect");
            drop(stream);
            service.runtime.registry.release(key);
            return self.failed(&all, &service);
        }
        let peer = stream.peer_address().ok();
        // An address of this machine at which nobody listens can, by bad luck, be the one that the
        // connection starts from: TCP then connects it with itself.
        let with_itself = peer.is_some() && peer == stream.local_address().ok();
        if with_itself || !service.admit(peer.map(|peer| peer.ip())) {
            drop(stream);
            service.runtime.registry.release(key);
            return self.failed(&all, &service);
        }
        let id = SessionId::next();
        // Both before the session begins: it may be over before the call has returned.
        lock(&all.by_session).insert(id, self.index);
        lock(&self.state).place = Place::Connected { since: service.runtime.port.now() };
        service.begin_session(key, stream, peer, id);
    }

    /// The session is over.
    fn disconnected(self: &Arc<Self>, all: &Links, service: &Arc<ServiceShared>) {
        {
            let mut state = lock(&self.state);
            let Place::Connected { since } = state.place else { return };
            state.place = Place::Idle;
            let now = service.runtime.port.now();
            if now.saturating_duration_since(since) >= all.backoff.longest {
                state.failures = 0;
            }
        }
        if !planted!(NotConnectedAgain) {
            self.failed(all, service);
        }
    }

    /// Waits before it tries again.
    fn failed(self: &Arc<Self>, all: &Links, service: &Arc<ServiceShared>) {
        if !service.is_running() {
            return self.closed(service);
        }
        let mut state = lock(&self.state);
        if matches!(state.place, Place::Closed) {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        let until = service.runtime.port.now() + all.wait(service, state.failures);
        let me: Weak<Self> = Arc::downgrade(self);
        let timer = service.runtime.start_timer(until, me);
        state.place = Place::Waiting { until, timer };
        drop(state);
        if !service.is_running() {
            // It was stopped meanwhile, and may have looked before the timer was there.
            self.close(service);
        }
    }

    fn close(&self, service: &ServiceShared) {
        let mut state = lock(&self.state);
        match &state.place {
            // Its packet comes.
            Place::Connecting { stream, .. } => {
                stream.cancel_all();
            }
            Place::Waiting { timer, .. } => {
                service.runtime.cancel_timer(*timer);
                state.place = Place::Closed;
                drop(state);
                service.other_closed();
            }
            Place::Connected { .. } => {
                state.place = Place::Closed;
                drop(state);
                service.other_closed();
            }
            // Whoever is in between looks whether the service still runs.
            Place::Idle | Place::Closed => {}
        }
    }

    fn closed(&self, service: &ServiceShared) {
        let before = std::mem::replace(&mut lock(&self.state).place, Place::Closed);
        if !matches!(before, Place::Closed) {
            service.other_closed();
        }
    }
}

/// A time limit that is beyond the clock.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Source for Link {
    fn completed(self: Arc<Self>, completion: Completion) {
        self.connect_ended(&completion);
    }

    fn abandoned(self: Arc<Self>) {
        if let Some(service) = self.all.upgrade().and_then(|all| all.service.upgrade()) {
            self.closed(&service);
        }
    }
}

impl Timed for Link {
    fn due(self: Arc<Self>, now: Instant) {
        let Some(all) = self.all.upgrade() else { return };
        let Some(service) = all.service.upgrade() else { return };
        let mut state = lock(&self.state);
        match &state.place {
            Place::Connecting { stream, began, .. }
                if now.saturating_duration_since(*began) >= service.timeouts.connect =>
            {
                tracing::debug!(service = service.name, "no connection in time");
                stream.cancel_all();
            }
            Place::Waiting { until, .. } if *until <= now => {
                state.place = Place::Idle;
                drop(state);
                self.connect(&all, &service);
            }
            // The timer of an attempt that is over.
            _ => {}
        }
    }
}
