//! What the tests of the server layer share.

#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proactor::service::{
    DisconnectReason, HandlerResult, Limits, Runtime, ServerBuilder, ServerService, ServiceHandle,
    Session, SessionHandler, Timeouts,
};

use crate::common::{Ports, wait_until};

/// A runtime on the backend of the test: two threads at a time, and two spare ones.
pub fn runtime(ports: &Ports) -> Runtime {
    Runtime::builder().port(ports.builder()).concurrency(2).threads(4).build().unwrap()
}

/// Sends back what comes.
pub struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        Ok(session.send(frame)?)
    }
}

/// What happened to all sessions of a test, in the order of each.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<(u64, String)>>>);

impl Log {
    pub fn note(&self, session: &Session, what: impl Into<String>) {
        self.0.lock().unwrap().push((session.id().get(), what.into()));
    }

    /// Everything, without the sessions' ids.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }

    pub fn count(&self, start: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(_, what)| what.starts_with(start)).count()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        wait_until(what, || self.count(what) > 0);
    }

    /// Each session connected first, disconnected last, and each once.
    #[track_caller]
    pub fn check_order(&self) {
        let log = self.0.lock().unwrap();
        let mut sessions: HashMap<u64, Vec<&str>> = HashMap::new();
        for (id, what) in &*log {
            sessions.entry(*id).or_default().push(what);
        }
        for (id, events) in sessions {
            let connected = events.iter().filter(|what| **what == "connected").count();
            let disconnected =
                events.iter().filter(|what| what.starts_with("disconnected")).count();
            assert_eq!((connected, disconnected), (1, 1), "session {id}: {events:?}");
            assert_eq!(events[0], "connected", "session {id}: {events:?}");
            assert!(events.last().unwrap().starts_with("disconnected"), "session {id}: {events:?}");
        }
    }
}

/// Notes every callback; what it does on a frame is up to the test.
pub struct Noting<F> {
    pub log: Log,
    pub on_frame: F,
}

impl<F> SessionHandler for Noting<F>
where
    F: FnMut(&Session, &[u8]) -> HandlerResult + Send + 'static,
{
    fn connected(&mut self, session: &Session) -> HandlerResult {
        self.log.note(session, "connected");
        Ok(())
    }
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        let start = &frame[..frame.len().min(50)];
        self.log.note(session, format!("received {}", String::from_utf8_lossy(start)));
        (self.on_frame)(session, frame)
    }
    fn high_water(&mut self, session: &Session) {
        self.log.note(session, "high water");
    }
    fn low_water(&mut self, session: &Session) {
        self.log.note(session, "low water");
    }
    fn heartbeat(&mut self, session: &Session) {
        self.log.note(session, "heartbeat");
    }
    fn draining(&mut self, session: &Session) {
        self.log.note(session, "draining");
    }
    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        self.log.note(session, format!("disconnected: {reason}"));
    }
}

/// A server on the loopback whose handlers note what happens and then do `on_frame`.
pub fn noting<F>(log: &Log, on_frame: F) -> ServerBuilder
where
    F: FnMut(&Session, &[u8]) -> HandlerResult + Clone + Send + Sync + 'static,
{
    let log = log.clone();
    ServerService::builder(move |_| Noting { log: log.clone(), on_frame: on_frame.clone() })
        .listen("127.0.0.1:0")
}

/// No time limits, so that none ends a session that a test holds.
pub fn patient() -> Timeouts {
    Timeouts {
        handshake: None,
        idle: None,
        read: None,
        write: None,
        minimum_rate: None,
        ..Timeouts::default()
    }
}

pub fn limited(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

#[track_caller]
pub fn wait_for_sessions(service: &ServiceHandle, count: usize) {
    wait_until("the number of sessions", || service.session_count() == count);
}

/// Stops a server whose sessions all end in order, and within the time.
#[track_caller]
pub fn stop_cleanly(server: &ServerService) {
    let report = server.stop(Duration::ZERO);
    assert_eq!((report.aborted, report.left), (0, 0), "{report:?}");
}
