//! An associated source of a world: what is the same for each kind.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::{Arc, Weak};

use socket2::SockRef;

use super::connect::Listener;
use super::datagram::Datagrams;
use super::event::{EndpointId, Event, PortId, SourceId};
use super::file::File;
use super::kernel::{Garbage, Kernel, State};
use super::stream::Stream;
use crate::backend::BackendSource;
use crate::buffer::Consumer;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::Completion;

/// What the world knows of a source.
pub(crate) struct Source {
    pub(crate) me: Weak<SimSource>,
    pub(crate) port: PortId,
    pub(crate) key: usize,
    pub(crate) is_closed: bool,
    pub(crate) role: Role,
}

pub(crate) enum Role {
    Stream(Stream),
    Listener(Listener),
    Datagram(Datagrams),
    File(File),
}

/// A source that is not associated yet; dropping it closes it.
pub(crate) struct SimulatedSource {
    kernel: Arc<Kernel>,
    pub(crate) what: What,
}

/// What a source is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Stream(EndpointId),
    Listener(SocketAddr, usize),
    Datagram(SocketAddr),
    File(usize),
    /// It was associated.
    Taken,
}

impl SimulatedSource {
    pub(crate) fn new(kernel: &Arc<Kernel>, what: What) -> Self {
        Self { kernel: Arc::clone(kernel), what }
    }

    /// A new stream that is not connected.
    pub(crate) fn stream(kernel: &Arc<Kernel>, peer: SocketAddr) -> io::Result<Self> {
        let mut guard = kernel.lock();
        no_descriptor(&mut guard)?;
        let local = guard.free_address(&peer);
        let endpoint = guard.new_endpoint(local);
        drop(guard);
        Ok(Self::new(kernel, What::Stream(endpoint)))
    }

    /// A listener at `address`.
    pub(crate) fn listener(
        kernel: &Arc<Kernel>,
        address: SocketAddr,
        backlog: usize,
    ) -> io::Result<Self> {
        let mut guard = kernel.lock();
        let address = guard.choose_address(address);
        if guard.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        drop(guard);
        Ok(Self::new(kernel, What::Listener(address, backlog.max(1))))
    }

    pub(crate) fn is_of(&self, kernel: &Arc<Kernel>) -> bool {
        Arc::ptr_eq(&self.kernel, kernel)
    }
}

/// Fails where there is no descriptor for a new socket.
pub(super) fn no_descriptor(state: &mut State) -> io::Result<()> {
    if !state.lacks_descriptor() {
        return Ok(());
    }
    state.note(format_args!("no descriptor for a socket"));
    Err(Error::new(OperationKind::Associate, ErrorKind::TooManyOpenFiles).into())
}

impl Drop for SimulatedSource {
    fn drop(&mut self) {
        match self.what {
            What::Stream(endpoint) => self.kernel.lock().close_endpoint(endpoint),
            What::Listener(address, _) => {
                self.kernel.lock().listeners.remove(&address);
            }
            What::Datagram(address) => {
                self.kernel.lock().datagram_sockets.remove(&address);
            }
            What::File(_) | What::Taken => {}
        }
    }
}

/// The backend's side of a source.
pub(crate) struct SimSource {
    kernel: Arc<Kernel>,
    id: SourceId,
    key: usize,
    /// A real listener that stands for a simulated one: for its options.
    real: Option<socket2::Socket>,
}

impl SimSource {
    pub(crate) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }
}

