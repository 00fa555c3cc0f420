//! How a stream of bytes is cut into frames, and frames are put on a stream.
//!
//! A [`Framing`] is shared by all sessions of a service and says how a frame looks. It hands out a
//! [`Decoder`] per session, which finds the frames in what was received. What a peer can make it
//! do is bounded: no frame is longer than [`Framing::maximum_frame_bytes`], a decoder copies and
//! allocates nothing, and a frame that can never be valid is an error as soon as that is known.
//!
//! | framing | a frame is |
//! |---|---|
//! | [`LengthPrefixed`] | a length of 2 or 4 bytes, and so many bytes |
//! | [`Packets`] | a header `{size: u16, id: u16}` and a body, as game servers use it |
//! | [`Lines`] | a line that ends with LF, or CR LF |
//! | [`Delimited`] | bytes up to a delimiter of your choice |
//! | [`RawBytes`] | whatever has come |
//!
//! A framing of your own implements both traits:
//!
//! ```
//! use proactor::service::framing::{Decoded, Decoder, FrameError, FrameHead, Framing};
//!
//! /// A length of one byte, and so many bytes.
//! struct Tiny;
//!
//! impl Framing for Tiny {
//!     fn decoder(&self) -> Box<dyn Decoder> {
//!         Box::new(Tiny)
//!     }
//!     fn head(&self, payload_bytes: usize, out: &mut FrameHead) -> Result<(), FrameError> {
//!         let length = u8::try_from(payload_bytes).map_err(|_| FrameError::Unrepresentable {
//!             payload_bytes,
//!             maximum_payload_bytes: 255,
//!         })?;
//!         out.push(&[length])
//!     }
//!     fn maximum_frame_bytes(&self) -> usize {
//!         256
//!     }
//! }
//!
//! impl Decoder for Tiny {
//!     fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError> {
//!         let Some(&length) = input.first() else { return Ok(Decoded::Incomplete { needed_bytes: 1 }) };
//!         let frame_bytes = 1 + usize::from(length);
//!         if input.len() < frame_bytes {
//!             return Ok(Decoded::Incomplete { needed_bytes: frame_bytes });
//!         }
//!         Ok(Decoded::Frame { payload: 1..frame_bytes, consumed_bytes: frame_bytes })
//!     }
//! }
//! ```

mod delimited;
mod head;
mod length;
mod lines;
mod packets;
mod raw;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use delimited::Delimited;
pub use head::FrameHead;
pub use length::{ByteOrder, LengthPrefixed};
pub use lines::{LineEnd, Lines};
pub use packets::Packets;
pub use raw::RawBytes;
pub use reader::FrameReader;

/// The most bytes that a frame takes, head and tail included, where nothing else is said: 64 KiB.
pub const DEFAULT_MAXIMUM_FRAME_BYTES: usize = 64 * 1024;

/// How a stream of bytes is cut into frames. Shared by all sessions of a service.
pub trait Framing: Send + Sync + 'static {
    /// A decoder for the stream of one session. It is small: an idle session keeps it.
    fn decoder(&self) -> Box<dyn Decoder>;

    /// Appends to `out` what goes before a payload of `payload_bytes` bytes.
    ///
    /// # Errors
    /// [`TooLong`](FrameError::TooLong) where the whole frame would be over the maximum,
    /// [`Unrepresentable`](FrameError::Unrepresentable) where the head cannot express the length.
    fn head(&self, payload_bytes: usize, out: &mut FrameHead) -> Result<(), FrameError>;

    /// What goes behind a payload, for example the end of a line. Nothing, unless overridden.
    fn tail(&self) -> &[u8] {
        &[]
    }

    /// The most bytes that one frame takes on the stream, head and tail included.
    fn maximum_frame_bytes(&self) -> usize;
}

impl<F: Framing + ?Sized> Framing for Arc<F> {
    fn decoder(&self) -> Box<dyn Decoder> {
        (**self).decoder()
    }
    fn head(&self, payload_bytes: usize, out: &mut FrameHead) -> Result<(), FrameError> {
        (**self).head(payload_bytes, out)
    }
    fn tail(&self) -> &[u8] {
        (**self).tail()
    }
    fn maximum_frame_bytes(&self) -> usize {
        (**self).maximum_frame_bytes()
    }
}

