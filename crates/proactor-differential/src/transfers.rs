//! Steps that move more than the kernel's buffers hold.

use std::collections::{BTreeSet, VecDeque};

use proactor::{ErrorKind, OperationKind, SendBuffer};

use crate::random::{content, hash};
use crate::step::Reading;
use crate::streams::{PeerState, Place};
use crate::world::{Awaited, Stop, World};

/// Far more than both ends' kernel buffers, so that it cannot all go out.
const LARGE_SEND_BYTES: usize = 4 * 1024 * 1024;
/// The bytes of large sends are of a stream of their own, because how many go out is not said.
const LARGE_SEND_CONTENT: u64 = 1 << 40;

impl World {
    /// Rules 56, 61, 67 and 69: several sends, received as they come. How the bytes are cut is not
    /// promised; that they come, all and in order, is.
    pub(crate) fn transfer(
        &mut self,
        place: Place,
        sends: &[Vec<usize>],
        reading: Reading,
    ) -> Result<(), Stop> {
        if let Some(why) = self.obstacle_to_transfer(place) {
            return self.pass_over(why);
        }
        let other = place.other();
        if !self.end(other).receives.is_empty() {
            self.cancel_all(other)?;
        }
        let mut sending = BTreeSet::new();
        let mut goal = self.end(other).unread_bytes;
        let stream = self.stream(place);
        let name = self.name(place);
        for sizes in sends {
            let mut pieces = self.pieces(place, sizes);
            let (number, result) = self.start(|operation| match pieces.len() {
                1 => stream.send(operation, pieces.remove(0)),
                _ => stream.send_vectored(operation, pieces),
            });
            self.say(format!("send #{number} on {name} {sizes:?}: {result:?}"));
            if result.is_err() {
                return Err(self.wrong("refused, though nothing forbids it"));
            }
            sending.insert(number);
            let total: usize = sizes.iter().sum();
            self.end(place).sent_bytes += total as u64;
            goal += total;
        }
        self.end(other).unread_bytes = 0;
        let bytes = match (self.end(other).continuous, reading) {
            (Some(number), _) => self.read_continuously(number, sending, goal)?,
            (None, Reading::Continuous) => self.read_for_a_while(other, sending, goal)?,
            (None, Reading::Receives { pending, room }) => {
                self.read_piece_by_piece(other, sending, goal, pending, room)?
            }
        };
        self.say(format!("  received in all: {goal} bytes {:016x}", hash(&bytes)));
        self.check_content(other, &bytes)
    }

