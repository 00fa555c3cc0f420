//! Steps that make connections: accepts, connects, and what is refused on the way.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use proactor::{CompletionPort, ErrorKind, ListenSocket, OperationKind, StreamSocket};
use socket2::{Domain, Socket, Type};

use crate::packet::Packet;
use crate::streams::{Connection, StreamEnd};
use crate::world::{Awaited, KEY_CONNECTIONS, KEY_LISTENER, Stop, World};

/// Connections at once; a further connect is passed over.
const CONNECTION_LIMIT: usize = 5;

/// The listener, and what waits at it.
pub(crate) struct Listening {
    listener: ListenSocket,
    address: SocketAddr,
    /// An address that is taken and at which nobody listens.
    nobody: Socket,
    /// Accepts that are pending, oldest first.
    accepts: VecDeque<u64>,
    /// Connections that were made and not accepted, oldest first.
    backlog: VecDeque<(usize, StreamSocket)>,
}

impl Listening {
    pub(crate) fn new(port: &CompletionPort) -> io::Result<Self> {
        let nobody = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        nobody.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let (listener, address) = listen(port)?;
        Ok(Self { listener, address, nobody, accepts: VecDeque::new(), backlog: VecDeque::new() })
    }
}

fn listen(port: &CompletionPort) -> io::Result<(ListenSocket, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((port.associate(listener, KEY_LISTENER)?, address))
}

