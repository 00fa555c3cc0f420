//! The thread that has the core: what was noted becomes callbacks, one after the other.

use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::error::DisconnectReason;
use super::super::filter::FilterError;
use super::super::framing::Decoder;
use super::super::handler::{AfterEnd, HandlerResult, SessionHandler};
use super::core::{Core, Stage, close_abruptly};
use super::mailbox::{Ending, Mailbox, Received, Signals};
use super::outgoing::Discarded;
use super::receive::{Chunk, Piece, Stop, has_input};
use super::{Session, SessionShared};
use crate::sync::lock;
use crate::{Error, Operation};

/// A session that has still something to do after so many steps lets others go first.
const BUDGET: usize = 32;
/// One run in so many is timed.
const TIMED_RUNS: u8 = 32;

/// What is next.
pub(super) enum Next {
    Signals(Signals, usize),
    Message(Box<dyn std::any::Any + Send>),
    Received(Received),
    End(Ending),
}

impl SessionShared {
    /// The session begins. Without a handler, because making it panicked, it ends at once.
    pub(in crate::service) fn begin(
        self: &Arc<Self>,
        handler: Option<Box<dyn SessionHandler>>,
        decoder: Box<dyn Decoder>,
    ) {
        if handler.is_none() {
            self.panicked();
        }
        lock(&self.mailbox).signals.add(Signals::BEGIN);
        self.run(Box::new(Core::new(handler, decoder)), None);
    }

    /// The packet that makes a worker run the session.
    pub(super) fn posted(self: &Arc<Self>) {
        let mut mailbox = lock(&self.mailbox);
        mailbox.scheduled = false;
        if let Some(core) = mailbox.core.take() {
            drop(mailbox);
            self.run(core, None);
        } else {
            // Who has it may have looked already, and wait for this packet with the end.
            mailbox.signals.add(Signals::LOOK);
        }
    }

    /// Runs callbacks until there is nothing to call for, and puts the core back.
    pub(super) fn run(self: &Arc<Self>, mut core: Box<Core>, mut first: Option<Next>) {
        let session = Session { shared: Arc::clone(self) };
        let _span = tracing::debug_span!("session", id = self.id.0).entered();
        core.runs = core.runs.wrapping_add(1);
        core.looked_for_end = false;
        let port = &self.service.runtime.port;
        let started = (core.runs % TIMED_RUNS == 1).then(|| port.now());
        let mut steps = 0;
        loop {
            let next = match first.take() {
                Some(next) => next,
                None => match self.next(core, steps) {
                    Some((same, next)) => {
                        core = same;
                        next
                    }
                    None => break,
                },
            };
            core.looked_for_end = matches!(next, Next::End(_));
            match next {
                Next::Signals(signals, sent_bytes) => {
                    self.signalled(&mut core, &session, signals, sent_bytes);
                }
                Next::Message(message) => {
                    self.call(&mut core, |handler| handler.notified(&session, message));
                }
                Next::Received(received) => self.look_at(&mut core, &session, received),
                Next::End(ending) => {
                    if self.advance_end(&mut core, ending) {
                        self.finish(core, &session);
                        break;
                    }
                }
            }
            steps += 1;
            if steps == 1
                && let Some(started) = started
            {
                let time = port.now().saturating_duration_since(started);
                self.service.handler_time.record(time);
            }
        }
    }

    /// What to do next; `None`: nothing, and the core is back in its place.
    fn next(&self, core: Box<Core>, steps: usize) -> Option<(Box<Core>, Next)> {
        let mut mailbox = lock(&self.mailbox);
        let Some(next) = self.choose(&core, &mut mailbox, steps) else {
            let schedule = if steps >= BUDGET { mailbox.schedule_later() } else { false };
            mailbox.core = Some(core);
            drop(mailbox);
            if schedule {
                self.service.runtime.post(self.key);
            }
            return None;
        };
        Some((core, next))
    }

