//! Packets with a size and an id, as game servers use them.

use super::{ByteOrder, Decoder, FrameError, FrameHead, Framing, LengthPrefixed};

/// How many bytes the id takes.
const ID_BYTES: usize = 2;

/// Packets with a header `{size: u16, id: u16}`: the usual binary protocol of game servers.
///
/// Unless changed, both numbers are little endian and the size counts the whole packet, header
/// included, which is how a packed C structure of two `uint16_t` goes over the wire. A packet has
/// at most 65,535 bytes. A size of less than the header is an error.
///
/// The *payload* that a session receives and sends is the id and the body together, so that the
/// framing stays the same for all packets. [`split`](Self::split) takes it apart, and
/// [`payload`](Self::payload) puts it together; a program that builds its packets in place writes
/// [`id_bytes`](Self::id_bytes) first.
///
/// ```
/// use proactor::service::framing::{FrameReader, Packets};
/// const MOVE: u16 = 7;
/// let packets = Packets::new();
/// let mut reader = FrameReader::new(&packets);
/// reader.push(&[6, 0, 7, 0, 0xAA, 0xBB]);
/// let payload = reader.next_frame()?.unwrap();
/// assert_eq!(packets.split(payload), Some((MOVE, &[0xAA, 0xBB][..])));
/// assert_eq!(packets.payload(MOVE, &[0xAA, 0xBB]), payload);
/// # Ok::<(), proactor::service::framing::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packets {
    length: LengthPrefixed,
}

impl Packets {
    /// Little endian, with a size that counts the header too.
    pub const fn new() -> Self {
        let length = LengthPrefixed::u16()
            .byte_order(ByteOrder::LittleEndian)
            .length_includes_head(true)
            .with_minimum_payload_bytes(ID_BYTES);
        Self { length }
    }

    /// In which order the bytes of size and id come.
    pub const fn byte_order(mut self, byte_order: ByteOrder) -> Self {
        self.length = self.length.byte_order(byte_order);
        self
    }

    /// Whether the size counts the whole packet, the four bytes of the header included (as it
    /// does unless said), or the body alone.
    pub const fn size_includes_header(mut self, includes_header: bool) -> Self {
        self.length = self.length.length_includes_head(includes_header);
        self
    }

    /// The most bytes that a packet has, the header included.
    ///
    /// # Panics
    /// Where not even the header and one byte fit.
    pub const fn with_maximum_frame_bytes(mut self, maximum_frame_bytes: usize) -> Self {
        self.length = self.length.with_maximum_frame_bytes(maximum_frame_bytes);
        self
    }

    /// The bytes of an id, as they stand at the front of a payload.
    pub const fn id_bytes(&self, id: u16) -> [u8; 2] {
        match self.length.order() {
            ByteOrder::BigEndian => id.to_be_bytes(),
            ByteOrder::LittleEndian => id.to_le_bytes(),
        }
    }

    /// Takes a payload apart: the id, and the body. `None` where it is shorter than an id, which
    /// no payload that this framing has found is.
    pub fn split<'a>(&self, payload: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let (id, body) = payload.split_first_chunk::<ID_BYTES>()?;
        let id = match self.length.order() {
            ByteOrder::BigEndian => u16::from_be_bytes(*id),
            ByteOrder::LittleEndian => u16::from_le_bytes(*id),
        };
        Some((id, body))
    }

    /// Puts a payload together: the id, then the body.
    pub fn payload(&self, id: u16, body: &[u8]) -> Vec<u8> {
        let mut payload = Vec::with_capacity(ID_BYTES + body.len());
        payload.extend_from_slice(&self.id_bytes(id));
        payload.extend_from_slice(body);
        payload
    }
}

impl Default for Packets {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing for Packets {
    fn decoder(&self) -> Box<dyn Decoder> {
        self.length.decoder()
    }

    fn head(&self, payload_bytes: usize, out: &mut FrameHead) -> Result<(), FrameError> {
        self.length.head(payload_bytes, out)
    }

    fn maximum_frame_bytes(&self) -> usize {
        self.length.maximum_frame_bytes()
    }
}
