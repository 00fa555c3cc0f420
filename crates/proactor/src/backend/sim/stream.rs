//! Streams: two endpoints with a bounded buffer in each direction.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr};

use super::event::{EndpointId, Event, SourceId};
use super::kernel::{MILLISECOND, State};
use super::source::Role;
use crate::buffer::SendBuffer;
use crate::error::ErrorKind;
use crate::operation::{Operation, OperationKind, Payload};
use crate::port::Completion;

/// One end of a connection.
pub(crate) struct Endpoint {
    pub(crate) local: SocketAddr,
    pub(crate) peer: Option<EndpointId>,
    owner: Owner,
    /// Where it is connecting to.
    pub(crate) connecting: Option<SocketAddr>,
    pub(crate) connect_error: Option<ErrorKind>,
    /// Bytes on their way to here, or here and not taken.
    pub(crate) inbound: VecDeque<u8>,
    pub(crate) capacity: usize,
    /// No more will come.
    pub(crate) inbound_ends: bool,
    pub(crate) is_reset: bool,
    pub(crate) is_closed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Owner {
    Nobody,
    Source(SourceId),
    Actor(usize),
}

impl Endpoint {
    pub(crate) fn set_source(&mut self, source: SourceId) {
        self.owner = Owner::Source(source);
    }

    pub(crate) fn set_actor(&mut self, actor: usize) {
        self.owner = Owner::Actor(actor);
    }

    pub(crate) fn source(&self) -> Option<SourceId> {
        match self.owner {
            Owner::Source(source) => Some(source),
            _ => None,
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.peer.is_some() && self.connecting.is_none()
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.inbound.len())
    }
}

/// The operations of an associated stream.
pub(crate) struct Stream {
    pub(crate) endpoint: EndpointId,
    pub(crate) connect: Option<Operation>,
    pub(crate) receives: VecDeque<Operation>,
    pub(crate) sends: VecDeque<Operation>,
    shut_receive: bool,
    shut_send: bool,
    /// The end goes out behind the last send.
    end_behind_sends: bool,
    send_failed: Option<ErrorKind>,
    sequence: u64,
    receive_is_due: bool,
    transmit_is_due: bool,
    /// Room of receive buffers that were delivered and not given back.
    held_bytes: usize,
    is_paused: bool,
    pub(crate) resets_on_close: bool,
}

impl Stream {
    pub(crate) fn new(endpoint: EndpointId) -> Self {
        Self {
            endpoint,
            connect: None,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            shut_receive: false,
            shut_send: false,
            end_behind_sends: false,
            send_failed: None,
            sequence: 0,
            receive_is_due: false,
            transmit_is_due: false,
            held_bytes: 0,
            is_paused: false,
            resets_on_close: false,
        }
    }
}

impl Stream {
    /// The number of the next packet of a continuous receive.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

type Refused = (ErrorKind, Operation);

fn room_of(payload: &Payload) -> usize {
    match payload {
        Payload::Buffer(buffer) => buffer.capacity(),
        Payload::Buffers(buffers) => buffers.iter().map(Vec::capacity).sum(),
        _ => 0,
    }
}

fn slices(payload: &Payload) -> &[SendBuffer] {
    match payload {
        Payload::Data(buffer) => std::slice::from_ref(buffer),
        Payload::Gather(buffers) => buffers,
        _ => &[],
    }
}

/// Appends `count` bytes of a send, from byte `skip` of it, to `inbound`.
fn copy_out(payload: &Payload, mut skip: usize, mut count: usize, inbound: &mut VecDeque<u8>) {
    for buffer in slices(payload) {
        let bytes = buffer.as_slice();
        let part = &bytes[skip.min(bytes.len())..];
        let part = &part[..count.min(part.len())];
        inbound.extend(part);
        count -= part.len();
        skip = skip.saturating_sub(bytes.len());
    }
}

impl State {
    pub(crate) fn new_endpoint(&mut self, local: SocketAddr) -> EndpointId {
        let capacity = 1 << self.random.between(4, 16);
        self.endpoints.push(Endpoint {
            local,
            peer: None,
            owner: Owner::Nobody,
            connecting: None,
            connect_error: None,
            inbound: VecDeque::new(),
            capacity,
            inbound_ends: false,
            is_reset: false,
            is_closed: false,
        });
        self.endpoints.len() - 1
    }

