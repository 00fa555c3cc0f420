//! Sending on a stream (rules 17, 67 to 73, 90).

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod delivery;
mod ends;

use std::net::TcpStream;

use common::*;
use proactor::{CompletionPort, StreamSocket};

/// A stream that is associated with `port` under key 1, and its peer, with kernel buffers of a few KiB: a send of `TOO_MUCH` has to wait for the peer.
fn associated_with_small_buffers(port: &CompletionPort) -> (StreamSocket, TcpStream) {
    let (stream, peer) = tcp_pair();
    shrink_buffers(&stream);
    shrink_buffers(&peer);
    (port.associate(stream, 1).unwrap(), peer)
}

/// Far more than two sockets with small buffers hold.
const TOO_MUCH: usize = 1024 * 1024;
