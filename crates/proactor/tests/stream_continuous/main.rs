//! Continuous receive: a packet for each buffer, until it ends (rules 44, 57, 58, 78, 84).

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod buffers;
mod ends;
mod packets;

use common::*;
use proactor::{Completion, CompletionPort, ErrorKind, Operation, OperationKind, PoolBuffer};

const KIND: OperationKind = OperationKind::RecvContinuous;

/// The next packet, which has to bring bytes.
#[track_caller]
fn chunk(port: &CompletionPort) -> PoolBuffer {
    let mut completion = dequeue_within(port, KIND);
    assert!(completion.more() && completion.error().is_none(), "{completion:?}");
    assert!(completion.operation().is_none(), "the operation is in flight still");
    let chunk = completion.take_chunk().expect("a packet that is not the last brings bytes");
    assert!(!chunk.is_empty());
    assert_eq!(completion.bytes(), chunk.len());
    assert!(completion.take_chunk().is_none(), "it was taken");
    chunk
}

/// The last packet, which has to bring the operation and no bytes.
#[track_caller]
fn check_last(mut completion: Completion, error: Option<ErrorKind>) -> Operation {
    assert_eq!(completion.error().map(|error| error.kind()), error, "{completion:?}");
    assert!(!completion.more());
    assert_eq!(completion.bytes(), 0);
    assert!(completion.take_chunk().is_none());
    completion.into_operation().expect("the last packet brings the operation")
}

/// Takes packets until `count` bytes are there.
#[track_caller]
fn take_bytes(port: &CompletionPort, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        bytes.extend_from_slice(&chunk(port));
    }
    assert_eq!(bytes.len(), count, "more came than was sent");
    bytes
}
