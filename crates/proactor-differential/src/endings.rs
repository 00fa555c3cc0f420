//! Steps that end connections, in whole or in part.

use std::net::Shutdown;
use std::time::Duration;

use crate::random::hash;
use crate::streams::{PeerState, Place};
use crate::world::{Awaited, Stop, World};

impl World {
    /// Rules 57, 85 and 109.
    pub(crate) fn disconnect(&mut self, place: Place) -> Result<(), Stop> {
        if self.end(place).peer == PeerState::Reset {
            return self.pass_over("disconnect: reset");
        }
        let (stream, name) = (self.stream(place), self.name(place));
        let (number, result) = self.start(|operation| stream.disconnect(operation));
        self.say(format!("disconnect #{number} on {name}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        let mut awaited = Awaited::finals([number]);
        self.end(place).sending_ended = true;
        self.end_peer(place, PeerState::Ended, &mut awaited);
        self.collect_and_say(awaited).map(drop)
    }

    /// Rules 50 and 85.
    pub(crate) fn shutdown_sending(&mut self, place: Place) -> Result<(), Stop> {
        let end = self.end(place);
        if end.peer != PeerState::Sending || end.sending_ended {
            return self.pass_over("shutdown: the connection has ended in part");
        }
        let (stream, name) = (self.stream(place), self.name(place));
        let result = self.here_or_outside(|| stream.shutdown(Shutdown::Write));
        let result = result.map_err(|error| error.kind());
        self.say(format!("shut the sending side of {name} down: {result:?}"));
        let mut awaited = Awaited::default();
        self.end(place).sending_ended = true;
        self.end_peer(place, PeerState::Ended, &mut awaited);
        self.collect_and_say(awaited).map(drop)
    }

    /// The other end is told of an orderly end, behind what it has not read.
    fn end_peer(&mut self, place: Place, state: PeerState, awaited: &mut Awaited) {
        let peer = self.end(place.other());
        if peer.stream.is_none() || matches!(peer.peer, PeerState::Reset | PeerState::Closed) {
            return;
        }
        peer.peer = state;
        awaited.finals.extend(self.take_receives(place.other()));
    }

    /// Rule 84. What is unread is received first: nobody says what becomes of it.
    pub(crate) fn shutdown_receiving(&mut self, place: Place) -> Result<(), Stop> {
        let end = self.end(place);
        if end.peer != PeerState::Sending || end.receiving_ended {
            return self.pass_over("shutdown: the connection has ended in part");
        }
        self.drain(place)?;
        let (stream, name) = (self.stream(place), self.name(place));
        let result = self.here_or_outside(|| stream.shutdown(Shutdown::Read));
        let result = result.map_err(|error| error.kind());
        self.say(format!("shut the receiving side of {name} down: {result:?}"));
        self.end(place).receiving_ended = true;
        Ok(())
    }

    /// Receives what is unread.
    pub(crate) fn drain(&mut self, place: Place) -> Result<(), Stop> {
        let count = self.end(place).unread_bytes;
        if count == 0 || self.end(place).receiving_ended {
            return Ok(());
        }
        let bytes = self.receive_helper(place, count)?;
        let name = self.name(place);
        self.say(format!("received on {name} before: {count} bytes {:016x}", hash(&bytes)));
        self.end(place).unread_bytes = 0;
        self.check_content(place, &bytes)
    }

    /// Rules 74 and 75; at the other end 57. What is unread is received first, because a close
    /// that discards bytes may reset the peer (rule 87).
    pub(crate) fn close(&mut self, place: Place) -> Result<(), Stop> {
        self.drain(place)?;
        let name = self.name(place);
        let mut awaited = Awaited::finals(self.take_receives(place));
        self.end(place).stream = None;
        self.say(format!("close {name}"));
        self.end_peer(place, PeerState::Closed, &mut awaited);
        self.collect_and_say(awaited)?;
        self.forget_closed(place);
        Ok(())
    }

    /// Rule 86; at the other end 58.
    pub(crate) fn reset(&mut self, place: Place) -> Result<(), Stop> {
        let name = self.name(place);
        let end = self.end(place);
        if end.sending_ended || end.peer != PeerState::Sending {
            return self.pass_over("reset: the connection has ended in part");
        }
        self.drain(place)?;
        self.drain(place.other())?;
        let stream = self.stream(place);
        let linger = stream.options().and_then(|one| one.set_linger(Some(Duration::ZERO)));
        if let Err(error) = linger {
            return Err(self.wrong(format!("the linger option: {error}")));
        }
        let other = place.other();
        if !self.end(other).is_receiving() && !self.end(other).receiving_ended {
            // Somebody has to be told, so that what comes later does not race with the reset.
            self.receive(other, &[1])?;
        }
        let is_told = self.end(other).is_receiving();
        let mut awaited = Awaited::finals(self.take_receives(place));
        awaited.finals.extend(self.take_receives(other));
        self.end(place).stream = None;
        drop(stream);
        self.say(format!("reset {name}"));
        self.end(other).peer = PeerState::Reset;
        self.collect_and_say(awaited)?;
        if !is_told {
            self.end(other).stream = None;
        }
        self.forget_closed(place);
        Ok(())
    }

    /// Rule 71: sends to a peer that is gone end in a reset, sooner or later.
    pub(crate) fn send_to_closed(&mut self, place: Place) -> Result<(), Stop> {
        const ATTEMPTS: usize = 1000;
        let end = self.end(place);
        if end.peer != PeerState::Closed || end.sending_ended {
            return self.pass_over("send to a closed peer: there is none");
        }
        // What is unread when a reset comes may be lost.
        self.drain(place)?;
        let (stream, name) = (self.stream(place), self.name(place));
        // How many the system takes before it knows is not said, so they are not counted.
        for _ in 0..ATTEMPTS {
            let (number, result) =
                self.start_uncounted(|operation| stream.send(operation, "anybody?"));
            let kind = match result {
                Err(kind) => Some(kind),
                Ok(()) => self.collect(Awaited::finals([number]))?[0].error,
            };
            if let Some(kind) = kind {
                self.say(format!("sends on {name} to its closed peer end with {kind:?}"));
                drop(stream);
                return self.close(place);
            }
        }
        Err(self.wrong(format!("{ATTEMPTS} sends went out to a closed peer (rule 71)")))
    }

    /// A connection of which both ends are closed is no longer there.
    fn forget_closed(&mut self, place: Place) {
        if self.connections[place.connection].ends.iter().all(|end| end.stream.is_none()) {
            self.connections.remove(place.connection);
        }
    }
}
