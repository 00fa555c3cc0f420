//! A server that runs out of descriptors goes on. The server is a process of its own, this program
//! again, because the limit is of the whole process.

#![cfg(target_os = "linux")]

mod common;
mod service_common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use proactor::service::{Runtime, ServerService};
use service_common::*;

const CLIENTS: usize = 200;
const DESCRIPTORS: u64 = 64;
/// Accepts that are outstanding at once: each finds out by itself that there are no descriptors.
const ACCEPTS: u64 = 16;
/// How long each waits then before it tries again.
const PAUSE_MS: u64 = 100;

/// Not a test: the server, where it is started by one. It says for each line of its input how
/// accepting goes, and ends when its input does.
#[test]
#[ignore = "a process that another test starts"]
fn server_process() {
    let Ok(name) = std::env::var("PROACTOR_TEST_SERVER") else { return };
    let ports = backends().into_iter().find(|ports| ports.name() == name).unwrap();
    let runtime =
        Runtime::builder().port(ports.builder()).concurrency(2).threads(2).build().unwrap();
    let started = Instant::now();
    let server = ServerService::builder(|_| Echo)
        .listen("127.0.0.1:0")
        .limits(limited(|limits| limits.outstanding_accepts = ACCEPTS as usize))
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
    let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    // SAFETY: setrlimit reads one struct, which is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    println!("address {}", server.local_address().unwrap());
    for _ in std::io::stdin().lines() {
        let pauses = server.handle().snapshot().accept_pauses;
        println!("pauses {pauses} {}", started.elapsed().as_millis());
    }
    println!("accepted {}", server.handle().snapshot().accepted);
    let report = server.stop(Duration::ZERO);
    println!("left {}", report.left + report.aborted);
}

struct Server {
    child: Child,
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Server {
    fn start(name: &str) -> (Self, SocketAddr) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--ignored", "--nocapture"])
            .env("PROACTOR_TEST_SERVER", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take();
        let mut server = Self { child, input, lines };
        let address = server.read("address ").parse().unwrap();
        (server, address)
    }

    /// How often accepting has paused, and how often it may have: once at first and once for each
    /// `PAUSE_MS` that have passed, for each accept.
    fn pauses(&mut self) -> (u64, u64) {
        self.input.as_ref().unwrap().write_all(b"\n").unwrap();
        let answer = self.read("pauses ");
        let (pauses, elapsed_ms) = answer.split_once(' ').unwrap();
        let elapsed_ms: u64 = elapsed_ms.parse().unwrap();
        (pauses.parse().unwrap(), ACCEPTS * (1 + elapsed_ms / PAUSE_MS))
    }

    fn read(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the server process is gone");
            // The test harness may have begun the line.
            if let Some((_, rest)) = line.split_once(start) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn with_64_descriptors_200_clients_are_all_served_in_the_end() {
    let _watchdog = Watchdog::start("service_descriptors".to_owned());
    for ports in backends() {
        let (mut server, address) = Server::start(ports.name());
        let mut waiting: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| {
                let mut client = connect(address);
                client.write_all(b"hello").unwrap();
                client.set_nonblocking(true).unwrap();
                client
            })
            .collect();
        // Nobody leaves at first, so each accept pauses, and tries again in vain.
        wait_until("accepts that try again", || server.pauses().0 > 2 * ACCEPTS);
        let (pauses, may) = server.pauses();
        assert!(pauses <= may, "accepting spins: {pauses} pauses, and {may} would do");
        // Those that are served leave, and make room for the others.
        wait_until("all are served", || {
            waiting.retain_mut(|client| {
                let mut answer = [0; 5];
                match client.read(&mut answer) {
                    Ok(5) => {
                        assert_eq!(&answer, b"hello");
                        false
                    }
                    Ok(count) => panic!("{count} bytes of an answer"),
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                        true
                    }
                }
            });
            waiting.is_empty()
        });
        drop(server.input.take());
        assert_eq!(server.read("accepted "), CLIENTS.to_string());
        assert_eq!(server.read("left "), "0");
        assert!(server.child.wait().unwrap().success());
    }
}
