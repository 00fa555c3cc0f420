//! `proactor doctor`: what this machine offers, what Proactor would use, and what to change for
//! more.
//!
//! | module | what it holds |
//! |---|---|
//! | `backends` | what the library finds when it probes |
//! | `finding` | one thing that was looked at, and how good it is |
//! | `facts`, `cgroup` | what Linux says about itself; nothing is judged there |
//! | `judge` | what each fact means for a server, and what would change it |
//! | `windows` | both for Windows |
//! | `report` | the findings as a table of 80 columns, or as JSON |

mod backends;
#[cfg(not(windows))]
mod cgroup;
#[cfg(not(windows))]
mod facts;
mod finding;
#[cfg(not(windows))]
mod judge;
mod report;
#[cfg(any(windows, test))]
mod windows;

use std::io::{self, Write};

use clap::Args;

use crate::failure::Failure;
use backends::Backends;
use finding::Finding;
use report::Report;

/// What `proactor doctor` is told.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(not(windows))]
fn look(backends: &Backends) -> Vec<Finding> {
    judge::judge(&facts::Facts::read(std::path::Path::new("/")), backends)
}

#[cfg(windows)]
fn look(_backends: &Backends) -> Vec<Finding> {
    windows::judge(&windows::Facts::read())
}

/// Looks at the machine and reports. It fails where Proactor cannot run at all.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let backends = Backends::probe();
    let findings = look(&backends);
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
