//! One connection of an event loop: what is done when it is ready.

use std::io::{self, Read, Write};

use super::poller::{Event, Wanted};
use super::stream::Stream;
use crate::echo::stall::Handler;
use crate::echo::totals::Tally;

/// How many buffers a session may receive before the others have their turn.
const READS_PER_TURN: usize = 16;

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What comes is sent back.
    Echoing,
    /// Nothing is read any more; what has come is being sent.
    Finishing,
    /// The server is ending, and the client is not: what it still sends is discarded, because
    /// closing with unread bytes would reset the connection and might lose what was sent.
    Lingering,
}

/// What a session does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits until it is ready again.
    Waits,
    /// It has had its turn and is still ready.
    Again,
    /// It is over.
    Over,
}

/// What a loop lends to its sessions.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) handler: Handler,
    pub(super) tally: &'a mut Tally,
    pub(super) is_edge_triggered: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    stream: Stream,
    phase: Phase,
    /// Received and not sent yet: the client does not take it. Empty, and without memory, else.
    unsent: Vec<u8>,
    unsent_from: usize,
    is_readable: bool,
    is_writable: bool,
    /// The end of the stream, or an error, is behind what is still to be read.
    is_closed: bool,
    peer_has_ended: bool,
    /// Nothing was discarded since the last look (while lingering).
    is_quiet: bool,
    /// It is on the loop's list of those that have had their turn and are still ready.
    pub(super) is_queued: bool,
}

impl Session {
    /// A session of a connection, of which nothing is known yet.
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            phase: Phase::Echoing,
            unsent: Vec::new(),
            unsent_from: 0,
            is_readable: false,
            // A new connection takes bytes; where it does not, that is found out by trying.
            is_writable: true,
            is_closed: false,
            peer_has_ended: false,
            is_quiet: false,
            is_queued: false,
        }
    }

    /// The socket.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What it waits for, where that has to be said at every call.
    pub(super) fn wanted(&self) -> Wanted {
        let has_unsent = !self.unsent.is_empty();
        let reads = match self.phase {
            Phase::Echoing => !has_unsent,
            Phase::Finishing => false,
            Phase::Lingering => true,
        };
        Wanted { read: reads, write: has_unsent }
    }

    /// Notes what the loop was told.
    pub(super) fn note(&mut self, event: Event) {
        self.is_readable |= event.readable;
        self.is_writable |= event.writable;
        self.is_closed |= event.is_closed;
    }

    /// Does what can be done without blocking.
    pub(super) fn go_on(&mut self, lent: &mut Lent<'_>) -> Next {
        match self.turn(lent) {
            Ok(next) => next,
            Err(error) => {
                // Everything is sent while it lingers: nothing is lost.
                if self.phase != Phase::Lingering {
                    lent.tally.count_failure(&error);
                }
                Next::Over
            }
        }
    }

    fn turn(&mut self, lent: &mut Lent<'_>) -> io::Result<Next> {
        for _ in 0..READS_PER_TURN {
            if !self.send_unsent(lent)? {
                return Ok(Next::Waits);
            }
            match self.phase {
                Phase::Echoing | Phase::Lingering if !self.is_readable => return Ok(Next::Waits),
                Phase::Echoing => self.echo(lent)?,
                Phase::Finishing => {
                    self.stream.end()?;
                    if self.peer_has_ended {
                        return Ok(Next::Over);
                    }
                    self.phase = Phase::Lingering;
                }
                Phase::Lingering => match self.receive(lent)? {
                    Some(0) => return Ok(Next::Over),
                    Some(_) => self.is_quiet = false,
                    None => {}
                },
            }
        }
        Ok(Next::Again)
    }

    /// Receives once, and sends it back.
    fn echo(&mut self, lent: &mut Lent<'_>) -> io::Result<()> {
        let count = match self.receive(lent)? {
            None => return Ok(()),
            Some(0) => {
                self.peer_has_ended = true;
                self.phase = Phase::Finishing;
                return Ok(());
            }
            Some(count) => count,
        };
        lent.tally.bytes_received += count as u64;
        lent.handler.handle(&lent.buffer[..count]);
        let sent = self.send(&lent.buffer[..count], lent.tally)?;
        if sent < count {
            self.unsent.extend_from_slice(&lent.buffer[sent..count]);
            self.unsent_from = 0;
        }
        Ok(())
    }

    /// Receives into the loop's buffer; `None` where nothing is there.
    fn receive(&mut self, lent: &mut Lent<'_>) -> io::Result<Option<usize>> {
        match retry(|| (&self.stream).read(lent.buffer))? {
            Some(count) => {
                // What the loop waits with tells of it again; or, with edges, less than was asked
                // for means that there is no more (epoll(7)), unless the end is behind it. Where
                // there is no epoll, mio tells of more only after a call that would have blocked.
                let may_have_more =
                    count == lent.buffer.len() || self.is_closed || !cfg!(target_os = "linux");
                self.is_readable = lent.is_edge_triggered && may_have_more;
                Ok(Some(count))
            }
            None => {
                self.is_readable = false;
                Ok(None)
            }
        }
    }

    /// Sends what was left; `false` where the client still does not take all of it.
    fn send_unsent(&mut self, lent: &mut Lent<'_>) -> io::Result<bool> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        if !self.is_writable {
            return Ok(false);
        }
        let unsent = std::mem::take(&mut self.unsent);
        self.unsent_from += self.send(&unsent[self.unsent_from..], lent.tally)?;
        if self.unsent_from < unsent.len() {
            self.unsent = unsent;
        }
        Ok(self.unsent.is_empty())
    }

    /// Sends as much as the system takes.
    fn send(&mut self, bytes: &[u8], tally: &mut Tally) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match retry(|| (&self.stream).write(&bytes[sent..]))? {
                Some(count) => {
                    sent += count;
                    tally.bytes_sent += count as u64;
                }
                None => {
                    self.is_writable = false;
                    break;
                }
            }
        }
        Ok(sent)
    }

    /// Stops reading, because the server drains. What has been received is still sent.
    pub(super) fn drain(&mut self) {
        if self.phase == Phase::Echoing {
            self.phase = Phase::Finishing;
        }
    }

    /// Whether it lingers, and nothing has come since the last look.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.phase == Phase::Lingering && std::mem::replace(&mut self.is_quiet, true)
    }
}

/// Makes a call that does not block; `None` where it would.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
