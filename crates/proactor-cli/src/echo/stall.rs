//! Handlers that take their time on purpose: stalls (`--stall-marks`), to show what becomes of the
//! other sessions, and work (`--work-us`), to compare models with handlers that compute.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

/// A chunk that begins with this blocks its handler.
const MARK_BLOCK: u8 = 0xF1;
/// A chunk that begins with this keeps its handler's processor busy.
const MARK_SPIN: u8 = 0xF2;
/// How long a stall lasts.
const STALL: Duration = Duration::from_millis(10);
/// How often, and for how many steps, the speed of this machine is measured.
const CALIBRATIONS: u32 = 5;
const CALIBRATION_STEPS: u64 = 2_000_000;

/// What every model does with a chunk before it sends it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handler {
    stall_marks: bool,
    work_steps: u64,
}

impl Handler {
    /// A handler that obeys marks, or computes `work_us` microseconds, or both, or neither.
    ///
    /// The computation is an amount of work, measured once on this machine as it is now, and not a
    /// length of time: so a thread that has to share its processor takes longer for it.
    pub(crate) fn new(stall_marks: bool, work_us: u64) -> Self {
        let work_steps = if work_us == 0 { 0 } else { work_us * steps_per_ms() / 1000 };
        Self { stall_marks, work_steps }
    }

    /// Handles a chunk.
    pub(crate) fn handle(&self, chunk: &[u8]) {
        if self.stall_marks {
            as_marked(chunk);
        }
        if self.work_steps > 0 {
            compute(self.work_steps);
        }
    }
}

/// The best of several measurements: the one that was disturbed least.
fn steps_per_ms() -> u64 {
    let measure = |_| {
        let begin = Instant::now();
        compute(CALIBRATION_STEPS);
        begin.elapsed()
    };
    let best = (0..CALIBRATIONS).map(measure).min().unwrap_or_default();
    let nanoseconds = u64::try_from(best.as_nanos()).unwrap_or(u64::MAX).max(1);
    (CALIBRATION_STEPS * 1_000_000 / nanoseconds).max(1)
}

/// Each step needs the result of the one before, so that neither compiler nor processor skips any.
fn compute(steps: u64) {
    let mut state = hint::black_box(0x9E37_79B9_7F4A_7C15_u64);
    for step in 0..steps {
        state = (state ^ step).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(31);
    }
    hint::black_box(state);
}

/// Stalls if the chunk is marked. The port is not told: it is to find out by itself, as it must
/// where a program blocks without knowing it (compare [`proactor::CompletionPort::blocking`]).
fn as_marked(chunk: &[u8]) {
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

    #[test]
    fn work_grows_with_what_was_asked_for() {
        assert_eq!(Handler::new(false, 0).work_steps, 0);
        let handler = Handler { stall_marks: false, work_steps: 1000 };
        handler.handle(&[MARK_BLOCK]);
        assert!(Handler::new(false, 1000).work_steps > Handler::new(false, 10).work_steps);
    }
}
