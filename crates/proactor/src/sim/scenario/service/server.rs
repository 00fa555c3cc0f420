//! The server's side: handlers that do all kinds of things with their sessions, and write down
//! what they are told.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::books::Books;
use crate::CompletionPort;
use crate::service::groups::{Groups, Membership};
use crate::service::job_queue::{JobQueue, JobTimer};
use crate::service::{AfterEnd, DisconnectReason, HandlerResult, Session, SessionHandler};

/// What all handlers share.
pub(super) struct Room {
    pub(super) books: Books,
    pub(super) groups: Groups<Session>,
    pub(super) jobs: JobQueue<()>,
    pub(super) timer: JobTimer,
    pub(super) port: Arc<CompletionPort>,
    /// Answers say more than was asked, so that queues fill.
    pub(super) flood: u32,
    pub(super) keeps_sending: bool,
}

pub(super) struct Handler {
    room: Arc<Room>,
    membership: Option<Membership<Session>>,
    /// The number of the connection, once a frame has told it.
    number: Option<u32>,
    floods: u32,
    heartbeats: u32,
}

/// A frame's kind, the connection's number, its place among the frames of this kind, and the rest.
pub(super) fn parse(frame: &[u8]) -> Option<(u8, u32, u32)> {
    let text = std::str::from_utf8(frame.get(1..)?).ok()?;
    let mut parts = text.splitn(3, ':');
    Some((frame[0], parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The same put together, with so many bytes more.
pub(super) fn compose(kind: u8, number: u32, sequence: u32, filler: usize) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend_from_slice(format!("{number}:{sequence}:").as_bytes());
    frame.extend((0..filler).map(|at| b'a' + (at % 23) as u8));
    frame
}

/// Sends a frame of a connection's own, and writes it down.
fn send(books: &Books, session: &Session, kind: u8, number: u32, sequence: u32, filler: usize) {
    books.sends(number, kind, sequence);
    let payload = compose(kind, number, sequence, filler);
    let sent = if sequence.is_multiple_of(3) {
        session.send_shared(Bytes::from(payload))
    } else {
        session.send(payload)
    };
    if sent.is_err() {
        books.refused(number, kind);
    }
}

impl Handler {
    pub(super) fn new(room: &Arc<Room>, session: &Session) -> Self {
        room.books.made(session);
        Self { room: Arc::clone(room), membership: None, number: None, floods: 0, heartbeats: 0 }
    }

    fn answer(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        let (kind, number, sequence) = parse(frame).ok_or("no such frame")?;
        let books = &self.room.books;
        self.number = Some(number);
        books.received(session, number, sequence);
        let filler = frame.len();
        match kind {
            b'E' => send(books, session, b'e', number, sequence, filler),
            b'B' => {
                let payload = Bytes::from(compose(b'b', number, sequence, filler));
                self.room.groups.broadcast("all", &payload);
            }
            b'F' => {
                for _ in 0..self.room.flood {
                    send(books, session, b'f', number, self.floods, 2 * filler);
                    self.floods += 1;
                }
            }
            b'J' => {
                let (room, session) = (Arc::clone(&self.room), session.clone());
                books.job_pushed();
                let pushed = self.room.jobs.push(move |_nothing| {
                    room.books.job_run();
                    send(&room.books, &session, b'j', number, sequence, filler);
                });
                if pushed.is_err() {
                    books.job_refused();
                }
            }
            b'N' => drop(session.notify((number, sequence, filler))),
            b'P' => self.pause(session),
            b'W' => self.room.port.blocking(|| {}),
            b'S' => session.end_sending(),
            b'D' => session.disconnect(),
            b'X' => session.abort(),
            _ => return Err("no frame of this kind".into()),
        }
        Ok(())
    }

    /// Receives nothing for a while.
    fn pause(&self, session: &Session) {
        self.room.books.holds(session);
        session.pause_receiving();
        let (room, same) = (Arc::clone(&self.room), session.clone());
        let delay = Duration::from_millis(u64::from(self.floods % 7) * 500 + 1);
        room.books.job_pushed();
        let resume = {
            let room = Arc::clone(&room);
            move |_nothing: &mut ()| {
                room.books.job_run();
                same.resume_receiving();
            }
        };
        if room.timer.push_after(&room.jobs, delay, resume).is_err() {
            room.books.job_refused();
            session.resume_receiving();
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.room.books.dropped();
    }
}

impl SessionHandler for Handler {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        self.room.books.enters(session, "connected");
        self.membership = self.room.groups.join("all", session.clone()).ok();
        self.room.books.leaves(session);
        Ok(())
    }

    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        self.room.books.enters(session, "received");
        let result = self.answer(session, frame);
        session.complete_handshake();
        self.room.books.leaves(session);
        result
    }

    fn sent(&mut self, session: &Session, _bytes: usize) {
        self.room.books.enters(session, "sent");
        self.room.books.leaves(session);
    }

    fn high_water(&mut self, session: &Session) {
        self.room.books.enters(session, "high_water");
        self.room.books.crossed(session, true);
        self.room.books.leaves(session);
    }

    fn low_water(&mut self, session: &Session) {
        self.room.books.enters(session, "low_water");
        self.room.books.crossed(session, false);
        self.room.books.leaves(session);
    }

    fn heartbeat(&mut self, session: &Session) {
        self.room.books.enters(session, "heartbeat");
        if let Some(number) = self.number {
            send(&self.room.books, session, b'h', number, self.heartbeats, 3);
            self.heartbeats += 1;
        }
        self.room.books.leaves(session);
    }

    fn notified(&mut self, session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        self.room.books.enters(session, "notified");
        if let Ok(message) = message.downcast::<(u32, u32, usize)>() {
            let (number, sequence, filler) = *message;
            send(&self.room.books, session, b'n', number, sequence, filler);
        }
        self.room.books.leaves(session);
        Ok(())
    }

    fn peer_ended(&mut self, session: &Session) -> AfterEnd {
        self.room.books.enters(session, "peer_ended");
        self.room.books.leaves(session);
        if self.room.keeps_sending {
            session.disconnect();
            return AfterEnd::KeepSending;
        }
        AfterEnd::Disconnect
    }

    fn draining(&mut self, session: &Session) {
        self.room.books.enters(session, "draining");
        self.room.books.draining(session);
        if let Some(number) = self.number {
            send(&self.room.books, session, b'g', number, 0, 10);
            if number.is_multiple_of(3) {
                session.disconnect();
            }
        }
        self.room.books.leaves(session);
    }

    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        self.room.books.enters(session, "disconnected");
        self.room.books.disconnected(session, &reason);
        self.room.books.leaves(session);
    }
}
