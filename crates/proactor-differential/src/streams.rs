//! Steps on connections. Both ends of a connection belong to the port.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use proactor::{ErrorKind, OperationKind, SendBuffer, StreamSocket};

use crate::packet::Packet;
use crate::random::{content, hash};
use crate::world::{Awaited, Stop, World};

/// Bytes that may be on their way to an end that does not receive; they fit the kernel's buffers.
const UNREAD_LIMIT_BYTES: usize = 16 * 1024;
/// The kernel's buffers of each end, so that they do not grow and a large send has to wait.
const KERNEL_BUFFER_BYTES: usize = 64 * 1024;

/// A connection between two sockets of the port.
pub(crate) struct Connection {
    pub(crate) name: usize,
    pub(crate) ends: [StreamEnd; 2],
}

/// How the other end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerState {
    Sending,
    /// It ended its sending side; it still receives.
    Ended,
    /// It closed its socket.
    Closed,
    /// It reset the connection, and this end was told.
    Reset,
}

/// One end, and the books of what it has to do yet.
pub(crate) struct StreamEnd {
    pub(crate) stream: Option<StreamSocket>,
    pub(crate) key: usize,
    /// Receives that wait, and the room of each.
    pub(crate) receives: VecDeque<(u64, usize)>,
    pub(crate) continuous: Option<u64>,
    /// What the peer has sent and no receive has brought.
    pub(crate) unread_bytes: usize,
    /// How far this end has come in the stream that it sends, and in the one that it receives.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sending_ended: bool,
    pub(crate) receiving_ended: bool,
    pub(crate) peer: PeerState,
    finished: Option<u64>,
}

impl StreamEnd {
    pub(crate) fn new(stream: StreamSocket, key: usize) -> Self {
        Self {
            stream: Some(stream),
            key,
            receives: VecDeque::new(),
            continuous: None,
            unread_bytes: 0,
            sent_bytes: 0,
            received_bytes: 0,
            sending_ended: false,
            receiving_ended: false,
            peer: PeerState::Sending,
            finished: None,
        }
    }

    /// Small buffers of a fixed size, and no delay.
    pub(crate) fn set_options(&self) -> io::Result<()> {
        let stream = self.stream.as_ref().expect("a new end is open");
        stream.set_nodelay(true)?;
        stream.options()?.set_send_buffer_size(KERNEL_BUFFER_BYTES)?;
        stream.options()?.set_recv_buffer_size(KERNEL_BUFFER_BYTES)
    }

    /// Which stream of bytes this end sends.
    pub(crate) fn content_sent(&self) -> u64 {
        self.key as u64
    }

    /// Which stream of bytes it receives: the other end's, whose key is the other of the two.
    pub(crate) fn content_received(&self) -> u64 {
        self.key as u64 ^ 1
    }

    fn room_of_receives(&self) -> usize {
        self.receives.iter().map(|(_, room)| room).sum()
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.continuous.is_some() || !self.receives.is_empty()
    }
}

/// An end that is open, by its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) connection: usize,
    pub(crate) end: usize,
}

impl Place {
    pub(crate) fn other(self) -> Self {
        Self { connection: self.connection, end: 1 - self.end }
    }
}

impl World {
    pub(crate) fn end(&mut self, place: Place) -> &mut StreamEnd {
        &mut self.connections[place.connection].ends[place.end]
    }

    pub(crate) fn name(&self, place: Place) -> String {
        format!("{}.{}", self.connections[place.connection].name, place.end)
    }

    pub(crate) fn stream(&mut self, place: Place) -> StreamSocket {
        self.end(place).stream.clone().expect("places are of ends that are open")
    }

    /// The ends that are open.
    pub(crate) fn open_ends(&self) -> Vec<Place> {
        let ends = self.connections.iter().enumerate().flat_map(|(connection, one)| {
            let open = one.ends.iter().enumerate().filter(|(_, end)| end.stream.is_some());
            open.map(move |(end, _)| Place { connection, end })
        });
        ends.collect()
    }