    fn obstacle_to_transfer(&mut self, place: Place) -> Option<&'static str> {
        let end = self.end(place);
        if end.sending_ended || matches!(end.peer, PeerState::Closed | PeerState::Reset) {
            return Some("transfer: the connection has ended");
        }
        let other = self.end(place.other());
        other.receiving_ended.then_some("transfer: the peer was shut down")
    }

    /// A continuous receive that was there before takes it all, and goes on.
    fn read_continuously(
        &mut self,
        receive: u64,
        sending: BTreeSet<u64>,
        goal: usize,
    ) -> Result<Vec<u8>, Stop> {
        let mut awaited = Awaited::finals(sending);
        if goal > 0 {
            awaited.chunk_bytes.insert(receive, goal);
        }
        let mut packets = self.collect(awaited)?;
        let mut bytes = Vec::new();
        packets.retain_mut(|packet| {
            if packet.more {
                bytes = std::mem::take(&mut packet.content);
            }
            packet.kind == OperationKind::Send
        });
        self.say_packets(&mut packets);
        Ok(bytes)
    }

    /// A continuous receive of the step's own, which is cancelled at the end (rule 78).
    fn read_for_a_while(
        &mut self,
        place: Place,
        sending: BTreeSet<u64>,
        goal: usize,
    ) -> Result<Vec<u8>, Stop> {
        let stream = self.stream(place);
        let number = self.start_helper(|operation| stream.recv_continuous(operation))?;
        let bytes = self.read_continuously(number, sending, goal)?;
        let id = self.id(number);
        if self.here_or_outside(|| stream.cancel(id)) {
            self.expect_cancelled([number])?;
        } else if self.end(place).peer == PeerState::Sending {
            return Err(self.wrong("a pending receive could not be cancelled (rule 78)"));
        } else {
            // The end of the stream came behind the bytes, and ended it (rule 57).
            self.collect(Awaited::finals([number]))?;
        }
        Ok(bytes)
    }

    /// So many receives at a time, until everything is there; the rest is cancelled.
    fn read_piece_by_piece(
        &mut self,
        place: Place,
        mut sending: BTreeSet<u64>,
        goal: usize,
        pending: usize,
        room: usize,
    ) -> Result<Vec<u8>, Stop> {
        let stream = self.stream(place);
        let mut receives = VecDeque::new();
        let mut sent = Vec::new();
        let mut bytes = Vec::new();
        while bytes.len() < goal || !sending.is_empty() {
            while receives.len() < pending && bytes.len() < goal {
                let room = Vec::with_capacity(room);
                receives.push_back(self.start_helper(|operation| stream.recv(operation, room))?);
            }
            let got = bytes.len();
            let packet = self.next_packet(|| format!("{sending:?}, {got} of {goal} bytes came"))?;
            if sending.remove(&packet.number) {
                sent.push(packet);
            } else if receives.front() == Some(&packet.number) && packet.error.is_none() {
                receives.pop_front();
                bytes.extend_from_slice(&packet.content);
            } else {
                return Err(self.unexpected(&packet));
            }
        }
        self.say_packets(&mut sent);
        self.here_or_outside(|| stream.cancel_all());
        self.expect_cancelled(receives)?;
        Ok(bytes)
    }

    /// These operations end, and nothing comes with them, unless the stream has ended.
    fn expect_cancelled(&mut self, numbers: impl IntoIterator<Item = u64>) -> Result<(), Stop> {
        for packet in self.collect(Awaited::finals(numbers))? {
            let is_end = packet.error.is_none() || packet.error == Some(ErrorKind::Cancelled);
            if !is_end || packet.bytes > 0 {
                return Err(self.wrong(format!("it was cancelled, but: {}", packet.text())));
            }
        }
        Ok(())
    }

    /// Rules 17 and 78: a send that waits for room is cancelled, and says how much went out; so
    /// much comes out at the other end, and nothing of what was queued behind it.
    pub(crate) fn cancel_large_send(&mut self, place: Place) -> Result<(), Stop> {
        if let Some(why) = self.obstacle_to_transfer(place) {
            return self.pass_over(why);
        }
        let other = place.other();
        let is_receiving = self.end(other).continuous.is_some();
        if is_receiving || !self.end(other).receives.is_empty() {
            self.cancel_all(other)?;
        }
        self.drain(other)?;
        let stream = self.stream(place);
        let bytes = content(LARGE_SEND_CONTENT, 0, LARGE_SEND_BYTES);
        let (first, one) = self.start(|operation| stream.send(operation, bytes));
        let behind = SendBuffer::from("behind it");
        let (second, two) = self.start(|operation| stream.send(operation, behind));
        if one.is_err() || two.is_err() {
            return Err(self.wrong(format!("refused, though nothing forbids it: {one:?}, {two:?}")));
        }
        let ids = [self.id(second), self.id(first)];
        let found = self.here_or_outside(|| ids.map(|id| stream.cancel(id)));
        let name = self.name(place);
        // Said before the wait: should a packet be missing, this tells whose fault it is.
        self.say(format!("cancel sends #{second} and #{first} on {name}: {found:?}"));
        let packets = self.collect(Awaited::finals([first, second]))?;
        let (mut gone, mut ends) = (0, Vec::new());
        for packet in &packets {
            ends.push(packet.error);
            if packet.number == first {
                gone = packet.bytes;
            } else if packet.bytes > 0 {
                return Err(self.wrong(format!("it went out all the same: {}", packet.text())));
            }
        }
        self.say(format!("  they ended: {ends:?}"));
        let got = self.receive_helper(other, gone)?;
        if got != content(LARGE_SEND_CONTENT, 0, gone) {
            return Err(self.wrong("what went out of a cancelled send is not its beginning"));
        }
        self.say("  what it says went out has come".to_owned());
        Ok(())
    }
}
