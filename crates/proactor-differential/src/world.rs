//! A port, everything that was associated with it, and what has come of it so far.
//!
//! The books here say one thing only: which operations have to end by now, so that each step can
//! wait for its effects and the next one does not race with them. How they end is the backend's
//! answer; it is written down, and compared.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proactor::{
    BackendChoice, Completion, CompletionPort, DequeueError, ErrorKind, Operation, OperationId,
    OperationKind, Rejected,
};

use crate::connecting::Listening;
use crate::datagrams::Datagrams;
use crate::files::Files;
use crate::packet::Packet;
use crate::rules::LeftOut;
use crate::step::{Action, Step};
use crate::streams::Connection;

/// Far more than any packet takes on a busy machine.
const PACKET_LIMIT: Duration = Duration::from_secs(10);
/// Operations that steps need beside those that are compared are numbered from here.
const FIRST_HELPER: u64 = 1_000_000_000;

pub(crate) const KEY_LISTENER: usize = 1;
pub(crate) const KEY_DATAGRAMS: usize = 2;
pub(crate) const KEY_FILE: usize = 4;
pub(crate) const KEY_TIMERS: usize = 5;
pub(crate) const KEY_CONNECTIONS: usize = 100;

/// Something is wrong in itself, without any comparison. It is in the log, and the run is over.
#[derive(Debug)]
pub(crate) struct Stop;

/// One line of what came of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) step: usize,
    pub(crate) text: String,
}

/// What begins a line that says what is wrong in itself.
pub(crate) const WRONG: &str = "!! ";

/// Which packets a step waits for.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    /// The last packets of these operations.
    pub(crate) finals: BTreeSet<u64>,
    /// So many bytes of these continuous receives.
    pub(crate) chunk_bytes: BTreeMap<u64, usize>,
}

impl Awaited {
    pub(crate) fn finals(numbers: impl IntoIterator<Item = u64>) -> Self {
        Self { finals: numbers.into_iter().collect(), chunk_bytes: BTreeMap::new() }
    }
}

/// A port and all that belongs to it.
pub(crate) struct World {
    pub(crate) port: Arc<CompletionPort>,
    pub(crate) left_out: LeftOut,
    pub(crate) listening: Listening,
    pub(crate) connections: Vec<Connection>,
    pub(crate) connections_so_far: usize,
    pub(crate) datagrams: Datagrams,
    pub(crate) files: Files,
    pub(crate) long_timers: Vec<u64>,
    /// The step that runs: where its operations are started, how its packets are dequeued.
    pub(crate) outside: bool,
    batch: usize,
    step: usize,
    log: Vec<Line>,
    next_number: u64,
    next_helper: u64,
    started: HashMap<OperationId, u64>,
    ids: HashMap<u64, OperationId>,
    spare: Vec<Operation>,
    dequeued: VecDeque<Completion>,
}

impl World {
    /// A new port with a listener, two datagram sockets and a file.
    pub(crate) fn new(backend: BackendChoice, left_out: LeftOut) -> std::io::Result<Self> {
        let port = CompletionPort::builder().backend(backend).concurrency(1).build()?;
        Ok(Self {
            listening: Listening::new(&port)?,
            connections: Vec::new(),
            connections_so_far: 0,
            datagrams: Datagrams::new(&port)?,
            files: Files::new(&port)?,
            long_timers: Vec::new(),
            left_out,
            port: Arc::new(port),
            outside: false,
            batch: 1,
            step: 0,
            log: Vec::new(),
            next_number: 0,
            next_helper: FIRST_HELPER,
            started: HashMap::new(),
            ids: HashMap::new(),
            spare: Vec::new(),
            dequeued: VecDeque::new(),
        })
    }

    /// Sets what the step says about threads and dequeuing.
    pub(crate) fn begin_step(&mut self, index: usize, step: &Step) {
        self.step = index;
        // Where rule 61 is left out, what waits in a queue is all started by one thread.
        let queues = matches!(
            step.action,
            Action::Receive { .. } | Action::ReceiveDatagram { .. } | Action::Accept
        );
        self.outside = step.outside && !(queues && self.left_out.first_of(&[61]).is_some());
        self.batch = step.batch;
    }

