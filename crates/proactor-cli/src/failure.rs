//! How a subcommand fails: one line for stderr and an exit code.

use std::fmt;
use std::process::ExitCode;

/// The exit code for a bad flag or address.
pub(crate) const EXIT_USAGE: u8 = 2;
/// The exit code for everything that went wrong once the flags were understood.
const EXIT_FAILURE: u8 = 1;

/// Why a subcommand did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    line: String,
    exit_code: u8,
}

impl Failure {
    /// The command was understood, and did not work.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), exit_code: EXIT_FAILURE }
    }

    /// The command was not understood.
    pub(crate) fn usage(line: impl Into<String>) -> Self {
        Self { line: line.into(), exit_code: EXIT_USAGE }
    }

    /// Says on stderr what is wrong, and gives the process its exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("proactor: {}", self.line);
        ExitCode::from(self.exit_code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.line)
    }
}
