//! The clients: peers that check every answer and misbehave, and the handler of a client service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::books::Books;
use super::server::{Room, compose, parse};
use super::wire::Wire;
use crate::service::{DisconnectReason, HandlerResult, Session, SessionHandler};
use crate::sim::{Hand, Next, Peer, PeerError, Random};

/// What a client does wrong, when it has said what it has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    Good,
    Resets,
    FallsSilent,
    /// It never says anything.
    NeverSpeaks,
    StopsReading,
    /// It goes in the middle of a frame.
    LeavesHalfAFrame,
    /// It stays in the middle of a frame.
    StaysInAFrame,
    Oversize,
    /// A byte now and then.
    Trickles,
}

const MANNERS: &[Manners] = &[
    Manners::Resets,
    Manners::FallsSilent,
    Manners::NeverSpeaks,
    Manners::StopsReading,
    Manners::LeavesHalfAFrame,
    Manners::StaysInAFrame,
    Manners::Oversize,
    Manners::Trickles,
];

/// What frames ask for. The rare ones end the session.
const KINDS: &[u8] = b"EEEEEEBBFFFJJNNPW";
const ENDING_KINDS: &[u8] = b"SDX";

pub(super) struct Client {
    room: Arc<Room>,
    random: Random,
    address: SocketAddr,
    wire: Wire,
    maximum_frame_bytes: usize,
    peer: Option<Peer>,
    manners: Manners,
    number: u32,
    left: usize,
    sequence: u32,
    unsent: Vec<u8>,
    /// Where frames end in what is unsent, from its start.
    ends: Vec<usize>,
    inbound: Vec<u8>,
    broadcasts: BTreeMap<u32, u32>,
    has_ended: bool,
    has_erred: bool,
    attempts: usize,
}

impl Client {
    pub(super) fn new(
        room: &Arc<Room>,
        address: SocketAddr,
        wire: Wire,
        maximum_frame_bytes: usize,
        messages: usize,
    ) -> Self {
        let mut random = room.books.world.random();
        let manners = if random.chance(0.5) {
            Manners::Good
        } else {
            MANNERS[random.below(MANNERS.len() as u64) as usize]
        };
        let number = room.books.new_number();
        Self {
            room: Arc::clone(room),
            random,
            address,
            wire,
            maximum_frame_bytes,
            peer: None,
            manners,
            number,
            left: if manners == Manners::NeverSpeaks { 0 } else { messages },
            sequence: 0,
            unsent: Vec::new(),
            ends: Vec::new(),
            inbound: Vec::new(),
            broadcasts: BTreeMap::new(),
            has_ended: false,
            has_erred: false,
            attempts: 0,
        }
    }

    fn books(&self) -> &Books {
        &self.room.books
    }

    pub(super) fn act(&mut self, hand: &Hand) -> Next {
        let (world, address) = (self.books().world.clone(), self.address);
        let mut peer = self.peer.take().unwrap_or_else(|| world.connect(address));
        hand.watch(&mut peer);
        match peer.state() {
            Ok(()) => {}
            Err(PeerError::WouldBlock) => {
                self.peer = Some(peer);
                return Next::After(Duration::from_secs(1));
            }
            Err(PeerError::NotConnected(_)) if self.attempts < 3 => {
                self.attempts += 1;
                return Next::After(Duration::from_secs(1));
            }
            Err(_) => return Next::Done,
        }
        let next = self.converse(&mut peer);
        if next != Next::Done {
            self.peer = Some(peer);
        }
        next
    }

    fn converse(&mut self, peer: &mut Peer) -> Next {
        if self.unsent.is_empty() && self.left > 0 {
            self.compose();
        }
        if self.unsent.is_empty() && self.left == 0 && !self.has_erred && self.misbehave(peer) {
            return Next::Done;
        }
        self.write(peer);
        if !(self.manners == Manners::StopsReading && self.left == 0) {
            loop {
                match peer.read(self.random.between(1, 5000) as usize) {
                    Ok(bytes) if bytes.is_empty() => {
                        self.books().ended_in_order(self.number);
                        return Next::Done;
                    }
                    Ok(bytes) => self.take(&bytes),
                    Err(PeerError::WouldBlock) => break,
                    Err(_) => return Next::Done,
                }
            }
        }
        let is_through = self.left == 0 && self.unsent.is_empty();
        if is_through && self.manners == Manners::Good && !self.has_ended {
            self.has_ended = true;
            peer.shutdown();
        }
        let pause = if self.manners == Manners::Trickles { 4000 } else { 400 };
        Next::After(Duration::from_millis(self.random.between(1, pause)))
    }

