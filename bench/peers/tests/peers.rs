//! Every peer, as a process: what all of them must do before their speed
//! means anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Peers whose feature is off have no binary here.
const PEERS: [Option<&str>; 7] = [
    Some(env!("CARGO_BIN_EXE_peer-raw-uring")),
    Some(env!("CARGO_BIN_EXE_peer-raw-epoll")),
    option_env!("CARGO_BIN_EXE_peer-tokio"),
    option_env!("CARGO_BIN_EXE_peer-compio"),
    option_env!("CARGO_BIN_EXE_peer-monoio"),
    option_env!("CARGO_BIN_EXE_peer-glommio"),
    Some(env!("CARGO_BIN_EXE_peer-threads")),
];
const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    fn start(binary: &str, options: &[&str]) -> Self {
        let mut child = Command::new(binary).args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.parse().unwrap();
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn echoes(&self) {
        let mut stream = self.connect();
        stream.write_all(b"are you there?").unwrap();
        let mut answer = [0; 14];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"are you there?");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn for_each_peer(options: &[&str], test: impl Fn(&Peer)) {
    for binary in PEERS.into_iter().flatten() {
        eprintln!("{binary}"); // shown if the test fails
        test(&Peer::start(binary, options));
    }
}

#[test]
fn a_slow_reader_gets_every_byte_in_order_and_the_end() {
    // Small buffers: many chunks are queued, and pools run out.
    for_each_peer(&["--buffer-bytes", "4096", "--buffers", "64"], |peer| {
        let message: Vec<u8> = (0..4_000_000_u32).map(|n| (n / 7) as u8).collect();
        let stream = peer.connect();
        let mut writer = stream.try_clone().unwrap();
        let sent = message.clone();
        let (tell, much_is_under_way) = mpsc::channel();
        let writing = thread::spawn(move || {
            let (first, rest) = sent.split_at(300_000);
            writer.write_all(first).unwrap();
            tell.send(()).unwrap();
            writer.write_all(rest).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        // Nothing is read before more is under way than the peer's buffers hold.
        much_is_under_way.recv_timeout(PATIENCE).unwrap();
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == message, "the echo differs");
    });
}

#[test]
fn a_reset_ends_one_connection_only() {
    for_each_peer(&[], |peer| {
        for _ in 0..20 {
            let mut stream = peer.connect();
            stream.write_all(&[7; 100_000]).unwrap();
            // Closing with unread data resets the connection.
            stream.read_exact(&mut [0; 1]).unwrap();
            drop(stream);
        }
        peer.echoes();
    });
}

#[test]
fn several_workers_serve() {
    for_each_peer(&["--workers", "3"], |peer| {
        for _ in 0..30 {
            peer.echoes();
        }
    });
}

#[test]
fn marks_stall_only_when_asked() {
    let answer_time = |peer: &Peer, mark: u8| {
        let mut stream = peer.connect();
        let start = Instant::now();
        stream.write_all(&[mark; 64]).unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        start.elapsed()
    };
    for_each_peer(&["--stall-marks"], |peer| {
        for mark in [0xF1, 0xF2] {
            assert!(answer_time(peer, mark) >= Duration::from_millis(10));
        }
    });
    for_each_peer(&[], |peer| {
        let fastest = (0..20).map(|_| answer_time(peer, 0xF1)).min().unwrap();
        assert!(fastest < Duration::from_millis(10));
    });
}
