//! The checkers: what must hold in every run, whatever the program does.
//!
//! They look on from outside: at the seam, where operations come in and packets go out, and at the
//! bytes that each side of a connection hands in and gets. They share no state with the code that
//! they check.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::event::{EndpointId, PortId, SourceId, ThreadId};
use crate::buffer::SendBuffer;
use crate::operation::{Operation, OperationId, OperationKind, Payload};
use crate::port::Completion;

/// Violations that are kept: the first ones matter.
const KEPT: usize = 20;

/// An accepted operation that has given no final packet.
struct Live {
    number: u64,
    kind: OperationKind,
    port: PortId,
    source: Option<SourceId>,
    /// For a timer, when it is due.
    due: Option<u64>,
    /// For a send: who gets the bytes, and how many they are.
    flow: Option<EndpointId>,
    bytes: usize,
    is_cancelled: bool,
    /// For a continuous receive: the number of its next packet.
    next_sequence: u64,
}

/// What the queue must give next.
struct Expected {
    kind: OperationKind,
    key: usize,
    operation: Option<OperationId>,
    sequence: u64,
    bytes: usize,
    /// The stream whose bytes it carries.
    flow: Option<EndpointId>,
    is_end: bool,
}

/// The bytes in one direction of a connection, as the sending side handed them in.
#[derive(Default)]
struct Flow {
    segments: VecDeque<Segment>,
    /// The sending side said that no more will come.
    ended: bool,
    /// The connection was reset: what is missing is lost.
    broken: bool,
    received: u64,
}

struct Segment {
    operation: Option<OperationId>,
    bytes: Vec<u8>,
    taken: usize,
}

#[derive(Default)]
struct Port {
    limit: usize,
    is_closed: bool,
    queue: VecDeque<Expected>,
    waiters: Vec<ThreadId>,
    active: BTreeSet<ThreadId>,
}

/// What a run did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) operations: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) connected: u64,
    pub(crate) accepted: u64,
    /// Connections that ended in the backlog.
    pub(crate) unaccepted: u64,
}

#[derive(Default)]
pub(crate) struct Monitor {
    pub(crate) violations: Vec<String>,
    numbers: HashMap<OperationId, u64>,
    live: HashMap<OperationId, Live>,
    ports: Vec<Port>,
    flows: HashMap<EndpointId, Flow>,
    closed_sources: BTreeSet<SourceId>,
    pub(crate) totals: Totals,
}

fn payload_bytes(payload: &Payload) -> Vec<u8> {
    match payload {
        Payload::Data(buffer) => buffer.as_slice().to_vec(),
        Payload::Gather(buffers) => {
            buffers.iter().flat_map(SendBuffer::as_slice).copied().collect()
        }
        _ => Vec::new(),
    }
}

/// The bytes that a receive brought.
fn received(packet: &Completion) -> Vec<u8> {
    if let Some(chunk) = &packet.chunk {
        return chunk.to_vec();
    }
    match packet.operation.as_ref().map(|operation| &operation.inner.payload) {
        Some(Payload::Buffer(buffer)) => buffer.clone(),
        Some(Payload::Buffers(buffers)) => buffers.concat(),
        _ => Vec::new(),
    }
}

fn has_room(packet: &Completion) -> bool {
    match packet.operation.as_ref().map(|operation| &operation.inner.payload) {
        Some(Payload::Buffer(buffer)) => buffer.capacity() > 0,
        Some(Payload::Buffers(buffers)) => buffers.iter().any(|buffer| buffer.capacity() > 0),
        _ => true,
    }
}

impl Monitor {
    pub(crate) fn violation(&mut self, text: String) {
        if self.violations.len() < KEPT {
            self.violations.push(text);
        }
    }

    /// The world's own number of an operation: the same in every run.
    pub(crate) fn number(&self, id: OperationId) -> u64 {
        self.numbers.get(&id).copied().unwrap_or(0)
    }

    pub(crate) fn port_opened(&mut self, limit: usize) {
        self.ports.push(Port { limit, ..Port::default() });
    }

