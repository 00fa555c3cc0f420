//! A server of files, by overlapped reads on the port that its sessions are on.
//!
//! Run it:  cargo run --release --example file_server -- LISTEN DIRECTORY
//! Try it:  cargo run --release --example file_server -- 127.0.0.1:7020 .
//!          curl http://127.0.0.1:7020/README.md
//!
//! It understands as much of HTTP/1.0 as a `GET` of a file takes: one request, one answer, and the
//! end. The port is the program's, and so are the threads: each packet is offered to the runtime,
//! and what comes back is a read of a file, whose context says which session it is for.
//!
//! A session has one read of 64 KiB in flight at most, and begins none while its queue is over the
//! high mark; the blocks are sent by reference. So a file of any size, to a client of any speed,
//! takes less than half a megabyte.
//!
//! Enter in this terminal stops the server in order; twice, at once.

use std::any::Any;
use std::fs::{self, File};
use std::io::{self, BufRead};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proactor::service::framing::Lines;
use proactor::service::{
    AfterEnd, HandlerResult, Runtime, SendError, ServerService, Session, SessionHandler, Timeouts,
};
use proactor::{AssociatedFile, Completion, CompletionPort, Error, Operation};

const BLOCK_BYTES: u64 = 64 * 1024;
const MAXIMUM_LINE_BYTES: usize = 4096;
const MAXIMUM_HEADER_LINES: usize = 100;

/// A client's one request, and its answer.
struct Client {
    /// Without links and `..`.
    root: Arc<Path>,
    port: Arc<CompletionPort>,
    request: Option<String>,
    header_lines: usize,
    transfer: Option<Transfer>,
}

/// A file on its way.
struct Transfer {
    file: AssociatedFile,
    offset: u64,
    end: u64,
    reading: bool,
}

/// A finished read.
struct Block(Result<Vec<u8>, Error>);

/// Why a request is refused: status, and what it says.
type Refusal = (u16, &'static str);

impl SessionHandler for Client {
    fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
        if session.is_ending() || self.transfer.is_some() {
            // There is one request on a connection.
            return Ok(());
        }
        if self.request.is_none() {
            self.request = Some(String::from_utf8_lossy(line).into_owned());
        } else if !line.is_empty() {
            self.header_lines += 1;
            if self.header_lines > MAXIMUM_HEADER_LINES {
                refuse(session, (431, "Too Many Header Fields"))?;
            }
        } else {
            session.complete_handshake();
            self.answer(session)?;
        }
        Ok(())
    }

    fn notified(&mut self, session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        let Ok(block) = message.downcast::<Block>() else { return Ok(()) };
        transfer.reading = false;
        // The length was promised: a client must not take less for the whole.
        let bytes = match block.0 {
            Ok(bytes) if !bytes.is_empty() => bytes,
            Ok(_) => return abort(session, "the file has become shorter"),
            Err(error) => return abort(session, &error.to_string()),
        };
        transfer.offset += bytes.len() as u64;
        if let Err(error) = session.send_encoded(Bytes::from(bytes)) {
            return abort(session, &error.to_string());
        }
        self.go_on(session)
    }

    fn low_water(&mut self, session: &Session) {
        if self.go_on(session).is_err() {
            session.abort();
        }
    }

    fn peer_ended(&mut self, _session: &Session) -> AfterEnd {
        // A client that has asked may end its side and wait for the answer.
        if self.transfer.is_some() { AfterEnd::KeepSending } else { AfterEnd::Disconnect }
    }
}

impl Client {
    fn answer(&mut self, session: &Session) -> HandlerResult {
        let request = self.request.as_deref().unwrap_or_default();
        let opened = path_of(request).and_then(|path| open(&self.root, &path));
        let (file, length) = match opened {
            Ok(opened) => opened,
            Err(refusal) => return Ok(refuse(session, refusal)?),
        };
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
        session.send_encoded(Bytes::from(head))?;
        // Keys whose highest bit is clear are the program's. This one has no use for it: the
        // context of a read says whose it is.
        let file = self.port.associate(file, 0)?;
        self.transfer = Some(Transfer { file, offset: 0, end: length, reading: false });
        self.go_on(session)
    }

    /// Begins the next read, unless one is in flight or the client has enough to read.
    fn go_on(&mut self, session: &Session) -> HandlerResult {
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        if transfer.offset == transfer.end && !transfer.reading {
            session.disconnect();
        } else if !transfer.reading && !session.is_over_mark() {
            let bytes = BLOCK_BYTES.min(transfer.end - transfer.offset);
            let mut operation = Operation::new();
            operation.set_context(session.clone());
            let buffer = Vec::with_capacity(bytes as usize);
            let started = transfer.file.read_at(operation, buffer, transfer.offset);
            started.map_err(|rejected| rejected.error())?;
            transfer.reading = true;
        }
        Ok(())
    }
}

