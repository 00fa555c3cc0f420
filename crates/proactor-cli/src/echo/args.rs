//! What `proactor echo` is told on its command line.

use std::time::Duration;

use clap::{Args, ValueEnum};
use proactor::BackendChoice;

use super::stall::Handler;
use crate::failure::Failure;
use crate::status::address::StatusAddress;

/// The most threads that a server may be given.
const THREAD_LIMIT: usize = 1024;
/// The most accepts that may be outstanding.
const ACCEPT_LIMIT: usize = 4096;
/// The variable that chooses a backend where no flag does.
const BACKEND_VARIABLE: &str = "PROACTOR_BACKEND";

const LISTEN_HELP: &str =
    "Where to listen: HOST:PORT, [V6]:PORT or unix:PATH. Port 0 takes any free one";

/// How many accepts are outstanding where no flag says it.
const DEFAULT_ACCEPTS: usize = 16;
/// The longest computation for a message.
const WORK_LIMIT_US: u64 = 1_000_000;

/// How the server serves: see `docs/models.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// A thread for each client, and blocking calls.
    Threads,
    /// Event loops that ask which sockets are ready.
    Readiness,
    /// One thread, and operations with completion routines.
    Overlapped,
    /// A completion port, and worker threads.
    Port,
}

impl Model {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Readiness => "readiness",
            Self::Overlapped => "overlapped",
            Self::Port => "port",
        }
    }
}

/// What tells a readiness loop which sockets are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Readiness {
    /// The system's own: epoll, kqueue, or what takes their place (through mio).
    Epoll,
    /// poll(2): the system looks at every socket at each call.
    #[cfg(unix)]
    Poll,
    /// select(2): as poll, and only with descriptors below 1,024.
    #[cfg(unix)]
    Select,
}

