//! A server process: started, found, measured, stopped.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sys::{self, CpuClock};

const START_TIME: Duration = Duration::from_secs(10);
const STOP_TIME: Duration = Duration::from_secs(3);

/// A running server; stopped with SIGTERM when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    address: SocketAddr,
    clock: CpuClock,
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Resident set size.
    pub rss_bytes: u64,
    /// Proportional set size: shared pages count in part.
    pub pss_bytes: u64,
}

impl Process {
    /// Starts a command on the given CPUs and waits until it says where it
    /// listens.
    pub fn start(words: &[String], cpus: &[usize]) -> Result<Self, String> {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdout(Stdio::piped());
        let cpus = cpus.to_vec();
        // SAFETY: it makes system calls only, which is allowed between fork
        // and exec.
        unsafe { command.pre_exec(move || sys::prepare_child(&cpus)) };
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", words[0]))?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, receiver) = mpsc::channel();
        // The thread goes on reading, so that a talkative server never blocks
        // on its pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                let _ = sender.send(line);
            }
        });
        let line = receiver.recv_timeout(START_TIME);
        let address = line
            .map_err(|_| "said nothing within 10 s".to_owned())
            .and_then(|line| address_in(&line).ok_or(format!("unexpected first line {line:?}")));
        let clock = CpuClock::of_process(child.id()).map_err(|error| error.to_string());
        match (address, clock) {
            (Ok(address), Ok(clock)) => Ok(Self { child, address, clock }),
            (address, clock) => {
                stop(&mut child);
                Err([address.err(), clock.err()]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join("; "))
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads so far.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        self.clock.now()
    }

    /// Its threads at this moment.
    pub fn threads(&self) -> io::Result<Vec<u32>> {
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let name = entry?.file_name();
            threads.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(threads)
    }

    /// How often its threads were taken off a processor: because they waited, or because others
    /// were to run. Threads that have ended are not in it.
    pub fn context_switches(&self) -> io::Result<u64> {
        let mut sum = 0;
        for thread in self.threads()? {
            let status = fs::read_to_string(format!("/proc/{}/task/{thread}/status", self.pid()))?;
            sum += number(&status, "voluntary_ctxt_switches:")?
                + number(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(sum)
    }

    /// Its memory at this moment.
    pub fn memory(&self) -> io::Result<Memory> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        Ok(Memory {
            rss_bytes: number(&status, "VmRSS:")? * 1024,
            pss_bytes: number(&rollup, "Pss:")? * 1024,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

fn stop(child: &mut Child) {
    sys::signal(child.id(), libc::SIGTERM);
    let deadline = Instant::now() + STOP_TIME;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The address in a line that contains `listening on ADDRESS`.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on ")?;
    let word = rest.split_whitespace().next()?;
    word.trim_end_matches(['.', ',', ';']).parse().ok()
}

/// The number behind a field of a file in /proc; of memory, in KiB.
fn number(text: &str, field: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no {field} in /proc")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_the_first_line() {
        let expected = Some(SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(address_in("listening on 127.0.0.1:80"), expected);
        assert_eq!(address_in("echo: listening on 127.0.0.1:80, 2 workers"), expected);
        assert_eq!(address_in("hello"), None);
    }

    #[test]
    fn a_command_that_says_something_else_is_an_error() {
        let words = ["echo".to_owned(), "hello".to_owned()];
        assert!(Process::start(&words, &[0]).unwrap_err().contains("hello"));
        assert!(Process::start(&["/nonexistent".to_owned()], &[0]).is_err());
    }
}
