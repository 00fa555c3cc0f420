//! The receive path: bytes into frames.
//!
//! Frames that lie whole in one receive buffer are handed over in place. Only the beginning of a
//! frame whose rest has not come is copied, to a buffer that is given up again when the frame is
//! whole; so a session that is idle between frames holds no memory for receiving, and the buffer of
//! the port's pool goes back as soon as its bytes were looked at.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::error::DisconnectReason;
use super::super::framing::{Decoded, FrameError, decode_checked};
use super::super::handler::HandlerResult;
use super::super::recycle;
use super::core::Core;
use super::mailbox::{Ending, Received};
use super::run::Next;
use super::{ENDING, OVER_MARK, PAUSED, SHAKEN, Session, SessionShared};
use crate::PoolBuffer;
use crate::sync::lock;

/// The rest of a frame is copied in steps of at least this much, where its length is not known.
const STEP_BYTES: usize = 1024;

/// Why a piece of the stream was not handed over to its end.
pub(super) enum Stop {
    Frame(FrameError),
    Handler(Box<dyn std::error::Error + Send + Sync>),
}

/// A piece of the stream that frames are found in, and that is used up from its front.
pub(super) trait Piece: Deref<Target = [u8]> {
    /// Gives up bytes at the front.
    fn advance(&mut self, count: usize);

    /// Its buffer, where it is one of the port's, cut to the payload of the last frame in it.
    fn take_last(&mut self, _payload: Range<usize>) -> Option<PoolBuffer> {
        None
    }

    /// What is left, for later.
    fn into_received(self) -> Option<Received>;
}

/// A receive buffer, until the handler takes it.
pub(super) struct Chunk(Option<PoolBuffer>);

