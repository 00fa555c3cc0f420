//! Lines of text.

use super::{
    DEFAULT_MAXIMUM_FRAME_BYTES, Decoded, Decoder, FrameError, FrameHead, Framing, check_length,
};

/// What is sent at the end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineEnd {
    /// A line feed alone.
    Lf,
    /// Carriage return and line feed, as most text protocols of the internet want it.
    CrLf,
}

/// Lines that end with a line feed. A carriage return before it is dropped, so that both kinds of
/// peers are understood.
///
/// Unless changed, a line has at most [`DEFAULT_MAXIMUM_FRAME_BYTES`], its end included, and is
/// sent with a line feed alone. The payload of a sent line must not contain a line feed, for the
/// peer would read two lines, nor end with a carriage return, which the peer may drop. This is not
/// checked.
///
/// ```
/// use proactor::service::framing::{FrameReader, Lines};
/// let mut reader = FrameReader::new(&Lines::new());
/// reader.push(b"one\r\ntwo\n\nthr");
/// assert_eq!(reader.next_frame()?, Some(&b"one"[..]));
/// assert_eq!(reader.next_frame()?, Some(&b"two"[..]));
/// assert_eq!(reader.next_frame()?, Some(&b""[..]));
/// assert_eq!(reader.next_frame()?, None);
/// # Ok::<(), proactor::service::framing::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    line_end: LineEnd,
    maximum_frame_bytes: usize,
}

impl Lines {
    /// Lines that are sent with a line feed.
    pub const fn new() -> Self {
        Self { line_end: LineEnd::Lf, maximum_frame_bytes: DEFAULT_MAXIMUM_FRAME_BYTES }
    }

    /// What is sent at the end of a line; [`Lf`](LineEnd::Lf) unless said.
    pub const fn line_end(mut self, line_end: LineEnd) -> Self {
        self.line_end = line_end;
        self
    }

    /// The most bytes that a line has, its end included.
    ///
    /// # Panics
    /// Where not even a line end and one byte fit.
    pub const fn with_maximum_frame_bytes(mut self, maximum_frame_bytes: usize) -> Self {
        assert!(maximum_frame_bytes > 2, "a line holds more than its end");
        self.maximum_frame_bytes = maximum_frame_bytes;
        self
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing for Lines {
    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(LineDecoder { maximum_frame_bytes: self.maximum_frame_bytes, searched_bytes: 0 })
    }

    fn head(&self, payload_bytes: usize, _out: &mut FrameHead) -> Result<(), FrameError> {
        check_length(payload_bytes, self.tail().len(), self.maximum_frame_bytes)
    }

    fn tail(&self) -> &[u8] {
        match self.line_end {
            LineEnd::Lf => b"\n",
            LineEnd::CrLf => b"\r\n",
        }
    }

    fn maximum_frame_bytes(&self) -> usize {
        self.maximum_frame_bytes
    }
}

struct LineDecoder {
    maximum_frame_bytes: usize,
    /// So many bytes hold no line feed: a long line that comes in small pieces is searched once.
    searched_bytes: usize,
}

impl Decoder for LineDecoder {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError> {
        // What lies behind the maximum does not count, so that it is the same error in whatever
        // pieces the line has come.
        let window = &input[..input.len().min(self.maximum_frame_bytes)];
        let Some(found) = memchr::memchr(b'\n', &window[self.searched_bytes..]) else {
            if window.len() == self.maximum_frame_bytes {
                return Err(FrameError::TooLong {
                    frame_bytes: input.len().max(self.maximum_frame_bytes + 1),
                    maximum_frame_bytes: self.maximum_frame_bytes,
                });
            }
            self.searched_bytes = window.len();
            return Ok(Decoded::Incomplete { needed_bytes: window.len() + 1 });
        };
        let line_feed = self.searched_bytes + found;
        self.searched_bytes = 0;
        let line = &window[..line_feed];
        let payload_bytes = line.strip_suffix(b"\r").unwrap_or(line).len();
        Ok(Decoded::Frame { payload: 0..payload_bytes, consumed_bytes: line_feed + 1 })
    }
}