/// The flags of `proactor echo`.
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000", help = LISTEN_HELP)]
    pub(crate) listen: String,

    /// How it serves.
    #[arg(long, value_name = "M", default_value = "port")]
    pub(crate) model: Model,

    /// What tells a readiness loop which sockets are ready. [default: epoll]
    #[arg(long, value_name = "R")]
    pub(crate) readiness: Option<Readiness>,

    /// In the overlapped model, alternate a non-blocking accept with an alertable wait of at most
    /// 1 ms, as older books have it, in place of accepts with a completion routine.
    #[arg(long)]
    pub(crate) alternate_accept: bool,

    /// Threads that dequeue completions, or event loops. [default: for a port the concurrency, and
    /// 2 to 8 spare ones; one event loop per CPU, with poll and select one]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub(crate) workers: Option<usize>,

    /// Threads that may handle a port's completions at once; 0 means one per CPU. [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_concurrency)]
    pub(crate) concurrency: Option<usize>,

    /// What is under a port or the overlapped model: auto, io_uring, epoll or
    /// iocp. [default: PROACTOR_BACKEND, or else auto]
    #[arg(long, value_name = "B", value_parser = parse_backend)]
    pub(crate) backend: Option<BackendChoice>,

    /// Accepts that are outstanding at once, on a port and in the overlapped model. [default: 16]
    #[arg(long, value_name = "N", value_parser = parse_accepts)]
    pub(crate) accepts: Option<usize>,

    /// Connections that the system may hold until they are accepted.
    #[arg(long, value_name = "N", default_value_t = 4096,
        value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) backlog: i32,

    /// Sessions served at once; further clients wait in the backlog. [default: no limit]
    #[arg(long, value_name = "N", alias = "max-connections", value_parser = parse_sessions)]
    pub(crate) max_sessions: Option<usize>,

    /// How long a drain may take before sessions are cut off, for example 5s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) drain_timeout: Duration,

    /// Drain and end also when standard input ends, as it does when a parent process closes it.
    #[arg(long)]
    pub(crate) until_stdin_ends: bool,

    /// Let a chunk that starts with 0xF1 block its handler for 10 ms, and with 0xF2 spin for 10 ms.
    #[arg(long)]
    pub(crate) stall_marks: bool,

    /// Compute for so many microseconds for each message (for each chunk that is received).
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=WORK_LIMIT_US))]
    pub(crate) work_us: u64,

    /// Say how the server is doing to whoever connects here (`proactor watch`): 127.0.0.1:PORT or
    /// unix:PATH. Local only, read only; any local user may look at a port, only you at a path.
    #[arg(long, value_name = "ADDR")]
    pub(crate) status: Option<StatusAddress>,

    /// Print the totals as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print nothing but the first line, unless something is wrong.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl EchoArgs {
    /// Refuses flags that mean nothing to the model.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        use Model::{Overlapped, Port, Readiness};
        let flags: [(&str, bool, &[Model]); 7] = [
            ("--alternate-accept", self.alternate_accept, &[Overlapped]),
            ("--readiness", self.readiness.is_some(), &[Readiness]),
            ("--workers", self.workers.is_some(), &[Port, Readiness]),
            ("--concurrency", self.concurrency.is_some(), &[Port]),
            ("--backend", self.backend.is_some(), &[Port, Overlapped]),
            ("--accepts", self.accepts.is_some(), &[Port, Overlapped]),
            ("--status", self.status.is_some(), &[Port]),
        ];
        for (flag, is_given, models) in flags {
            if is_given && !models.contains(&self.model) {
                let names: Vec<&str> = models.iter().map(|model| model.name()).collect();
                return Err(Failure::usage(format!(
                    "{flag} means nothing to --model {}: it is for {}",
                    self.model.name(),
                    names.join(" and ")
                )));
            }
        }
        Ok(())
    }

    /// What is done with each chunk before it goes back.
    pub(crate) fn handler(&self) -> Handler {
        Handler::new(self.stall_marks, self.work_us)
    }

    /// How many accepts are outstanding.
    pub(crate) fn accepts(&self) -> usize {
        self.accepts.unwrap_or(DEFAULT_ACCEPTS)
    }

    /// The backend that was asked for by flag or variable; `None` leaves it to the library.
    pub(crate) fn backend(&self) -> Result<Option<BackendChoice>, Failure> {
        if self.backend.is_some() {
            return Ok(self.backend);
        }
        match std::env::var(BACKEND_VARIABLE) {
            Err(_) => Ok(None),
            Ok(name) => match parse_backend(&name) {
                Ok(choice) => Ok(Some(choice)),
                Err(line) => Err(Failure::usage(format!("{BACKEND_VARIABLE}: {line}"))),
            },
        }
    }

    /// How many threads dequeue on a port with this concurrency limit.
    ///
    /// The spare ones wait until a thread is found blocked in its handler, and take its place.
    pub(crate) fn workers(&self, concurrency: usize) -> usize {
        self.workers.unwrap_or(concurrency + concurrency.clamp(2, 8))
    }
}

fn parse_backend(text: &str) -> Result<BackendChoice, String> {
    BackendChoice::from_name(text)
        .map_err(|_| format!("'{text}' is no backend: expected auto, io_uring, epoll or iocp"))
}

fn parse_workers(text: &str) -> Result<usize, String> {
    parse_count(text, 1, THREAD_LIMIT)
}

fn parse_concurrency(text: &str) -> Result<usize, String> {
    parse_count(text, 0, THREAD_LIMIT)
}

fn parse_accepts(text: &str) -> Result<usize, String> {
    parse_count(text, 1, ACCEPT_LIMIT)
}

fn parse_sessions(text: &str) -> Result<usize, String> {
    parse_count(text, 1, super::table::SESSION_LIMIT)
}

fn parse_count(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("expected a number from {least} to {most}")),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: expected for example 5s or 500ms");
    let (number, unit_seconds) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    match Duration::try_from_secs_f64(number * unit_seconds) {
        Ok(duration) if duration <= Duration::from_secs(3600) => Ok(duration),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "-1s", "5 minutes", "1e9s", "nans"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_are_bounded() {
        assert_eq!(parse_workers("3"), Ok(3));
        assert_eq!(parse_concurrency("0"), Ok(0));
        assert!(parse_workers("0").is_err());
        assert!(parse_workers("4000000000").is_err());
        assert!(parse_accepts("many").is_err());
    }

    #[test]
    fn backends_have_the_library_s_names() {
        assert_eq!(parse_backend("epoll"), Ok(BackendChoice::Epoll));
        assert_eq!(parse_backend("io_uring"), Ok(BackendChoice::IoUring));
        assert!(parse_backend("kqueue").is_err());
    }
}
