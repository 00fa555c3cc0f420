//! System calls per round trip.
//!
//! Counted by the kernel's tracepoint `raw_syscalls:sys_enter`, opened with
//! `perf_event_open` on every thread of the server: exact, and it slows the
//! server down by little. Where that is refused, `strace -c -f` counts; it
//! slows the server down by much, which lets it batch more than it would.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::engine::{Load, Slice};
use crate::process::Process;
use crate::sys::{check, signal};

/// One server's count.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// System calls that its threads made.
    pub system_calls: u64,
    /// Round trips in the same time.
    pub round_trips: u64,
    /// The one over the other.
    pub per_round_trip: f64,
    /// How the calls were counted.
    pub method: &'static str,
}

/// Counts for each server in turn.
pub fn run(
    servers: &[Server],
    workers: usize,
    cpus: &[usize],
    connections: usize,
    duration: Duration,
    skipped: &mut Vec<Skipped>,
) -> Vec<Results> {
    let slice = Slice { connections, message_bytes: 64, warm_up: Duration::ZERO, duration };
    let mut all = Vec::new();
    for server in servers {
        match measure(server, workers, cpus, slice) {
            Ok(results) => all.push(results),
            Err(reason) => {
                eprintln!("  {} failed: {reason}", server.name);
                skipped.push(Skipped {
                    name: server.name.clone(),
                    reason: format!("syscalls: {reason}"),
                });
            }
        }
    }
    all
}

fn measure(
    server: &Server,
    workers: usize,
    cpus: &[usize],
    slice: Slice,
) -> Result<Results, String> {
    let process = Process::start(&server.words(workers, false), cpus)?;
    let text = |error: io::Error| error.to_string();
    let mut load = Load::connect(process.address(), slice.connections, 64).map_err(text)?;
    // Warm: every thread the server will have is there.
    load.run(&process, slice).map_err(text)?;
    let (system_calls, method) = match Tracepoint::attach(&process) {
        Ok(tracepoint) => {
            load.run(&process, slice).map_err(text)?;
            (tracepoint.read().map_err(text)?, "raw_syscalls:sys_enter")
        }
        Err(_) => (strace(&process, &mut load, slice)?, "strace -c -f"),
    };
    let round_trips = load.round_trips();
    Ok(Results {
        name: server.name.clone(),
        system_calls,
        round_trips,
        per_round_trip: system_calls as f64 / round_trips as f64,
        method,
    })
}

/// The first version of the kernel's `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_kind: u32,
    config1: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// Threads that a counted thread creates are counted too.
const PERF_FLAG_INHERIT: u64 = 1 << 1;
const _: () = assert!(size_of::<PerfEventAttributes>() == 64); // PERF_ATTR_SIZE_VER0

/// System calls of a server, as the kernel counts them: one counter per thread.
pub struct Tracepoint(Vec<OwnedFd>);

impl Tracepoint {
    /// Counts from now on.
    pub fn attach(process: &Process) -> io::Result<Self> {
        let path = |root| format!("{root}/events/raw_syscalls/sys_enter/id");
        let id = fs::read_to_string(path("/sys/kernel/tracing"))
            .or_else(|_| fs::read_to_string(path("/sys/kernel/debug/tracing")))?;
        let attributes = PerfEventAttributes {
            kind: PERF_TYPE_TRACEPOINT,
            size: size_of::<PerfEventAttributes>() as u32,
            config: id.trim().parse().map_err(io::Error::other)?,
            flags: PERF_FLAG_INHERIT,
            ..Default::default()
        };
        let counters = process
            .threads()?
            .into_iter()
            .map(|thread| open_counter(&attributes, thread))
            .collect::<io::Result<_>>()?;
        Ok(Self(counters))
    }

    /// How many there were so far.
    pub fn read(&self) -> io::Result<u64> {
        let mut sum = 0;
        for counter in &self.0 {
            let mut count = 0_u64;
            // SAFETY: the buffer has the eight bytes that a counter gives.
            let result = unsafe { libc::read(counter.as_raw_fd(), (&raw mut count).cast(), 8) };
            check(result as libc::c_int)?;
            sum += count;
        }
        Ok(sum)
    }
}

fn open_counter(attributes: &PerfEventAttributes, thread: u32) -> io::Result<OwnedFd> {
    let (any_cpu, no_group, no_flags) = (-1, -1, 0_u64);
    // SAFETY: the attributes are valid for the call and state their size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const *attributes,
            thread as libc::pid_t,
            any_cpu,
            no_group,
            no_flags,
        )
    };
    let fd = check(result as libc::c_int)?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Counts with strace: from its attachment to its end, in which the one slice
/// lies whole; a server without load makes no calls that matter.
fn strace(process: &Process, load: &mut Load, slice: Slice) -> Result<u64, String> {
    let tracer = Command::new("strace")
        .args(["-c", "-f", "-q", "-p", &process.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("no tracepoint, and strace: {error}"))?;
    thread::sleep(Duration::from_millis(500));
    let ran = load.run(process, slice);
    signal(tracer.id(), libc::SIGINT);
    let output = tracer.wait_with_output().map_err(|error| error.to_string())?;
    ran.map_err(|error| error.to_string())?;
    let table = String::from_utf8_lossy(&output.stderr);
    total_of(&table).ok_or_else(|| format!("strace said {table:?}"))
}

/// The calls in the last line of strace's table: `100.00 TIME USECS CALLS
/// [ERRORS] total`.
fn total_of(table: &str) -> Option<u64> {
    let line = table.lines().rfind(|line| line.ends_with("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_an_strace_table() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     60.00    0.000100           1       100         3 recvfrom\n\
                     100.00    0.000200           1       171         3 total\n";
        assert_eq!(total_of(table), Some(171));
        assert_eq!(total_of("strace: attach: Operation not permitted"), None);
    }
}