/// Finds the frames in the bytes of one session.
pub trait Decoder: Send {
    /// Looks for the first frame in `input`.
    ///
    /// `input` starts where the last frame ended, and keeps growing at its end until a frame is
    /// found; so a decoder may remember how far it has looked, and forgets it when it returns a
    /// frame. After an error the stream cannot be understood any more, and the decoder is not
    /// called again.
    ///
    /// # Errors
    /// [`FrameError`]: the bytes are not, and cannot become, a frame.
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError>;
}

/// What a decoder has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// There is no whole frame yet.
    Incomplete {
        /// How many bytes the input must hold, from its start, before it is worth asking again:
        /// more than it held, and at most the maximum of a frame.
        ///
        /// This is what the peer says. Who reserves memory for it lets each peer reserve a whole
        /// frame with a few bytes; grow the buffer with what has come instead.
        needed_bytes: usize,
    },
    /// A whole frame.
    Frame {
        /// Where in the input the payload is.
        payload: Range<usize>,
        /// How many bytes of the input the frame takes: at least one, and all of the payload.
        consumed_bytes: usize,
    },
}

/// Why bytes are not a frame, or a payload cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than the maximum.
    TooLong {
        /// How long it is, as far as that is known.
        frame_bytes: usize,
        /// [`Framing::maximum_frame_bytes`].
        maximum_frame_bytes: usize,
    },
    /// The length in a head is less than the head itself takes.
    TooShort {
        /// The length that the head says.
        length_bytes: usize,
        /// The least that it may say.
        minimum_bytes: usize,
    },
    /// A payload to be sent has a length that the head cannot express.
    Unrepresentable {
        /// The length of the payload.
        payload_bytes: usize,
        /// The most that the head can express.
        maximum_payload_bytes: usize,
    },
    /// What a framing of the program's own reports, or an offence against the traits' contract.
    Invalid(&'static str),
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { frame_bytes, maximum_frame_bytes } => write!(
                formatter,
                "frame of {frame_bytes} bytes or more: at most {maximum_frame_bytes} are allowed"
            ),
            Self::TooShort { length_bytes, minimum_bytes } => write!(
                formatter,
                "length of {length_bytes} bytes in the head of a frame: at least {minimum_bytes} \
                 are needed"
            ),
            Self::Unrepresentable { payload_bytes, maximum_payload_bytes } => write!(
                formatter,
                "payload of {payload_bytes} bytes: the head of a frame can say at most \
                 {maximum_payload_bytes}"
            ),
            Self::Invalid(reason) => formatter.write_str(reason),
        }
    }
}

impl std::error::Error for FrameError {}

/// Asks `decoder`, and holds it to the contract, so that a wrong decoder of the program's own is
/// an error and not an endless loop, a panic, or a buffer without a bound.
///
/// # Errors
/// The decoder's own; [`TooLong`](FrameError::TooLong) for a frame over the maximum, found or
/// announced; [`Invalid`](FrameError::Invalid) for an answer that the contract excludes.
pub fn decode_checked(
    decoder: &mut dyn Decoder,
    input: &[u8],
    maximum_frame_bytes: usize,
) -> Result<Decoded, FrameError> {
    let decoded = decoder.decode(input)?;
    let frame_bytes = match &decoded {
        Decoded::Incomplete { needed_bytes } => {
            if *needed_bytes <= input.len() {
                return Err(FrameError::Invalid("the decoder asks for bytes that it was given"));
            }
            *needed_bytes
        }
        Decoded::Frame { payload, consumed_bytes } => {
            if *consumed_bytes == 0 || *consumed_bytes > input.len() {
                return Err(FrameError::Invalid("the decoder consumes no bytes, or too many"));
            }
            if payload.start > payload.end || payload.end > *consumed_bytes {
                return Err(FrameError::Invalid("the decoder's payload is not within its frame"));
            }
            *consumed_bytes
        }
    };
    if frame_bytes > maximum_frame_bytes {
        return Err(FrameError::TooLong { frame_bytes, maximum_frame_bytes });
    }
    Ok(decoded)
}

/// The frame of a payload fits the maximum.
fn check_length(
    payload_bytes: usize,
    around_bytes: usize,
    maximum_frame_bytes: usize,
) -> Result<(), FrameError> {
    let frame_bytes = payload_bytes.saturating_add(around_bytes);
    if frame_bytes > maximum_frame_bytes {
        return Err(FrameError::TooLong { frame_bytes, maximum_frame_bytes });
    }
    Ok(())
}
