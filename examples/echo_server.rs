//! An echo server on the bare port: every byte goes back to whoever sent it.
//!
//! Each connection has one `Operation`, which is received with, sent with, received with again, and
//! carries the connection in its context. With one operation in flight for each connection, order
//! holds however many threads dequeue, and dropping the operation closes the connection.
//!
//! Run it:  cargo run --release --example echo_server -- [ADDRESS]
//! Try it:  cargo run --release -p proactor-cli -- load 127.0.0.1:7000

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use proactor::{
    Completion, CompletionPort, Error, ListenSocket, Operation, OperationKind, SendBuffer,
    StreamSocket,
};

/// Threads that dequeue: more than may run at once (the port's limit), so that one is at hand when
/// a handler blocks.
const THREADS: usize = 4;
const LISTENER: usize = 0;
const CONNECTION: usize = 1;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());
    let port = CompletionPort::new(0)?;
    let listener = port.associate(TcpListener::bind(address)?, LISTENER)?;
    println!("echoing on {} with {}", listener.local_address()?, port.backend().name());
    listener.accept(Operation::new())?;

    let serve = || -> io::Result<()> {
        loop {
            if let Err(error) = handle(&port, &listener, port.dequeue(None)?) {
                eprintln!("{error}");
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(serve)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no handler panics"))
    })
}

fn handle(
    port: &CompletionPort,
    listener: &ListenSocket,
    mut completion: Completion,
) -> Result<(), Error> {
    let Some(mut operation) = completion.take_operation() else { return Ok(()) };
    match (completion.kind(), completion.result()) {
        (OperationKind::Accept, Ok(_)) => {
            let accepted = operation.take_accepted();
            listener.accept(operation)?;
            if let Some(accepted) = accepted {
                let stream = port.associate(accepted, CONNECTION)?;
                let operation = Operation::with_context(stream.clone());
                stream.recv(operation, Vec::with_capacity(16 * 1024))?;
            }
        }
        // Out of descriptors, for example: the connection waits in the backlog meanwhile.
        (OperationKind::Accept, Err(error)) => {
            port.start_timer(LISTENER, Duration::from_millis(100), operation)?;
            return Err(error);
        }
        (OperationKind::Timer, _) => drop(listener.accept(operation)?),
        (OperationKind::Recv, Ok(1..)) => {
            let bytes = operation.take_buffer().unwrap_or_default();
            stream_of(&operation).send(operation, bytes)?;
        }
        (OperationKind::Send, Ok(_)) => {
            let Some(SendBuffer::Owned(buffer)) = operation.take_send_buffer() else {
                return Ok(());
            };
            stream_of(&operation).recv(operation, buffer)?;
        }
        // The peer's end (0 bytes), or a failure: the operation goes, and with it the connection.
        _ => {}
    }
    Ok(())
}

fn stream_of(operation: &Operation) -> StreamSocket {
    operation.context::<StreamSocket>().expect("every connection's operation carries it").clone()
}
