//! What `proactor echo` is told on its command line.

use std::time::Duration;

use clap::Args;
use proactor::BackendChoice;

use crate::failure::Failure;

/// The most threads that a server may be given.
const THREAD_LIMIT: usize = 1024;
/// The most accepts that may be outstanding.
const ACCEPT_LIMIT: usize = 4096;
/// The variable that chooses a backend where no flag does.
const BACKEND_VARIABLE: &str = "PROACTOR_BACKEND";

const LISTEN_HELP: &str =
    "Where to listen: HOST:PORT, [V6]:PORT or unix:PATH. Port 0 takes any free one";

/// The flags of `proactor echo`.
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000", help = LISTEN_HELP)]
    pub(crate) listen: String,

    /// Threads that dequeue completions. [default: the concurrency, and 2 to 8 spare ones]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub(crate) workers: Option<usize>,

    /// Threads that may handle completions at once; 0 means one per CPU.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_concurrency)]
    pub(crate) concurrency: usize,

    /// What serves the port: auto, io_uring, epoll or iocp. [default: PROACTOR_BACKEND, or else auto]
    #[arg(long, value_name = "B", value_parser = parse_backend)]
    pub(crate) backend: Option<BackendChoice>,

    /// Accepts that are outstanding at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_accepts)]
    pub(crate) accepts: usize,

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

    /// Print the totals as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print nothing but the first line, unless something is wrong.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl EchoArgs {
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
