//! `proactor doctor`: what this machine offers, what Proactor would use, and what to change for
//! more.
//!
//! | module | what it holds |
//! |---|---|
//! | `backends` | what the library finds when it probes |
//! | `facts`, `cgroup` | what the system says about itself; nothing is judged there |
//! | `judge` | what each fact means for a server, and what would change it |
//! | `report` | the findings as a table of 80 columns, or as JSON |

mod backends;
mod cgroup;
mod facts;
mod judge;
mod report;

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use crate::failure::Failure;
use backends::Backends;
use facts::Facts;
use report::Report;

/// What `proactor doctor` is told.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks at the machine and reports. It fails where Proactor cannot run at all.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let backends = Backends::probe();
    let facts = Facts::read(Path::new("/"));
    let findings = judge::judge(&facts, &backends);
    let report = Report::new(backends, findings);
    let text = if args.json { report.to_json() } else { report.to_string() };
    // A reader that went away, as in `proactor doctor | head`, is no failure of ours.
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
    match report.why_it_cannot_run() {
        None => Ok(()),
        Some(why) => Err(Failure::new(format!("Proactor cannot run here: {why}"))),
    }
}
