//! Sockets on the epoll driver: the inbox, the receive window.

use std::io::Write;
use std::os::unix::net::UnixStream;

use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::super::super::epoll::EpollDriver;
use super::super::engine::Engine;
use super::{dequeue, explore, open};
use crate::backend::{Backend, BackendSource, RawSource};
use crate::buffer::PoolBuffer;
use crate::operation::{Operation, OperationKind, Payload};
use crate::sync::model;

type Port = Engine<EpollDriver>;

/// Buffers of four bytes, of which two may be held before reading pauses.
const BYTES: usize = 20;

fn associate(port: &Arc<Port>) -> (Arc<dyn BackendSource>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let source = RawSource::Connected(ours.into());
    let source = Arc::clone(port).associate(source, 1).map_err(|(error, _)| error).unwrap();
    (source, theirs)
}

fn receive(source: &Arc<dyn BackendSource>) {
    let mut operation = Operation::new();
    operation.prepare(OperationKind::RecvContinuous, Payload::None);
    Arc::clone(source).start(operation).map_err(drop).expect("the receive is started");
}

fn send(mut peer: UnixStream) -> thread::JoinHandle<UnixStream> {
    thread::spawn(move || {
        for half in 0..2u8 {
            let bytes: Vec<u8> =
                (0..BYTES as u8 / 2).map(|byte| half * (BYTES as u8 / 2) + byte).collect();
            model::happen(|| peer.write_all(&bytes).unwrap());
        }
        peer
    })
}

/// Bytes by their place in the stream: each comes once.
#[derive(Default)]
struct Received {
    chunks: Mutex<Vec<(u64, Vec<u8>)>>,
    count: AtomicUsize,
}

impl Received {
    /// Notes a chunk, and says whether it is the last.
    fn note(&self, sequence: u64, bytes: &[u8]) -> bool {
        self.chunks.lock().unwrap().push((sequence, bytes.to_vec()));
        self.count.fetch_add(bytes.len(), SeqCst) + bytes.len() == BYTES
    }

    fn check(&self) {
        let mut chunks = self.chunks.lock().unwrap().clone();
        chunks.sort_unstable();
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, (0..BYTES as u8).collect::<Vec<_>>());
    }
}

/// Threads dequeue; another thread gives the buffers back. Reading pauses at two buffers: it has to
/// go on whenever they come back, or the model stands still.
fn consumed_elsewhere(threads: usize) {
    let port: Arc<Port> = open(1);
    let (source, peer) = associate(&port);
    let received = Arc::new(Received::default());
    let held: Arc<Mutex<Vec<PoolBuffer>>> = Arc::default();
    let given = Arc::new(shuttle::sync::Condvar::new());
    let mut all = Vec::new();
    for _ in 0..threads {
        let (port, received) = (Arc::clone(&port), Arc::clone(&received));
        let (held, given) = (Arc::clone(&held), Arc::clone(&given));
        all.push(thread::spawn(move || {
            while let Some(mut packet) = dequeue(&port) {
                let chunk = packet.take_chunk().expect("nothing else is going on");
                let last = received.note(packet.sequence(), &chunk);
                held.lock().unwrap().push(chunk);
                given.notify_one();
                if last {
                    port.close();
                }
            }
        }));
    }
    let counted = Arc::clone(&received);
    all.push(thread::spawn(move || {
        let mut back = 0;
        while back < BYTES {
            let mut buffers = held.lock().unwrap();
            while buffers.is_empty() {
                buffers = given.wait(buffers).unwrap();
            }
            let buffers = std::mem::take(&mut *buffers);
            for buffer in buffers {
                back += buffer.len();
                drop(buffer);
            }
        }
        assert_eq!(counted.count.load(SeqCst), BYTES);
    }));
    receive(&source);
    let peer = send(peer).join().unwrap();
    for thread in all {
        thread.join().unwrap();
    }
    received.check();
    source.close();
    drop(peer);
}

#[test]
fn reading_goes_on_when_buffers_come_back() {
    explore(600, || consumed_elsewhere(1));
    explore(600, || consumed_elsewhere(2));
}
