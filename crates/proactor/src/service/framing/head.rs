//! The bytes before a payload, without an allocation per message.

use std::fmt;
use std::ops::Deref;

use super::FrameError;

/// What goes before a payload: a few bytes, kept inline.
///
/// ```
/// use proactor::service::framing::{FrameHead, Framing, LengthPrefixed};
/// let mut head = FrameHead::new();
/// LengthPrefixed::u16().head(5, &mut head)?;
/// assert_eq!(&*head, [0, 5]);
/// # Ok::<(), proactor::service::framing::FrameError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    bytes: [u8; Self::CAPACITY_BYTES],
    length: u8,
}

impl FrameHead {
    /// The most bytes that the head of a frame has.
    pub const CAPACITY_BYTES: usize = 31;

    /// A head of no bytes.
    pub const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY_BYTES], length: 0 }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Invalid`](FrameError::Invalid) where the head would have more than
    /// [`CAPACITY_BYTES`](Self::CAPACITY_BYTES); it is then unchanged.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let start = usize::from(self.length);
        let Some(room) = self.bytes[start..].get_mut(..bytes.len()) else {
            return Err(FrameError::Invalid("the head of a frame is longer than 31 bytes"));
        };
        room.copy_from_slice(bytes);
        self.length += bytes.len() as u8;
        Ok(())
    }
}

impl Default for FrameHead {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for FrameHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for FrameHead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_takes_what_fits_and_refuses_the_rest_unchanged() {
        let mut head = FrameHead::new();
        head.push(&[1, 2, 3]).unwrap();
        head.push(&[]).unwrap();
        assert!(head.push(&[0; FrameHead::CAPACITY_BYTES - 2]).is_err());
        assert_eq!(&*head, [1, 2, 3]);
        head.push(&[4; FrameHead::CAPACITY_BYTES - 3]).unwrap();
        assert_eq!(head.len(), FrameHead::CAPACITY_BYTES);
        assert!(head.push(&[5]).is_err());
        assert!(head.push(&[]).is_ok());
    }
}