impl State {
    /// An address of the loopback that nobody has.
    pub(crate) fn free_address(&mut self, like: &SocketAddr) -> SocketAddr {
        self.next_port_number = self.next_port_number.checked_add(1).unwrap_or(1024);
        let number = self.next_port_number;
        match like {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, number).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, number).into(),
        }
    }

    /// The address that was asked for, or a free one for port 0.
    pub(crate) fn choose_address(&mut self, wanted: SocketAddr) -> SocketAddr {
        if wanted.port() == 0 { self.free_address(&wanted) } else { wanted }
    }

    pub(crate) fn associate(
        &mut self,
        kernel: &Arc<Kernel>,
        port: PortId,
        mut source: SimulatedSource,
        key: usize,
    ) -> Arc<SimSource> {
        let what = std::mem::replace(&mut source.what, What::Taken);
        let id = self.sources.len();
        let role = match what {
            What::Stream(endpoint) => {
                self.endpoint(endpoint).set_source(id);
                Role::Stream(Stream::new(endpoint))
            }
            What::Listener(address, backlog) => {
                self.listeners.insert(address, id);
                Role::Listener(Listener::new(address, backlog))
            }
            What::Datagram(address) => {
                self.datagram_sockets.insert(address, id);
                Role::Datagram(Datagrams::new(address))
            }
            What::File(file) => Role::File(File::new(file)),
            What::Taken => unreachable!("a source is associated once"),
        };
        self.add_source(kernel, port, role, key, None)
    }

    pub(crate) fn associate_real(
        &mut self,
        kernel: &Arc<Kernel>,
        port: PortId,
        socket: socket2::Socket,
        address: SocketAddr,
        key: usize,
    ) -> Arc<SimSource> {
        self.listeners.insert(address, self.sources.len());
        let role = Role::Listener(Listener::new(address, 128));
        self.add_source(kernel, port, role, key, Some(socket))
    }

    fn add_source(
        &mut self,
        kernel: &Arc<Kernel>,
        port: PortId,
        role: Role,
        key: usize,
        real: Option<socket2::Socket>,
    ) -> Arc<SimSource> {
        let id = self.sources.len();
        let source = Arc::new(SimSource { kernel: Arc::clone(kernel), id, key, real });
        let me = Arc::downgrade(&source);
        self.sources.push(Source { me, port, key, is_closed: false, role });
        self.note(format_args!("source {id} on port {port}, key {key}"));
        source
    }

    /// Queues the packet of an operation that ended.
    pub(crate) fn finish(
        &mut self,
        source: SourceId,
        operation: Operation,
        bytes: usize,
        error: Option<ErrorKind>,
    ) {
        let error = error.map(|kind| Error::new(operation.kind(), kind));
        let this = &self.sources[source];
        let (flow, sequence) = match &this.role {
            Role::Stream(stream) => (Some(stream.endpoint), stream.sequence()),
            _ => (None, 0),
        };
        let port = this.port;
        let is_continuous = operation.kind() == OperationKind::RecvContinuous;
        let mut packet = Completion::finished(this.key, operation, bytes, error);
        if is_continuous {
            // The last packet has its place among the others, whatever ends them.
            packet.sequence = sequence;
        }
        self.push(port, packet, flow);
    }

    /// Queues the packet of an operation that the program ended.
    pub(crate) fn finish_ended(&mut self, source: SourceId, operation: Operation, kind: ErrorKind) {
        let bytes = operation.inner.done_bytes;
        self.finish(source, operation, bytes, Some(kind));
    }

    /// A cancel takes effect; `false` where there is nothing left of it.
    pub(crate) fn cancel_now(&mut self, source: SourceId, id: OperationId) -> bool {
        let Some(operation) = self.take_pending(source, id) else { return false };
        if planted!(LostCancel) && operation.kind() == OperationKind::Recv {
            self.garbage.push(Garbage::Operation(operation));
            return true;
        }
        self.finish_ended(source, operation, ErrorKind::Cancelled);
        true
    }

    fn queues(
        &mut self,
        source: SourceId,
    ) -> [Option<&mut std::collections::VecDeque<Operation>>; 2] {
        match &mut self.sources[source].role {
            Role::Stream(stream) => [Some(&mut stream.receives), Some(&mut stream.sends)],
            Role::Listener(listener) => [Some(&mut listener.accepts), None],
            Role::Datagram(datagrams) => {
                [Some(&mut datagrams.receives), Some(&mut datagrams.sends)]
            }
            Role::File(file) => [Some(&mut file.operations), None],
        }
    }

    fn take_pending(&mut self, source: SourceId, id: OperationId) -> Option<Operation> {
        if let Some(operation) = self.take_connect(source, Some(id)) {
            return Some(operation);
        }
        for queue in self.queues(source).into_iter().flatten() {
            let Some(mut place) = queue.iter().position(|operation| operation.id() == id) else {
                continue;
            };
            if planted!(CancelHitsNeighbour) {
                place = 0;
            }
            return queue.remove(place);
        }
        None
    }

    /// Takes everything that is pending.
    pub(crate) fn take_all(&mut self, source: SourceId) -> Vec<Operation> {
        let mut operations: Vec<Operation> = self.take_connect(source, None).into_iter().collect();
        for queue in self.queues(source).into_iter().flatten() {
            operations.extend(queue.drain(..));
        }
        operations
    }

    fn is_pending(&mut self, source: SourceId, id: OperationId) -> bool {
        let connecting = match &self.sources[source].role {
            Role::Stream(stream) => stream.connect.as_ref().is_some_and(|one| one.id() == id),
            _ => false,
        };
        connecting
            || self
                .queues(source)
                .into_iter()
                .flatten()
                .any(|queue| queue.iter().any(|operation| operation.id() == id))
    }

    /// The port closes: what is pending goes without a packet.
    pub(crate) fn abandon(&mut self, source: SourceId) {
        let operations = self.take_all(source);
        for operation in &operations {
            self.monitor.abandoned(operation.id(), operation.inner.done_bytes);
        }
        self.garbage.extend(operations.into_iter().map(Garbage::Operation));
    }

    fn close_source(&mut self, source: SourceId) {
        if std::mem::replace(&mut self.sources[source].is_closed, true) {
            return;
        }
        self.note(format_args!("source {source} closes"));
        let kind = match self.sources[source].role {
            Role::Stream(_) | Role::Datagram(_) => ErrorKind::ConnectionAborted,
            Role::Listener(_) | Role::File(_) => ErrorKind::Cancelled,
        };
        for operation in self.take_all(source) {
            if planted!(LostOnClose) && operation.kind() == OperationKind::Recv {
                self.garbage.push(Garbage::Operation(operation));
                continue;
            }
            self.monitor.cancelled(operation.id(), true);
            self.finish_ended(source, operation, kind);
        }
        match &self.sources[source].role {
            Role::Stream(stream) => {
                let (endpoint, resets) = (stream.endpoint, stream.resets_on_close);
                if resets && !self.endpoints[endpoint].is_reset {
                    self.reset(endpoint);
                }
                self.close_endpoint(endpoint);
            }
            Role::Listener(_) => self.close_listener(source),
            Role::Datagram(datagrams) => {
                self.datagram_sockets.remove(&datagrams.address);
            }
            Role::File(_) => {}
        }
        self.monitor.source_closed(source);
    }

    fn start(&mut self, source: SourceId, operation: Operation) -> Result<(), Rejected> {
        let this = &self.sources[source];
        if this.is_closed || self.ports[this.port].is_closed {
            let error = Error::new(operation.kind(), ErrorKind::PortClosed);
            return Err(Rejected::new(error, operation));
        }
        let (port, id) = (this.port, operation.id());
        let flow = match &this.role {
            Role::Stream(stream) => self.endpoints[stream.endpoint].peer,
            _ => None,
        };
        self.monitor.started(&operation, port, Some(source), flow, None);
        let number = self.monitor.number(id);
        let name = operation.kind().name();
        let no_buffer_space = self.faults.no_buffer_space;
        let is_refused = !matches!(this.role, Role::File(_)) && self.strikes(no_buffer_space);
        let this = &self.sources[source];
        let result = match (&this.role, operation.kind()) {
            _ if is_refused => Err((ErrorKind::InsufficientResources, operation)),
            (Role::Stream(_), OperationKind::Recv | OperationKind::RecvContinuous) => {
                self.start_receive(source, operation)
            }
            (Role::Stream(_), OperationKind::Send | OperationKind::Disconnect) => {
                self.start_send(source, operation)
            }
            (Role::Stream(_), OperationKind::Connect) => self.start_connect(source, operation),
            (Role::Listener(_), OperationKind::Accept) => {
                self.start_accept(source, operation);
                Ok(())
            }
            (Role::Datagram(_), OperationKind::RecvFrom | OperationKind::SendTo) => {
                self.start_datagram(source, operation)
            }
            (Role::File(_), OperationKind::ReadAt | OperationKind::WriteAt) => {
                self.start_file(source, operation);
                Ok(())
            }
            _ => Err((ErrorKind::InvalidInput, operation)),
        };
        match result {
            Ok(()) => {
                self.note(format_args!("source {source}: starts {name}#{number}"));
                Ok(())
            }
            Err((kind, operation)) => {
                self.monitor.refused(id);
                self.note(format_args!("source {source}: refuses {name}#{number}: {kind:?}"));
                Err(Rejected::new(Error::new(operation.kind(), kind), operation))
            }
        }
    }

    /// Looks at a source again, though nothing has happened.
    pub(crate) fn maybe_spurious(&mut self, event: Event) {
        let spurious = self.faults.spurious_wake;
        if self.strikes(spurious) {
            self.soon(event);
        }
    }
}

