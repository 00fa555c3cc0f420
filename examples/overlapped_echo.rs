//! An echo server in the overlapped model: one thread, and completion routines that it runs while
//! it waits alertably.
//!
//! A routine starts the next operation and gives itself to it, so one routine, one operation and
//! one buffer serve a connection from its first byte to its last.
//!
//! Run it:  cargo run --release --example overlapped_echo -- [ADDRESS]
//! Try it:  cargo run --release -p proactor-cli -- load 127.0.0.1:7000

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use proactor::overlapped::{ApcQueue, Completed, ListenSocket, Routine, StreamSocket, Wake};
use proactor::{Error, Operation, OperationKind, SendBuffer};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlapped_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());
    let queue = ApcQueue::new()?;
    let listener = queue.open(TcpListener::bind(address)?)?;
    println!("echoing on {} with {}", listener.local_address()?, queue.backend().name());
    let accepting = {
        let listener = listener.clone();
        Routine::new(move |completed| report(accepted(&listener, completed)))
    };
    listener.accept(Operation::new(), &accepting)?;
    loop {
        match queue.sleep(Some(Duration::from_secs(60)))? {
            Wake::TimedOut => println!("a minute without anything to do"),
            _ => { /* Routines have run. */ }
        }
    }
}

/// The routine of an accept, and of the pause after one that failed.
fn accepted(listener: &ListenSocket, mut completed: Completed<'_>) -> Result<(), Error> {
    let (queue, routine, error) = (completed.queue(), completed.routine(), completed.error());
    let mut operation = completed.take_operation().expect("each of these ends only once");
    let connection = operation.take_accepted();
    if let Some(error) = error {
        // Out of descriptors, for example: the connection waits in the backlog meanwhile.
        queue.start_timer(Duration::from_millis(100), operation, routine)?;
        return Err(error);
    }
    listener.accept(operation, routine)?;
    let Some(connection) = connection else { return Ok(()) };
    let stream = queue.open(connection)?;
    let echoing = {
        let stream = stream.clone();
        Routine::new(move |completed| report(echo(&stream, completed)))
    };
    stream.recv(Operation::new(), Vec::with_capacity(16 * 1024), &echoing)?;
    Ok(())
}

/// The routine of a connection. Where it starts nothing, nothing keeps the connection.
fn echo(stream: &StreamSocket, mut completed: Completed<'_>) -> Result<(), Error> {
    let (routine, kind, result) = (completed.routine(), completed.kind(), completed.result());
    let mut operation = completed.take_operation().expect("each of these ends only once");
    match (kind, result?) {
        (OperationKind::Recv, 1..) => {
            let bytes = operation.take_buffer().unwrap_or_default();
            stream.send(operation, bytes, routine)?;
        }
        (OperationKind::Send, _) => {
            let Some(SendBuffer::Owned(buffer)) = operation.take_send_buffer() else {
                return Ok(());
            };
            stream.recv(operation, buffer, routine)?;
        }
        // The peer's end.
        _ => {}
    }
    Ok(())
}

fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        eprintln!("{error}");
    }
}