    fn choose(&self, core: &Core, mailbox: &mut Mailbox, steps: usize) -> Option<Next> {
        if steps >= BUDGET || (planted!(SessionNotLookedAt) && steps > 1) {
            return None;
        }
        if !mailbox.signals.is_empty() {
            let sent_bytes = std::mem::take(&mut mailbox.sent_bytes);
            return Some(Next::Signals(mailbox.signals.take(), sent_bytes));
        }
        if core.begun
            && let Some(message) = mailbox.take_message()
        {
            return Some(Next::Message(message));
        }
        let received =
            if self.is_paused() { mailbox.take_failure() } else { mailbox.take_received() };
        if let Some(received) = received {
            return Some(Next::Received(received));
        }
        if core.looked_for_end {
            return None;
        }
        mailbox.ending.map(Next::End)
    }

    fn signalled(
        self: &Arc<Self>,
        core: &mut Core,
        session: &Session,
        signals: Signals,
        sent_bytes: usize,
    ) {
        if signals.has(Signals::BEGIN) {
            if self.is_ready() {
                self.connected(core, session);
            }
            self.start_receiving();
            if self.filter.is_some() {
                // A client's filter speaks first.
                self.flush();
            }
            self.watch_times();
        }
        if !core.begun {
            // The filter's own protocol has not begun: the handler knows of nothing yet.
            return;
        }
        // Where the session ends, that ends what is sent too, in order or not.
        if self.has(super::ENDS_SENDING) && core.stage == Stage::Open && !self.is_ending() {
            self.end_sending_where_flushed();
        }
        if sent_bytes > 0 {
            self.call(core, |handler| {
                handler.sent(session, sent_bytes);
                Ok(())
            });
        }
        if signals.has(Signals::WATER) {
            self.tell_marks(core, session);
        }
        if signals.has(Signals::HEARTBEAT) && core.stage == Stage::Open {
            self.call(core, |handler| {
                handler.heartbeat(session);
                Ok(())
            });
        }
        if signals.has(Signals::DRAINING) && core.stage == Stage::Open {
            self.call(core, |handler| {
                handler.draining(session);
                Ok(())
            });
        }
    }

