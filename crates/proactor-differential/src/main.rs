//! Drives the same seeded sequence of operations on each backend of proactor, through its public
//! API, and compares what comes of it, outcome by outcome.

mod clocks;
mod compare;
mod connecting;
mod datagrams;
mod endings;
mod files;
mod packet;
mod random;
mod record;
mod rules;
mod run;
mod shrink;
mod step;
mod streams;
mod transfers;
mod world;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use proactor::BackendChoice;

use crate::compare::Difference;
use crate::record::Record;
use crate::rules::LeftOut;
use crate::run::Sequence;

/// Runs the same seeded sequences of operations on several backends and compares their outcomes.
///
/// Each seed is a sequence of accepts, connects, sends, receives, cancels, closes and so on. Every
/// step waits for its effects, so that outcomes do not depend on timing.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    /// Seeds to run: `A..B`, without B.
    #[arg(long, value_name = "A..B", default_value = "0..100", value_parser = parse_seeds)]
    seeds: Range<u64>,

    /// One seed; the way to see a failure again.
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,

    /// Steps of each sequence.
    #[arg(long, value_name = "N", default_value_t = 60)]
    steps: usize,

    /// Only these steps of the sequence, by their numbers.
    #[arg(long, value_name = "I,J,...", value_delimiter = ',')]
    only: Option<Vec<usize>>,

    /// Backends, separated by commas; the first is what the others are compared with. [default: all
    /// that this machine has]
    #[arg(long, value_name = "B,C", value_delimiter = ',')]
    backends: Vec<String>,

    /// Rules of docs/semantics.md that do not count, by number; or `wine` for those that Wine 8.0
    /// breaks.
    #[arg(long, value_name = "RULES", value_delimiter = ',')]
    leave_out: Vec<String>,

    /// Print the outcomes on the first backend, in the form that --compare reads.
    #[arg(long, conflicts_with = "compare")]
    print_outcomes: bool,

    /// Compare with the outcomes in this file, which --print-outcomes wrote, maybe on another
    /// system. Seeds, steps and rules are those of the file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "seed", "steps", "only", "leave_out"])]
    compare: Option<PathBuf>,

    /// Begin no further seed after so many seconds.
    #[arg(long, value_name = "S")]
    stop_after_s: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run_all(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("proactor-differential: {reason}");
            ExitCode::from(2)
        }
    }
}

fn run_all(arguments: &Arguments) -> Result<bool, String> {
    let backends = backends(&arguments.backends)?;
    if let Some(path) = &arguments.compare {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let record = Record::parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
        return compare_with_record(&record, &backends);
    }
    let left_out = LeftOut::parse(&arguments.leave_out)?;
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.seeds.clone(),
    };
    if arguments.print_outcomes {
        return print_outcomes(arguments, seeds, &backends[0], &left_out);
    }
    for (rule, reason) in left_out.iter() {
        println!("left out: rule {rule}: {reason}");
    }
    compare_backends(arguments, seeds, &backends, &left_out)
}

/// A backend under its name.
type Backend = (String, BackendChoice);

/// The backends by their names, or those that this machine has.
fn backends(names: &[String]) -> Result<Vec<Backend>, String> {
    const ALL: [&str; 3] = ["io_uring", "epoll", "iocp"];
    if names.is_empty() {
        let choices = ALL.iter().filter_map(|&name| {
            let choice = BackendChoice::from_name(name).ok()?;
            proactor::probe(choice).ok().map(|_| (name.to_owned(), choice))
        });
        let found: Vec<Backend> = choices.collect();
        return if found.is_empty() { Err("no backend works here".to_owned()) } else { Ok(found) };
    }
    let choices = names.iter().map(|name| {
        let choice = BackendChoice::from_name(name).map_err(|error| format!("{name}: {error}"))?;
        proactor::probe(choice).map_err(|error| format!("{name}: {error}"))?;
        Ok((name.clone(), choice))
    });
    choices.collect()
}

fn print_outcomes(
    arguments: &Arguments,
    seeds: Range<u64>,
    (name, backend): &Backend,
    left_out: &LeftOut,
) -> Result<bool, String> {
    let mut wrong = 0;
    print!("{}", record::header(name, arguments.steps, left_out));
    for seed in seeds {
        let sequence = Sequence::new(seed, arguments.steps, arguments.only.as_deref());
        let lines = run::run(&sequence, *backend, left_out)
            .map_err(|error| format!("no port with its sockets: {error}"))?;
        wrong += lines.iter().filter(|line| line.text.starts_with(world::WRONG)).count();
        print!("{}", record::outcomes(seed, &lines));
    }
    Ok(wrong == 0)
}

fn compare_backends(
    arguments: &Arguments,
    seeds: Range<u64>,
    backends: &[Backend],
    left_out: &LeftOut,
) -> Result<bool, String> {
    let begin = Instant::now();
    let limit = arguments.stop_after_s.map(Duration::from_secs);
    let mut totals = compare::Totals::default();
    for seed in seeds {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
        let sequence = Sequence::new(seed, arguments.steps, arguments.only.as_deref());
        let found = compare::on_each(&sequence, backends, left_out, &mut totals)?;
        if let Some(difference) = found {
            print!("{difference}");
            let shorter = shrink::shrink(&sequence, backends, left_out)?;
            print!("{}", replay(arguments, &shorter, backends, left_out));
            return Ok(false);
        }
    }
    let names: Vec<&str> = backends.iter().map(|(name, _)| name.as_str()).collect();
    println!(
        "no difference on {}: {totals}, {:.1} s",
        names.join(", "),
        begin.elapsed().as_secs_f64()
    );
    Ok(true)
}

/// How to see a difference again.
fn replay(
    arguments: &Arguments,
    shorter: &Sequence,
    backends: &[Backend],
    left_out: &LeftOut,
) -> String {
    let names: Vec<&str> = backends.iter().map(|(name, _)| name.as_str()).collect();
    let only: Vec<String> = shorter.steps.iter().map(|(index, _)| index.to_string()).collect();
    let left_out = left_out.numbers();
    let left_out = if left_out.is_empty() { left_out } else { format!(" --leave-out {left_out}") };
    let common = format!(
        "proactor-differential --seed {} --steps {} --backends {}{left_out}",
        shorter.seed,
        arguments.steps,
        names.join(",")
    );
    format!(
        "to see it again: {common}\n{} steps are enough: {common} --only {}\n",
        only.len(),
        only.join(",")
    )
}

fn compare_with_record(record: &Record, backends: &[Backend]) -> Result<bool, String> {
    let mut same = true;
    let mut lines_compared = 0;
    for (name, backend) in backends {
        for (seed, recorded) in &record.outcomes {
            let sequence = Sequence::new(*seed, record.steps, None);
            let lines = run::run(&sequence, *backend, &record.left_out)
                .map_err(|error| format!("no port with its sockets: {error}"))?;
            lines_compared += lines.len();
            let sides = [(record.backend.as_str(), &recorded[..]), (name.as_str(), &lines[..])];
            if let Some(difference) = Difference::find(*seed, sides[0], sides[1]) {
                print!("{difference}");
                same = false;
            }
        }
    }
    let verdict = if same { "no difference" } else { "different" };
    let seeds = record.outcomes.len();
    println!(
        "{verdict} from the record of {}: {seeds} seeds, {lines_compared} lines",
        record.backend
    );
    Ok(same)
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("'{text}' is no range: expected for example 0..100");
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let first = first.parse().map_err(|_| wrong())?;
    let end = end.parse().map_err(|_| wrong())?;
    if first < end { Ok(first..end) } else { Err(format!("'{text}' has no seed in it")) }
}
