//! A client of the chat server: it checks every answer, and may misbehave.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::frames::{BROADCAST, Cutter, ECHO, frame};
use crate::sim::{Hand, Next, Peer, PeerError, Random, World};

/// What a client does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    Good,
    /// It resets the connection half way.
    Resets,
    /// It stops reading for ever.
    StopsReading,
    /// It falls silent.
    FallsSilent,
    /// It sends what is no frame.
    SendsNonsense,
    /// It goes in the middle of a frame.
    LeavesHalfAFrame,
}

pub(super) struct Client {
    world: World,
    random: Random,
    address: SocketAddr,
    peer: Option<Peer>,
    manners: Manners,
    number: u8,
    left: usize,
    unsent: Vec<u8>,
    expected: VecDeque<Vec<u8>>,
    cutter: Cutter,
    has_ended: bool,
    attempts: usize,
}

impl Client {
    pub(super) fn new(world: &World, address: SocketAddr, number: u8, messages: usize) -> Self {
        let mut random = world.random();
        let manners = match random.below(10) {
            0 => Manners::Resets,
            1 => Manners::StopsReading,
            2 => Manners::FallsSilent,
            3 => Manners::SendsNonsense,
            4 => Manners::LeavesHalfAFrame,
            _ => Manners::Good,
        };
        Self {
            world: world.clone(),
            random,
            address,
            peer: None,
            manners,
            number,
            left: messages,
            unsent: Vec::new(),
            expected: VecDeque::new(),
            cutter: Cutter::default(),
            has_ended: false,
            attempts: 0,
        }
    }

    pub(super) fn act(&mut self, hand: &Hand) -> Next {
        let (world, address) = (self.world.clone(), self.address);
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
            // Resets are the network's, the server's or ours: they end this client.
            Err(_) => return Next::Done,
        }
        let next = self.converse(&mut peer);
        if next != Next::Done {
            self.peer = Some(peer);
        }
        next
    }

    fn converse(&mut self, peer: &mut Peer) -> Next {
        let misbehaves = self.manners != Manners::Good && self.left == 0;
        if misbehaves && self.unsent.is_empty() {
            match self.manners {
                Manners::Resets => {
                    peer.reset();
                    return Next::Done;
                }
                Manners::SendsNonsense => self.unsent = vec![0; 7],
                Manners::LeavesHalfAFrame => {
                    let _ = peer.write(&frame(ECHO, b"never whole")[..6]);
                    return Next::Done;
                }
                _ => {}
            }
        }
        if self.unsent.is_empty() && self.left > 0 && self.expected.len() < 20 {
            self.compose();
        }
        let written = peer.write(&self.unsent).unwrap_or(0);
        self.unsent.drain(..written);
        if !(misbehaves && self.manners == Manners::StopsReading) {
            loop {
                match peer.read(self.random.between(1, 5000) as usize) {
                    Ok(bytes) if bytes.is_empty() => return self.ended(),
                    Ok(bytes) => self.check(&bytes),
                    Err(PeerError::WouldBlock) => break,
                    Err(_) => return Next::Done,
                }
            }
        }
        let is_through = self.left == 0 && self.unsent.is_empty() && self.expected.is_empty();
        if is_through && self.manners == Manners::Good && !self.has_ended {
            self.has_ended = true;
            peer.shutdown();
        }
        // More often than the server's idle time limit, while there is something to say.
        Next::After(Duration::from_millis(self.random.between(1, 400)))
    }

    fn compose(&mut self) {
        for _ in 0..self.random.between(1, 4).min(self.left as u64) {
            self.left -= 1;
            let kind = if self.random.chance(0.3) { BROADCAST } else { ECHO };
            let length = self.random.part_of(3000);
            let mut body = vec![self.number];
            body.extend((0..length).map(|_| self.random.bits() as u8));
            let bytes = frame(kind, &body);
            self.expected.push_back(bytes[2..].to_vec());
            self.unsent.extend(bytes);
        }
    }

    fn check(&mut self, bytes: &[u8]) {
        self.cutter.push(bytes);
        for frame in self.cutter.frames() {
            let is_anothers = frame[0] == BROADCAST && frame.get(1) != Some(&self.number);
            if is_anothers {
                continue;
            }
            if self.expected.pop_front().as_ref() != Some(&frame) {
                let (number, kind) = (self.number, char::from(frame[0]));
                self.world.violation(format!("client {number}: an answer {kind} that is wrong"));
            }
        }
    }

    /// The server ended the stream.
    fn ended(&mut self) -> Next {
        if self.has_ended && !self.expected.is_empty() {
            let (number, count) = (self.number, self.expected.len());
            self.world.violation(format!("client {number}: {count} answers are missing"));
        }
        Next::Done
    }
}
