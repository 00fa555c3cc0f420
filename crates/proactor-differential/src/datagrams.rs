//! Steps on two datagram sockets that send to each other.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use proactor::{CompletionPort, DatagramSocket, OperationKind};

use crate::random::content;
use crate::world::{Awaited, KEY_DATAGRAMS, Stop, World};

/// Datagrams that may wait at a socket; they fit the kernel's buffers.
const WAITING_LIMIT: usize = 16;

/// The two sockets.
pub(crate) struct Datagrams {
    sockets: [Datagram; 2],
    sent: u64,
}

struct Datagram {
    socket: DatagramSocket,
    address: SocketAddr,
    /// Receives that are pending, oldest first.
    receives: VecDeque<u64>,
    /// How many datagrams were sent to it and not received.
    waiting: usize,
}

impl Datagrams {
    pub(crate) fn new(port: &CompletionPort) -> io::Result<Self> {
        Ok(Self { sockets: [open(port, 0)?, open(port, 1)?], sent: 0 })
    }
}

fn open(port: &CompletionPort, index: usize) -> io::Result<Datagram> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    let socket = port.associate(socket, KEY_DATAGRAMS + index)?;
    Ok(Datagram { socket, address, receives: VecDeque::new(), waiting: 0 })
}

impl World {
    /// Rules 60, 61, 112 to 114.
    pub(crate) fn receive_datagram(&mut self, index: usize, room: usize) -> Result<(), Stop> {
        let socket = self.datagrams.sockets[index].socket.clone();
        let buffer = Vec::with_capacity(room);
        let (number, result) = self.start(|operation| socket.recv_from(operation, buffer));
        self.say(format!("receive datagram #{number} at {index}, room {room}: {result:?}"));
        let datagram = &mut self.datagrams.sockets[index];
        if result.is_err() {
            return Ok(());
        }
        if datagram.waiting == 0 {
            datagram.receives.push_back(number);
            return Ok(());
        }
        datagram.waiting -= 1;
        self.collect_datagrams(index, Awaited::finals([number]))
    }

    /// Rules 112 to 114, 117, 140.
    pub(crate) fn send_datagram(&mut self, from: usize, size: usize) -> Result<(), Stop> {
        let to = 1 - from;
        if self.datagrams.sockets[to].waiting >= WAITING_LIMIT {
            return self.pass_over("send datagram: many wait");
        }
        let socket = self.datagrams.sockets[from].socket.clone();
        let address = self.datagrams.sockets[to].address;
        let bytes = content(1_000 + self.datagrams.sent, 0, size);
        self.datagrams.sent += 1;
        let (number, result) = self.start(|operation| socket.send_to(operation, bytes, address));
        self.say(format!("send datagram #{number} from {from}, {size} bytes: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        let mut awaited = Awaited::finals([number]);
        let receiver = &mut self.datagrams.sockets[to];
        match receiver.receives.pop_front() {
            Some(receive) => drop(awaited.finals.insert(receive)),
            None => receiver.waiting += 1,
        }
        self.collect_datagrams(to, awaited)
    }

    fn collect_datagrams(&mut self, at: usize, awaited: Awaited) -> Result<(), Stop> {
        let sender = self.datagrams.sockets[1 - at].address;
        for packet in self.collect_and_say(awaited)? {
            if packet.kind == OperationKind::RecvFrom && packet.from != Some(sender) {
                let text = format!("it says it came from {:?} (rule 112)", packet.from);
                return Err(self.wrong(text));
            }
        }
        Ok(())
    }

    /// Rule 78.
    pub(crate) fn cancel_datagram(&mut self, index: usize, which: usize) -> Result<(), Stop> {
        let datagram = &mut self.datagrams.sockets[index];
        let Some(which) = which.checked_rem(datagram.receives.len()) else {
            return self.pass_over("cancel datagram: none is pending");
        };
        let number = datagram.receives.remove(which).expect("the index is in range");
        let (socket, id) = (datagram.socket.clone(), self.id(number));
        let found = self.here_or_outside(|| socket.cancel(id));
        self.say(format!("cancel datagram receive #{number}: {found}"));
        self.collect_and_say(Awaited::finals([number])).map(drop)
    }

    /// Rule 79.
    pub(crate) fn cancel_all_datagrams(&mut self, index: usize) -> Result<(), Stop> {
        let datagram = &mut self.datagrams.sockets[index];
        let (socket, numbers) = (datagram.socket.clone(), std::mem::take(&mut datagram.receives));
        let count = self.here_or_outside(|| socket.cancel_all());
        self.say(format!("cancel all datagrams at {index}: {count}"));
        self.collect_and_say(Awaited::finals(numbers)).map(drop)
    }

    /// Rules 74 and 75. Another socket takes its place.
    pub(crate) fn close_datagram_socket(&mut self, index: usize) -> Result<(), Stop> {
        // What was sent and waits at the other socket names the old one as its sender.
        while self.datagrams.sockets[1 - index].waiting > 0 {
            self.receive_datagram(1 - index, 2_000)?;
        }
        let new = match open(&self.port, index) {
            Ok(new) => new,
            Err(error) => return Err(self.wrong(format!("a new datagram socket: {error}"))),
        };
        let old = std::mem::replace(&mut self.datagrams.sockets[index], new);
        drop(old.socket);
        self.say(format!("close datagram socket {index}"));
        self.collect_and_say(Awaited::finals(old.receives)).map(drop)
    }
}