    /// Rules 56, 57, 59 to 62, 65, 84.
    pub(crate) fn receive(&mut self, place: Place, rooms: &[usize]) -> Result<(), Stop> {
        let end = self.end(place);
        if end.peer == PeerState::Reset && end.receiving_ended {
            return self.pass_over("receive: shut down and reset, which has no order");
        }
        let buffers: Vec<Vec<u8>> = rooms.iter().map(|&room| Vec::with_capacity(room)).collect();
        let (stream, name) = (self.stream(place), self.name(place));
        let (number, result) = self.start(|operation| match <[Vec<u8>; 1]>::try_from(buffers) {
            Ok([buffer]) => stream.recv(operation, buffer),
            Err(buffers) => stream.recv_vectored(operation, buffers),
        });
        let room: usize = rooms.iter().sum();
        let end = self.end(place);
        if end.peer == PeerState::Reset {
            // Rule 59 refuses it, if the reset is known: on what the kernel keeps to itself until
            // it is asked, the packet says the same (rules 45, 58).
            return self.say_reset(
                format!("receive #{number} on {name} {rooms:?}"),
                number,
                result,
            );
        }
        let waits = end.unread_bytes == 0 && end.peer == PeerState::Sending;
        let unread_bytes = end.unread_bytes;
        let from = if self.outside { " from another thread" } else { "" };
        self.say(format!("receive #{number} on {name} {rooms:?}{from}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        if waits {
            self.end(place).receives.push_back((number, room));
            return Ok(());
        }
        if room > 0 && unread_bytes > 0 {
            return self.receive_unread(place, number, room.min(unread_bytes));
        }
        self.end(place).finished = Some(number);
        self.collect_and_say(Awaited::finals([number])).map(drop)
    }

    /// A receive that meets what was sent before it. It ends with what is there (rule 56), and how
    /// much that is, is not promised where it came in pieces: the rest is received behind it, so
    /// that `count` bytes are the outcome.
    fn receive_unread(&mut self, place: Place, number: u64, count: usize) -> Result<(), Stop> {
        let mut packets = self.collect(Awaited::finals([number]))?;
        let first = packets.pop().expect("one packet was awaited");
        let mut bytes = first.content.clone();
        if first.error.is_some() || bytes.is_empty() || bytes.len() > count {
            return Err(self.wrong(format!("{count} bytes are there, but: {}", first.text())));
        }
        bytes.extend(self.receive_helper(place, count - bytes.len())?);
        self.end(place).finished = Some(number);
        let name = first.kind.name();
        self.say(format!(
            "  {name} #{number} key {}: {count} bytes {:016x}",
            first.key,
            hash(&bytes)
        ));
        self.end(place).unread_bytes -= count;
        self.check_content(place, &bytes)
    }

    /// Receives `count` bytes that are there or on their way.
    pub(crate) fn receive_helper(&mut self, place: Place, count: usize) -> Result<Vec<u8>, Stop> {
        let stream = self.stream(place);
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let room = Vec::with_capacity((count - bytes.len()).min(64 * 1024));
            let number = self.start_helper(|operation| stream.recv(operation, room))?;
            let packets = self.collect(Awaited::finals([number]))?;
            if packets[0].error.is_some() || packets[0].content.is_empty() {
                let (left, text) = (count - bytes.len(), packets[0].text());
                return Err(self.wrong(format!("{left} bytes should come, but: {text}")));
            }
            bytes.extend_from_slice(&packets[0].content);
        }
        Ok(bytes)
    }

    /// These bytes were received; they have to be what the peer sent.
    pub(crate) fn check_content(&mut self, place: Place, bytes: &[u8]) -> Result<(), Stop> {
        let end = self.end(place);
        let expected = content(end.content_received(), end.received_bytes, bytes.len());
        end.received_bytes += bytes.len() as u64;
        match bytes.iter().zip(&expected).position(|(got, expected)| got != expected) {
            None => Ok(()),
            Some(at) => {
                let name = self.name(place);
                Err(self
                    .wrong(format!("{name}: byte {at} of {} is not what was sent", bytes.len())))
            }
        }
    }

    /// A connection that was reset refuses, or ends what it takes; both count as one outcome.
    fn say_reset(
        &mut self,
        what: String,
        number: u64,
        result: Result<(), ErrorKind>,
    ) -> Result<(), Stop> {
        let kind = match result {
            Err(kind) => Some(kind),
            Ok(()) => self.collect(Awaited::finals([number]))?[0].error,
        };
        self.say(format!("{what}: ends with {kind:?}"));
        Ok(())
    }

