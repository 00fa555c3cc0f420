//! The connection to a server's status, and the lines that come.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::status::address::StatusAddress;
use crate::status::{FORM, LINE_LIMIT, Status};

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may say nothing at first. It tells its status twice a second.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Statuses that wait to be shown; who is slower than that does not read any further.
const WAITING_STATUSES: usize = 4;

/// Statuses as they come.
pub(crate) struct Source {
    lines: Receiver<io::Result<Line>>,
    has_told: Cell<bool>,
    connected: Instant,
}

/// A status, and the line that it was.
struct Line {
    status: Status,
    text: String,
}

/// What came.
pub(crate) enum News {
    /// A status.
    Status(Box<Status>),
    /// Nothing in this time.
    Nothing,
    /// The server has ended, or has ended this connection.
    End,
}

impl Source {
    /// Connects, and reads on a thread of its own.
    pub(crate) fn connect(address: &StatusAddress) -> Result<Self, Failure> {
        let stream = address.connect(CONNECT_LIMIT).map_err(|error| {
            Failure::new(format!(
                "cannot connect to {address}: {error}; a server says how it does with \
                 'proactor echo --status {address}'"
            ))
        })?;
        let (sender, lines) = mpsc::sync_channel(WAITING_STATUSES);
        thread::spawn(move || pass_lines(stream, &sender));
        Ok(Self { lines, has_told: Cell::new(false), connected: Instant::now() })
    }

    /// Waits for the next status, at most so long.
    pub(crate) fn next(&self, limit: Duration) -> io::Result<News> {
        let limit = if self.has_told.get() { limit } else { limit.min(SILENCE_LIMIT) };
        match self.lines.recv_timeout(limit) {
            Ok(line) => {
                self.has_told.set(true);
                Ok(News::Status(Box::new(line?.status)))
            }
            Err(RecvTimeoutError::Timeout) if self.is_mute() => Err(mute()),
            Err(RecvTimeoutError::Timeout) => Ok(News::Nothing),
            Err(RecvTimeoutError::Disconnected) => self.end().map(|()| News::End),
        }
    }

    /// Waits for the next line; `None` at the end.
    pub(crate) fn next_line(&self) -> io::Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(SILENCE_LIMIT) {
                Ok(line) => {
                    self.has_told.set(true);
                    return line.map(|line| Some(line.text));
                }
                Err(RecvTimeoutError::Timeout) if self.is_mute() => return Err(mute()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end().map(|()| None),
            }
        }
    }

    /// Whether it should have told something by now.
    fn is_mute(&self) -> bool {
        !self.has_told.get() && self.connected.elapsed() >= SILENCE_LIMIT
    }

    /// An end before anything was told is none of the server's.
    fn end(&self) -> io::Result<()> {
        if self.has_told.get() {
            return Ok(());
        }
        let why = "it ended the connection and told nothing: perhaps as many watch as may";
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }
}

fn mute() -> io::Error {
    let seconds = SILENCE_LIMIT.as_secs();
    let why = format!(
        "it has told nothing for {seconds} s: a status is at the address of 'echo --status', not \
         where clients are served"
    );
    io::Error::new(io::ErrorKind::TimedOut, why)
}

fn pass_lines(stream: impl Read, sender: &SyncSender<io::Result<Line>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let line = read_line(&mut reader);
        let is_error = line.is_err();
        let Some(line) = line.transpose() else { return };
        if sender.send(line).is_err() || is_error {
            return;
        }
    }
}

/// Reads a line; `None` at the end. Whatever is at the other end, no more than the longest line is
/// kept.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Line>> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut text = String::new();
    let length = reader.by_ref().take(LINE_LIMIT as u64).read_line(&mut text)?;
    if length == 0 {
        return Ok(None);
    }
    if !text.ends_with('\n') {
        return match length {
            LINE_LIMIT => Err(wrong("a line is too long for a status".into())),
            // The end came in the middle of one.
            _ => Ok(None),
        };
    }
    let text = text.trim_end().to_owned();
    let status: Status = serde_json::from_str(&text)
        .map_err(|error| wrong(format!("what is there is no status of a server: {error}")))?;
    if status.form != FORM {
        return Err(wrong(format!(
            "the server is of another version: its status has form {}, known is {FORM}",
            status.form
        )));
    }
    Ok(Some(Line { status, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Option<Line>> {
        read_line(&mut text.as_bytes())
    }

    #[test]
    fn lines_are_statuses_or_errors() {
        let status = Status { form: FORM, sessions: 7, ..Status::default() };
        let line = serde_json::to_string(&status).unwrap();
        assert_eq!(read(&format!("{line}\n")).unwrap().unwrap().status, status);
        assert!(read("").unwrap().is_none());
        assert!(read(&line[..20]).unwrap().is_none(), "it ended in the middle");
        assert!(read("HTTP/1.1 400 Bad Request\r\n").is_err());
        assert!(read(&"x".repeat(LINE_LIMIT + 1)).is_err());
        let other = serde_json::to_string(&Status { form: 99, ..status }).unwrap();
        assert!(read(&format!("{other}\n")).is_err());
    }
}
