//! What the scenario knows on its own: who sent what, and what each session was told. The checks
//! compare the service with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::service::{DisconnectReason, Phase, Session, SessionId, Timeout, Timeouts};
use crate::sim::World;

/// Actors take it too, and cannot wait: no thread may be interrupted while it has it, so nothing
/// of the service is called under it.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a run is told and allowed to be late by.
pub(super) struct Terms {
    pub(super) timeouts: Timeouts,
    pub(super) session_queued_bytes: usize,
    pub(super) sessions: usize,
    pub(super) drain: Duration,
    /// Threads may stop for long, and the clock may jump.
    pub(super) is_disturbed: bool,
}

pub(super) struct Books {
    pub(super) world: World,
    pub(super) terms: Terms,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the number that a connection has in its frames.
    connections: BTreeMap<u32, Connection>,
    sessions: BTreeMap<SessionId, Told>,
    next_number: u32,
    handlers: usize,
    began: usize,
    ended: usize,
    jobs_pushed: usize,
    jobs_run: usize,
    drain_began: Option<Duration>,
}

/// What is on its way between a client and its session.
#[derive(Default)]
struct Connection {
    /// Frames that the client has written whole.
    written: u32,
    /// Frames that the session has received.
    received: u32,
    /// The client saw the orderly end of its stream.
    has_ended: bool,
    /// Why its session ended.
    reason: Option<String>,
    /// When the client last wrote anything.
    wrote_at: Duration,
    /// What the session has sent and the client not received, by kind.
    sent: BTreeMap<u8, VecDeque<u32>>,
}

/// What a session's handler was told.
#[derive(Default)]
pub(super) struct Told {
    session: Option<Session>,
    number: Option<u32>,
    is_connected: bool,
    is_over: bool,
    is_inside: bool,
    is_draining: bool,
    /// `high_water` came, and `low_water` not since.
    is_high: bool,
    /// Receiving stood still on the server's side.
    was_held: bool,
    heard_at: Duration,
    made_at: Duration,
    /// Looks that found the queue empty though `low_water` had not come.
    doubtful_looks: u32,
}

/// Since when something counts: at the earliest, and at the latest, where that is known.
struct Times {
    earliest: Option<Duration>,
    latest: Option<Duration>,
}

/// How far anything may be from where it should be, in undisturbed runs and in others.
const SLACK: Duration = Duration::from_secs(3);
const DISTURBED_SLACK: Duration = Duration::from_secs(300);

impl Books {
    pub(super) fn new(world: &World, terms: Terms) -> Self {
        Self { world: world.clone(), terms, state: Mutex::new(State::default()) }
    }

    fn violation(&self, text: impl Into<String>) {
        self.world.violation(text);
    }

    fn slack(&self) -> Duration {
        if self.terms.is_disturbed { DISTURBED_SLACK } else { SLACK }
    }

    // Clients.

    /// A number for a new connection.
    pub(super) fn new_number(&self) -> u32 {
        let mut state = lock(&self.state);
        state.next_number += 1;
        state.next_number
    }

    /// A client has written something, and so many frames with it to their ends.
    pub(super) fn written(&self, number: u32, whole_frames: u32) {
        let now = self.world.now();
        let mut state = lock(&self.state);
        let connection = state.connections.entry(number).or_default();
        connection.written += whole_frames;
        connection.wrote_at = now;
    }

    /// A client got a frame that was meant for it alone.
    pub(super) fn arrived(&self, number: u32, kind: u8, sequence: u32) {
        let mut state = lock(&self.state);
        let connection = state.connections.entry(number).or_default();
        let expected = connection.sent.entry(kind).or_default().pop_front();
        drop(state);
        if expected != Some(sequence) {
            let kind = char::from(kind);
            self.violation(format!(
                "connection {number}: frame {kind}{sequence} came, and {expected:?} was sent"
            ));
        }
    }

    /// A client saw the orderly end of its stream. Whether all has come is looked at in the end: a
    /// send that is under way may still be refused.
    pub(super) fn ended_in_order(&self, number: u32) {
        lock(&self.state).connections.entry(number).or_default().has_ended = true;
    }

    // Sessions.

