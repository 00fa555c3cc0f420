//! A server in a process of its own, and clients that check what comes back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_proactor");

/// The arguments that make `proactor echo` this kind of server.
pub(crate) fn args_of(server: &str) -> &'static [&'static str] {
    match server {
        "auto" => &[],
        "io_uring" => &["--backend", "io_uring"],
        "epoll" => &["--backend", "epoll"],
        "overlapped_io_uring" => &["--model", "overlapped", "--backend", "io_uring"],
        "iocp" => &["--backend", "iocp"],
        "overlapped_iocp" => &["--model", "overlapped", "--backend", "iocp"],
        "overlapped_epoll" => &["--model", "overlapped", "--backend", "epoll"],
        "alternating" => &["--model", "overlapped", "--alternate-accept"],
        "threads" => &["--model", "threads"],
        // More loops than this machine may have processors, so that connections are handed over.
        "readiness" => &["--model", "readiness", "--workers", "3"],
        "poll" => &["--model", "readiness", "--readiness", "poll"],
        "select" => &["--model", "readiness", "--readiness", "select"],
        _ => panic!("no such server: {server}"),
    }
}

/// Whether it is a server on a completion port.
pub(crate) fn is_port(server: &str) -> bool {
    !args_of(server).contains(&"--model")
}

/// Runs a test on a kind of server, or says why it cannot.
pub(crate) fn run(server: &str, test: fn(&str)) {
    if !server.ends_with("io_uring") {
        return test(server);
    }
    let report = Command::new(PROGRAM).args(["doctor", "--json"]).output().expect("it starts");
    let report: Value = serde_json::from_slice(&report.stdout).expect("the report is JSON");
    let backends = report["backends"].as_array().expect("a list");
    let state = backends.iter().find(|state| state["name"] == "io_uring").expect("it is listed");
    match &state["refusal"] {
        Value::Null => test(server),
        refusal => eprintln!("skipped: io_uring is not to be had here: {refusal}"),
    }
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Ended {
    /// The totals that the server printed with `--json`.
    pub(crate) fn totals(&self) -> Value {
        assert!(self.status.success(), "{self:?}");
        serde_json::from_str(self.stdout.last().expect("totals are printed"))
            .unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A running server; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    pub(crate) first_line: String,
    stderr_so_far: Vec<String>,
}

impl Server {
    /// Starts `proactor echo` on a free port of the loopback, with JSON totals.
    pub(crate) fn start(server: &str, more: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["echo", "--listen", "127.0.0.1:0", "--json"]);
        command.args(args_of(server)).args(more);
        Self::spawn(command)
    }

    /// The same with a limit on descriptors.
    #[cfg(unix)]
    pub(crate) fn start_limited(server: &str, descriptors: usize, more: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), PROGRAM]);
        command.args(["echo", "--listen", "127.0.0.1:0", "--json"]);
        command.args(args_of(server)).args(more);
        Self::spawn(command)
    }

    /// Starts any command that prints where it listens.
    pub(crate) fn spawn(mut command: Command) -> Self {
        // Where there are no signals, the server ends with its input.
        if cfg!(windows) {
            command.arg("--until-stdin-ends");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let stdin = child.stdin.take();
        let stdout = lines(child.stdout.take().expect("it is piped"));
        let stderr = lines(child.stderr.take().expect("it is piped"));
        let Ok(first_line) = stdout.recv_timeout(LIMIT) else {
            let _ = child.kill();
            panic!("no first line; stderr: {:?}", stderr.iter().collect::<Vec<_>>());
        };
        Self { child, stdin, stdout, stderr, first_line, stderr_so_far: Vec::new() }
    }

    /// What stands behind `listening on`.
    pub(crate) fn address_text(&self) -> &str {
        let rest = self.first_line.strip_prefix("listening on ").expect("so it begins");
        rest.split_whitespace().next().expect("an address follows")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address_text().parse().expect("an internet address")
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address(), LIMIT).expect("it accepts");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        use rustix::process::{Pid, kill_process};

        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process has a number");
        kill_process(pid, signal).expect("the server runs");
    }

    /// Waits for a line on stderr that contains `text`.
    pub(crate) fn await_stderr(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .stderr
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no '{text}' on stderr, but {:?}", self.stderr_so_far));
            self.stderr_so_far.push(line);
            if self.stderr_so_far.last().is_some_and(|line| line.contains(text)) {
                return;
            }
        }
    }

    /// Asks it to end.
    pub(crate) fn ask_to_end(&mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::TERM);
        #[cfg(not(unix))]
        self.end_stdin();
    }

    /// Asks it to end as Ctrl-C does, where there are signals.
    pub(crate) fn interrupt(&mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::INT);
        #[cfg(not(unix))]
        self.end_stdin();
    }

    /// Ends its standard input.
    pub(crate) fn end_stdin(&mut self) {
        self.stdin = None;
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) -> Ended {
        self.ask_to_end();
        self.await_end()
    }

    /// Waits until it ends.
    pub(crate) fn await_end(mut self) -> Ended {
        let deadline = Instant::now() + LIMIT;
        let mut stdout = vec![self.first_line.clone()];
        let mut stderr = std::mem::take(&mut self.stderr_so_far);
        // Each channel ends when the pipe does, which is when the process has ended.
        stdout.extend(until_end(&self.stdout, deadline));
        stderr.extend(until_end(&self.stderr, deadline));
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Ended { status, stdout, stderr };
            }
            assert!(Instant::now() < deadline, "the server does not end");
            thread::yield_now();
        }
    }

    /// A number of `/proc/PID/status`, in KiB.
    #[cfg(target_os = "linux")]
    pub(crate) fn status_kib(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time used so far, in clock ticks (10 ms).
    #[cfg(target_os = "linux")]
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, behind_name) = text.rsplit_once(')').expect("a name in parentheses");
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test succeeded.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn until_end(lines: &Receiver<String>, deadline: Instant) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => all.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the server does not end: {all:?}"),
        }
    }
}

