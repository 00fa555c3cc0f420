//! Instructions that a server executes in user space per round trip, counted
//! by valgrind's callgrind: a figure that no other load on the machine moves.
//!
//! Each server runs twice, with few and with many round trips, and the
//! difference is divided: so starting and ending are not in it. All messages
//! of a round are sent before the first answer is read, so that a server finds
//! as many at once as under load. What the kernel executes is not counted, and
//! valgrind runs one thread at a time.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Serialize;

use crate::catalog::{Server, Skipped};
use crate::process::Process;

const MESSAGE: [u8; 64] = [0x42; 64];
const CONNECTIONS: usize = 50;
const FEW_ROUNDS: usize = 20;
const MANY_ROUNDS: usize = 120;
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// One server's count.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The server.
    pub name: String,
    /// Instructions per round trip.
    pub per_round_trip: f64,
}

/// Counts for each server in turn.
pub fn run(
    servers: &[Server],
    workers: usize,
    cpus: &[usize],
    skipped: &mut Vec<Skipped>,
) -> Vec<Results> {
    let mut all = Vec::new();
    for server in servers {
        eprintln!("  {}", server.name);
        let words = server.words(workers, false);
        let counted = count(&words, cpus, FEW_ROUNDS)
            .and_then(|few| Ok((few, count(&words, cpus, MANY_ROUNDS)?)));
        match counted {
            Ok((few, many)) => {
                let round_trips = (CONNECTIONS * (MANY_ROUNDS - FEW_ROUNDS)) as f64;
                let per_round_trip = (many as f64 - few as f64) / round_trips;
                all.push(Results { name: server.name.clone(), per_round_trip });
            }
            Err(reason) => {
                eprintln!("  {} failed: {reason}", server.name);
                let reason = format!("instructions: {reason}");
                skipped.push(Skipped { name: server.name.clone(), reason });
            }
        }
    }
    all
}

/// All instructions of a server's life with so many rounds.
fn count(words: &[String], cpus: &[usize], rounds: usize) -> Result<u64, String> {
    let profile = std::env::temp_dir().join(format!("bench-callgrind-{}", std::process::id()));
    let mut command: Vec<String> =
        ["valgrind", "-q", "--tool=callgrind", "--log-file=/dev/null"].map(str::to_owned).into();
    command.push(format!("--callgrind-out-file={}", profile.display()));
    command.extend_from_slice(words);
    let process = Process::start(&command, cpus)?;
    let loaded = load(process.address(), rounds);
    // The profile is written when the server ends.
    drop(process);
    let text = fs::read_to_string(&profile);
    let _ = fs::remove_file(&profile);
    loaded.map_err(|error| error.to_string())?;
    let text = text.map_err(|error| format!("callgrind wrote nothing: {error}"))?;
    total_of(&text).ok_or_else(|| "callgrind's profile has no total".to_owned())
}

fn load(address: SocketAddr, rounds: usize) -> std::io::Result<()> {
    let mut streams = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        streams.push(stream);
    }
    let mut answer = [0; MESSAGE.len()];
    for _ in 0..rounds {
        for stream in &mut streams {
            stream.write_all(&MESSAGE)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut answer)?;
        }
    }
    Ok(())
}

/// The sum in a profile: `totals: N`, or in older versions `summary: N`.
fn total_of(profile: &str) -> Option<u64> {
    let of = |field| profile.lines().find_map(|line| line.strip_prefix(field));
    of("totals: ").or_else(|| of("summary: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_profile() {
        assert_eq!(total_of("version: 1\nevents: Ir\nsummary: 12\n"), Some(12));
        assert_eq!(total_of("summary: 12\n\ntotals: 13\n"), Some(13));
        assert_eq!(total_of("version: 1\n"), None);
    }
}