    pub(super) fn made(&self, session: &Session) {
        let now = self.world.now();
        let mut state = lock(&self.state);
        state.handlers += 1;
        let told = state.sessions.entry(session.id()).or_default();
        told.session = Some(session.clone());
        (told.heard_at, told.made_at) = (now, now);
    }

    pub(super) fn dropped(&self) {
        lock(&self.state).handlers -= 1;
    }

    /// A callback begins.
    pub(super) fn enters(&self, session: &Session, what: &str) {
        let queued_bytes = session.counters().queued_bytes;
        let mut state = lock(&self.state);
        let told = state.sessions.entry(session.id()).or_default();
        let mut wrong = None;
        if std::mem::replace(&mut told.is_inside, true) {
            wrong = Some("two callbacks at once");
        }
        if told.is_over {
            wrong = Some("a callback after disconnected");
        }
        let begins = what == "connected";
        if begins == told.is_connected {
            wrong = Some("connected is not the first callback, or not once");
        }
        told.is_connected = true;
        if begins {
            state.began += 1;
        }
        drop(state);
        if let Some(wrong) = wrong {
            self.violation(format!("{what}: {wrong}"));
        }
        if queued_bytes > self.terms.session_queued_bytes {
            self.violation(format!("{what}: {queued_bytes} bytes are queued"));
        }
    }

    /// It returns.
    pub(super) fn leaves(&self, session: &Session) {
        if let Some(told) = lock(&self.state).sessions.get_mut(&session.id()) {
            told.is_inside = false;
        }
    }

    /// A session got a frame of a connection.
    pub(super) fn received(&self, session: &Session, number: u32, sequence: u32) {
        let now = self.world.now();
        let mut state = lock(&self.state);
        if let Some(told) = state.sessions.get_mut(&session.id()) {
            told.heard_at = now;
            told.number = Some(number);
        }
        let connection = state.connections.entry(number).or_default();
        let expected = connection.received;
        connection.received += 1;
        drop(state);
        if expected != sequence {
            self.violation(format!(
                "connection {number}: frame {sequence} was received instead of {expected}"
            ));
        }
    }

    /// A session is about to send a frame.
    pub(super) fn sends(&self, number: u32, kind: u8, sequence: u32) {
        let mut state = lock(&self.state);
        let connection = state.connections.entry(number).or_default();
        connection.sent.entry(kind).or_default().push_back(sequence);
    }

    /// It was refused.
    pub(super) fn refused(&self, number: u32, kind: u8) {
        let mut state = lock(&self.state);
        let connection = state.connections.entry(number).or_default();
        connection.sent.entry(kind).or_default().pop_back();
    }

    pub(super) fn crossed(&self, session: &Session, is_high: bool) {
        let mut state = lock(&self.state);
        let Some(told) = state.sessions.get_mut(&session.id()) else { return };
        told.was_held = true;
        let was_high = std::mem::replace(&mut told.is_high, is_high);
        told.doubtful_looks = 0;
        drop(state);
        if was_high == is_high {
            self.violation("the marks of a queue were not told in turns");
        }
    }

    /// A session stops receiving for a while.
    pub(super) fn holds(&self, session: &Session) {
        if let Some(told) = lock(&self.state).sessions.get_mut(&session.id()) {
            told.was_held = true;
        }
    }

    pub(super) fn draining(&self, session: &Session) {
        let phase = session.service().phase();
        let mut state = lock(&self.state);
        let Some(told) = state.sessions.get_mut(&session.id()) else { return };
        let twice = std::mem::replace(&mut told.is_draining, true);
        drop(state);
        if twice || phase == Phase::Running {
            self.violation("draining was told twice, or to a service that runs");
        }
    }

    pub(super) fn job_pushed(&self) {
        lock(&self.state).jobs_pushed += 1;
    }

    pub(super) fn job_refused(&self) {
        lock(&self.state).jobs_pushed -= 1;
    }

    pub(super) fn job_run(&self) {
        lock(&self.state).jobs_run += 1;
    }

    pub(super) fn drain_begins(&self) {
        lock(&self.state).drain_began = Some(self.world.now());
    }