impl World {
    /// Rules 91, 94, 99.
    pub(crate) fn accept(&mut self) -> Result<(), Stop> {
        let listener = self.listening.listener.clone();
        let (number, result) = self.start(|operation| listener.accept(operation));
        self.say(format!("accept #{number}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        self.listening.accepts.push_back(number);
        let Some((name, connector)) = self.listening.backlog.pop_front() else { return Ok(()) };
        self.accepted(name, connector, Awaited::default())
    }

    /// Waits for the packet of the oldest accept, and puts both ends together.
    fn accepted(
        &mut self,
        name: usize,
        connector: StreamSocket,
        mut awaited: Awaited,
    ) -> Result<(), Stop> {
        awaited.finals.extend(self.listening.accepts.pop_front());
        let mut packets = self.collect_and_say(awaited)?;
        let is_accept = |packet: &&mut Packet| packet.kind == OperationKind::Accept;
        let packet = packets.iter_mut().find(is_accept).expect("an accept was awaited");
        let Some(accepted) = packet.accepted.take() else {
            return Err(self.wrong("an accept without a connection"));
        };
        let (peer, own) = (accepted.peer_address(), connector.local_address().ok());
        if peer != own {
            let text = format!("accepted {peer:?}, though it was the turn of {own:?} (rule 99)");
            return Err(self.wrong(text));
        }
        let key = KEY_CONNECTIONS + 2 * name;
        let acceptor = match self.port.associate(accepted, key + 1) {
            Ok(stream) => stream,
            Err(error) => return Err(self.wrong(format!("the accepted connection: {error}"))),
        };
        let ends = [StreamEnd::new(connector, key), StreamEnd::new(acceptor, key + 1)];
        for end in &ends {
            if let Err(error) = end.set_options() {
                return Err(self.wrong(format!("the options of the connection: {error}")));
            }
        }
        self.say(format!("  connection {name}"));
        self.connections.push(Connection { name, ends });
        Ok(())
    }

    /// Rules 78, 80, 98.
    pub(crate) fn cancel_accept(&mut self, which: usize) -> Result<(), Stop> {
        let Some(index) = which.checked_rem(self.listening.accepts.len()) else {
            return self.pass_over("cancel accept: none is pending");
        };
        let number = self.listening.accepts.remove(index).expect("the index is in range");
        let (listener, id) = (self.listening.listener.clone(), self.id(number));
        let found = self.here_or_outside(|| listener.cancel(id));
        self.say(format!("cancel accept #{number}: {found}"));
        self.collect_and_say(Awaited::finals([number])).map(drop)
    }

    /// Rule 79.
    pub(crate) fn cancel_all_accepts(&mut self) -> Result<(), Stop> {
        let numbers = std::mem::take(&mut self.listening.accepts);
        let listener = self.listening.listener.clone();
        let count = self.here_or_outside(|| listener.cancel_all());
        self.say(format!("cancel all accepts: {count}"));
        self.collect_and_say(Awaited::finals(numbers)).map(drop)
    }

    /// Rule 76. What waits in the backlog is accepted first: what becomes of it is not said.
    pub(crate) fn close_listener(&mut self) -> Result<(), Stop> {
        while !self.listening.backlog.is_empty() {
            self.accept()?;
        }
        let (listener, address) = match listen(&self.port) {
            Ok(new) => new,
            Err(error) => return Err(self.wrong(format!("a new listener: {error}"))),
        };
        self.listening.address = address;
        drop(std::mem::replace(&mut self.listening.listener, listener));
        let numbers = std::mem::take(&mut self.listening.accepts);
        self.say(format!("close the listener, {} accepts pending", numbers.len()));
        self.collect_and_say(Awaited::finals(numbers)).map(drop)
    }

    /// Rule 104; with an accept pending also 91 and 99.
    pub(crate) fn connect(&mut self) -> Result<(), Stop> {
        let live = self.connections.len() + self.listening.backlog.len();
        if live >= CONNECTION_LIMIT {
            return self.pass_over("connect: there are enough connections");
        }
        let address = self.listening.address;
        let (name, connector) = self.new_connector(address)?;
        self.connect_there(name, connector, address)
    }

    fn new_connector(&mut self, peer: SocketAddr) -> Result<(usize, StreamSocket), Stop> {
        let name = self.connections_so_far;
        self.connections_so_far += 1;
        match StreamSocket::for_peer(&self.port, &peer, KEY_CONNECTIONS + 2 * name) {
            Ok(stream) => Ok((name, stream)),
            Err(error) => Err(self.wrong(format!("a new socket: {error}"))),
        }
    }

    fn connect_there(
        &mut self,
        name: usize,
        connector: StreamSocket,
        address: SocketAddr,
    ) -> Result<(), Stop> {
        let (number, result) = self.start(|operation| connector.connect(operation, address));
        self.say(format!("connect #{number}: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        let awaited = Awaited::finals([number]);
        if !self.listening.accepts.is_empty() {
            return self.accepted(name, connector, awaited);
        }
        let packets = self.collect_and_say(awaited)?;
        if packets.iter().all(|packet| packet.error.is_none()) {
            self.listening.backlog.push_back((name, connector));
        }
        Ok(())
    }

    /// Rules 105 and 106.
    pub(crate) fn connect_to_nobody(&mut self, retry: bool) -> Result<(), Stop> {
        let nobody = self.listening.nobody.local_addr().ok().and_then(|one| one.as_socket());
        let nobody = nobody.expect("it was bound to an internet address");
        let (name, connector) = self.new_connector(nobody)?;
        let (number, result) = self.start(|operation| connector.connect(operation, nobody));
        self.say(format!("connect #{number} to nobody: {result:?}"));
        if result.is_err() {
            return Ok(());
        }
        self.collect_and_say(Awaited::finals([number]))?;
        let has_room = self.connections.len() + self.listening.backlog.len() < CONNECTION_LIMIT;
        if retry && has_room && self.left_out.first_of(&[106]).is_none() {
            return self.connect_there(name, connector, self.listening.address);
        }
        Ok(())
    }

    /// Rules 65, 73 and 109: what needs a connection is refused without one.
    pub(crate) fn use_unconnected(&mut self) -> Result<(), Stop> {
        let (_, stream) = self.new_connector(self.listening.address)?;
        let room = Vec::with_capacity(10);
        let results = [
            self.start(|operation| stream.recv(operation, room)),
            self.start(|operation| stream.recv_continuous(operation)),
            self.start(|operation| stream.send(operation, "unconnected")),
            self.start(|operation| stream.disconnect(operation)),
        ];
        let results: Vec<Result<(), ErrorKind>> = results.map(|(_, result)| result).to_vec();
        self.say(format!("use a socket without a connection: {results:?}"));
        if results.iter().any(Result::is_ok) {
            return Err(self.wrong("taken without a connection (rules 65, 73)"));
        }
        Ok(())
    }

    /// Rules 8 and 9.
    pub(crate) fn associate_twice(&mut self) -> Result<(), Stop> {
        let sockets = || -> io::Result<_> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            Ok((socket.try_clone()?, socket))
        };
        let (one, other) = match sockets() {
            Ok(pair) => pair,
            Err(error) => return Err(self.wrong(format!("a socket and its duplicate: {error}"))),
        };
        let key = KEY_CONNECTIONS - 1;
        let first = self.port.associate(one, key);
        let second = self.port.associate(other, key);
        let [first, second] = [first, second].map(|result| match result {
            Ok(socket) => Ok(socket.key()),
            Err(error) => Err(error.error().kind()),
        });
        self.say(format!("associate a socket: {first:?}, then its duplicate: {second:?}"));
        Ok(())
    }

    /// A step that has nothing to do here.
    pub(crate) fn pass_over(&mut self, why: &str) -> Result<(), Stop> {
        self.say(format!("passed over: {why}"));
        Ok(())
    }

    /// Closes what still waits to be accepted, at the end of everything.
    pub(crate) fn accept_the_rest(&mut self) -> Result<(), Stop> {
        while !self.listening.backlog.is_empty() {
            self.accept()?;
        }
        self.close_listener()
    }
}