    /// Tells the peer the end of what is sent, once all of it was. The end of each send leads here.
    fn end_sending_where_flushed(&self) {
        let outgoing = lock(&self.outgoing);
        if outgoing.in_flight || self.has_to_send(&outgoing) {
            return;
        }
        if self.end_filter() {
            // The filter says so first, in its own protocol.
            return self.start_send(outgoing);
        }
        self.flags.fetch_and(!super::ENDS_SENDING, Ordering::SeqCst);
        let ended = outgoing.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write));
        drop(outgoing);
        if let Some(Err(error)) = ended {
            self.request_end(DisconnectReason::Failed(error), Ending::Abrupt);
        }
    }

    /// Tells of the marks that were crossed since. Who has seen the queue over its mark may rely on
    /// `low_water` to come, so also a mark that was crossed up and down again is told, once.
    fn tell_marks(&self, core: &mut Core, session: &Session) {
        let crossings = lock(&self.outgoing).crossings;
        let new = crossings.wrapping_sub(core.told_crossings);
        core.told_crossings = crossings;
        // An even number of crossings leads to the high mark and back, or to the low one and back.
        let over_mark = crossings % 2 == 1;
        let calls: &[bool] = match new {
            0 => &[],
            _ if new % 2 == 1 => &[over_mark],
            _ => &[!over_mark, over_mark],
        };
        for &high in calls {
            self.call(core, |handler| {
                if high {
                    handler.high_water(session)
                } else {
                    handler.low_water(session)
                }
                Ok(())
            });
        }
    }

    /// The first callback.
    pub(super) fn connected(&self, core: &mut Core, session: &Session) {
        core.begun = true;
        self.call(core, |handler| handler.connected(session));
        if self.has(super::ENDS_SENDING) {
            // Asked for while a filter was not ready.
            self.signal(Signals::LOOK);
        }
    }

    /// Calls back. A panic or an error ends the session.
    fn call(
        &self,
        core: &mut Core,
        callback: impl FnOnce(&mut dyn SessionHandler) -> HandlerResult,
    ) {
        let Some(handler) = &mut core.handler else { return };
        match catch_unwind(AssertUnwindSafe(|| callback(&mut **handler))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.handler_failed(error),
            Err(_) => self.panicked(),
        }
    }

    fn handler_failed(&self, error: Box<dyn std::error::Error + Send + Sync>) {
        tracing::debug!(session = self.id.0, error = %error, "a handler ends its session");
        self.request_end(DisconnectReason::Handler(error.into()), Ending::Orderly);
    }

    pub(super) fn panicked(&self) {
        tracing::error!(session = self.id.0, peer = ?self.peer, "a callback panicked: its session ends");
        self.service.counters.panics.fetch_add(1, Ordering::Relaxed);
        self.request_end(DisconnectReason::Panicked, Ending::Abrupt);
    }

    /// What was received has its turn.
    fn look_at(self: &Arc<Self>, core: &mut Core, session: &Session, received: Received) {
        let leftover = match received {
            Received::Chunk(chunk) if self.filter.is_some() => {
                return self.look_at_filtered(core, session, chunk);
            }
            Received::Chunk(chunk) => self.look_at_piece(core, session, Chunk::new(chunk)),
            Received::Plain(plain) => self.look_at_piece(core, session, plain),
            Received::FilterEnd => return self.look_at_end(core, session, Ok(())),
            Received::End(result) => {
                if self.filter.is_none() || result.is_err() {
                    return self.look_at_end(core, session, result);
                }
                if !core.filter_ended && !self.is_ending() {
                    let reason = DisconnectReason::Filter(FilterError::cut_off());
                    self.request_end(reason, Ending::Orderly);
                }
                return;
            }
        };
        if let Some(leftover) = leftover
            && !planted!(LeftoverLost)
        {
            lock(&self.mailbox).put_back(leftover);
        }
    }

    /// Hands over the frames in a piece; gives back what is left where receiving pauses.
    pub(super) fn look_at_piece(
        &self,
        core: &mut Core,
        session: &Session,
        mut piece: impl Piece,
    ) -> Option<Received> {
        let fed = catch_unwind(AssertUnwindSafe(|| self.feed(core, session, &mut piece)));
        match fed {
            // It was paused. Not asked once more: the pause may be over by now, and what is left
            // has its turn all the same.
            Ok(Ok(())) => {
                if has_input(core, &piece) {
                    return piece.into_received();
                }
            }
            Ok(Err(Stop::Frame(error))) => {
                tracing::debug!(session = self.id.0, peer = ?self.peer, %error, "no frame");
                self.request_end(DisconnectReason::Frame(error), Ending::Abrupt);
            }
            Ok(Err(Stop::Handler(error))) => self.handler_failed(error),
            Err(_) => self.panicked(),
        }
        None
    }

    fn look_at_end(&self, core: &mut Core, session: &Session, result: Result<(), Error>) {
        self.stream_ended(core, result.err());
        if result.is_ok() && core.stage == Stage::Open && !self.is_ending() {
            let mut after = AfterEnd::Disconnect;
            self.call(core, |handler| {
                after = handler.peer_ended(session);
                Ok(())
            });
            if after == AfterEnd::Disconnect {
                self.request_end(DisconnectReason::PeerEnded, Ending::Orderly);
            }
        }
    }

    fn start_receiving(&self) {
        let Some(stream) = lock(&self.outgoing).stream.clone() else { return };
        lock(&self.mailbox).receiving = true;
        if let Err(rejected) = stream.recv_continuous(Operation::new()) {
            lock(&self.mailbox).receiving = false;
            self.request_end(DisconnectReason::Failed(rejected.error()), Ending::Abrupt);
        }
    }

    /// Goes on with the end as far as it can just now; `true`: nothing is in flight any more.
    fn advance_end(self: &Arc<Self>, core: &mut Core, ending: Ending) -> bool {
        if core.stage == Stage::Open {
            core.stage = Stage::Flushing;
            core.drop_partial();
        }
        let receiving = {
            let mut mailbox = lock(&self.mailbox);
            // What still comes is not handed over, and its buffers are wanted elsewhere.
            mailbox.drop_received();
            mailbox.receiving
        };
        // Goes last, when no lock is held any more.
        let mut discarded = Discarded::default();
        let mut outgoing = lock(&self.outgoing);
        if self.filter.is_some() {
            self.discard_unready(&mut outgoing, &mut discarded);
        }
        let mut flushed = !outgoing.in_flight && !self.has_to_send(&outgoing);
        if ending == Ending::Abrupt && core.stage < Stage::Closed {
            self.discard(&mut outgoing, &mut discarded);
            if let Some(stream) = outgoing.stream.take() {
                drop(outgoing);
                close_abruptly(stream);
                outgoing = lock(&self.outgoing);
            }
            core.stage = Stage::Closed;
        }
        if core.stage == Stage::Flushing && flushed && self.end_filter() {
            flushed = false;
            self.start_send(outgoing);
            outgoing = lock(&self.outgoing);
        }
        if core.stage == Stage::Flushing && flushed {
            core.stage = Stage::Lingering;
            if receiving
                && let Some(stream) = &outgoing.stream
                && stream.shutdown(Shutdown::Write).is_err()
            {
                core.stage = Stage::Closed;
            }
        }
        if core.stage == Stage::Lingering && !receiving {
            core.stage = Stage::Closed;
        }
        let stream = if core.stage == Stage::Closed { outgoing.stream.take() } else { None };
        let in_flight = outgoing.in_flight;
        let completed_sends = outgoing.completed_sends;
        drop(outgoing);
        drop(stream);
        if core.stage < Stage::Closed && core.timed_stage != core.stage {
            core.timed_stage = core.stage;
            let timeouts = &self.service.timeouts;
            let flushing = core.stage == Stage::Flushing;
            self.watch_end(if flushing { timeouts.flush } else { timeouts.linger });
        }
        if core.stage < Stage::Closed || in_flight {
            return false;
        }
        let mut mailbox = lock(&self.mailbox);
        // The thread that has the packet of the last send is about to note it, and signals then.
        let is_untold = mailbox.noted_sends != completed_sends || mailbox.sent_bytes > 0;
        if mailbox.receiving || mailbox.scheduled || is_untold {
            return false;
        }
        mailbox.over = true;
        true
    }

    /// The last callback. Nothing is in flight, and nobody else has the core.
    fn finish(&self, mut core: Box<Core>, session: &Session) {
        self.unwatch_times();
        let reason = self.reason().cloned().unwrap_or(DisconnectReason::Local);
        tracing::debug!(session = self.id.0, peer = ?self.peer, %reason, "disconnected");
        let last = reason.clone();
        if core.begun {
            self.call(&mut core, |handler| {
                if planted!(DisconnectedTwice) && matches!(last, DisconnectReason::TimedOut(_)) {
                    handler.disconnected(session, last.clone());
                }
                handler.disconnected(session, last);
                if planted!(CallbackAfterEnd) {
                    handler.sent(session, 0);
                }
                Ok(())
            });
        }
        // The handler is the program's: it may panic when it is dropped.
        if catch_unwind(AssertUnwindSafe(|| drop(core))).is_err() {
            self.panicked();
        }
        let messages = lock(&self.mailbox).take_messages();
        if catch_unwind(AssertUnwindSafe(|| drop(messages))).is_err() {
            self.panicked();
        }
        self.service.runtime.registry.release(self.key);
        self.service.session_ended(self, &reason);
    }

    /// The port is closed and no packet comes any more: the session ends without.
    pub(super) fn finish_without_port(self: &Arc<Self>) {
        self.set_reason(DisconnectReason::ServiceStopped);
        self.flags.fetch_or(super::ENDING, Ordering::SeqCst);
        let mut discarded = Discarded::default();
        let stream = {
            let mut outgoing = lock(&self.outgoing);
            outgoing.refusing = true;
            outgoing.in_flight = false;
            self.discard(&mut outgoing, &mut discarded);
            outgoing.stream.take()
        };
        drop((stream, discarded));
        let core = {
            let mut mailbox = lock(&self.mailbox);
            mailbox.over = true;
            mailbox.drop_received();
            mailbox.core.take()
        };
        if let Some(core) = core {
            self.finish(core, &Session { shared: Arc::clone(self) });
        }
    }

    /// Whether an end was asked for.
    pub(super) fn is_ending(&self) -> bool {
        self.has(super::ENDING)
    }
}