    pub(super) fn disconnected(&self, session: &Session, reason: &DisconnectReason) {
        let now = self.world.now();
        let mut state = lock(&self.state);
        state.ended += 1;
        let drain_began = state.drain_began;
        let Some(told) = state.sessions.get_mut(&session.id()) else { return };
        told.is_over = true;
        let kept = told.session.take();
        let number = told.number;
        let heard = Times {
            earliest: number.map(|_| now.saturating_sub(told.heard_at)),
            latest: (!told.was_held).then(|| now.saturating_sub(told.heard_at)),
        };
        let age = Times { earliest: None, latest: Some(now.saturating_sub(told.made_at)) };
        let wrote_at =
            number.and_then(|number| state.connections.get(&number)).map(|one| one.wrote_at);
        let quiet = Times {
            latest: heard
                .latest
                .map(|time| wrote_at.map_or(time, |at| time.min(now.saturating_sub(at)))),
            ..heard
        };
        let lost = number.and_then(|number| {
            let connection = state.connections.get(&number)?;
            (connection.written > connection.received)
                .then(|| connection.written - connection.received)
        });
        drop(state);
        drop(kept);
        if let Some(number) = number {
            let mut state = lock(&self.state);
            state.connections.entry(number).or_default().reason = Some(reason.to_string());
        }
        let timeouts = &self.terms.timeouts;
        match reason {
            DisconnectReason::PeerEnded => {
                if let Some(lost) = lost {
                    self.violation(format!("the peer ended, and {lost} of its frames are missing"));
                }
            }
            DisconnectReason::TimedOut(Timeout::Idle) => {
                self.check_time("idle", quiet, timeouts.idle);
            }
            DisconnectReason::TimedOut(Timeout::Handshake) => {
                self.check_time("handshake", age, timeouts.handshake);
            }
            DisconnectReason::ServiceStopped => {
                let drained = drain_began.map(|began| now.saturating_sub(began));
                if drained.is_none_or(|time| time < self.terms.drain) {
                    self.violation(format!("stopped {drained:?} after the drain began"));
                }
            }
            _ => {}
        }
    }

    /// Not early, and not late by more than the time once more, which pauses put it off by.
    fn check_time(&self, name: &str, time: Times, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return self.violation(format!("a time limit that there is not: {name}"));
        };
        if let Some(time) = time.earliest.filter(|time| *time < limit) {
            self.violation(format!("{name} time limit of {limit:?} after {time:?}"));
        }
        let latest = 2 * limit + self.slack();
        if let Some(time) = time.latest.filter(|time| *time > latest) {
            self.violation(format!("{name} time limit of {limit:?} only after {time:?}"));
        }
    }

    /// A look now and then, from a thread that has nothing to do with the service.
    pub(super) fn look(&self, sessions: usize) {
        if sessions > self.terms.sessions {
            self.violation(format!("{sessions} sessions, and {} are allowed", self.terms.sessions));
        }
        let high: Vec<Session> = {
            let state = lock(&self.state);
            let told = state.sessions.values().filter(|told| told.is_high && !told.is_over);
            told.filter_map(|told| told.session.clone()).collect()
        };
        for session in high {
            let is_low = session.counters().queued_bytes == 0 && !session.is_ending();
            let mut state = lock(&self.state);
            let Some(told) = state.sessions.get_mut(&session.id()) else { continue };
            let looks = if is_low && told.is_high { told.doubtful_looks + 1 } else { 0 };
            told.doubtful_looks = looks;
            drop(state);
            if looks == 10 {
                self.violation("low_water does not come, and the queue is empty");
            }
        }
    }

    /// When all is over.
    pub(super) fn close(&self) {
        let state = lock(&self.state);
        let ended = state.connections.iter().filter(|(_, connection)| connection.has_ended);
        let short: Vec<String> = ended
            .filter_map(|(number, one)| {
                let left: usize = one.sent.values().map(VecDeque::len).sum();
                let reason = one.reason.as_deref().unwrap_or("not yet");
                let text = format!(
                    "connection {number}: {left} frames did not come before the end of its stream; \
                     its session's end: {reason}"
                );
                (left > 0).then_some(text)
            })
            .collect();
        let texts = [
            (state.handlers, "handlers are left"),
            (state.began.abs_diff(state.ended), "sessions were not told their end once"),
            (state.jobs_pushed.abs_diff(state.jobs_run), "jobs were not run once"),
        ];
        drop(state);
        short.into_iter().for_each(|text| self.violation(text));
        for (count, text) in texts {
            if count > 0 {
                self.violation(format!("{count} {text}"));
            }
        }
    }
}