impl Consumer for SimSource {
    fn released(&self, held_bytes: usize) {
        self.kernel.lock().released(self.id, held_bytes);
    }
}

impl BackendSource for SimSource {
    fn key(&self) -> usize {
        self.key
    }

    fn socket(&self) -> io::Result<SockRef<'_>> {
        let text = "a source of a simulated world has no socket of the system";
        let none = || io::Error::new(io::ErrorKind::Unsupported, text);
        self.real.as_ref().map(SockRef::from).ok_or_else(none)
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        let guard = self.kernel.lock();
        match &guard.sources[self.id].role {
            Role::Stream(stream) => Ok(guard.endpoints[stream.endpoint].local),
            Role::Listener(listener) => Ok(listener.address),
            Role::Datagram(datagrams) => Ok(datagrams.address),
            Role::File(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn peer_address(&self) -> io::Result<SocketAddr> {
        let guard = self.kernel.lock();
        let Role::Stream(stream) = &guard.sources[self.id].role else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let endpoint = &guard.endpoints[stream.endpoint];
        let peer = endpoint.peer.filter(|_| endpoint.is_established());
        peer.map(|peer| guard.endpoints[peer].local)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn set_nodelay(&self, _nodelay: bool) -> io::Result<()> {
        Ok(())
    }

    fn reset_on_close(&self) -> io::Result<()> {
        if let Some(stream) = self.kernel.lock().stream(self.id) {
            stream.resets_on_close = true;
        }
        Ok(())
    }

    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected> {
        let mut guard = self.kernel.lock();
        guard.start(self.id, operation)?;
        drop(self.kernel.maybe_interrupt(guard));
        Ok(())
    }

    fn cancel(&self, operation: OperationId) -> bool {
        let mut guard = self.kernel.lock();
        if !guard.is_pending(self.id, operation) {
            return false;
        }
        let number = guard.monitor.number(operation);
        guard.note(format_args!("source {}: cancel of #{number}", self.id));
        guard.monitor.cancelled(operation, true);
        let late = guard.faults.late_cancel;
        if planted!(LostAcceptedOnCancel) {
            guard.lose_accepted(self.id);
        }
        if guard.strikes(late) {
            // It may be done before.
            guard.soon(Event::Cancel(self.id, operation));
        } else {
            guard.cancel_now(self.id, operation);
        }
        drop(self.kernel.maybe_interrupt(guard));
        true
    }

    fn cancel_all(&self) -> usize {
        let mut guard = self.kernel.lock();
        let operations = guard.take_all(self.id);
        let count = operations.len();
        for operation in operations {
            guard.monitor.cancelled(operation.id(), true);
            guard.finish_ended(self.id, operation, ErrorKind::Cancelled);
        }
        count
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        let mut guard = self.kernel.lock();
        let result = guard.shutdown(self.id, how);
        result.map_err(|kind| Error::new(OperationKind::Shutdown, kind))
    }

    fn close(&self) {
        self.kernel.lock().close_source(self.id);
    }
}
