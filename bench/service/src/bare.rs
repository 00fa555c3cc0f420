//! An echo server on the bare port that does what the layer's does for it: order, one gathered send
//! at a time.

use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};
use std::thread;

use proactor::{
    BackendChoice, Completion, CompletionPort, Error, ListenSocket, Operation, OperationKind,
    PoolBuffer, SendBuffer, StreamSocket,
};

use crate::{Outcome, Serving};

const LISTENER: usize = usize::MAX;

/// One connection, by its number.
#[derive(Default)]
struct Connection {
    stream: Option<StreamSocket>,
    is_sending: bool,
    /// The next packet of the stream.
    sequence: u64,
    /// Packets that came before their turn.
    early: Vec<(u64, Option<PoolBuffer>)>,
    waiting: Vec<SendBuffer>,
}

struct Server {
    port: CompletionPort,
    listener: ListenSocket,
    connections: Mutex<Vec<&'static Mutex<Connection>>>,
}

/// What a thread keeps for its next sends.
type Spare = Vec<Operation>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn serve(options: &Serving) -> Outcome {
    let port = CompletionPort::builder()
        .backend(BackendChoice::from_name(&options.backend)?)
        .concurrency(options.workers)
        .build()?;
    let listener = port.associate(TcpListener::bind(&options.listen)?, LISTENER)?;
    println!("listening on {}", listener.local_address()?);
    listener.accept(Operation::new())?;
    let server = Server { port, listener, connections: Mutex::default() };
    thread::scope(|scope| {
        for _ in 0..options.workers {
            scope.spawn(|| {
                let mut spare = Spare::new();
                let mut local = Vec::new();
                while let Ok(completion) = server.port.dequeue(None) {
                    if let Err(error) = server.handle(completion, &mut spare, &mut local) {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });
    Ok(())
}

impl Server {
    fn handle(
        &self,
        mut completion: Completion,
        spare: &mut Spare,
        known: &mut Vec<&'static Mutex<Connection>>,
    ) -> Result<(), Error> {
        if completion.key() == LISTENER {
            let Some(mut operation) = completion.take_operation() else { return Ok(()) };
            let accepted = operation.take_accepted();
            self.listener.accept(operation)?;
            if let Some(accepted) = accepted {
                let _ = accepted.set_nodelay(true);
                let connection: &'static Mutex<Connection> = Box::leak(Box::default());
                let key = {
                    let mut connections = lock(&self.connections);
                    connections.push(connection);
                    connections.len() - 1
                };
                let mut connection = lock(connection);
                let stream = self.port.associate(accepted, key)?;
                stream.recv_continuous(Operation::new())?;
                connection.stream = Some(stream);
            }
            return Ok(());
        }
        if known.len() <= completion.key() {
            known.clone_from(&lock(&self.connections));
        }
        let mut connection = lock(known[completion.key()]);
        match completion.kind() {
            OperationKind::RecvContinuous => {
                let packet = completion.take_chunk();
                if completion.sequence() != connection.sequence {
                    connection.early.push((completion.sequence(), packet));
                    return Ok(());
                }
                connection.take(packet, spare)?;
                while let Some(position) =
                    connection.early.iter().position(|early| early.0 == connection.sequence)
                {
                    let (_, packet) = connection.early.swap_remove(position);
                    connection.take(packet, spare)?;
                }
                Ok(())
            }
            _ => {
                connection.is_sending = false;
                if let Some(mut operation) = completion.take_operation() {
                    drop(operation.take_send_buffer());
                    drop(operation.take_send_buffers());
                    spare.push(operation);
                }
                connection.send(spare)
            }
        }
    }
}

impl Connection {
    fn take(&mut self, packet: Option<PoolBuffer>, spare: &mut Spare) -> Result<(), Error> {
        self.sequence += 1;
        match packet {
            Some(bytes) => self.waiting.push(bytes.into()),
            None => self.stream = None,
        }
        self.send(spare)
    }

    fn send(&mut self, spare: &mut Spare) -> Result<(), Error> {
        let Some(stream) = &self.stream else { return Ok(()) };
        if self.is_sending || self.waiting.is_empty() {
            return Ok(());
        }
        let operation = spare.pop().unwrap_or_default();
        if self.waiting.len() == 1 {
            let buffer = self.waiting.pop().expect("there is one");
            stream.send(operation, buffer)?;
        } else {
            stream.send_vectored(operation, std::mem::take(&mut self.waiting))?;
        }
        self.is_sending = true;
        Ok(())
    }
}
