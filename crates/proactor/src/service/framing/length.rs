//! A length in front of each payload.

use super::{
    DEFAULT_MAXIMUM_FRAME_BYTES, Decoded, Decoder, FrameError, FrameHead, Framing, check_length,
};

/// In which order the bytes of a number go over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// The most significant byte first: network order.
    BigEndian,
    /// The least significant byte first, as most processors keep it in memory.
    LittleEndian,
}

/// How many bytes the length takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Width {
    Two,
    Four,
}

/// Frames with a length of two or four bytes in front.
///
/// Unless changed, the length is in network byte order and counts the payload alone, and a frame
/// has at most [`DEFAULT_MAXIMUM_FRAME_BYTES`]. A payload of no bytes is a frame. A length over
/// the maximum, or one that includes the head and is less than it, is an error at once.
///
/// ```
/// use proactor::service::framing::{ByteOrder, FrameReader, LengthPrefixed};
/// let framing = LengthPrefixed::u32()
///     .byte_order(ByteOrder::LittleEndian)
///     .length_includes_head(true)
///     .with_maximum_frame_bytes(1024);
/// let mut reader = FrameReader::new(&framing);
/// reader.push(&[9, 0, 0, 0]);
/// assert_eq!(reader.next_frame()?, None);
/// reader.push(b"hello");
/// assert_eq!(reader.next_frame()?, Some(&b"hello"[..]));
/// # Ok::<(), proactor::service::framing::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefixed {
    width: Width,
    byte_order: ByteOrder,
    includes_head: bool,
    /// The least bytes that a payload has: a header that continues in it.
    minimum_payload_bytes: usize,
    maximum_frame_bytes: usize,
}

impl LengthPrefixed {
    /// A length of two bytes: payloads of up to 65,535 bytes, as the maximum allows.
    pub const fn u16() -> Self {
        Self::of(Width::Two)
    }

    /// A length of four bytes: payloads of up to 4 GiB, as the maximum allows.
    pub const fn u32() -> Self {
        Self::of(Width::Four)
    }

    const fn of(width: Width) -> Self {
        Self {
            width,
            byte_order: ByteOrder::BigEndian,
            includes_head: false,
            minimum_payload_bytes: 0,
            maximum_frame_bytes: DEFAULT_MAXIMUM_FRAME_BYTES,
        }
    }

    /// In which order the bytes of the length come; [`BigEndian`](ByteOrder::BigEndian) unless
    /// said.
    pub const fn byte_order(mut self, byte_order: ByteOrder) -> Self {
        self.byte_order = byte_order;
        self
    }

    /// Whether the length counts its own bytes too; not, unless said.
    pub const fn length_includes_head(mut self, includes_head: bool) -> Self {
        self.includes_head = includes_head;
        self
    }

    /// The most bytes that a frame has, the length's own included.
    ///
    /// # Panics
    /// Where not even the length and one byte fit.
    pub const fn with_maximum_frame_bytes(mut self, maximum_frame_bytes: usize) -> Self {
        assert!(maximum_frame_bytes > self.header_bytes(), "a frame holds more than its header");
        self.maximum_frame_bytes = maximum_frame_bytes;
        self
    }

    /// The payload starts with so many bytes of a header of its own.
    pub(super) const fn with_minimum_payload_bytes(mut self, minimum_payload_bytes: usize) -> Self {
        self.minimum_payload_bytes = minimum_payload_bytes;
        self
    }

    pub(super) const fn order(&self) -> ByteOrder {
        self.byte_order
    }

    const fn head_bytes(&self) -> usize {
        match self.width {
            Width::Two => 2,
            Width::Four => 4,
        }
    }

    /// The least bytes of a frame: all of its header, also where that continues in the payload.
    const fn header_bytes(&self) -> usize {
        self.head_bytes() + self.minimum_payload_bytes
    }

    /// What the length does not count of the frame.
    const fn uncounted_bytes(&self) -> usize {
        if self.includes_head { 0 } else { self.header_bytes() }
    }

    /// The length at the front of `input`, if all of it is there.
    fn read(&self, input: &[u8]) -> Option<usize> {
        let length = match self.width {
            Width::Two => {
                let bytes = *input.first_chunk()?;
                u32::from(match self.byte_order {
                    ByteOrder::BigEndian => u16::from_be_bytes(bytes),
                    ByteOrder::LittleEndian => u16::from_le_bytes(bytes),
                })
            }
            Width::Four => {
                let bytes = *input.first_chunk()?;
                match self.byte_order {
                    ByteOrder::BigEndian => u32::from_be_bytes(bytes),
                    ByteOrder::LittleEndian => u32::from_le_bytes(bytes),
                }
            }
        };
        // Where addresses are shorter than the length, what does not fit is over any maximum.
        Some(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn write(&self, length: u32, out: &mut FrameHead) -> Result<(), FrameError> {
        match (self.width, self.byte_order) {
            (Width::Two, ByteOrder::BigEndian) => out.push(&(length as u16).to_be_bytes()),
            (Width::Two, ByteOrder::LittleEndian) => out.push(&(length as u16).to_le_bytes()),
            (Width::Four, ByteOrder::BigEndian) => out.push(&length.to_be_bytes()),
            (Width::Four, ByteOrder::LittleEndian) => out.push(&length.to_le_bytes()),
        }
    }
}

impl Framing for LengthPrefixed {
    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(*self)
    }

    fn head(&self, payload_bytes: usize, out: &mut FrameHead) -> Result<(), FrameError> {
        if payload_bytes < self.minimum_payload_bytes {
            return Err(FrameError::TooShort {
                length_bytes: payload_bytes,
                minimum_bytes: self.minimum_payload_bytes,
            });
        }
        check_length(payload_bytes, self.head_bytes(), self.maximum_frame_bytes)?;
        let largest = match self.width {
            Width::Two => u32::from(u16::MAX),
            Width::Four => u32::MAX,
        };
        let length = self.head_bytes() + payload_bytes - self.uncounted_bytes();
        match u32::try_from(length) {
            Ok(length) if length <= largest => self.write(length, out),
            _ => Err(FrameError::Unrepresentable {
                payload_bytes,
                maximum_payload_bytes: (largest as usize - self.head_bytes())
                    .saturating_add(self.uncounted_bytes()),
            }),
        }
    }

    fn maximum_frame_bytes(&self) -> usize {
        self.maximum_frame_bytes
    }
}

impl Decoder for LengthPrefixed {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError> {
        let head_bytes = self.head_bytes();
        let Some(length_bytes) = self.read(input) else {
            return Ok(Decoded::Incomplete { needed_bytes: head_bytes });
        };
        let minimum_bytes = self.header_bytes() - self.uncounted_bytes();
        if length_bytes < minimum_bytes {
            return Err(FrameError::TooShort { length_bytes, minimum_bytes });
        }
        check_length(length_bytes, self.uncounted_bytes(), self.maximum_frame_bytes)?;
        let frame_bytes = length_bytes + self.uncounted_bytes();
        if input.len() < frame_bytes {
            return Ok(Decoded::Incomplete { needed_bytes: frame_bytes });
        }
        Ok(Decoded::Frame { payload: head_bytes..frame_bytes, consumed_bytes: frame_bytes })
    }
}
