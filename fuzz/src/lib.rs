//! What all targets of framings check, given a stream and how it is cut; what random operations on a
//! port check is in [`operations`].

#[cfg(target_os = "linux")]
pub mod operations;

use proactor::service::framing::{FrameHead, FrameReader, Framing};

/// A stream, and how many bytes of it come at a time: the input of every target.
pub struct Input<'a> {
    /// The first byte: which variant of a framing.
    pub variant: u8,
    /// The second byte.
    step: usize,
    stream: &'a [u8],
}

impl<'a> Input<'a> {
    /// Takes the fuzzer's bytes apart.
    pub fn new(data: &'a [u8]) -> Option<Self> {
        let (&[variant, step], stream) = data.split_first_chunk()?;
        Some(Self { variant, step: usize::from(step % 32) + 1, stream })
    }

    /// Two settings out of the variant.
    pub fn switches(&self) -> [bool; 3] {
        [self.variant & 1 != 0, self.variant & 2 != 0, self.variant & 4 != 0]
    }

    /// A maximum out of the variant, small as a rule.
    pub fn maximum_frame_bytes(&self) -> usize {
        [16, 64, 1024, 64 * 1024][usize::from(self.variant >> 6)]
    }
}

/// Reads the stream whole and in pieces: the same frames, and both or neither fail. No more is
/// held than one frame. What was read can be written, and is read again.
pub fn check(framing: &impl Framing, input: &Input<'_>) {
    let (whole, failed) = read(framing, [input.stream].into_iter());
    let (pieces, failed_in_pieces) = read(framing, input.stream.chunks(input.step));
    assert_eq!(whole, pieces);
    assert_eq!(failed, failed_in_pieces);
    check_written(framing, &whole);
}

/// Reads raw bytes: as [`check`], but how they are cut is not the stream's.
pub fn check_raw(framing: &impl Framing, input: &Input<'_>) {
    let (pieces, failed) = read(framing, input.stream.chunks(input.step));
    assert!(!failed);
    assert_eq!(pieces.concat(), input.stream);
    check_written(framing, &pieces);
}

fn read<'a>(
    framing: &impl Framing,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Vec<u8>>, bool) {
    let mut reader = FrameReader::new(framing);
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.len() <= framing.maximum_frame_bytes());
                    frames.push(frame.to_vec());
                }
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(reader.held_bytes() <= framing.maximum_frame_bytes());
    }
    (frames, false)
}

fn check_written(framing: &impl Framing, payloads: &[Vec<u8>]) {
    let mut stream = Vec::new();
    for payload in payloads {
        let mut head = FrameHead::new();
        let refused = framing.head(payload.len(), &mut head).is_err();
        if refused || framing.tail() == b"\n" && payload.ends_with(b"\r") {
            // A line that came with the shorter of two ends may not fit with the longer, and one
            // that ends with a carriage return is not for sending with a line feed alone.
            return;
        }
        stream.extend_from_slice(&head);
        stream.extend_from_slice(payload);
        stream.extend_from_slice(framing.tail());
    }
    let (again, failed) = read(framing, [&stream[..]].into_iter());
    assert!(!failed);
    assert_eq!(again.concat(), payloads.concat());
}
