//! The framings that a service is run with, and the same again as a client sees them: written down
//! once more, so that a mistake in one of them is seen.

use std::sync::Arc;

use crate::service::framing::{ByteOrder, Delimited, Framing, LengthPrefixed, Lines, Packets};
use crate::sim::Random;

/// How frames lie on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire {
    Length16,
    Length32Little,
    Line,
    Bars,
    Packet,
}

const ALL: &[Wire] = &[Wire::Length16, Wire::Length32Little, Wire::Line, Wire::Bars, Wire::Packet];

impl Wire {
    pub(super) fn draw(random: &mut Random) -> Self {
        ALL[random.below(ALL.len() as u64) as usize]
    }

    /// The server's own.
    pub(super) fn framing(self, maximum_frame_bytes: usize) -> Arc<dyn Framing> {
        let most = maximum_frame_bytes;
        match self {
            Self::Length16 => Arc::new(LengthPrefixed::u16().with_maximum_frame_bytes(most)),
            Self::Length32Little => Arc::new(
                LengthPrefixed::u32()
                    .byte_order(ByteOrder::LittleEndian)
                    .with_maximum_frame_bytes(most),
            ),
            Self::Line => Arc::new(Lines::new().with_maximum_frame_bytes(most)),
            Self::Bars => Arc::new(Delimited::by("||").with_maximum_frame_bytes(most)),
            Self::Packet => Arc::new(Packets::new().with_maximum_frame_bytes(most)),
        }
    }

    /// A frame as a client writes it.
    pub(super) fn encode(self, payload: &[u8]) -> Vec<u8> {
        let length = payload.len();
        let mut frame = match self {
            Self::Length16 => (length as u16).to_be_bytes().to_vec(),
            Self::Length32Little => (length as u32).to_le_bytes().to_vec(),
            Self::Packet => (length as u16 + 2).to_le_bytes().to_vec(),
            Self::Line | Self::Bars => Vec::new(),
        };
        frame.extend_from_slice(payload);
        match self {
            Self::Line => frame.push(b'\n'),
            Self::Bars => frame.extend_from_slice(b"||"),
            _ => {}
        }
        frame
    }

    /// The first frame's payload as a client reads it, and the bytes that it takes.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let (head, length) = match self {
            Self::Length16 => (2, usize::from(u16::from_be_bytes(*bytes.first_chunk()?))),
            Self::Length32Little => (4, u32::from_le_bytes(*bytes.first_chunk()?) as usize),
            Self::Packet => (2, usize::from(u16::from_le_bytes(*bytes.first_chunk()?)) - 2),
            Self::Line => {
                let end = bytes.iter().position(|byte| *byte == b'\n')?;
                return Some((bytes[..end].to_vec(), end + 1));
            }
            Self::Bars => {
                let end = bytes.windows(2).position(|pair| pair == b"||")?;
                return Some((bytes[..end].to_vec(), end + 2));
            }
        };
        let payload = bytes.get(head..head + length)?.to_vec();
        Some((payload, head + length))
    }
}