impl Chunk {
    pub(super) fn new(buffer: PoolBuffer) -> Self {
        Self(Some(buffer))
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Piece for Chunk {
    fn advance(&mut self, count: usize) {
        if let Some(buffer) = &mut self.0 {
            buffer.advance(count);
        }
    }

    fn take_last(&mut self, payload: Range<usize>) -> Option<PoolBuffer> {
        let mut buffer = self.0.take()?;
        buffer.truncate(payload.end);
        buffer.advance(payload.start);
        Some(buffer)
    }

    fn into_received(self) -> Option<Received> {
        self.0.map(Received::Chunk)
    }
}

/// What a filter made of a piece of the stream.
pub(super) struct Plain {
    bytes: Vec<u8>,
    start: usize,
}

impl Plain {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl Deref for Plain {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Piece for Plain {
    fn advance(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.bytes.len());
    }

    fn into_received(self) -> Option<Received> {
        Some(Received::Plain(self))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        recycle::keep_buffer(std::mem::take(&mut self.bytes));
    }
}

impl SessionShared {
    /// A packet of the continuous receive.
    pub(super) fn received(self: &Arc<Self>, sequence: u64, received: Received) {
        let mut mailbox = lock(&self.mailbox);
        let direct = mailbox.note_received(sequence, received);
        if let Some(core) = mailbox.core.take() {
            drop(mailbox);
            self.run(core, direct.map(Next::Received));
        }
    }

    /// Whether nothing is to be handed over just now.
    pub(super) fn is_paused(&self) -> bool {
        let flags = self.flags.load(Ordering::SeqCst);
        flags & (PAUSED | OVER_MARK) != 0 && flags & ENDING == 0
    }

    /// Hands over the frames in `chunk`; gives back what is left of it where receiving pauses.
    pub(super) fn feed(
        &self,
        core: &mut Core,
        session: &Session,
        chunk: &mut impl Piece,
    ) -> Result<(), Stop> {
        let had_partial = !core.partial.is_empty();
        let before = chunk.len();
        let mut frames = 0;
        let outcome = self.hand_over(core, session, chunk, &mut frames);
        let now_ms = self.service.runtime.now_ms();
        // What a pause leaves behind is counted when it is looked at.
        let consumed = before - chunk.len();
        self.received_bytes.fetch_add(consumed as u64, Ordering::Relaxed);
        self.received_frames.fetch_add(frames, Ordering::Relaxed);
        let begun_now = frames > 0 || !had_partial;
        self.times.note_received(now_ms, core.partial.len(), begun_now);
        if frames > 0 && !self.service.timeouts.explicit_handshake {
            self.flags.fetch_or(SHAKEN, Ordering::Relaxed);
        }
        outcome
    }

    fn hand_over(
        &self,
        core: &mut Core,
        session: &Session,
        chunk: &mut impl Piece,
        frames: &mut u64,
    ) -> Result<(), Stop> {
        let maximum = self.service.framing.maximum_frame_bytes();
        while has_input(core, chunk) {
            if self.has(ENDING) {
                chunk.advance(chunk.len());
                core.drop_partial();
                return Ok(());
            }
            if self.is_paused() {
                return Ok(());
            }
            if !core.partial.is_empty() {
                self.complete_partial(core, session, chunk, maximum, frames)?;
                continue;
            }
            let decoded = decode_checked(&mut *core.decoder, chunk, maximum);
            let decoded = decoded.map_err(Stop::Frame)?;
            match decoded {
                Decoded::Frame { payload, consumed_bytes } => {
                    *frames += 1;
                    let is_last = consumed_bytes == chunk.len();
                    let result = match is_last.then(|| chunk.take_last(payload.clone())).flatten() {
                        Some(buffer) => call_received_buffer(core, session, buffer),
                        None => {
                            let result = call_received(core, session, &chunk[payload]);
                            chunk.advance(consumed_bytes);
                            result
                        }
                    };
                    result.map_err(Stop::Handler)?;
                }
                Decoded::Incomplete { needed_bytes } => {
                    core.partial = recycle::buffer();
                    core.partial.extend_from_slice(chunk);
                    core.set_needed_bytes(needed_bytes);
                    chunk.advance(chunk.len());
                }
            }
        }
        Ok(())
    }

    /// Adds bytes of `chunk` to the beginning of a frame, and hands it over where it is whole.
    fn complete_partial(
        &self,
        core: &mut Core,
        session: &Session,
        chunk: &mut impl Piece,
        maximum: usize,
        frames: &mut u64,
    ) -> Result<(), Stop> {
        let held = core.partial.len();
        let missing = core.needed_bytes().saturating_sub(held).max(STEP_BYTES);
        let step = missing.min(chunk.len());
        core.partial.extend_from_slice(&chunk[..step]);
        if core.partial.len() < core.needed_bytes() {
            chunk.advance(step);
            return Ok(());
        }
        match decode_checked(&mut *core.decoder, &core.partial, maximum).map_err(Stop::Frame)? {
            Decoded::Incomplete { needed_bytes } => {
                core.set_needed_bytes(needed_bytes);
                chunk.advance(step);
            }
            Decoded::Frame { payload, consumed_bytes } => {
                *frames += 1;
                // What was copied too far is handed over from where it came.
                chunk.advance(consumed_bytes.saturating_sub(held));
                let partial = std::mem::take(&mut core.partial);
                let rest = partial.get(consumed_bytes..held).unwrap_or_default().to_vec();
                let result = call_received(core, session, &partial[payload]);
                recycle::keep_buffer(partial);
                core.set_needed_bytes(0);
                core.partial = rest;
                result.map_err(Stop::Handler)?;
            }
        }
        Ok(())
    }

    /// The stream's end has its turn.
    pub(super) fn stream_ended(&self, core: &mut Core, error: Option<crate::Error>) {
        core.drop_partial();
        if let Some(error) = error {
            self.request_end(DisconnectReason::Failed(error), Ending::Abrupt);
        }
    }
}

/// Whether there is something to ask the decoder about.
pub(super) fn has_input(core: &Core, chunk: &[u8]) -> bool {
    // A decoder that looks ahead may have found a frame that ends before what was kept of it.
    !chunk.is_empty() || (!core.partial.is_empty() && core.needed_bytes() == 0)
}

fn call_received(core: &mut Core, session: &Session, frame: &[u8]) -> HandlerResult {
    match &mut core.handler {
        Some(handler) => handler.received(session, frame),
        None => Ok(()),
    }
}

fn call_received_buffer(core: &mut Core, session: &Session, frame: PoolBuffer) -> HandlerResult {
    match &mut core.handler {
        Some(handler) => handler.received_buffer(session, frame),
        None => Ok(()),
    }
}