    /// An operation is about to be started.
    pub(crate) fn started(
        &mut self,
        operation: &Operation,
        port: PortId,
        source: Option<SourceId>,
        flow: Option<EndpointId>,
        due: Option<u64>,
    ) {
        let (id, kind) = (operation.id(), operation.kind());
        let number = self.numbers.len() as u64 + 1;
        if self.numbers.insert(id, number).is_some() {
            self.violation(format!("{} starts under an id that was used before", kind.name()));
        }
        self.totals.operations += 1;
        let mut bytes = 0;
        if let (OperationKind::Send, Some(flow)) = (kind, flow) {
            let handed_in = payload_bytes(&operation.inner.payload);
            bytes = handed_in.len();
            let segment = Segment { operation: Some(id), bytes: handed_in, taken: 0 };
            self.flows.entry(flow).or_default().segments.push_back(segment);
        }
        let live = Live {
            number,
            kind,
            port,
            source,
            due,
            flow,
            bytes,
            is_cancelled: false,
            next_sequence: 0,
        };
        self.live.insert(id, live);
        if let Some(source) = source
            && self.closed_sources.contains(&source)
        {
            self.violation(format!("{}#{number} was accepted by a closed source", kind.name()));
        }
    }

    /// It was refused after all.
    pub(crate) fn refused(&mut self, id: OperationId) {
        if let Some(live) = self.live.remove(&id)
            && let Some(flow) = live.flow.and_then(|flow| self.flows.get_mut(&flow))
        {
            flow.segments.retain(|segment| segment.operation != Some(id));
        }
        self.totals.operations -= 1;
    }

    /// A cancel said that there was something to cancel.
    pub(crate) fn cancelled(&mut self, id: OperationId, said: bool) {
        match self.live.get_mut(&id) {
            Some(live) => live.is_cancelled |= said,
            None if said => self.violation("a cancel hit what was over already".to_owned()),
            None => {}
        }
    }

    /// A cancel of a timer found nothing.
    pub(crate) fn timer_not_found(&mut self, id: OperationId) {
        if let Some(live) = self.live.get(&id) {
            let number = live.number;
            self.violation(format!("timer#{number}: pending, and a cancel did not find it"));
        }
    }

    /// A port's timers that were due have expired.
    pub(crate) fn timers_expired(&mut self, port: PortId, now: u64) {
        let is_overdue = |live: &&Live| live.port == port && live.due.is_some_and(|due| due <= now);
        if let Some(number) = self.live.values().filter(is_overdue).map(|live| live.number).min() {
            self.violation(format!("timer#{number}: due, and left out when others expired"));
        }
    }

    pub(crate) fn source_closed(&mut self, source: SourceId) {
        self.closed_sources.insert(source);
    }

    /// A packet enters a port's queue.
    pub(crate) fn queued(
        &mut self,
        port: PortId,
        packet: &Completion,
        flow: Option<EndpointId>,
        now: u64,
    ) {
        let is_receive = matches!(packet.kind, OperationKind::Recv | OperationKind::RecvContinuous);
        let is_end = is_receive
            && packet.error.is_none()
            && packet.bytes == 0
            && packet.receive.is_none()
            && has_room(packet);
        if let Some(id) = packet.operation_id()
            && packet.kind != OperationKind::Post
        {
            self.check_queued(id, packet, is_end.then_some(flow).flatten(), now);
        }
        self.ports[port].queue.push_back(Expected {
            kind: packet.kind,
            key: packet.key,
            operation: packet.operation_id(),
            sequence: packet.sequence,
            bytes: packet.bytes,
            flow: if is_receive { flow } else { None },
            is_end,
        });
    }

    fn check_queued(
        &mut self,
        id: OperationId,
        packet: &Completion,
        end_of: Option<EndpointId>,
        now: u64,
    ) {
        let name = packet.kind.name();
        let Some(live) = self.live.get(&id) else {
            let number = self.number(id);
            return self.violation(format!("{name}#{number}: a packet, and it was over already"));
        };
        let (number, due, is_cancelled) = (live.number, live.due, live.is_cancelled);
        let (flow, whole_bytes) = (live.flow, live.bytes);
        if live.kind != packet.kind {
            self.violation(format!("{name}#{number}: was started as another kind"));
        }
        if packet.kind == OperationKind::Timer
            && packet.error.is_none()
            && due.is_some_and(|due| now < due)
        {
            self.violation(format!("timer#{number}: expired before its time"));
        }
        if packet.kind == OperationKind::RecvContinuous {
            self.check_sequence(id, packet.sequence);
        }
        let says_cancelled =
            packet.error.is_some_and(|error| error.kind() == crate::ErrorKind::Cancelled);
        if says_cancelled && !is_cancelled {
            self.violation(format!("{name}#{number}: cancelled, and nobody asked for it"));
        }
        if let (OperationKind::Send, Some(flow)) = (packet.kind, flow) {
            self.send_ended(id, number, flow, whole_bytes, packet);
        }
        if let Some(flow) = end_of {
            let flow = self.flows.entry(flow).or_default();
            if flow.broken || !flow.ended {
                let why = if flow.broken { "was reset" } else { "goes on" };
                self.violation(format!("{name}#{number}: an orderly end of a stream that {why}"));
            }
        }
        let source = self.live.get(&id).and_then(|live| live.source);
        if let (None, Some(source)) = (packet.error, source)
            && matches!(packet.kind, OperationKind::Recv | OperationKind::Send)
        {
            let is_older = |live: &Live| {
                live.source == Some(source) && live.kind == packet.kind && live.number < number
            };
            if self.live.values().any(is_older) {
                self.violation(format!("{name}#{number}: overtook one that was started before"));
            }
        }
        if packet.receive.is_none() {
            self.live.remove(&id);
        }
    }

