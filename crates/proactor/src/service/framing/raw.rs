//! No frames: the bytes as they come.

use super::{DEFAULT_MAXIMUM_FRAME_BYTES, Decoded, Decoder, FrameError, FrameHead, Framing};

/// The bytes as they come, for protocols that the program takes apart itself, and for relays.
///
/// Each piece that was received is a frame, of at most [`DEFAULT_MAXIMUM_FRAME_BYTES`] unless
/// changed. How a stream is cut into pieces says nothing about how the peer sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBytes {
    maximum_frame_bytes: usize,
}

impl RawBytes {
    /// Pieces of at most [`DEFAULT_MAXIMUM_FRAME_BYTES`].
    pub const fn new() -> Self {
        Self { maximum_frame_bytes: DEFAULT_MAXIMUM_FRAME_BYTES }
    }

    /// The most bytes that are handed over in one piece. What is sent may be of any length.
    ///
    /// # Panics
    /// Where it is 0.
    pub const fn with_maximum_frame_bytes(mut self, maximum_frame_bytes: usize) -> Self {
        assert!(maximum_frame_bytes > 0, "a piece has at least one byte");
        self.maximum_frame_bytes = maximum_frame_bytes;
        self
    }
}

impl Default for RawBytes {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing for RawBytes {
    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(*self)
    }

    fn head(&self, _payload_bytes: usize, _out: &mut FrameHead) -> Result<(), FrameError> {
        // There are no frames on the stream: what is sent may be of any length.
        Ok(())
    }

    fn maximum_frame_bytes(&self) -> usize {
        self.maximum_frame_bytes
    }
}

impl Decoder for RawBytes {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError> {
        let taken_bytes = input.len().min(self.maximum_frame_bytes);
        if taken_bytes == 0 {
            return Ok(Decoded::Incomplete { needed_bytes: 1 });
        }
        Ok(Decoded::Frame { payload: 0..taken_bytes, consumed_bytes: taken_bytes })
    }
}