    pub(crate) fn stream(&mut self, source: SourceId) -> Option<&mut Stream> {
        match &mut self.sources[source].role {
            Role::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// Something came in at an endpoint, or ended it.
    pub(crate) fn wake_reader(&mut self, endpoint: EndpointId) {
        match self.endpoints[endpoint].owner {
            Owner::Nobody => {}
            Owner::Source(source) => self.look_for_bytes(source),
            Owner::Actor(actor) => {
                let time = self.latency();
                self.wake_actor_after(actor, time);
            }
        }
    }

    /// What an endpoint sends finds room, or never will.
    pub(crate) fn wake_writer(&mut self, endpoint: EndpointId) {
        match self.endpoints[endpoint].owner {
            Owner::Nobody => {}
            Owner::Source(source) => self.look_for_room(source),
            Owner::Actor(actor) => {
                let time = self.latency();
                self.wake_actor_after(actor, time);
            }
        }
    }

    /// Whether something waits that could go on, and nobody will look at it: a stall for ever.
    pub(crate) fn find_stall(&mut self) -> Option<String> {
        for (index, port) in self.ports.iter().enumerate() {
            let held_bytes: usize = self
                .sources
                .iter()
                .filter(|source| source.port == index)
                .map(|source| match &source.role {
                    Role::Stream(stream) => stream.held_bytes,
                    _ => 0,
                })
                .sum();
            let lent = port.pool.total_buffers().saturating_sub(port.pool.free_buffers());
            if held_bytes > lent * port.pool.buffer_bytes() {
                return Some(format!("port {index}: buffers came back, and nobody was told"));
            }
        }
        for (index, source) in self.sources.iter().enumerate() {
            let Role::Stream(stream) = &source.role else { continue };
            let this = &self.endpoints[stream.endpoint];
            let Some(peer) = this.peer.map(|peer| &self.endpoints[peer]) else { continue };
            if source.is_closed {
                continue;
            }
            let window_bytes = self.ports[source.port].window_bytes;
            let has_something = !this.inbound.is_empty() || this.inbound_ends || this.is_reset;
            let is_held_back = stream.is_paused && stream.held_bytes > window_bytes / 2;
            let receives = !stream.receives.is_empty() && has_something && !is_held_back;
            if receives && !stream.receive_is_due {
                return Some(format!("source {index}: a receive waits, and there is something"));
            }
            let has_room = peer.room() > 0 || this.is_reset || peer.is_closed;
            if !stream.sends.is_empty() && has_room && !stream.transmit_is_due {
                return Some(format!("source {index}: a send waits, and there is room"));
            }
        }
        None
    }

    fn look_for_bytes(&mut self, source: SourceId) {
        if let Some(stream) = self.stream(source)
            && !std::mem::replace(&mut stream.receive_is_due, true)
        {
            self.soon(Event::Receive(source));
        }
    }

    fn look_for_room(&mut self, source: SourceId) {
        if let Some(stream) = self.stream(source)
            && !std::mem::replace(&mut stream.transmit_is_due, true)
        {
            self.soon(Event::Transmit(source));
        }
    }

    pub(crate) fn start_receive(
        &mut self,
        source: SourceId,
        operation: Operation,
    ) -> Result<(), Refused> {
        let Some(stream) = self.stream(source) else { unreachable!("the role was matched") };
        let continuous = |one: &Operation| one.kind() == OperationKind::RecvContinuous;
        let is_continuous = continuous(&operation);
        let conflicts = stream.receives.front().is_some_and(continuous)
            || (is_continuous && !stream.receives.is_empty());
        let shut_receive = stream.shut_receive;
        let endpoint = stream.endpoint;
        let this = &self.endpoints[endpoint];
        let refusal = if !this.is_established() {
            Some(ErrorKind::NotConnected)
        } else if shut_receive {
            Some(ErrorKind::ShutDown)
        } else if conflicts {
            Some(ErrorKind::InvalidInput)
        } else if this.is_reset && !planted!(ResetAsEnd) {
            Some(ErrorKind::ConnectionReset)
        } else {
            None
        };
        if let Some(kind) = refusal {
            return Err((kind, operation));
        }
        if let Some(stream) = self.stream(source) {
            if is_continuous {
                stream.sequence = 0;
            }
            if planted!(ReceivesReversed) {
                stream.receives.push_front(operation);
            } else {
                stream.receives.push_back(operation);
            }
        }
        self.look_for_bytes(source);
        Ok(())
    }

    /// Gives the receives that wait what is there.
    pub(crate) fn receive(&mut self, source: SourceId) {
        self.maybe_spurious(Event::Receive(source));
        if let Some(stream) = self.stream(source) {
            stream.receive_is_due = false;
        }
        while self.receive_one(source) {}
    }

    /// Serves the first receive; `false` where it has to wait, or there is none.
    fn receive_one(&mut self, source: SourceId) -> bool {
        if self.sources[source].is_closed {
            return false;
        }
        let Some(stream) = self.stream(source) else { return false };
        let endpoint = stream.endpoint;
        let Some(front) = stream.receives.front() else { return false };
        let is_continuous = front.kind() == OperationKind::RecvContinuous;
        let room = room_of(&front.inner.payload);
        let this = &self.endpoints[endpoint];
        let early_end = planted!(EndBeforeBytes) && this.inbound_ends;
        if this.inbound.is_empty() || early_end {
            let error = if this.is_reset {
                Some(ErrorKind::ConnectionReset).filter(|_| !planted!(ResetAsEnd))
            } else if this.inbound_ends {
                None
            } else {
                return false;
            };
            self.finish_receive(source, 0, error);
            return true;
        }
        let (no_memory, reset) = (self.faults.no_memory, self.faults.reset);
        if self.strikes(no_memory) {
            self.finish_receive(source, 0, Some(ErrorKind::InsufficientResources));
            return true;
        }
        if self.strikes(reset) {
            self.reset(endpoint);
            return true;
        }
        if is_continuous {
            return self.receive_chunk(source, endpoint);
        }
        if room == 0 {
            // It tells that there is something, and takes nothing (rule 60).
            self.finish_receive(source, 0, None);
            return true;
        }
        let (bytes, is_short) = self.take_inbound(endpoint, room);
        let Some(stream) = self.stream(source) else { return false };
        let Some(front) = stream.receives.front_mut() else { return false };
        let mut rest = &bytes[..];
        let targets = match &mut front.inner.payload {
            Payload::Buffer(buffer) => std::slice::from_mut(buffer),
            Payload::Buffers(buffers) => buffers,
            _ => &mut [],
        };
        for target in targets {
            let count = (target.capacity() - target.len()).min(rest.len());
            target.extend_from_slice(&rest[..count]);
            rest = &rest[count..];
        }
        self.finish_receive(source, bytes.len(), None);
        if is_short {
            self.look_for_bytes(source);
        }
        !is_short
    }

    /// Takes bytes that are there, and says whether it was fewer than it could have been.
    pub(crate) fn take_inbound(&mut self, endpoint: EndpointId, room: usize) -> (Vec<u8>, bool) {
        let short_read = self.faults.short_read;
        let most = self.endpoints[endpoint].inbound.len().min(room);
        let count = if self.strikes(short_read) { self.random.part_of(most) } else { most };
        let mut bytes: Vec<u8> = self.endpoints[endpoint].inbound.drain(..count).collect();
        if planted!(LostBytes) && count > 64 && self.endpoints[endpoint].inbound.len() > 1 {
            self.endpoints[endpoint].inbound.pop_front();
        }
        self.trace.bytes(bytes.iter().copied());
        if let Some(peer) = self.endpoints[endpoint].peer
            && !(planted!(LostRoom) && count > 16)
        {
            self.wake_writer(peer);
        }
        bytes.shrink_to_fit();
        (bytes, count < most)
    }

    /// Gives a continuous receive one buffer.
    fn receive_chunk(&mut self, source: SourceId, endpoint: EndpointId) -> bool {
        let port = self.sources[source].port;
        let window_bytes = self.ports[port].window_bytes;
        let pool = std::sync::Arc::clone(&self.ports[port].pool);
        let buffer_bytes = pool.buffer_bytes();
        let Some(stream) = self.stream(source) else { return false };
        if stream.held_bytes >= window_bytes {
            stream.is_paused = true;
            return false;
        }
        let exhausted = self.faults.pool_exhausted;
        let taken = if self.strikes(exhausted) { None } else { pool.take() };
        let Some(index) = taken else {
            // It waits until a buffer is given back.
            if let Some(stream) = self.stream(source) {
                stream.receive_is_due = true;
            }
            let time = self.random.time(MILLISECOND, 5 * MILLISECOND);
            self.after(time, Event::Receive(source));
            return false;
        };
        let (bytes, is_short) = self.take_inbound(endpoint, buffer_bytes);
        let consumer = self.sources[source].me.upgrade();
        let mut buffer = lend(&pool, index, bytes.len(), consumer);
        buffer.copy_from_slice(&bytes);
        let key = self.sources[source].key;
        let Some(stream) = self.stream(source) else { return false };
        stream.held_bytes += buffer_bytes;
        let held_bytes = stream.held_bytes;
        let Some(receive) = stream.receives.front().map(Operation::id) else { return false };
        let sequence = stream.sequence;
        stream.sequence += 1;
        self.monitor.read_ahead(held_bytes, window_bytes + buffer_bytes);
        let packet = Completion::chunk(key, receive, sequence, buffer);
        self.push(port, packet, Some(endpoint));
        if is_short {
            self.look_for_bytes(source);
        }
        !is_short
    }

    /// A delivered buffer came back.
    pub(crate) fn released(&mut self, source: SourceId, held_bytes: usize) {
        let window_bytes = self.ports[self.sources[source].port].window_bytes;
        let Some(stream) = self.stream(source) else { return };
        stream.held_bytes -= held_bytes;
        if stream.is_paused && stream.held_bytes <= window_bytes / 2 && !planted!(PauseNotEnded) {
            stream.is_paused = false;
            self.look_for_bytes(source);
        }
    }

    /// Ends the first receive.
    fn finish_receive(&mut self, source: SourceId, bytes: usize, error: Option<ErrorKind>) {
        let Some(stream) = self.stream(source) else { return };
        let Some(operation) = stream.receives.pop_front() else { return };
        self.finish(source, operation, bytes, error);
    }

    pub(crate) fn start_send(
        &mut self,
        source: SourceId,
        operation: Operation,
    ) -> Result<(), Refused> {
        let Some(stream) = self.stream(source) else { unreachable!("the role was matched") };
        let (endpoint, shut_send) = (stream.endpoint, stream.shut_send);
        let failed = stream.send_failed;
        let this = &self.endpoints[endpoint];
        let refusal = if !this.is_established() {
            Some(ErrorKind::NotConnected)
        } else if shut_send {
            Some(ErrorKind::ShutDown)
        } else if this.is_reset {
            Some(ErrorKind::ConnectionReset)
        } else {
            failed
        };
        if let Some(kind) = refusal {
            return Err((kind, operation));
        }
        let peer = this.peer;
        if let Some(stream) = self.stream(source) {
            let ends = operation.kind() == OperationKind::Disconnect;
            stream.shut_send |= ends;
            stream.sends.push_back(operation);
            if let (true, Some(peer)) = (ends, peer) {
                self.monitor.flow_ended(peer);
            }
        }
        self.look_for_room(source);
        Ok(())
    }

    /// Moves the bytes of sends to where there is room for them.
    pub(crate) fn transmit(&mut self, source: SourceId) {
        self.maybe_spurious(Event::Transmit(source));
        if let Some(stream) = self.stream(source) {
            stream.transmit_is_due = false;
        }
        while self.transmit_one(source) {}
    }

    fn transmit_one(&mut self, source: SourceId) -> bool {
        let Some(stream) = self.stream(source) else { return false };
        let endpoint = stream.endpoint;
        let ends = stream.end_behind_sends;
        let Some(front) = stream.sends.front() else {
            if ends {
                stream.end_behind_sends = false;
                self.send_end(endpoint);
            }
            return false;
        };
        let is_end = front.kind() == OperationKind::Disconnect;
        let done = front.inner.done_bytes;
        let total: usize = slices(&front.inner.payload).iter().map(SendBuffer::len).sum();
        let Some(peer) = self.endpoints[endpoint].peer else { return false };
        let (reset, no_memory) = (self.faults.reset, self.faults.no_memory);
        let mut resets_behind = false;
        if !self.endpoints[endpoint].is_reset {
            if self.endpoints[peer].is_closed && done < total {
                self.reset(endpoint);
            } else if self.strikes(reset) {
                resets_behind = done < total && self.random.chance(0.5);
                if !resets_behind {
                    self.reset(endpoint);
                }
            }
        }
        if self.endpoints[endpoint].is_reset {
            self.finish_send(source, done, Some(ErrorKind::ConnectionReset));
            return true;
        }
        if is_end {
            self.send_end(endpoint);
            self.finish_send(source, 0, None);
            return true;
        }
        if done < total && self.strikes(no_memory) {
            if let Some(stream) = self.stream(source) {
                stream.send_failed = Some(ErrorKind::InsufficientResources);
            }
            self.finish_send(source, done, Some(ErrorKind::InsufficientResources));
            return true;
        }
        if let Some(kind) = self.stream(source).and_then(|stream| stream.send_failed) {
            self.finish_send(source, done, Some(kind));
            return true;
        }
        let most = self.endpoints[peer].room().min(total.saturating_sub(done));
        if most == 0 && done < total {
            return false;
        }
        let short_write = self.faults.short_write;
        let is_short = most > 0 && (resets_behind || self.strikes(short_write));
        if resets_behind {
            // Behind any byte: what went before it may still be read, or not.
            self.soon(Event::Reset(endpoint));
        }
        let count = if is_short { self.random.part_of(most) } else { most };
        self.move_bytes(source, peer, count);
        if count > 0 {
            self.wake_reader(peer);
        }
        let done = done + count;
        if done >= total || (planted!(MissedPartialSend) && total > 8) {
            self.finish_send(source, total, None);
            return true;
        }
        if is_short {
            self.look_for_room(source);
        }
        !is_short
    }

    fn move_bytes(&mut self, source: SourceId, peer: EndpointId, count: usize) {
        let Role::Stream(stream) = &mut self.sources[source].role else { return };
        let Some(front) = stream.sends.front_mut() else { return };
        let inbound = &mut self.endpoints[peer].inbound;
        copy_out(&front.inner.payload, front.inner.done_bytes, count, inbound);
        front.inner.done_bytes += count;
        if planted!(FreedEarlyBuffer) {
            let total: usize = slices(&front.inner.payload).iter().map(SendBuffer::len).sum();
            front.inner.payload = Payload::Data(vec![0xdd; total].into());
        }
    }

    fn finish_send(&mut self, source: SourceId, bytes: usize, error: Option<ErrorKind>) {
        let Some(stream) = self.stream(source) else { return };
        let Some(operation) = stream.sends.pop_front() else { return };
        if planted!(DoubleCompletion) && bytes > 100 {
            let mut twin = Operation::new();
            twin.prepare(OperationKind::Send, Payload::None);
            twin.inner.id = operation.id();
            self.finish(source, twin, bytes, error);
        }
        self.finish(source, operation, bytes, error);
    }

    /// The end of the stream, behind everything that was sent.
    pub(crate) fn send_end(&mut self, endpoint: EndpointId) {
        if self.endpoints[endpoint].is_reset {
            return;
        }
        if let Some(peer) = self.endpoints[endpoint].peer {
            self.endpoints[peer].inbound_ends = true;
            self.wake_reader(peer);
        }
    }

    /// The connection is gone, at both ends and with all that was on its way.
    pub(crate) fn reset(&mut self, endpoint: EndpointId) {
        let Some(peer) = self.endpoints[endpoint].peer else { return };
        self.note(format_args!("connection {endpoint} to {peer} is reset"));
        for end in [endpoint, peer] {
            let this = &mut self.endpoints[end];
            this.is_reset = true;
            this.inbound.clear();
            this.inbound_ends = false;
            self.monitor.flow_broken(end);
            self.wake_reader(end);
            self.wake_writer(end);
        }
    }

    pub(crate) fn close_endpoint(&mut self, endpoint: EndpointId) {
        let this = &mut self.endpoints[endpoint];
        if std::mem::replace(&mut this.is_closed, true) {
            return;
        }
        this.connecting = None;
        let has_unread = !this.inbound.is_empty();
        let Some(peer) = this.peer else { return };
        self.monitor.flow_ended(peer);
        if has_unread && !self.endpoints[endpoint].is_reset {
            // As Linux does it (rule 87).
            self.reset(endpoint);
        } else {
            self.send_end(endpoint);
            self.wake_writer(peer);
        }
        self.monitor.flow_broken(endpoint);
    }

    pub(crate) fn shutdown(&mut self, source: SourceId, how: Shutdown) -> Result<(), ErrorKind> {
        let Some(stream) = self.stream(source) else { return Err(ErrorKind::InvalidInput) };
        let endpoint = stream.endpoint;
        if !self.endpoints[endpoint].is_established() {
            return Err(ErrorKind::NotConnected);
        }
        let is_reset = self.endpoints[endpoint].is_reset;
        let peer = self.endpoints[endpoint].peer;
        let Some(stream) = self.stream(source) else { return Ok(()) };
        if how != Shutdown::Write {
            stream.shut_receive = true;
        }
        if how != Shutdown::Read && !stream.shut_send {
            stream.shut_send = true;
            stream.end_behind_sends = true;
            if is_reset {
                return Err(ErrorKind::ConnectionReset);
            }
            if let Some(peer) = peer {
                self.monitor.flow_ended(peer);
            }
            self.look_for_room(source);
        }
        Ok(())
    }
}

/// A receive buffer that was just taken from the pool, for its receiver.
#[allow(unsafe_code)]
fn lend(
    pool: &std::sync::Arc<crate::buffer::Pool>,
    index: u16,
    len: usize,
    consumer: Option<std::sync::Arc<super::source::SimSource>>,
) -> crate::buffer::PoolBuffer {
    // SAFETY: the caller took `index` from this pool and gives it away here.
    unsafe { pool.lend(index, len, consumer.map(|consumer| consumer as _)) }
}
