//! A packet, reduced to what can be compared between backends.

use std::net::SocketAddr;

use proactor::{Accepted, Completion, ErrorKind, Operation, OperationKind};

use crate::random::hash;

/// What a packet said.
#[derive(Debug)]
pub(crate) struct Packet {
    /// The number of its operation: how many were started before it. For a post, its `bytes`.
    pub(crate) number: u64,
    pub(crate) key: usize,
    pub(crate) kind: OperationKind,
    pub(crate) bytes: usize,
    pub(crate) error: Option<ErrorKind>,
    /// What was received or read, or the buffers of a send as they came back.
    pub(crate) content: Vec<u8>,
    /// A continuous receive goes on.
    pub(crate) more: bool,
    pub(crate) accepted: Option<Accepted>,
    pub(crate) from: Option<SocketAddr>,
}

impl Packet {
    /// Takes a completion apart; gives back its operation, to be used again, and what is wrong with
    /// it in itself.
    pub(crate) fn new(
        mut completion: Completion,
        number: u64,
    ) -> (Self, Option<Operation>, Option<String>) {
        let mut packet = Self {
            number,
            key: completion.key(),
            kind: completion.kind(),
            bytes: completion.bytes(),
            error: completion.error().map(|error| error.kind()),
            content: Vec::new(),
            more: completion.more(),
            accepted: None,
            from: None,
        };
        if let Some(chunk) = completion.take_chunk() {
            packet.content.extend_from_slice(&chunk);
        }
        let mut operation = completion.take_operation();
        let mut wrong = None;
        if packet.more && packet.content.len() != packet.bytes {
            wrong = Some(format!("a piece of {} bytes", packet.content.len()));
        } else if let Some(operation) = &mut operation {
            wrong = packet.take_from(operation);
        } else if !packet.more && packet.kind != OperationKind::Post {
            wrong = Some("the last packet carries no operation (rule 44)".to_owned());
        }
        (packet, operation, wrong)
    }

    fn take_from(&mut self, operation: &mut Operation) -> Option<String> {
        self.accepted = operation.take_accepted();
        self.from = operation.peer_address();
        let mut wrong = None;
        if let Some(buffer) = operation.take_buffer() {
            self.content = buffer;
        } else if let Some(buffers) = operation.take_buffers() {
            let full = |buffer: &Vec<u8>| buffer.len() == buffer.capacity();
            let unfinished = buffers.iter().skip_while(|buffer| full(buffer)).skip(1);
            if unfinished.map(Vec::len).sum::<usize>() > 0 {
                wrong = Some("several buffers were filled with a hole (rule 62)".to_owned());
            }
            self.content = buffers.concat();
        } else if let Some(buffer) = operation.take_send_buffer() {
            self.content = buffer.as_slice().to_vec();
            return None;
        } else if let Some(buffers) = operation.take_send_buffers() {
            self.content = buffers.iter().flat_map(|buffer| buffer.as_slice()).copied().collect();
            return None;
        }
        if self.kind != OperationKind::Post && self.content.len() != self.bytes {
            wrong =
                Some(format!("{} bytes, but {} in the buffers", self.bytes, self.content.len()));
        }
        wrong
    }

    /// The packet in one line.
    pub(crate) fn text(&self) -> String {
        let Self { number, key, bytes, .. } = self;
        let name = self.kind.name();
        match self.error {
            Some(error) if *bytes == 0 => format!("{name} #{number} key {key}: {error:?}"),
            error => {
                let error = error.map(|error| format!("{error:?}, ")).unwrap_or_default();
                let hash = hash(&self.content);
                format!("{name} #{number} key {key}: {error}{bytes} bytes {hash:016x}")
            }
        }
    }
}