    /// The packets of a continuous receive are numbered, the last one too.
    fn check_sequence(&mut self, id: OperationId, sequence: u64) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let (number, expected) = (live.number, live.next_sequence);
        live.next_sequence += 1;
        if sequence != expected {
            self.violation(format!(
                "recv (continuous)#{number}: packet {sequence}, and {expected} was next"
            ));
        }
    }

    /// A send is over: as many bytes as it says are in the stream, and not one more.
    fn send_ended(
        &mut self,
        id: OperationId,
        number: u64,
        flow: EndpointId,
        whole_bytes: usize,
        packet: &Completion,
    ) {
        if packet.error.is_none() && packet.bytes != whole_bytes {
            let bytes = packet.bytes;
            self.violation(format!("send#{number}: a success with {bytes} of {whole_bytes} bytes"));
        }
        let Some(flow) = self.flows.get_mut(&flow) else { return };
        let Some(segment) = flow.segments.iter_mut().find(|segment| segment.operation == Some(id))
        else {
            return;
        };
        segment.bytes.truncate(packet.bytes);
        if segment.taken > packet.bytes && !flow.broken {
            self.violation(format!("send#{number}: more bytes arrived than it says were sent"));
        }
    }

    /// A send goes with its port, after so many bytes.
    pub(crate) fn abandoned(&mut self, id: OperationId, bytes: usize) {
        let flow = self.live.get(&id).and_then(|live| live.flow);
        if let Some(flow) = flow.and_then(|flow| self.flows.get_mut(&flow))
            && let Some(segment) =
                flow.segments.iter_mut().find(|segment| segment.operation == Some(id))
        {
            segment.bytes.truncate(bytes);
        }
    }

    /// A packet leaves a port's queue.
    pub(crate) fn dequeued(&mut self, port: PortId, packet: &Completion) {
        self.totals.packets += 1;
        let name = packet.kind.name();
        let Some(expected) = self.ports[port].queue.pop_front() else {
            return self.violation(format!("{name}: a packet that was never queued"));
        };
        let same = (expected.kind, expected.key, expected.operation)
            == (packet.kind, packet.key, packet.operation_id())
            && (expected.sequence, expected.bytes) == (packet.sequence, packet.bytes);
        if !same {
            self.violation(format!(
                "{name}, key {}: dequeued before {}, key {}, which was queued earlier",
                packet.key,
                expected.kind.name(),
                expected.key
            ));
        }
        let Some(flow) = expected.flow else { return };
        let bytes = received(packet);
        if bytes.len() != packet.bytes {
            self.violation(format!("{name}: {} bytes of {}", bytes.len(), packet.bytes));
        }
        self.bytes_taken(flow, &bytes);
        let flow = self.flows.entry(flow).or_default();
        if expected.is_end && !flow.broken && flow.left() > 0 {
            let left = flow.left();
            self.violation(format!("{name}: the end of the stream, and {left} bytes are missing"));
        }
    }

    /// The program or a peer got these bytes of a stream.
    pub(crate) fn bytes_taken(&mut self, flow: EndpointId, bytes: &[u8]) {
        self.totals.bytes += bytes.len() as u64;
        let flow = self.flows.entry(flow).or_default();
        let at = flow.received;
        flow.received += bytes.len() as u64;
        if let Err(text) = flow.take(bytes)
            && !flow.broken
        {
            flow.broken = true;
            self.violation(format!("stream, from byte {at}: {text}"));
        }
    }

    /// A peer handed these bytes in.
    pub(crate) fn bytes_given(&mut self, flow: EndpointId, bytes: &[u8]) {
        let segment = Segment { operation: None, bytes: bytes.to_vec(), taken: 0 };
        self.flows.entry(flow).or_default().segments.push_back(segment);
    }

    /// The sending side ends a stream.
    pub(crate) fn flow_ended(&mut self, flow: EndpointId) {
        self.flows.entry(flow).or_default().ended = true;
    }

    /// The connection is reset.
    pub(crate) fn flow_broken(&mut self, flow: EndpointId) {
        self.flows.entry(flow).or_default().broken = true;
    }

    pub(crate) fn peer_saw_end(&mut self, flow: EndpointId) {
        let flow = self.flows.entry(flow).or_default();
        if flow.broken {
            return;
        }
        let left = flow.left();
        if left > 0 || !flow.ended {
            self.violation(format!("a peer saw the end of its stream, {left} bytes too early"));
        }
    }

    // Threads.

    pub(crate) fn waits(&mut self, port: PortId, thread: ThreadId) {
        self.ports[port].waiters.push(thread);
        self.ports[port].active.remove(&thread);
    }

    pub(crate) fn slot_given_up(&mut self, port: PortId, thread: ThreadId) {
        self.ports[port].active.remove(&thread);
    }

    /// A thread counts as active though it was given no packet (rules 41, 42).
    pub(crate) fn held_beyond_limit(&mut self, port: PortId, thread: ThreadId) {
        self.ports[port].waiters.retain(|waiter| *waiter != thread);
        self.ports[port].active.insert(thread);
    }

    /// A thread gets packets.
    pub(crate) fn granted(&mut self, port: PortId, thread: ThreadId) {
        let port = &mut self.ports[port];
        let place = port.waiters.iter().position(|waiter| *waiter == thread);
        let is_last = place.is_none_or(|place| place + 1 == port.waiters.len());
        port.waiters.retain(|waiter| *waiter != thread);
        port.active.insert(thread);
        let (active, limit) = (port.active.len(), port.limit);
        if !is_last {
            self.violation("a thread was released before one that began to wait later".to_owned());
        }
        if active > limit {
            self.violation(format!("{active} threads run, and the limit is {limit}"));
        }
    }

    pub(crate) fn timed_out(&mut self, deadline: u64, now: u64) {
        if now < deadline {
            self.violation("a dequeue timed out before its time".to_owned());
        }
    }

    pub(crate) fn in_backlog(&mut self, connections: usize, limit: usize) {
        if connections > limit {
            self.violation(format!("{connections} connections in a backlog of {limit}"));
        }
    }

    pub(crate) fn read_ahead(&mut self, held_bytes: usize, limit_bytes: usize) {
        if held_bytes > limit_bytes {
            self.violation(format!(
                "{held_bytes} bytes read ahead, and the limit is {limit_bytes}"
            ));
        }
    }

    pub(crate) fn port_closed(&mut self, port: PortId) {
        self.ports[port].is_closed = true;
        self.ports[port].queue.clear();
        self.ports[port].waiters.clear();
        self.live.retain(|_, live| live.port != port);
    }

    /// Time moves on: nothing may be left undone.
    pub(crate) fn time_moves(&mut self) {
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            if port.is_closed || port.queue.is_empty() || port.waiters.is_empty() {
                continue;
            }
            if port.active.len() < port.limit {
                let (packets, waiters) = (port.queue.len(), port.waiters.len());
                port.is_closed = true;
                self.violation(format!(
                    "lost wake: {packets} packets queued, {waiters} threads wait, and a slot is free"
                ));
            }
        }
    }

    /// What is still pending, oldest first.
    pub(crate) fn pending(&self) -> Vec<String> {
        let mut live: Vec<&Live> = self.live.values().collect();
        live.sort_by_key(|live| live.number);
        live.iter()
            .map(|live| match live.source {
                Some(source) => format!("{}#{} on source {source}", live.kind.name(), live.number),
                None => format!("{}#{}", live.kind.name(), live.number),
            })
            .collect()
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.live.len()
    }

    /// Packets that are queued and not dequeued, on every port that is open.
    pub(crate) fn queued_count(&self) -> usize {
        self.ports.iter().filter(|port| !port.is_closed).map(|port| port.queue.len()).sum()
    }
}

impl Flow {
    fn left(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes.len().saturating_sub(segment.taken)).sum()
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let Some(segment) = self.segments.front_mut() else {
                return Err(format!("{} bytes arrived that nobody sent", bytes.len()));
            };
            let left = &segment.bytes[segment.taken.min(segment.bytes.len())..];
            let count = left.len().min(bytes.len());
            if left[..count] != bytes[..count] {
                return Err("the bytes that arrived are not those that were sent".to_owned());
            }
            segment.taken += count;
            bytes = &bytes[count..];
            if segment.taken >= segment.bytes.len() {
                // A send that is not over yet may still be cut short, and is looked for then.
                self.segments.pop_front();
            }
        }
        Ok(())
    }
}
