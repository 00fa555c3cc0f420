//! The scenarios' wire format: two bytes of length, a kind, a body.

/// Longer frames are refused.
pub(super) const LONGEST_BYTES: usize = 4096;
/// Send it back.
pub(super) const ECHO: u8 = b'E';
/// Send it to everybody.
pub(super) const BROADCAST: u8 = b'B';

/// A frame of this kind and body.
pub(super) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 1).expect("a body is short");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

/// Bytes that came, and were not cut into frames yet.
#[derive(Default)]
pub(super) struct Cutter {
    bytes: Vec<u8>,
    /// The far end breaks the protocol.
    pub(super) is_broken: bool,
}

impl Cutter {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Cuts the frames that are whole, kind and body, as a client does: without planted bugs.
    pub(super) fn frames(&mut self) -> Vec<Vec<u8>> {
        self.cut(false)
    }

    /// The same for the server, with its bugs.
    pub(super) fn frames_of_server(&mut self) -> Vec<Vec<u8>> {
        self.cut(true)
    }

    fn cut(&mut self, is_server: bool) -> Vec<Vec<u8>> {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut at = 0;
        while let Some(header) = self.bytes.get(at..at + 2) {
            let length = usize::from(u16::from_be_bytes([header[0], header[1]]));
            if length == 0 || length > LONGEST_BYTES {
                self.is_broken = true;
                break;
            }
            let Some(body) = self.bytes.get(at + 2..at + 2 + length) else { break };
            if is_server && planted!(FrameLengthOffByOne) && length > 1 {
                frames.push(body[..length - 1].to_vec());
            } else if is_server && planted!(FrameSecondFromStart) && !frames.is_empty() {
                frames.push(frames[0].clone());
            } else {
                frames.push(body.to_vec());
            }
            at += 2 + length;
        }
        self.bytes.drain(..at);
        if is_server && planted!(FrameHeaderSplit) && self.bytes.len() == 1 {
            self.bytes.clear();
        }
        frames
    }
}
