//! What happened, line by line, and its hash: two runs are the same if it is.

use std::collections::VecDeque;
use std::fmt;

/// Lines that a run keeps unless it is asked for all.
const KEPT_LINES: usize = 200;

/// A world's trace.
pub(crate) struct Trace {
    hash: u64,
    pub(crate) lines: u64,
    kept: VecDeque<String>,
    keep_all: bool,
}

impl Trace {
    pub(crate) fn new(keep_all: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, kept: VecDeque::new(), keep_all }
    }

    pub(crate) fn line(&mut self, now: u64, text: fmt::Arguments<'_>) {
        let mut line = if self.keep_all || self.kept.len() < KEPT_LINES {
            String::with_capacity(80)
        } else {
            self.kept.pop_front().unwrap_or_default()
        };
        line.clear();
        let (seconds, nanos) = (now / 1_000_000_000, now % 1_000_000_000);
        // Writing to a string cannot fail.
        let _ = fmt::Write::write_fmt(&mut line, format_args!("{seconds:>4}.{nanos:09} {text}"));
        for chunk in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = (self.hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
            self.hash ^= self.hash >> 29;
        }
        self.lines += 1;
        self.kept.push_back(line);
    }

    /// Takes bytes that moved into the hash.
    pub(crate) fn bytes(&mut self, bytes: impl Iterator<Item = u8>) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        self.kept.iter().cloned().collect()
    }
}