fn refuse(session: &Session, (status, text): Refusal) -> Result<(), SendError> {
    let length = text.len() + 1;
    let answer = format!("HTTP/1.0 {status} {text}\r\nContent-Length: {length}\r\n\r\n{text}\n");
    session.send_encoded(Bytes::from(answer))?;
    session.disconnect();
    Ok(())
}

fn abort(session: &Session, why: &str) -> HandlerResult {
    eprintln!("session {}: {why}", session.id());
    session.abort();
    Ok(())
}

/// The path that a request names, relative to the root.
fn path_of(request: &str) -> Result<PathBuf, Refusal> {
    let mut words = request.split(' ');
    let (method, target) = (words.next(), words.next());
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err((400, "Bad Request"));
    }
    if method != Some("GET") {
        return Err((501, "Not Implemented"));
    }
    let target = target.and_then(|target| target.strip_prefix('/')).ok_or((400, "Bad Request"))?;
    let target = target.split('?').next().unwrap_or_default();
    let path = PathBuf::from(percent_decoded(target).ok_or((400, "Bad Request"))?);
    // Names alone: no `..`, no root, no drive.
    if path.components().all(|component| matches!(component, Component::Normal(_))) {
        Ok(path)
    } else {
        Err((403, "Forbidden"))
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Opens a regular file below `root`, and says how long it is.
fn open(root: &Path, path: &Path) -> Result<(File, u64), Refusal> {
    let refusal = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (404, "Not Found"),
        io::ErrorKind::PermissionDenied => (403, "Forbidden"),
        _ => (500, "Internal Server Error"),
    };
    // Links are followed here, so that none leads out of the root.
    let path = fs::canonicalize(root.join(path)).map_err(refusal)?;
    if !path.starts_with(root) || !path.is_file() {
        return Err((403, "Forbidden"));
    }
    let file = File::open(path).map_err(refusal)?;
    let length = file.metadata().map_err(refusal)?.len();
    Ok((file, length))
}

/// A thread of the port: packets of sessions go to the runtime, those of files to their session.
fn serve(runtime: &Runtime) {
    // An error is the closed port's: the program ends.
    while let Ok(completion) = runtime.port().dequeue(None) {
        if let Err(completion) = runtime.dispatch(completion) {
            file_was_read(completion);
        }
    }
}

fn file_was_read(completion: Completion) {
    let result = completion.result();
    let Some(mut operation) = completion.into_operation() else { return };
    let buffer = operation.take_buffer().unwrap_or_default();
    let session = operation.context::<Session>().expect("each read has its session").clone();
    // A session that has ended has no use for it.
    let _ = session.notify(Block(result.map(|_bytes| buffer)));
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("file_server: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, directory] = &arguments[..] else {
        eprintln!("usage: file_server LISTEN DIRECTORY");
        return Ok(ExitCode::from(2));
    };
    let root: Arc<Path> =
        fs::canonicalize(directory).map_err(|error| format!("{directory}: {error}"))?.into();
    if !root.is_dir() {
        return Err(format!("{directory}: not a directory").into());
    }
    let port = Arc::new(CompletionPort::new(0)?);
    let runtime = Runtime::on(Arc::clone(&port));
    // More than may run at once, so that there are spare ones where a file system blocks.
    let threads = 2 * std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let runtime = runtime.clone();
            std::thread::spawn(move || serve(&runtime))
        })
        .collect();

    let server = ServerService::builder(move |_| Client {
        root: Arc::clone(&root),
        port: Arc::clone(&port),
        request: None,
        header_lines: 0,
        transfer: None,
    })
    .name("files")
    .listen(listen)
    .framing(Lines::new().with_maximum_frame_bytes(MAXIMUM_LINE_BYTES))
    .timeouts(Timeouts {
        // The whole request in 30 s.
        explicit_handshake: true,
        ..Timeouts::default()
    })
    .drain(Duration::from_secs(5))
    .start_on(&runtime)?;
    let address = server.local_address().expect("a TCP listener has an address");
    println!("files at {address} from {directory}");

    let handle = server.handle();
    std::thread::spawn(move || {
        for _line in io::stdin().lock().lines() {
            handle.request_stop();
        }
    });
    println!("{:?}", server.run());
    runtime.shut_down();
    for thread in threads {
        thread.join().map_err(|_| "a thread of the port panicked")?;
    }
    Ok(ExitCode::SUCCESS)
}
