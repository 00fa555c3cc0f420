//! What is to happen, by time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use super::waiting::ConditionId;
use crate::operation::OperationId;

pub(crate) type ThreadId = usize;
pub(crate) type PortId = usize;
pub(crate) type SourceId = usize;
pub(crate) type EndpointId = usize;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A thread runs on.
    Resume(ThreadId),
    /// A thread that stalls was found blocked: its slot goes to another (rule 40).
    SlotLost(ThreadId, u64),
    /// A wait is over.
    WaitEnds(ThreadId, u64),
    /// A wait for a condition has lasted long enough.
    ConditionTimesOut(ConditionId, ThreadId, u64),
    /// A port's earliest timer is due.
    Timers(PortId),
    /// A stream has bytes, an end or room for receives to look at.
    Receive(SourceId),
    /// A stream has sends to look at.
    Transmit(SourceId),
    Accept(SourceId),
    /// A connect is answered.
    Connect(EndpointId, SocketAddr, u32),
    /// A connect never was.
    ConnectFails(EndpointId),
    /// A connection is reset.
    Reset(EndpointId),
    /// A cancel that was asked for takes effect.
    Cancel(SourceId, OperationId),
    File(SourceId, OperationId),
    /// A datagram arrives.
    Datagram(SocketAddr, SocketAddr, Vec<u8>),
    Datagrams(SourceId),
    Actor(usize),
}

struct Entry {
    time: u64,
    /// Chance decides between events of the same time.
    tie: u32,
    sequence: u64,
    event: Event,
}

impl Entry {
    fn order(&self) -> (u64, u32, u64) {
        (self.time, self.tie, self.sequence)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.order().cmp(&self.order())
    }
}

/// Events, the earliest first.
#[derive(Default)]
pub(crate) struct EventQueue {
    heap: BinaryHeap<Entry>,
    sequence: u64,
}

impl EventQueue {
    pub(crate) fn push(&mut self, time: u64, tie: u32, event: Event) {
        self.sequence += 1;
        self.heap.push(Entry { time, tie, sequence: self.sequence, event });
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|entry| (entry.time, entry.event))
    }
}