    /// Writes what there is room for, and counts the frames that are out whole.
    fn write(&mut self, peer: &mut Peer) {
        let most = match self.manners {
            Manners::Trickles => 1 + self.unsent.len() / 50,
            _ => self.unsent.len(),
        };
        let written = peer.write(&self.unsent[..most.min(self.unsent.len())]).unwrap_or(0);
        self.unsent.drain(..written);
        let whole = self.ends.iter().take_while(|end| **end <= written).count();
        self.ends.drain(..whole);
        self.ends.iter_mut().for_each(|end| *end -= written);
        if written > 0 {
            self.books().written(self.number, whole as u32);
        }
    }

    /// `true`: it is gone.
    fn misbehave(&mut self, peer: &mut Peer) -> bool {
        self.has_erred = true;
        let frame = self.wire.encode(&compose(b'E', self.number, self.sequence, 40));
        match self.manners {
            Manners::Resets => {
                peer.reset();
                return true;
            }
            Manners::LeavesHalfAFrame => {
                let _ = peer.write(&frame[..frame.len() / 2]);
                return true;
            }
            Manners::StaysInAFrame => self.unsent = frame[..frame.len() / 2].to_vec(),
            Manners::Oversize => {
                let payload = vec![b'x'; self.maximum_frame_bytes + 10];
                self.unsent = self.wire.encode(&payload);
            }
            _ => {}
        }
        false
    }

    fn compose(&mut self) {
        for _ in 0..self.random.between(1, 6).min(self.left as u64) {
            self.left -= 1;
            let kinds = if self.random.chance(0.005) { ENDING_KINDS } else { KINDS };
            let kind = kinds[self.random.below(kinds.len() as u64) as usize];
            let filler = self.random.part_of(self.maximum_frame_bytes / 3);
            let payload = compose(kind, self.number, self.sequence, filler);
            self.sequence += 1;
            self.unsent.extend(self.wire.encode(&payload));
            self.ends.push(self.unsent.len());
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.inbound.extend_from_slice(bytes);
        while let Some((payload, length)) = self.wire.decode(&self.inbound) {
            self.inbound.drain(..length);
            check(&self.room, self.number, &mut self.broadcasts, &payload);
        }
    }
}

/// Looks at a frame of the server's.
fn check(room: &Room, number: u32, broadcasts: &mut BTreeMap<u32, u32>, payload: &[u8]) {
    let world = &room.books.world;
    let Some((kind, of, sequence)) = parse(payload) else {
        return world.violation("a frame came that nobody sent");
    };
    if kind == b'b' {
        // Some may have been refused, but none overtakes another of the same origin.
        let before = broadcasts.insert(of, sequence);
        if before.is_some_and(|before| before >= sequence) {
            world.violation("broadcasts of one session overtook each other");
        }
        return;
    }
    if of != number {
        return world.violation("a frame came that was meant for another");
    }
    let filler = payload.iter().rev().take_while(|byte| byte.is_ascii_lowercase()).count();
    if compose(kind, of, sequence, filler) != payload {
        world.violation("a frame came with other bytes than were sent");
    }
    room.books.arrived(number, kind, sequence);
}

/// The handler of a client service's session: asks, checks, and asks again.
pub(super) struct Asker {
    room: Arc<Room>,
    number: u32,
    left: usize,
    sequence: u32,
    broadcasts: BTreeMap<u32, u32>,
}

impl Asker {
    pub(super) fn new(room: &Arc<Room>, messages: usize) -> Self {
        let number = room.books.new_number();
        Self {
            room: Arc::clone(room),
            number,
            left: messages,
            sequence: 0,
            broadcasts: BTreeMap::new(),
        }
    }

    fn ask(&mut self, session: &Session) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let kind = KINDS[(self.sequence as usize * 7) % KINDS.len()];
        let payload = compose(kind, self.number, self.sequence, 20 * (self.left % 9));
        if session.send(payload).is_ok() {
            self.sequence += 1;
        }
    }
}

impl SessionHandler for Asker {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        self.ask(session);
        self.ask(session);
        Ok(())
    }

    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        check(&self.room, self.number, &mut self.broadcasts, frame);
        self.ask(session);
        Ok(())
    }

    fn heartbeat(&mut self, session: &Session) {
        self.ask(session);
    }

    fn disconnected(&mut self, _session: &Session, reason: DisconnectReason) {
        if matches!(reason, DisconnectReason::PeerEnded) {
            self.room.books.ended_in_order(self.number);
        }
    }
}
