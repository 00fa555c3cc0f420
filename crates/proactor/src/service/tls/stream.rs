//! One connection's TLS, between a session's bytes and its frames.

use std::any::Any;
use std::io::{Read, Write};
use std::sync::Arc;

use rustls::Connection;

use super::super::filter::{Filter, FilterError};
use super::TlsInformation;

pub(super) struct TlsStream {
    connection: Connection,
    ended: bool,
}

impl TlsStream {
    pub(super) fn new(mut connection: Connection) -> Self {
        // Everything is taken out as soon as it was put in, and what is put in is bounded by the
        // session's own queue.
        connection.set_buffer_limit(None);
        Self { connection, ended: false }
    }
}

impl Filter for TlsStream {
    fn receive(&mut self, mut received: &[u8], plain: &mut Vec<u8>) -> Result<(), FilterError> {
        while !received.is_empty() && !self.ended {
            // It takes as much as its buffer for incomplete records has room for, one record at
            // least; that buffer is all that a peer can make it keep.
            self.connection.read_tls(&mut received).map_err(FilterError::new)?;
            let state = self.connection.process_new_packets().map_err(FilterError::new)?;
            let count = state.plaintext_bytes_to_read();
            let start = plain.len();
            plain.resize(start + count, 0);
            self.connection.reader().read_exact(&mut plain[start..]).map_err(FilterError::new)?;
            self.ended = state.peer_has_closed();
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        !self.connection.is_handshaking()
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), FilterError> {
        self.connection.writer().write_all(plain).map_err(FilterError::new)?;
        self.take_output(wire);
        Ok(())
    }

    fn wants_to_send(&self) -> bool {
        self.connection.wants_write()
    }

    fn take_output(&mut self, wire: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(wire).expect("writing to a vector does not fail");
        }
    }

    fn end(&mut self) {
        self.connection.send_close_notify();
    }

    fn information(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        let connection = &self.connection;
        let server_name = match connection {
            Connection::Server(server) => server.server_name().map(str::to_owned),
            Connection::Client(_) => None,
        };
        let certificates = connection.peer_certificates().unwrap_or_default();
        Some(Arc::new(TlsInformation {
            protocol_version: format!("{:?}", connection.protocol_version()?),
            cipher_suite: format!("{:?}", connection.negotiated_cipher_suite()?.suite()),
            server_name,
            application_protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
            peer_certificates: certificates.iter().cloned().map(|one| one.into_owned()).collect(),
        }))
    }
}
