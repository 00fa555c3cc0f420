//! One connection that is made once, for a handler of its own.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::handler::SessionHandler;
use super::runtime::{Key, Source, Timed};
use super::session::{Session, SessionId};
use super::shared::ServiceShared;
use super::timer_wheel::TimerKey;
use crate::sync::{Mutex, lock};
use crate::{Completion, Operation, StreamSocket};

/// Makes the handler where the connection stands.
pub(super) type Made = Box<dyn FnOnce(&Session) -> Box<dyn SessionHandler> + Send>;
/// Is told where it does not come to stand.
pub(super) type Failed = Box<dyn FnOnce(io::Error) + Send>;

pub(super) struct Dial {
    service: Arc<ServiceShared>,
    key: Key,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stream: Option<StreamSocket>,
    timer: Option<TimerKey>,
    timed_out: bool,
    /// Taken by whoever decides how it came out.
    outcome: Option<(Made, Failed)>,
}

impl Dial {
    /// Starts to connect. `Err` gives back whom to tell.
    pub(super) fn start(
        service: &Arc<ServiceShared>,
        address: SocketAddr,
        made: Made,
        failed: Failed,
    ) -> Result<Arc<Self>, (Failed, io::Error)> {
        if !service.is_running() {
            return Err((failed, stopped()));
        }
        let key = service.runtime.registry.reserve();
        let stream = StreamSocket::for_peer(&service.runtime.port, &address, key.completion_key());
        let stream = match stream.and_then(|stream| {
            stream.set_nodelay(service.nodelay)?;
            Ok(stream)
        }) {
            Ok(stream) => stream,
            Err(error) => {
                service.runtime.registry.release(key);
                return Err((failed, error));
            }
        };
        let dial = Arc::new(Self {
            service: Arc::clone(service),
            key,
            state: Mutex::new(State {
                stream: Some(stream.clone()),
                outcome: Some((made, failed)),
                ..State::default()
            }),
        });
        service.other_opened();
        service.runtime.registry.set(key, Arc::clone(&dial) as _);
        let deadline = service.runtime.port.now() + service.timeouts.connect.min(LONGEST);
        let me: Weak<Self> = Arc::downgrade(&dial);
        lock(&dial.state).timer = Some(service.runtime.start_timer(deadline, me));
        if let Err(rejected) = stream.connect(Operation::new(), address) {
            dial.failed(rejected.into());
        }
        Ok(dial)
    }

    /// Gives up: its packet says so.
    pub(super) fn cancel(&self) {
        let stream = lock(&self.state).stream.clone();
        if let Some(stream) = stream {
            stream.cancel_all();
        }
    }

    /// Ends the attempt, without a connection.
    fn failed(&self, error: io::Error) {
        self.stop_timer();
        let (stream, outcome) = {
            let mut state = lock(&self.state);
            (state.stream.take(), state.outcome.take())
        };
        drop(stream);
        self.service.runtime.registry.release(self.key);
        self.tell(outcome, error);
        self.service.other_closed();
    }

    fn tell(&self, outcome: Option<(Made, Failed)>, error: io::Error) {
        tracing::debug!(service = self.service.name, %error, "cannot connect");
        let Some((made, failed)) = outcome else { return };
        let told = catch_unwind(AssertUnwindSafe(|| {
            drop(made);
            failed(error);
        }));
        if told.is_err() {
            tracing::error!(service = self.service.name, "the program panicked at a failed dial");
        }
    }

    fn stop_timer(&self) {
        if let Some(timer) = lock(&self.state).timer.take() {
            self.service.runtime.cancel_timer(timer);
        }
    }
}

/// A time limit that is beyond the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn stopped() -> io::Error {
    io::Error::other("the client stops")
}

impl Source for Dial {
    fn completed(self: Arc<Self>, completion: Completion) {
        if let Some(error) = completion.error() {
            let timed_out = lock(&self.state).timed_out;
            return self.failed(if timed_out {
                io::Error::new(io::ErrorKind::TimedOut, "no connection in time")
            } else {
                error.into()
            });
        }
        let Some(stream) = lock(&self.state).stream.take() else { return };
        let peer = stream.peer_address().ok();
        if !self.service.admit(peer.map(|peer| peer.ip())) {
            drop(stream);
            return self.failed(io::Error::other("the client stops, or has all its sessions"));
        }
        self.stop_timer();
        if let Some((made, failed)) = lock(&self.state).outcome.take() {
            drop(failed);
            self.service.begin_session_with(self.key, stream, peer, SessionId::next(), made);
        }
        self.service.other_closed();
    }

    fn abandoned(self: Arc<Self>) {
        let outcome = lock(&self.state).outcome.take();
        self.tell(outcome, stopped());
        self.service.other_closed();
    }
}

impl Timed for Dial {
    fn due(self: Arc<Self>, _now: Instant) {
        {
            let mut state = lock(&self.state);
            state.timer = None;
            state.timed_out = true;
        }
        self.cancel();
    }
}
