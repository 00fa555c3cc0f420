//! `proactor echo --status` and `proactor watch`.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(30);

fn proactor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    proactor(args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// An echo server that says how it does; dropping it kills it.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    status: String,
}

impl Server {
    fn start(status: &str, more: &[&str]) -> Self {
        let mut command = proactor(&["echo", "--listen", "127.0.0.1:0", "--status", status]);
        let mut child = command.args(more).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a first line");
        let after = |words: &str| {
            let (_, rest) = line.split_once(words).unwrap_or_else(|| panic!("{words} in {line:?}"));
            rest.split([' ', ',']).next().expect("an address").to_owned()
        };
        let (address, status) = (after("listening on "), after("status on "));
        Self { child, stdout, address, status }
    }

    fn watch(&self, args: &[&str]) -> Output {
        run(&[&["watch", &self.status], args].concat())
    }

    /// The next statuses, as JSON.
    fn statuses(&self, count: &str) -> Vec<Value> {
        let output = self.watch(&["--json", "--count", count]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        kill_process(pid, Signal::TERM).expect("it is there");
        assert!(self.child.wait().expect("it ends").success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("its totals");
        assert!(rest.contains("completions"), "{rest}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn echo(stream: &mut TcpStream, message: &[u8]) {
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.write_all(message).expect("it takes bytes");
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).expect("they come back");
    assert_eq!(back, message);
}

#[test]
fn a_status_tells_sessions_bytes_and_threads() {
    let server = Server::start("127.0.0.1:0", &["--workers", "3", "--concurrency", "2"]);
    let mut streams: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(&server.address).expect("it accepts")).collect();
    streams.iter_mut().for_each(|stream| echo(stream, &[7; 1000]));
    let statuses = server.statuses("2");
    assert_eq!(statuses.len(), 2);
    let status = &statuses[1];
    assert_eq!(status["address"], server.address);
    assert_eq!((&status["sessions"], &status["total_sessions"]), (&4.into(), &4.into()));
    assert_eq!((&status["bytes_received"], &status["bytes_sent"]), (&4000.into(), &4000.into()));
    assert_eq!(status["concurrency"], 2);
    assert_eq!(status["queued_packets"], 0);
    let workers = status["workers"].as_array().expect("a list");
    assert_eq!(workers.len(), 3);
    assert!(workers.iter().all(|worker| worker["state"] == "waiting"), "{status}");
    let before = statuses[0]["uptime_seconds"].as_f64();
    assert!(status["uptime_seconds"].as_f64() > before);
    server.end();
}

#[test]
fn handlers_that_take_long_are_told_with_their_session() {
    let server = Server::start("127.0.0.1:0", &["--stall-marks"]);
    let mut stream = TcpStream::connect(&server.address).expect("it accepts");
    let peer = stream.local_addr().expect("an address").to_string();
    // Somebody has to watch while the handlers run: only then they are measured.
    let mut watch = proactor(&["watch", &server.status, "--json"]).spawn().expect("it starts");
    let lines = BufReader::new(watch.stdout.take().expect("it is piped")).lines();
    let begin = Instant::now();
    let mut told = None;
    for line in lines {
        let status: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let slow = &status["slow_sessions"][0];
        if slow["peer"] == peer.as_str() {
            assert!(slow["longest_us"].as_f64() >= Some(10_000.0), "{slow}");
            told = Some(status);
            break;
        }
        assert!(begin.elapsed() < LIMIT, "{status}");
        echo(&mut stream, b"\xF1 blocks");
    }
    let status = told.expect("the server goes on");
    assert!(status["handler"]["max_us"].is_number());
    watch.kill().and_then(|()| watch.wait()).expect("it ends");
    server.end();
}

#[test]
fn plain_lines_come_where_there_is_no_terminal() {
    let server = Server::start("127.0.0.1:0", &["--workers", "2"]);
    let mut stream = TcpStream::connect(&server.address).expect("it accepts");
    echo(&mut stream, b"hello");
    let output = server.watch(&["--count", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1].contains("0/s completions  queue 0"), "{lines:?}");
    assert!(lines[1].contains("2 waiting") && lines[1].contains("1 sessions"), "{lines:?}");
    assert!(!text(&output.stdout).contains('\x1b'), "no control characters");
    server.end();
}

#[test]
fn a_path_is_the_owner_s_alone_and_goes_with_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("status");
    let server = Server::start(&format!("unix:{}", path.display()), &[]);
    let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(server.statuses("1").len(), 1);
    // The path is in use.
    let second = run(&["echo", "--listen", "127.0.0.1:0", "--status", &server.status]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("cannot serve a status"), "{}", text(&second.stderr));
    server.end();
    assert!(!path.exists());
}

/// Whoever does not read is let go, and there are only so many: the server goes on.
#[test]
fn clients_are_bounded() {
    let server = Server::start("127.0.0.1:0", &[]);
    let streams: Vec<TcpStream> =
        (0..12).map(|_| TcpStream::connect(&server.status).expect("it listens")).collect();
    let is_told = |mut stream: &TcpStream| {
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        matches!(stream.read(&mut [0]), Ok(1))
    };
    let told = streams.iter().filter(|stream| is_told(stream)).count();
    assert_eq!(told, 8);
    let refused = server.watch(&["--count", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("as many watch as may"), "{}", text(&refused.stderr));
    drop(streams);
    // Their places are free again, once the server has noticed that they have gone.
    let begin = Instant::now();
    while !server.watch(&["--count", "1"]).status.success() {
        assert!(begin.elapsed() < LIMIT);
    }
    let mut stream = TcpStream::connect(&server.address).expect("it accepts");
    echo(&mut stream, b"still here");
    server.end();
}

#[test]
fn the_end_of_the_server_ends_the_watch() {
    let server = Server::start("127.0.0.1:0", &[]);
    let mut watch = proactor(&["watch", &server.status]).spawn().expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("it is piped")).lines();
    lines.next().expect("a line").expect("text");
    server.end();
    let last = lines.map(|line| line.expect("text")).last();
    assert_eq!(last.as_deref(), Some("the server has ended"));
    assert!(watch.wait().expect("it ends").success());
}

/// The address where clients are served says nothing by itself.
#[test]
fn a_server_that_tells_nothing_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address").to_string();
    let output = run(&["watch", &address]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("has told nothing"), "{}", text(&output.stderr));
}

#[test]
fn what_is_not_local_or_no_status_is_refused() {
    for address in ["0.0.0.0:7001", "192.168.1.1:1", "example.org:7001", "unix:", "7001"] {
        for args in [&["watch", address][..], &["echo", "--status", address]] {
            let output = run(args);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        }
    }
    let output = run(&["echo", "--model", "threads", "--status", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    // An echo server's own port says nothing, and what it says is no status.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").expect("it takes bytes");
    });
    let output = run(&["watch", &address]);
    answer.join().expect("no panic");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no status"), "{}", text(&output.stderr));
    let output = run(&["watch", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("echo --status"), "{}", text(&output.stderr));
}