    /// Writes a line.
    pub(crate) fn say(&mut self, text: impl Into<String>) {
        self.log.push(Line { step: self.step, text: text.into() });
    }

    /// Writes down what is wrong in itself.
    pub(crate) fn wrong(&mut self, text: impl AsRef<str>) -> Stop {
        self.say(format!("{WRONG}{}", text.as_ref()));
        Stop
    }

    /// What came of it.
    pub(crate) fn into_log(self) -> Vec<Line> {
        self.log
    }

    /// Starts an operation that is compared. Where it is refused, gives its number all the same.
    pub(crate) fn start(
        &mut self,
        start: impl FnOnce(Operation) -> Result<OperationId, Rejected> + Send,
    ) -> (u64, Result<(), ErrorKind>) {
        let number = self.next_number;
        self.next_number += 1;
        (number, self.start_as(number, start))
    }

    /// Starts an operation that a step needs; how many of them there are is not compared.
    pub(crate) fn start_helper(
        &mut self,
        start: impl FnOnce(Operation) -> Result<OperationId, Rejected> + Send,
    ) -> Result<u64, Stop> {
        match self.start_uncounted(start) {
            (number, Ok(())) => Ok(number),
            (_, Err(kind)) => {
                Err(self.wrong(format!("refused, though nothing forbids it: {kind:?}")))
            }
        }
    }

    /// The same, where it may be refused.
    pub(crate) fn start_uncounted(
        &mut self,
        start: impl FnOnce(Operation) -> Result<OperationId, Rejected> + Send,
    ) -> (u64, Result<(), ErrorKind>) {
        let number = self.next_helper;
        self.next_helper += 1;
        (number, self.start_as(number, start))
    }

    fn start_as(
        &mut self,
        number: u64,
        start: impl FnOnce(Operation) -> Result<OperationId, Rejected> + Send,
    ) -> Result<(), ErrorKind> {
        let mut operation = self.spare.pop().unwrap_or_default();
        operation.set_context(number);
        match self.here_or_outside(|| start(operation)) {
            Ok(id) => {
                self.started.insert(id, number);
                self.ids.insert(number, id);
                Ok(())
            }
            Err(rejected) => {
                let kind = rejected.error().kind();
                let operation = rejected.into_operation();
                if operation.context::<u64>() != Some(&number) {
                    self.wrong("a refused operation came back without its context (rule 45)");
                }
                self.spare.push(operation);
                Err(kind)
            }
        }
    }

