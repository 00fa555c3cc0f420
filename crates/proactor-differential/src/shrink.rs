//! Finding a short sequence that still shows a difference.

use std::time::{Duration, Instant};

use proactor::BackendChoice;

use crate::compare::{Totals, on_each};
use crate::rules::LeftOut;
use crate::run::Sequence;

/// A lost packet is found by a wait, so that each attempt may take long.
const TIME_LIMIT: Duration = Duration::from_secs(90);

/// Leaves steps out, in ever smaller runs, for as long as the backends still differ.
pub(crate) fn shrink(
    sequence: &Sequence,
    backends: &[(String, BackendChoice)],
    left_out: &LeftOut,
) -> Result<Sequence, String> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut best = sequence.clone();
    let mut length = (best.steps.len() / 2).max(1);
    loop {
        let before = best.steps.len();
        // From the end, because what comes after the difference does not matter to it.
        let mut at = best.steps.len();
        while at > 0 && Instant::now() < deadline {
            let from = at.saturating_sub(length);
            let mut shorter = best.clone();
            shorter.steps.drain(from..at.min(best.steps.len()));
            if on_each(&shorter, backends, left_out, &mut Totals::default())?.is_some() {
                best = shorter;
            }
            at = from;
        }
        if Instant::now() >= deadline || (length == 1 && best.steps.len() == before) {
            return Ok(best);
        }
        length = (length / 2).max(1);
    }
}
