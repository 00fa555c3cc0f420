//! `proactor compare`: server models side by side, under the same load.
//!
//! Each server is a process of its own. In a scenario all are up at once and are given short
//! slices of load in turn, in an order that changes from round to round; ratios are taken within a
//! round. So whatever slows the machine down for a while slows down all of them.
//!
//! | module | what it holds |
//! |---|---|
//! | `args`, `scenario` | the command line; what the load does in each scenario |
//! | `entrant` | servers: started and ended, or somebody else's |
//! | `rounds`, `slice` | the turns; one server under one load |
//! | `usage` | what a process has used, as the system says |
//! | `figures`, `result` | medians, spread, ratios; everything that was measured |
//! | `progress`, `table`, `page` | the bar, the table, the HTML page |

#![forbid(unsafe_code)]

mod args;
mod entrant;
pub(crate) mod figures;
mod page;
mod progress;
mod result;
mod rounds;
mod scenario;
mod slice;
mod table;
mod usage;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;

pub(crate) use self::args::CompareArgs;
use self::args::Model;
use self::entrant::Participant;
use self::figures::Spread;
use self::progress::Progress;
use self::result::{Comparison, Machine};
use self::rounds::Setting;
use self::scenario::ScenarioName;
use crate::failure::Failure;
use crate::load::conduct;

/// What a slice takes beside its load: connecting, and the end.
const SLICE_OVERHEAD: Duration = Duration::from_millis(100);

/// Measures, and reports.
pub(crate) fn run(args: &CompareArgs) -> Result<(), Failure> {
    let participants = participants(args)?;
    // Before minutes of measuring, not after.
    let json = args.json.as_deref().map(create).transpose()?;
    let html = args.html.as_deref().map(create).transpose()?;
    let comparison = measure(args, &participants)?;
    let written = write_out(args, &comparison, json, html);
    if let Some(line) = failure(&comparison) {
        return Err(Failure::new(line));
    }
    written
}

fn participants(args: &CompareArgs) -> Result<Vec<Participant>, Failure> {
    let mut participants: Vec<Participant> = Vec::new();
    let models = args.models.iter().filter(|model| **model != Model::None);
    let everybody = models
        .map(|model| Participant::Own {
            name: model.name().to_owned(),
            args: format!("--model {}", model.name()),
        })
        .chain(args.variants.iter().map(|variant| Participant::Own {
            name: variant.name.clone(),
            args: variant.args.clone(),
        }))
        .chain(args.servers.iter().cloned().map(Participant::External));
    for who in everybody {
        if participants.iter().any(|other| other.name() == who.name()) {
            return Err(Failure::usage(format!("'{}' is named twice", who.name())));
        }
        participants.push(who);
    }
    if participants.is_empty() {
        return Err(Failure::usage("there is nothing to compare: no model and no server is named"));
    }
    Ok(participants)
}

fn measure(args: &CompareArgs, participants: &[Participant]) -> Result<Comparison, Failure> {
    let extent = args.extent();
    let (_watch, interrupted) = conduct::catch_interrupts()?;
    let names = match &args.scenarios[..] {
        [] => ScenarioName::value_variants(),
        chosen => chosen,
    };
    let slices = names.len() * participants.len() * extent.rounds;
    let progress =
        Progress::new(!args.quiet, slices, extent.slice + extent.warmup + SLICE_OVERHEAD);
    let setting = Setting {
        participants,
        extent,
        server_args: args.server_args.as_deref().unwrap_or(""),
        servers_stall: args.servers_stall,
        progress: &progress,
        interrupted: &interrupted,
    };
    let begin = Instant::now();
    let mut scenarios = Vec::new();
    let mut to_its_end = true;
    for (index, name) in names.iter().enumerate() {
        progress.scenario(&format!("{} ({} of {})", name.name(), index + 1, names.len()));
        let (result, complete) = rounds::run(&name.scenario(extent), &setting);
        scenarios.push(result);
        if !complete {
            to_its_end = false;
            break;
        }
    }
    progress.clear();
    let servers = || scenarios.iter().flat_map(|scenario| &scenario.servers);
    let slices = servers().flat_map(|server| &server.slices);
    let foreign = Spread::of(slices.filter_map(|slice| slice.foreign_cpu_share));
    Ok(Comparison {
        ok: to_its_end && servers().all(|server| server.failure.is_none()),
        interrupted: !to_its_end,
        version: env!("CARGO_PKG_VERSION"),
        command: command_line(),
        machine: Machine::this(),
        rounds: extent.rounds,
        slice_seconds: extent.slice.as_secs_f64(),
        warmup_seconds: extent.warmup.as_secs_f64(),
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        foreign_cpu_share: foreign.map(|spread| spread.median),
        scenarios,
    })
}

/// The arguments, without the files that are written: where those are is nobody's business.
fn command_line() -> String {
    let mut words = vec!["proactor".to_owned()];
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" | "--html" => drop(args.next()),
            _ if arg.starts_with("--json=") || arg.starts_with("--html=") => {}
            _ if arg.contains(' ') => words.push(format!("\"{arg}\"")),
            _ => words.push(arg),
        }
    }
    words.join(" ")
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path)
        .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))
}

fn write_out(
    args: &CompareArgs,
    comparison: &Comparison,
    json: Option<File>,
    html: Option<File>,
) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::new(format!("cannot write the report: {error}"));
    if let Some(file) = json {
        let mut file = io::BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, comparison)
            .map_err(|error| cannot(error.into()))?;
        writeln!(file).and_then(|()| file.flush()).map_err(cannot)?;
    }
    if let Some(mut file) = html {
        file.write_all(page::render(comparison).as_bytes()).map_err(cannot)?;
    }
    if !args.quiet {
        table::print(comparison, &mut io::stdout().lock()).map_err(cannot)?;
    }
    Ok(())
}

/// One line on what went wrong, if anything did.
fn failure(comparison: &Comparison) -> Option<String> {
    let failures: Vec<String> = comparison
        .scenarios
        .iter()
        .flat_map(|scenario| scenario.servers.iter().map(move |server| (scenario, server)))
        .filter_map(|(scenario, server)| {
            let reason = server.failure.as_ref()?;
            Some(format!("{} in {}: {reason}", server.name, scenario.name.name()))
        })
        .collect();
    match &failures[..] {
        [] if comparison.interrupted => Some("ended early".into()),
        [] => None,
        [only] => Some(only.clone()),
        [first, others @ ..] => Some(format!("{first}; and {} more failures", others.len())),
    }
}
