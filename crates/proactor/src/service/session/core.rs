//! The part of a session that callbacks run on: whoever has it is the only one that runs.

use super::super::framing::Decoder;
use super::super::handler::SessionHandler;
use super::super::recycle;
use crate::StreamSocket;

/// How far the end of a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Frames are handed over.
    Open,
    /// An end was asked for: what is queued is sent, what is received is dropped.
    Flushing,
    /// Our end of the stream was sent: the peer's is waited for, so that nothing that it has still
    /// to read is lost to a reset.
    Lingering,
    /// The connection is closed: the last packets are waited for.
    Closed,
}

pub(super) struct Core {
    /// `None` where making it failed.
    pub(super) handler: Option<Box<dyn SessionHandler>>,
    pub(super) decoder: Box<dyn Decoder>,
    /// The beginning of a frame whose rest has not come. Empty between frames, without memory.
    pub(super) partial: Vec<u8>,
    /// It is not worth asking the decoder before there are so many bytes in `partial`. More than
    /// fit: it is asked too early, and says so again.
    needed_bytes: u32,
    pub(super) stage: Stage,
    /// `connected` was called.
    pub(super) begun: bool,
    /// The peer has ended the stream in the filter's own protocol.
    pub(super) filter_ended: bool,
    /// The end was looked at, and nothing has happened since.
    pub(super) looked_for_end: bool,
    /// The stage whose time is being watched.
    pub(super) timed_stage: Stage,
    /// How many crossings of the marks of the queue the handler was told of.
    pub(super) told_crossings: u32,
    /// Counts runs, of which some are timed.
    pub(super) runs: u8,
}

impl Core {
    pub(super) fn new(handler: Option<Box<dyn SessionHandler>>, decoder: Box<dyn Decoder>) -> Self {
        Self {
            handler,
            decoder,
            partial: Vec::new(),
            needed_bytes: 0,
            stage: Stage::Open,
            begun: false,
            filter_ended: false,
            looked_for_end: false,
            timed_stage: Stage::Open,
            told_crossings: 0,
            runs: 0,
        }
    }

    pub(super) fn needed_bytes(&self) -> usize {
        self.needed_bytes as usize
    }

    pub(super) fn set_needed_bytes(&mut self, needed_bytes: usize) {
        self.needed_bytes = u32::try_from(needed_bytes).unwrap_or(u32::MAX);
    }

    /// Gives up the beginning of a frame.
    pub(super) fn drop_partial(&mut self) {
        recycle::keep_buffer(std::mem::take(&mut self.partial));
        self.needed_bytes = 0;
    }
}

/// Closes a connection so that the peer is told with a reset.
pub(super) fn close_abruptly(stream: StreamSocket) {
    // Where it cannot be set the connection is closed all the same.
    let _ = stream.reset_on_close();
    drop(stream);
}