/// Runs the program to its end, where that is to be at once.
pub(crate) fn run_to_end(args: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(PROGRAM);
    command.args(args).envs(environment.iter().copied()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = lines(child.stdout.take().unwrap());
    let stderr = lines(child.stderr.take().unwrap());
    let deadline = Instant::now() + LIMIT;
    let (stdout, stderr) = (until_end(&stdout, deadline), until_end(&stderr, deadline));
    Ended { status: child.wait().unwrap(), stdout, stderr }
}

/// The byte at `offset` of a stream that is like no other stream, and like no shifted one.
pub(crate) fn pattern(seed: u64, offset: usize) -> u8 {
    let mixed = (offset as u64 ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

/// `len` bytes of a stream from `offset` on.
pub(crate) fn pattern_bytes(seed: u64, offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|offset| pattern(seed, offset)).collect()
}

/// Checks that `bytes` are those of the stream from `offset` on.
pub(crate) fn assert_pattern(seed: u64, offset: usize, bytes: &[u8]) {
    if let Some(wrong) =
        bytes.iter().enumerate().position(|(index, byte)| *byte != pattern(seed, offset + index))
    {
        panic!("stream {seed}: wrong byte at {}", offset + wrong);
    }
}

/// Sends `len` bytes in writes of `write_len`, ends the stream, and checks that all of it comes
/// back and then the end.
pub(crate) fn echo_all<S: Duplex>(stream: S, seed: u64, len: usize, write_len: usize) {
    let mut writer = stream.duplicate();
    let sender = thread::spawn(move || {
        let mut sent = 0;
        while sent < len {
            let part = write_len.min(len - sent);
            writer.write_all(&pattern_bytes(seed, sent, part)).expect("the server reads");
            sent += part;
        }
        writer.end().expect("it is open");
    });
    let received = read_to_end(stream, seed).expect("an orderly end");
    sender.join().unwrap();
    assert_eq!(received, len, "stream {seed}: all comes back");
}

/// Reads and checks a stream up to its end, and says how long it was.
pub(crate) fn read_to_end(mut stream: impl Read, seed: u64) -> io::Result<usize> {
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(received),
            count => {
                assert_pattern(seed, received, &buffer[..count]);
                received += count;
            }
        }
    }
}

/// One message there and back.
pub(crate) fn round_trip(stream: &mut (impl Read + Write), seed: u64, len: usize) {
    stream.write_all(&pattern_bytes(seed, 0, len)).expect("the server reads");
    let mut buffer = vec![0; len];
    stream.read_exact(&mut buffer).expect("the server answers");
    assert_pattern(seed, 0, &buffer);
}

/// A stream whose two directions two threads can have.
pub(crate) trait Duplex: Read + Write + Send + Sized + 'static {
    fn duplicate(&self) -> Self;
    fn end(&self) -> io::Result<()>;
}

impl Duplex for TcpStream {
    fn duplicate(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

#[cfg(unix)]
impl Duplex for std::os::unix::net::UnixStream {
    fn duplicate(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Two systems, two names for the end of a socket's timeout.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Writes until the server takes no more for half a second, and says how much that was.
pub(crate) fn fill(stream: &mut TcpStream, seed: u64, most: usize) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while sent < most {
        let part = pattern_bytes(seed, sent, 64 * 1024);
        match stream.write(&part) {
            Ok(count) => sent += count,
            Err(error) if is_timeout(&error) => return sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the server took {most} bytes from a client that does not read");
}
