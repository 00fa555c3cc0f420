//! Datagrams: lost, doubled and out of order, as a network may.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::event::{Event, SourceId};
use super::kernel::State;
use super::source::Role;
use crate::error::ErrorKind;
use crate::operation::{Operation, OperationKind, Payload};

/// Datagrams that wait to be received; further ones are dropped.
const INBOX: usize = 64;
/// The longest datagram (UDP over IPv4).
const LONGEST_BYTES: usize = 65_507;

pub(crate) struct Datagrams {
    pub(crate) address: SocketAddr,
    inbox: VecDeque<(Vec<u8>, SocketAddr)>,
    pub(crate) receives: VecDeque<Operation>,
    pub(crate) sends: VecDeque<Operation>,
}

impl Datagrams {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, inbox: VecDeque::new(), receives: VecDeque::new(), sends: VecDeque::new() }
    }
}

impl State {
    fn datagram(&mut self, source: SourceId) -> Option<&mut Datagrams> {
        match &mut self.sources[source].role {
            Role::Datagram(datagrams) => Some(datagrams),
            _ => None,
        }
    }

    pub(crate) fn start_datagram(
        &mut self,
        source: SourceId,
        operation: Operation,
    ) -> Result<(), (ErrorKind, Operation)> {
        let Some(datagrams) = self.datagram(source) else { unreachable!("the role was matched") };
        match &operation.inner.payload {
            Payload::DatagramTo(_, None) => return Err((ErrorKind::NotConnected, operation)),
            Payload::DatagramTo(bytes, _) if bytes.len() > LONGEST_BYTES => {
                return Err((ErrorKind::MessageTooLong, operation));
            }
            _ => {}
        }
        if operation.kind() == OperationKind::RecvFrom {
            datagrams.receives.push_back(operation);
        } else {
            datagrams.sends.push_back(operation);
        }
        self.soon(Event::Datagrams(source));
        Ok(())
    }

    pub(crate) fn datagrams(&mut self, source: SourceId) {
        self.maybe_spurious(Event::Datagrams(source));
        loop {
            let Some(datagrams) = self.datagram(source) else { return };
            let from = datagrams.address;
            let Some(operation) = datagrams.sends.pop_front() else { break };
            let Payload::DatagramTo(bytes, Some(to)) = &operation.inner.payload else {
                unreachable!("a send owns its bytes and address")
            };
            let (bytes, to) = (bytes.as_slice().to_vec(), *to);
            let (lost, doubled) = (self.faults.lost_datagram, self.faults.doubled_datagram);
            let length = bytes.len();
            if !self.strikes(lost) {
                if self.strikes(doubled) {
                    self.soon(Event::Datagram(from, to, bytes.clone()));
                }
                self.soon(Event::Datagram(from, to, bytes));
            }
            self.finish(source, operation, length, None);
        }
        loop {
            let Some(datagrams) = self.datagram(source) else { return };
            if datagrams.receives.is_empty() || datagrams.inbox.is_empty() {
                return;
            }
            let Some((bytes, from)) = datagrams.inbox.pop_front() else { return };
            let Some(mut operation) = datagrams.receives.pop_front() else { return };
            let Payload::Datagram(buffer, peer) = &mut operation.inner.payload else {
                unreachable!("a receive owns its buffer")
            };
            let count = bytes.len().min(buffer.capacity());
            buffer.extend_from_slice(&bytes[..count]);
            *peer = Some(from);
            let error = (count < bytes.len()).then_some(ErrorKind::MessageTruncated);
            self.trace.bytes(bytes.iter().copied());
            self.finish(source, operation, count, error);
        }
    }

    pub(crate) fn datagram_arrives(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let Some(source) = self.datagram_sockets.get(&to).copied() else { return };
        // A socket that is bound and not associated yet is no source.
        let Some(datagrams) = self.sources.get(source).and_then(|source| match &source.role {
            Role::Datagram(datagrams) => Some(datagrams),
            _ => None,
        }) else {
            return;
        };
        if datagrams.inbox.len() < INBOX
            && let Some(datagrams) = self.datagram(source)
        {
            datagrams.inbox.push_back((bytes, from));
            self.soon(Event::Datagrams(source));
        }
    }
}
