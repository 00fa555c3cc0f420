//! Handlers that stall on purpose (`--stall-marks`), to show what becomes of the other sessions.

use std::thread;
use std::time::{Duration, Instant};

/// A chunk that begins with this blocks its handler.
const MARK_BLOCK: u8 = 0xF1;
/// A chunk that begins with this keeps its handler's processor busy.
const MARK_SPIN: u8 = 0xF2;
/// How long a stall lasts.
const STALL: Duration = Duration::from_millis(10);

/// Stalls if the chunk is marked. The port is not told: it is to find out by itself, as it must
/// where a program blocks without knowing it (compare [`proactor::CompletionPort::blocking`]).
pub(crate) fn as_marked(chunk: &[u8]) {
    match chunk.first() {
        Some(&MARK_BLOCK) => thread::sleep(STALL),
        Some(&MARK_SPIN) => {
            let end = Instant::now() + STALL;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_chunks_stall() {
        let begin = Instant::now();
        as_marked(&[MARK_BLOCK, 1]);
        as_marked(&[MARK_SPIN]);
        assert!(begin.elapsed() >= 2 * STALL);
        let begin = Instant::now();
        for _ in 0..1000 {
            as_marked(&[0, MARK_BLOCK, MARK_SPIN]);
            as_marked(&[]);
        }
        assert!(begin.elapsed() < 1000 * STALL);
    }
}
