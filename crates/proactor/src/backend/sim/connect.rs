//! Connecting and accepting.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::event::{EndpointId, Event, SourceId};
use super::kernel::{SECOND, State};
use super::source::{Role, SimulatedSource, What};
use crate::error::ErrorKind;
use crate::operation::{Operation, OperationId, Payload};
use crate::port::Accepted;

/// Attempts of a connect that a full backlog does not answer.
const ATTEMPTS: u32 = 6;

pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    limit: usize,
    /// Connections that stand and were not accepted, oldest first.
    backlog: VecDeque<EndpointId>,
    pub(crate) accepts: VecDeque<Operation>,
}

impl Listener {
    pub(crate) fn new(address: SocketAddr, limit: usize) -> Self {
        Self { address, limit, backlog: VecDeque::new(), accepts: VecDeque::new() }
    }
}

impl State {
    fn listener(&mut self, source: SourceId) -> Option<&mut Listener> {
        match &mut self.sources[source].role {
            Role::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    pub(crate) fn start_connect(
        &mut self,
        source: SourceId,
        operation: Operation,
    ) -> Result<(), (ErrorKind, Operation)> {
        let Some(stream) = self.stream(source) else { unreachable!("the role was matched") };
        let endpoint = stream.endpoint;
        let this = &self.endpoints[endpoint];
        if this.connecting.is_some() || this.peer.is_some() {
            return Err((ErrorKind::AlreadyConnected, operation));
        }
        let Payload::Address(address) = &operation.inner.payload else {
            unreachable!("a connect owns its address")
        };
        let Some(address) = address.as_socket() else {
            return Err((ErrorKind::InvalidInput, operation));
        };
        if let Some(stream) = self.stream(source) {
            stream.connect = Some(operation);
        }
        self.begin_connect(endpoint, address);
        Ok(())
    }

    pub(crate) fn begin_connect(&mut self, endpoint: EndpointId, address: SocketAddr) {
        self.endpoints[endpoint].connecting = Some(address);
        self.soon(Event::Connect(endpoint, address, 0));
    }

    /// Takes a pending connect out: the one that is named, or whatever it is.
    pub(crate) fn take_connect(
        &mut self,
        source: SourceId,
        id: Option<OperationId>,
    ) -> Option<Operation> {
        let stream = self.stream(source)?;
        let endpoint = stream.endpoint;
        let operation = stream.connect.take_if(|connect| id.is_none_or(|id| connect.id() == id))?;
        self.endpoints[endpoint].connecting = None;
        Some(operation)
    }

    /// A connect reaches where it goes to.
    pub(crate) fn connect(&mut self, endpoint: EndpointId, address: SocketAddr, attempt: u32) {
        if self.endpoints[endpoint].connecting != Some(address) {
            return;
        }
        let (refused, timeout) = (self.faults.refused, self.faults.connect_timeout);
        if self.strikes(timeout) {
            let time = self.random.time(20 * SECOND, 130 * SECOND);
            return self.after(time, Event::ConnectFails(endpoint));
        }
        let listener = self.listeners.get(&address).copied();
        let Some(listener) = listener.filter(|listener| !self.sources[*listener].is_closed) else {
            return self.connect_fails(endpoint, ErrorKind::ConnectionRefused);
        };
        if self.strikes(refused) {
            return self.connect_fails(endpoint, ErrorKind::ConnectionRefused);
        }
        let Some(this) = self.listener(listener) else { return };
        if this.backlog.len() >= this.limit + usize::from(planted!(BacklogOffByOne)) {
            if attempt == ATTEMPTS {
                return self.connect_fails(endpoint, ErrorKind::TimedOut);
            }
            let time = SECOND << attempt;
            return self.after(time, Event::Connect(endpoint, address, attempt + 1));
        }
        let server = self.new_endpoint(address);
        self.endpoints[server].peer = Some(endpoint);
        let this = &mut self.endpoints[endpoint];
        this.peer = Some(server);
        this.connecting = None;
        self.monitor.totals.connected += 1;
        self.note(format_args!("connection {endpoint} to {server} stands"));
        if let Some(this) = self.listener(listener) {
            this.backlog.push_back(server);
            let (length, limit) = (this.backlog.len(), this.limit);
            self.monitor.in_backlog(length, limit);
        }
        self.soon(Event::Accept(listener));
        match self.endpoints[endpoint].source() {
            Some(source) => {
                if let Some(operation) =
                    self.stream(source).and_then(|stream| stream.connect.take())
                {
                    self.finish(source, operation, 0, None);
                }
            }
            None => self.wake_reader(endpoint),
        }
    }

    pub(crate) fn connect_fails(&mut self, endpoint: EndpointId, kind: ErrorKind) {
        if self.endpoints[endpoint].connecting.take().is_none() {
            return;
        }
        match self.endpoints[endpoint].source() {
            Some(source) => {
                if let Some(operation) =
                    self.stream(source).and_then(|stream| stream.connect.take())
                {
                    self.finish(source, operation, 0, Some(kind));
                }
            }
            None => {
                self.endpoints[endpoint].connect_error = Some(kind);
                self.wake_reader(endpoint);
            }
        }
    }

    pub(crate) fn start_accept(&mut self, source: SourceId, operation: Operation) {
        if let Some(listener) = self.listener(source) {
            listener.accepts.push_back(operation);
        }
        self.soon(Event::Accept(source));
    }

    /// Gives the accepts that wait the connections that do.
    pub(crate) fn accept(&mut self, source: SourceId) {
        self.maybe_spurious(Event::Accept(source));
        loop {
            let Some(listener) = self.listener(source) else { return };
            if listener.accepts.is_empty() || listener.backlog.is_empty() {
                return;
            }
            let aborted = self.faults.aborted_in_backlog;
            if self.strikes(aborted) {
                self.lose_accepted(source);
                self.monitor.totals.unaccepted += 1;
                continue;
            }
            let lacks = self.lacks_descriptor();
            let kernel = self.sources[source].me.upgrade();
            let Some(listener) = self.listener(source) else { return };
            let Some(mut operation) = listener.accepts.pop_front() else { return };
            if lacks {
                self.finish(source, operation, 0, Some(ErrorKind::TooManyOpenFiles));
                continue;
            }
            let (Some(endpoint), Some(kernel)) = (listener.backlog.pop_front(), kernel) else {
                listener.accepts.push_front(operation);
                return;
            };
            let accepted = SimulatedSource::new(kernel.kernel(), What::Stream(endpoint));
            let peer = self.endpoints[endpoint].peer.map(|peer| self.endpoints[peer].local);
            let peer = peer.unwrap_or(self.endpoints[endpoint].local);
            let accepted = Accepted::simulated(accepted, peer);
            operation.inner.payload = Payload::Accepted(Box::new(accepted));
            self.monitor.totals.accepted += 1;
            self.finish(source, operation, 0, None);
        }
    }

    /// The oldest connection of a backlog is gone.
    pub(crate) fn lose_accepted(&mut self, source: SourceId) {
        if let Some(listener) = self.listener(source)
            && let Some(endpoint) = listener.backlog.pop_front()
        {
            self.reset(endpoint);
            self.endpoints[endpoint].is_closed = true;
        }
    }

    pub(crate) fn close_listener(&mut self, source: SourceId) {
        let Some(listener) = self.listener(source) else { return };
        let address = listener.address;
        self.listeners.remove(&address);
        loop {
            let Some(listener) = self.listener(source) else { return };
            if listener.backlog.is_empty() {
                return;
            }
            self.lose_accepted(source);
            self.monitor.totals.unaccepted += 1;
        }
    }

    /// Connections that wait in backlogs.
    pub(crate) fn backlogged(&self) -> u64 {
        let lengths = self.sources.iter().map(|source| match &source.role {
            Role::Listener(listener) => listener.backlog.len() as u64,
            _ => 0,
        });
        lengths.sum()
    }
}
