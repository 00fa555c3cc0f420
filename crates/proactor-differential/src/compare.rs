//! Comparing what came of a sequence on two backends.

use std::fmt;

use proactor::BackendChoice;

use crate::rules::LeftOut;
use crate::run::{Sequence, run};
use crate::world::{Line, WRONG};

/// Lines shown before and after the first that differs.
const BEFORE: usize = 12;
const AFTER: usize = 4;

/// The first place where outcomes differ, or where one is wrong in itself.
#[derive(Debug)]
pub(crate) struct Difference {
    seed: u64,
    step: usize,
    first: String,
    second: Option<String>,
}

impl Difference {
    /// Looks for a difference between two named logs.
    pub(crate) fn find(seed: u64, one: (&str, &[Line]), other: (&str, &[Line])) -> Option<Self> {
        let length = one.1.len().max(other.1.len());
        let at = (0..length).find(|&at| {
            let is_wrong =
                |line: Option<&Line>| line.is_some_and(|line| line.text.starts_with(WRONG));
            one.1.get(at) != other.1.get(at) || is_wrong(one.1.get(at))
        })?;
        let step = one.1.get(at).or(other.1.get(at)).map_or(0, |line| line.step);
        let second = excerpt(other.0, other.1, at);
        Some(Self { seed, step, first: excerpt(one.0, one.1, at), second: Some(second) })
    }

    /// Looks for what is wrong in itself.
    fn find_wrong(seed: u64, (name, lines): (&str, &[Line])) -> Option<Self> {
        let at = lines.iter().position(|line| line.text.starts_with(WRONG))?;
        Some(Self { seed, step: lines[at].step, first: excerpt(name, lines, at), second: None })
    }
}

fn excerpt(name: &str, lines: &[Line], at: usize) -> String {
    let mut text = format!("{name}:\n");
    for (index, line) in lines.iter().enumerate() {
        if index + BEFORE >= at && index <= at + AFTER {
            let mark = if index == at { '>' } else { ' ' };
            text += &format!("{mark} {:3} {}\n", line.step, line.text);
        }
    }
    if at >= lines.len() {
        text += ">     (the log ends here)\n";
    }
    text
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, first, second } = self;
        match second {
            Some(second) => {
                write!(formatter, "seed {seed}: they differ at step {step}\n{first}{second}")
            }
            None => write!(formatter, "seed {seed}: wrong at step {step}\n{first}"),
        }
    }
}

/// How much was compared.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    seeds: usize,
    steps: usize,
    passed_over: usize,
    lines: usize,
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, steps, passed_over, lines } = self;
        write!(formatter, "{seeds} seeds, {steps} steps ({passed_over} passed over), {lines} lines")
    }
}

/// Runs a sequence on each backend and compares with the first.
pub(crate) fn on_each(
    sequence: &Sequence,
    backends: &[(String, BackendChoice)],
    left_out: &LeftOut,
    totals: &mut Totals,
) -> Result<Option<Difference>, String> {
    let mut logs: Vec<(&str, Vec<Line>)> = Vec::new();
    for (name, backend) in backends {
        let lines = run(sequence, *backend, left_out)
            .map_err(|error| format!("no port with its sockets on {name}: {error}"))?;
        logs.push((name, lines));
    }
    let (first, others) = logs.split_first().expect("there is a backend");
    totals.seeds += 1;
    totals.steps += sequence.steps.len();
    totals.lines += first.1.len();
    totals.passed_over +=
        first.1.iter().filter(|line| line.text.starts_with("passed over")).count();
    let first = (first.0, &first.1[..]);
    let mut found = others
        .iter()
        .find_map(|(name, lines)| Difference::find(sequence.seed, first, (name, &lines[..])));
    if found.is_none() {
        found = Difference::find_wrong(sequence.seed, first);
    }
    Ok(found)
}
