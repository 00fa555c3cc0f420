//! Frames out of bytes that come in pieces, for programs that have no session.

use super::{Decoded, Decoder, FrameError, Framing, decode_checked};

/// Collects bytes and gives the frames in them: for a bare port, for a blocking client, for tests.
/// Sessions do this themselves.
///
/// Take all frames out after each [`push`](Self::push), and no more than one frame and what was
/// pushed last is ever held.
///
/// ```
/// use std::io::Read;
/// use proactor::service::framing::{FrameError, FrameReader, Lines};
///
/// fn print_lines(mut stream: impl Read) -> Result<(), Box<dyn std::error::Error>> {
///     let mut reader = FrameReader::new(&Lines::new());
///     let mut piece = [0; 4096];
///     loop {
///         let count = stream.read(&mut piece)?;
///         if count == 0 {
///             return Ok(());
///         }
///         reader.push(&piece[..count]);
///         while let Some(line) = reader.next_frame()? {
///             println!("{}", String::from_utf8_lossy(line));
///         }
///     }
/// }
/// # print_lines(&b"one\ntwo\n"[..]).unwrap();
/// ```
pub struct FrameReader {
    decoder: Box<dyn Decoder>,
    maximum_frame_bytes: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the first frame starts that was not given yet.
    start: usize,
    /// It is not worth asking the decoder before there are so many bytes from `start` on.
    needed_bytes: usize,
    /// An error ends the stream.
    failed: Option<FrameError>,
}

impl FrameReader {
    /// A reader of one stream. It keeps a decoder, and not the framing itself.
    pub fn new(framing: &(impl Framing + ?Sized)) -> Self {
        Self {
            decoder: framing.decoder(),
            maximum_frame_bytes: framing.maximum_frame_bytes(),
            buffer: Vec::new(),
            start: 0,
            needed_bytes: 0,
            failed: None,
        }
    }

    /// Appends what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            // At most the part of one frame moves, where all frames were taken out.
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The payload of the next frame, or `None` where more bytes are needed.
    ///
    /// # Errors
    /// As [`Decoder::decode`], and where the decoder breaks its contract. The reader then gives
    /// the same error for ever.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let input = &self.buffer[self.start..];
        if input.is_empty() || input.len() < self.needed_bytes {
            return Ok(None);
        }
        match decode_checked(&mut *self.decoder, input, self.maximum_frame_bytes) {
            Ok(Decoded::Incomplete { needed_bytes }) => {
                self.needed_bytes = needed_bytes;
                Ok(None)
            }
            Ok(Decoded::Frame { payload, consumed_bytes }) => {
                self.needed_bytes = 0;
                self.start += consumed_bytes;
                let start = self.start - consumed_bytes;
                Ok(Some(&self.buffer[start + payload.start..start + payload.end]))
            }
            Err(error) => {
                self.failed = Some(error);
                self.buffer = Vec::new();
                self.start = 0;
                Err(error)
            }
        }
    }

    /// How many bytes are held that were not given as frames. At the end of the stream it should
    /// be 0: else the peer went in the middle of a frame.
    pub fn held_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }
}
