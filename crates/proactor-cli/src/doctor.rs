//! `proactor doctor`: says which parts of the library work on this machine, and why the others do not.

use clap::Args;

use crate::failure::Failure;

/// What `proactor doctor` is told.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks at the machine and reports.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    Err(Failure::new(format!("no check-up is in this build (json: {})", args.json)))
}
