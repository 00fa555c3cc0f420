//! What `proactor compare` is told on its command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::scenario::ScenarioName;
use crate::load::address::{Endpoint, parse_target};
use crate::load::args::{parse_count, parse_duration};

/// The flags of `proactor compare`.
#[derive(Debug, Args)]
#[command(after_long_help = LONG_HELP, args_override_self = true)]
pub(crate) struct CompareArgs {
    /// What to measure, separated by commas. [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) scenarios: Vec<ScenarioName>,

    /// Models of `proactor echo` to start, separated by commas; `none` starts no server.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "threads,readiness,overlapped,port"
    )]
    pub(crate) models: Vec<Model>,

    /// One more of our own, with these arguments for `proactor echo`, split at spaces: for example
    /// "port-2=--model port --workers 2".
    #[arg(long = "variant", value_name = "NAME=ARGS", value_parser = parse_variant)]
    pub(crate) variants: Vec<Variant>,

    /// One more echo server, which runs already; with @PID also its CPU time and memory are measured.
    #[arg(long = "server", value_name = "NAME=ADDR[@PID]", value_parser = parse_external)]
    pub(crate) servers: Vec<External>,

    /// The servers given by --server stall where a message is marked, as `echo --stall-marks` does:
    /// let them take part in `block`.
    #[arg(long, requires = "servers")]
    pub(crate) servers_stall: bool,

    /// Rounds, in each of which every server has one slice. [default: 5, quick 3, full 9]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) rounds: Option<usize>,

    /// Measured time of a slice. [default: 1s, quick 0.5s, full 2s]
    #[arg(long, value_name = "TIME", value_parser = parse_slice)]
    pub(crate) slice: Option<Duration>,

    /// Few short rounds: all is done in less than two minutes.
    #[arg(long, conflicts_with = "full")]
    pub(crate) quick: bool,

    /// More and longer rounds, and more sessions: about twelve minutes for the four models.
    #[arg(long)]
    pub(crate) full: bool,

    /// Write every figure of every slice, as one JSON object.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write a page with plots; it needs nothing but a browser.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// More arguments for each server that is started, split at spaces, for example
    /// "--backend epoll".
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(crate) server_args: Option<String>,

    /// No progress, and no table.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What the flags cannot say in a line each.
const LONG_HELP: &str = "\
Each server runs in a process of its own. All servers of a scenario are up at once and are \
loaded in turn, a slice each; a round is one slice of every server, in an order that \
changes from round to round. What slows the machine down for a while so slows all of them \
down. Figures are medians over the rounds; ± is half of the range from the worst round to the \
best, in percent of the median. Ratios are taken within a round.

Scenarios:
  few-long   16 sessions that send their next request when the reply is there
  many-long  thousands of sessions that each send a request every second or two
  short      connect, one request, close, and again
  large      messages of 256 KiB
  compute    handlers that compute for 0.2 ms per request
  block      2 % of the requests block their handler for 10 ms; measured are the others
  uneven     four sessions send without a pause, a hundred now and then; latency is of these

Every byte that comes back is compared. A server that dies, refuses or sends a wrong byte is \
reported, is out of that scenario, and does not spoil the others; the exit status is 1 then.

CPU time, context switches and memory need Linux and a server's process: those of our own, \
or --server NAME=ADDR@PID of the same user. Memory is the process's own (anonymous, resident); \
what the kernel keeps for sockets and thread stacks is not in it.";

/// A model of `proactor echo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// A thread per client.
    Threads,
    /// Event loops that ask which sockets are ready.
    Readiness,
    /// Completion routines on one thread.
    Overlapped,
    /// A completion port with worker threads.
    Port,
    /// No server is started.
    None,
}

impl Model {
    /// Its name on the command line of `proactor echo`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Readiness => "readiness",
            Self::Overlapped => "overlapped",
            Self::Port => "port",
            Self::None => "none",
        }
    }
}

/// A server of our own with arguments of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) args: String,
}

/// A server that somebody else has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) pid: Option<u32>,
}

impl External {
    /// Where it is, looked up now.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, String> {
        Ok(parse_target(&self.address)?.settle(Duration::from_secs(5)))
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
    pub(crate) warmup: Duration,
    /// Sessions of `many-long`.
    pub(crate) many: usize,
}

impl CompareArgs {
    /// What the flags come to.
    pub(crate) fn extent(&self) -> Extent {
        let (rounds, slice_ms, many) = match (self.quick, self.full) {
            (true, _) => (3, 500, 1000),
            (_, true) => (9, 2000, 5000),
            _ => (5, 1000, 2000),
        };
        let slice = self.slice.unwrap_or(Duration::from_millis(slice_ms));
        Extent {
            rounds: self.rounds.unwrap_or(rounds),
            slice,
            warmup: (slice / 5).clamp(Duration::from_millis(50), Duration::from_secs(1)),
            many,
        }
    }
}

fn parse_slice(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        slice if slice < Duration::from_millis(50) => Err("expected at least 50ms".into()),
        slice => Ok(slice),
    }
}

/// Reads `NAME=ARGS`.
fn parse_variant(text: &str) -> Result<Variant, String> {
    let wrong = "expected NAME=ARGS, for example \"port-2=--model port --workers 2\"";
    let (name, args) = text.split_once('=').ok_or(wrong)?;
    Ok(Variant { name: parse_name(name)?, args: args.to_owned() })
}

/// A name that tables have room for, and that is not a model's.
fn parse_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if name.is_empty() || name.len() > 16 || !name.chars().all(is_plain) {
        return Err("expected a name of 1 to 16 letters, digits, and - _ . +".into());
    }
    if Model::from_str(name, false).is_ok() {
        return Err(format!("'{name}' is one of the models: choose another name"));
    }
    Ok(name.to_owned())
}

/// Reads `NAME=ADDR` or `NAME=ADDR@PID`.
fn parse_external(text: &str) -> Result<External, String> {
    let wrong = "expected NAME=ADDR or NAME=ADDR@PID, for example mine=127.0.0.1:7000@4242";
    let (name, rest) = text.split_once('=').ok_or(wrong)?;
    let name = parse_name(name)?;
    let (address, pid) = match rest.rsplit_once('@') {
        None => (rest, None),
        Some((address, pid)) => (address, Some(pid.parse().map_err(|_| wrong)?)),
    };
    parse_target(address)?;
    Ok(External { name, address: address.to_owned(), pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_a_name_an_address_and_perhaps_a_process() {
        let server = parse_external("mine=127.0.0.1:7000@42").unwrap();
        assert_eq!((server.name.as_str(), server.pid), ("mine", Some(42)));
        assert_eq!(server.address, "127.0.0.1:7000");
        assert_eq!(parse_external("a=[::1]:7000").unwrap().pid, None);
        for bad in ["", "a", "=127.0.0.1:7000", "a=127.0.0.1", "a=127.0.0.1:7000@x", "port=[::1]:1"]
        {
            assert!(parse_external(bad).is_err(), "{bad}");
        }
        let variant = parse_variant("two=--model port --workers=2").unwrap();
        assert_eq!(
            (variant.name.as_str(), variant.args.as_str()),
            ("two", "--model port --workers=2")
        );
        assert!(parse_variant("port=--workers 2").is_err());
        assert!(parse_external("<script>=127.0.0.1:7000").is_err());
    }
}
