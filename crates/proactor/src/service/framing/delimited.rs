//! Frames that end with a delimiter.

use std::sync::Arc;

use memchr::memmem::Finder;

use super::{
    DEFAULT_MAXIMUM_FRAME_BYTES, Decoded, Decoder, FrameError, FrameHead, Framing, check_length,
};

/// Frames that end with a delimiter: one byte or several, found at its first occurrence.
///
/// Unless changed, a frame has at most [`DEFAULT_MAXIMUM_FRAME_BYTES`], the delimiter included.
/// The payload of a sent frame must not contain the delimiter, nor make one together with the
/// delimiter behind it. This is not checked.
///
/// ```
/// use proactor::service::framing::{Delimited, FrameReader};
/// let mut reader = FrameReader::new(&Delimited::by("\0"));
/// reader.push(b"one\0two\0thr");
/// assert_eq!(reader.next_frame()?, Some(&b"one"[..]));
/// assert_eq!(reader.next_frame()?, Some(&b"two"[..]));
/// assert_eq!(reader.next_frame()?, None);
/// # Ok::<(), proactor::service::framing::FrameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Delimited {
    finder: Arc<Finder<'static>>,
    maximum_frame_bytes: usize,
}

impl Delimited {
    /// Frames that end with `delimiter`.
    ///
    /// # Panics
    /// Where the delimiter is empty, or not shorter than the maximum of a frame.
    pub fn by(delimiter: impl AsRef<[u8]>) -> Self {
        let finder = Finder::new(delimiter.as_ref()).into_owned();
        assert!(!finder.needle().is_empty(), "a delimiter has at least one byte");
        let delimited = Self { finder: Arc::new(finder), maximum_frame_bytes: 0 };
        delimited.with_maximum_frame_bytes(DEFAULT_MAXIMUM_FRAME_BYTES)
    }

    /// The most bytes that a frame has, the delimiter included.
    ///
    /// # Panics
    /// Where not even the delimiter and one byte fit.
    pub fn with_maximum_frame_bytes(mut self, maximum_frame_bytes: usize) -> Self {
        assert!(
            maximum_frame_bytes > self.finder.needle().len(),
            "a frame holds more than its delimiter"
        );
        self.maximum_frame_bytes = maximum_frame_bytes;
        self
    }
}

impl Framing for Delimited {
    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(DelimiterDecoder {
            finder: self.finder.clone(),
            maximum_frame_bytes: self.maximum_frame_bytes,
            searched_bytes: 0,
        })
    }

    fn head(&self, payload_bytes: usize, _out: &mut FrameHead) -> Result<(), FrameError> {
        check_length(payload_bytes, self.tail().len(), self.maximum_frame_bytes)
    }

    fn tail(&self) -> &[u8] {
        self.finder.needle()
    }

    fn maximum_frame_bytes(&self) -> usize {
        self.maximum_frame_bytes
    }
}

struct DelimiterDecoder {
    finder: Arc<Finder<'static>>,
    maximum_frame_bytes: usize,
    /// No delimiter starts within so many bytes.
    searched_bytes: usize,
}

impl Decoder for DelimiterDecoder {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FrameError> {
        let delimiter_bytes = self.finder.needle().len();
        // What lies behind the maximum does not count, so that it is the same error in whatever
        // pieces the frame has come.
        let window = &input[..input.len().min(self.maximum_frame_bytes)];
        let Some(found) = self.finder.find(&window[self.searched_bytes..]) else {
            if window.len() == self.maximum_frame_bytes {
                return Err(FrameError::TooLong {
                    frame_bytes: input.len().max(self.maximum_frame_bytes + 1),
                    maximum_frame_bytes: self.maximum_frame_bytes,
                });
            }
            // The first bytes of a delimiter may stand at the end.
            self.searched_bytes = window.len().saturating_sub(delimiter_bytes - 1);
            return Ok(Decoded::Incomplete { needed_bytes: window.len() + 1 });
        };
        let payload_bytes = self.searched_bytes + found;
        self.searched_bytes = 0;
        let consumed_bytes = payload_bytes + delimiter_bytes;
        Ok(Decoded::Frame { payload: 0..payload_bytes, consumed_bytes })
    }
}
