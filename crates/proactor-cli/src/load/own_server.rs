//! An echo server in a process of its own, started for the load and stopped after it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::address::Endpoint;
use crate::failure::Failure;

/// How long the server may take to say where it listens, and to end when told to.
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What precedes the address on the server's first line.
const ANNOUNCEMENT: &str = "listening on ";
/// How many lines of the server's output are kept.
const LINE_LIMIT: usize = 1000;

/// A running server. Dropping it kills it, so that no way out leaves it behind.
#[derive(Debug)]
pub(crate) struct OwnServer {
    child: Child,
    lines: Receiver<String>,
    endpoint: Endpoint,
    is_over: bool,
}

impl OwnServer {
    /// Starts `program`, or else this program, as `echo --listen 127.0.0.1:0` with more arguments,
    /// and waits until it says where it listens.
    pub(crate) fn start(program: Option<&Path>, more_args: &str) -> Result<Self, Failure> {
        let is_ours = program.is_none();
        let program = match program {
            Some(path) => path.to_owned(),
            None => std::env::current_exe().map_err(|error| {
                Failure::new(format!("cannot find this program to start it as a server: {error}"))
            })?,
        };
        let mut command = Command::new(&program);
        keep_interrupts_away(&mut command);
        command.args(["echo", "--listen", "127.0.0.1:0"]).args(more_args.split_whitespace());
        if is_ours && ENDS_WITH_STDIN {
            command.arg("--until-stdin-ends").stdin(Stdio::piped());
        } else {
            command.stdin(Stdio::null());
        }
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| {
            Failure::new(format!("cannot start the server {}: {error}", program.display()))
        })?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || pass_lines(stdout, &sender));
        }
        let nowhere = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut server = Self { child, lines, endpoint: nowhere, is_over: false };
        server.endpoint = server.await_announcement()?;
        Ok(server)
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to end, waits until it has, and gives what it printed last. The error says how it
    /// ended if not as it should.
    pub(crate) fn stop(mut self) -> Result<Vec<String>, Failure> {
        terminate(&mut self.child);
        let deadline = Instant::now() + STOP_LIMIT;
        let mut output = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if output.len() < LINE_LIMIT => output.push(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return Err(self.overdue()),
            }
        }
        let status = self.wait(deadline)?;
        if is_as_told(status) {
            return Ok(output);
        }
        Err(Failure::new(format!("the server ended badly: {status}")))
    }

    fn await_announcement(&mut self) -> Result<Endpoint, Failure> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(endpoint) = parse_announcement(&line) {
                        return Ok(endpoint);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::new(format!(
                        "the server did not say where it listens within {START_LIMIT:?}"
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait(deadline)?;
                    return Err(Failure::new(format!(
                        "the server ended before it listened: {status}"
                    )));
                }
            }
        }
    }

    /// Waits for the end of a process that has closed its output, which it commonly does by ending.
    fn wait(&mut self, deadline: Instant) -> Result<ExitStatus, Failure> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.is_over = true;
                    return Ok(status);
                }
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                Ok(None) => return Err(self.overdue()),
                Err(error) => {
                    return Err(Failure::new(format!("cannot wait for the server: {error}")));
                }
            }
        }
    }

    fn overdue(&self) -> Failure {
        Failure::new(format!(
            "the server (process {}) did not end when told to, and was killed",
            self.child.id()
        ))
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if !self.is_over {
            // Nothing better can be done with a failure here; the process may be gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Passes on what the server prints, until it ends. Reading must go on, or it would block in printing.
fn pass_lines(stdout: ChildStdout, sender: &Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// Finds the address in `listening on ADDRESS ...`.
fn parse_announcement(line: &str) -> Option<Endpoint> {
    let (_, rest) = line.split_once(ANNOUNCEMENT)?;
    let token = rest.split_whitespace().next()?.trim_end_matches([',', ';', '.']);
    if let Some(path) = token.strip_prefix("unix:") {
        return Some(Endpoint::Unix(path.into()));
    }
    token.parse::<SocketAddr>().ok().map(Endpoint::Tcp)
}

/// Whether a server of this program is told by its standard input: where there are no signals.
const ENDS_WITH_STDIN: bool = cfg!(windows);

/// A Ctrl-C is for the load, which ends in order and then stops the server.
fn keep_interrupts_away(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    {
        /// Microsoft Learn, "Process Creation Flags".
        const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
        std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
    }
}

#[cfg(unix)]
fn terminate(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process};

    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else {
        return;
    };
    // It may have ended by itself; how it ended is looked at next in any case.
    if let Err(error) = kill_process(pid, Signal::TERM) {
        tracing::debug!(%error, "the server could not be signalled");
    }
}

/// A server of ours ends with its input. Any other cannot be asked, and so it is ended.
#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    if child.stdin.take().is_some() {
        return;
    }
    if let Err(error) = child.kill() {
        tracing::debug!(%error, "the server could not be ended");
    }
}

/// Ended by itself in order, or by the signal that it was sent and did not handle.
#[cfg(unix)]
fn is_as_told(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    status.success() || status.signal() == Some(rustix::process::Signal::TERM.as_raw())
}

#[cfg(not(unix))]
fn is_as_told(_status: ExitStatus) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_names_the_address() {
        let endpoint = |line: &str| parse_announcement(line).map(|endpoint| endpoint.to_string());
        assert_eq!(endpoint("listening on 127.0.0.1:4242").as_deref(), Some("127.0.0.1:4242"));
        assert_eq!(endpoint("listening on [::1]:4242, io_uring").as_deref(), Some("[::1]:4242"));
        assert_eq!(
            endpoint("proactor listening on unix:/tmp/e (epoll)").as_deref(),
            Some("unix:/tmp/e")
        );
        assert_eq!(endpoint("listening on nothing"), None);
        assert_eq!(endpoint("hello"), None);
    }
}