    /// Runs a call where the step says: on this thread, which dequeues, or on another one.
    pub(crate) fn here_or_outside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        if !self.outside {
            return call();
        }
        thread::scope(|scope| match scope.spawn(call).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// An operation without a past, or one that was used before.
    pub(crate) fn spare_operation(&mut self) -> Operation {
        self.spare.pop().unwrap_or_default()
    }

    /// The id of an operation that was started.
    pub(crate) fn id(&self, number: u64) -> OperationId {
        self.ids[&number]
    }

    /// Waits until everything awaited has come, and gives the packets in the order in which they
    /// were dequeued. The pieces of a continuous receive are put together.
    pub(crate) fn collect(&mut self, mut awaited: Awaited) -> Result<Vec<Packet>, Stop> {
        let mut packets: Vec<Packet> = Vec::new();
        while !awaited.finals.is_empty() || !awaited.chunk_bytes.is_empty() {
            let packet = self.next_packet(|| format!("{awaited:?}"))?;
            if packet.more {
                let Some(left) = awaited.chunk_bytes.get_mut(&packet.number) else {
                    return Err(self.unexpected(&packet));
                };
                match left.checked_sub(packet.bytes) {
                    None => return Err(self.unexpected(&packet)),
                    Some(0) => drop(awaited.chunk_bytes.remove(&packet.number)),
                    Some(rest) => *left = rest,
                }
                let earlier =
                    packets.iter_mut().find(|one| one.more && one.number == packet.number);
                if let Some(earlier) = earlier {
                    earlier.bytes += packet.bytes;
                    earlier.content.extend_from_slice(&packet.content);
                    continue;
                }
            } else if !awaited.finals.remove(&packet.number) {
                return Err(self.unexpected(&packet));
            }
            packets.push(packet);
        }
        Ok(packets)
    }

    /// Waits for everything awaited, and writes it down.
    pub(crate) fn collect_and_say(&mut self, awaited: Awaited) -> Result<Vec<Packet>, Stop> {
        let mut packets = self.collect(awaited)?;
        self.say_packets(&mut packets);
        Ok(packets)
    }

    /// Writes packets down, in an order that does not depend on what no rule orders.
    pub(crate) fn say_packets(&mut self, packets: &mut [Packet]) {
        // Rule 35: sources have no order among each other; nor have receives and sends of one.
        packets.sort_by_key(|packet| (packet.kind.name(), packet.key));
        // Rules 74 and 79 order nothing among what ends by a close or a cancel, rule 44 nothing
        // among operations on a file. Everything else keeps the order in which it was dequeued.
        for group in packets.chunk_by_mut(|a, b| (a.kind, a.key) == (b.kind, b.key)) {
            let is_file = matches!(group[0].kind, OperationKind::ReadAt | OperationKind::WriteAt);
            let is_ended = |packet: &Packet| {
                matches!(packet.error, Some(ErrorKind::Cancelled | ErrorKind::ConnectionAborted))
            };
            if is_file || group.iter().all(is_ended) {
                group.sort_by_key(|packet| packet.number);
            }
        }
        for packet in packets {
            self.say(format!("  {}", packet.text()));
        }
    }

    /// Nothing more is there, as far as can be seen without waiting.
    pub(crate) fn expect_nothing(&mut self) -> Result<(), Stop> {
        let completion = match self.dequeued.pop_front() {
            Some(completion) => completion,
            None => match self.port.dequeue(Some(Duration::ZERO)) {
                Ok(completion) => completion,
                Err(DequeueError::TimedOut) => return Ok(()),
                Err(error) => return Err(self.wrong(format!("dequeue: {error}"))),
            },
        };
        let packet = self.take_apart(completion)?;
        Err(self.unexpected(&packet))
    }

    pub(crate) fn unexpected(&mut self, packet: &Packet) -> Stop {
        let more = if packet.more { " (continuous)" } else { "" };
        self.wrong(format!("nothing ends this operation yet: {}{more}", packet.text()))
    }

    /// The next packet, whatever it is.
    pub(crate) fn next_packet(&mut self, what: impl Fn() -> String) -> Result<Packet, Stop> {
        let deadline = Instant::now() + PACKET_LIMIT;
        while self.dequeued.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut entries: Vec<Option<Completion>> = (0..self.batch).map(|_| None).collect();
            let result = match self.batch {
                1 => self.port.dequeue(Some(left)).map(|completion| entries[0] = Some(completion)),
                _ => self.port.dequeue_many(&mut entries, Some(left)).map(drop),
            };
            match result {
                Ok(()) => self.dequeued.extend(entries.into_iter().flatten()),
                Err(DequeueError::TimedOut) => {
                    let what = what();
                    return Err(self.wrong(format!("no packet in {PACKET_LIMIT:?}: {what}")));
                }
                Err(error) => return Err(self.wrong(format!("dequeue: {error}"))),
            }
        }
        let completion = self.dequeued.pop_front().expect("the loop ended with a packet");
        self.take_apart(completion)
    }

    fn take_apart(&mut self, completion: Completion) -> Result<Packet, Stop> {
        let id = completion.operation_id();
        let number = match (completion.kind(), id.and_then(|id| self.started.get(&id))) {
            (OperationKind::Post, _) => completion.bytes() as u64,
            (_, Some(number)) => *number,
            _ => {
                let text = format!("a packet of no operation that is pending: {completion:?}");
                return Err(self.wrong(text));
            }
        };
        let (packet, operation, wrong) = Packet::new(completion, number);
        if let Some(text) = wrong {
            return Err(self.wrong(format!("{text}: {}", packet.text())));
        }
        if let Some(mut operation) = operation {
            id.map(|id| self.started.remove(&id));
            if operation.take_context::<u64>().map(|context| *context) != Some(number) {
                return Err(self.wrong(format!("another context (rule 83): {}", packet.text())));
            }
            self.spare.push(operation);
        }
        Ok(packet)
    }
}