    /// Rules 57, 58, 61 and 65, for the receive that goes on.
    pub(crate) fn receive_continuously(&mut self, place: Place) -> Result<(), Stop> {
        let end = self.end(place);
        if end.peer == PeerState::Reset && end.receiving_ended {
            return self.pass_over("receive continuously: shut down and reset");
        }
        let (stream, name) = (self.stream(place), self.name(place));
        let (number, result) = self.start(|operation| stream.recv_continuous(operation));
        let end = self.end(place);
        if end.peer == PeerState::Reset {
            return self.say_reset(
                format!("receive continuously #{number} on {name}"),
                number,
                result,
            );
        }
        let (unread_bytes, ended) = (end.unread_bytes, end.peer != PeerState::Sending);
        self.say(format!("receive continuously #{number} on {name}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        let mut awaited = Awaited::default();
        if unread_bytes > 0 {
            awaited.chunk_bytes.insert(number, unread_bytes);
        }
        if ended {
            awaited.finals.insert(number);
        } else {
            self.end(place).continuous = Some(number);
        }
        self.end(place).unread_bytes = 0;
        let packets = self.collect_and_say(awaited)?;
        self.check_received(place, &packets)
    }

    fn check_received(&mut self, place: Place, packets: &[Packet]) -> Result<(), Stop> {
        let key = self.end(place).key;
        for packet in packets.iter().filter(|packet| packet.key == key) {
            if matches!(packet.kind, OperationKind::Recv | OperationKind::RecvContinuous) {
                self.check_content(place, &packet.content)?;
            }
        }
        Ok(())
    }

    /// Rules 67 to 71; at the other end 56, 60 to 62. What is sent arrives in one piece, because it
    /// is one small send on a loopback with nothing in front of it, so what each waiting receive
    /// gets follows from the rules.
    pub(crate) fn send(&mut self, place: Place, sizes: &[usize]) -> Result<(), Stop> {
        let total: usize = sizes.iter().sum();
        if let Some(why) = self.obstacle_to_sending(place, total) {
            return self.pass_over(why);
        }
        let pieces = self.pieces(place, sizes);
        let (stream, name) = (self.stream(place), self.name(place));
        let (number, result) = self.start(|operation| match <[SendBuffer; 1]>::try_from(pieces) {
            Ok([piece]) => stream.send(operation, piece),
            Err(pieces) => stream.send_vectored(operation, pieces),
        });
        if self.end(place).peer == PeerState::Reset {
            return self.say_reset(format!("send #{number} on {name} {sizes:?}"), number, result);
        }
        self.say(format!("send #{number} on {name} {sizes:?}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        let mut awaited = Awaited::finals([number]);
        self.end(place).sent_bytes += total as u64;
        self.end(place).finished = Some(number);
        self.deliver(place.other(), total, &mut awaited);
        let packets = self.collect_and_say(awaited)?;
        self.check_received(place.other(), &packets)
    }

    fn obstacle_to_sending(&mut self, place: Place, total: usize) -> Option<&'static str> {
        let end = self.end(place);
        if end.peer == PeerState::Reset && end.sending_ended {
            return Some("send: shut down and reset, which has no order");
        }
        if end.peer == PeerState::Closed {
            return Some("send: what a closed peer does to one send is not said");
        }
        let peer = self.end(place.other());
        if peer.receiving_ended && peer.continuous.is_none() && total > peer.room_of_receives() {
            return Some("send: the peer was shut down, and has no room pending");
        }
        let over = peer.continuous.is_none() && peer.unread_bytes + total > UNREAD_LIMIT_BYTES;
        over.then_some("send: much is unread")
    }

    /// The next bytes of the stream that this end sends, in buffers of each kind.
    pub(crate) fn pieces(&mut self, place: Place, sizes: &[usize]) -> Vec<SendBuffer> {
        let end = self.end(place);
        let (stream, mut position) = (end.content_sent(), end.sent_bytes);
        let mut pieces = Vec::new();
        for &size in sizes {
            let bytes = content(stream, position, size);
            position += size as u64;
            pieces.push(if size % 2 == 0 {
                SendBuffer::from(bytes)
            } else {
                SendBuffer::from(Arc::<[u8]>::from(bytes))
            });
        }
        pieces
    }

    /// Books what arrives at an end: who is filled by it, and what is left.
    fn deliver(&mut self, place: Place, mut count: usize, awaited: &mut Awaited) {
        let end = self.end(place);
        if let (Some(number), true) = (end.continuous, count > 0) {
            *awaited.chunk_bytes.entry(number).or_default() += count;
            return;
        }
        while count > 0
            && let Some((number, room)) = end.receives.pop_front()
        {
            awaited.finals.insert(number);
            count -= room.min(count);
        }
        end.unread_bytes += count;
    }

    /// Rules 78 and 83.
    pub(crate) fn cancel_receive(&mut self, place: Place, which: usize) -> Result<(), Stop> {
        let end = self.end(place);
        let number = match (end.continuous.take(), which.checked_rem(end.receives.len())) {
            (Some(number), _) => number,
            (None, Some(index)) => end.receives.remove(index).expect("it is in range").0,
            (None, None) => return self.pass_over("cancel a receive: none is pending"),
        };
        let (stream, id, name) = (self.stream(place), self.id(number), self.name(place));
        let found = self.here_or_outside(|| stream.cancel(id));
        self.say(format!("cancel receive #{number} on {name}: {found}"));
        self.collect_and_say(Awaited::finals([number])).map(drop)
    }

    /// Rule 79.
    pub(crate) fn cancel_all(&mut self, place: Place) -> Result<(), Stop> {
        let numbers = self.take_receives(place);
        let (stream, name) = (self.stream(place), self.name(place));
        let count = self.here_or_outside(|| stream.cancel_all());
        self.say(format!("cancel all on {name}: {count}"));
        self.collect_and_say(Awaited::finals(numbers)).map(drop)
    }

    pub(crate) fn take_receives(&mut self, place: Place) -> Vec<u64> {
        let end = self.end(place);
        let receives = std::mem::take(&mut end.receives).into_iter().map(|(number, _)| number);
        receives.chain(end.continuous.take()).collect()
    }

    /// Rule 80.
    pub(crate) fn cancel_finished(&mut self, place: Place) -> Result<(), Stop> {
        let Some(number) = self.end(place).finished else {
            return self.pass_over("cancel what is done: nothing is");
        };
        let (stream, id, name) = (self.stream(place), self.id(number), self.name(place));
        let found = self.here_or_outside(|| stream.cancel(id));
        self.say(format!("cancel #{number} on {name}, which is done: {found}"));
        Ok(())
    }
}
