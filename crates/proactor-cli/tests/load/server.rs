//! Echo servers for the tests, made of the standard library alone: good ones and bad ones.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// What a server does to the bytes it should send back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Sends each byte back.
    Good,
    /// Inverts a bit of one byte, some way into the load.
    FlipByte,
    /// Leaves one byte out.
    LoseByte,
    /// Sends one chunk twice.
    Repeat,
    /// Sends what came from one client to the next one.
    CrossOver,
    /// Closes one connection while replies are outstanding.
    CloseEarly,
    /// Stops answering, and keeps its connections.
    FallSilent,
    /// Closes with a few bytes more than it received.
    AddAtEnd,
    /// Does not close when the client has.
    NeverClose,
}

/// Bytes echoed, over all connections, before a bad server turns bad.
const GOOD_BYTES: u64 = 2_000;

/// A server on a thread of its own, with a thread per client. It lasts as long as the test does.
pub struct Server {
    pub address: SocketAddr,
    /// Hears once, when the server has echoed something.
    #[cfg_attr(windows, allow(dead_code, reason = "for the tests that send signals"))]
    pub first_echo: Receiver<()>,
}

impl Server {
    pub fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let (sender, first_echo) = mpsc::channel();
        thread::spawn(move || serve(&listener, conduct, &sender));
        Self { address, first_echo }
    }
}

/// Serves until the process ends.
pub fn serve(listener: &TcpListener, conduct: Conduct, first_echo: &Sender<()>) {
    let echoed = Arc::new(AtomicU64::new(0));
    let (swap_sender, swap) = mpsc::channel::<TcpStream>();
    let mut swap = Some(swap);
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        if conduct == Conduct::CrossOver {
            swap_sender.send(stream).expect("the pairs are made as long as the server runs");
            if let Some(swap) = swap.take() {
                thread::spawn(move || cross_over(&swap));
            }
            continue;
        }
        let (echoed, first_echo) = (Arc::clone(&echoed), first_echo.clone());
        // A client that goes away is no concern of this side.
        thread::spawn(move || drop(echo(stream, conduct, &echoed, &first_echo)));
    }
}

fn echo(
    mut stream: TcpStream,
    conduct: Conduct,
    echoed: &AtomicU64,
    first_echo: &Sender<()>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return finish(stream, conduct);
        }
        let before = echoed.fetch_add(count as u64, Ordering::Relaxed);
        let is_turn = before <= GOOD_BYTES && before + count as u64 > GOOD_BYTES;
        let chunk = &mut buffer[..count];
        match conduct {
            Conduct::FlipByte if is_turn => chunk[count / 2] ^= 0x40,
            Conduct::LoseByte if is_turn => {
                stream.write_all(&chunk[1..])?;
                continue;
            }
            Conduct::Repeat if is_turn => stream.write_all(chunk)?,
            Conduct::CloseEarly if is_turn => return stream.shutdown(Shutdown::Both),
            Conduct::FallSilent if before > GOOD_BYTES => continue,
            _ => {}
        }
        stream.write_all(chunk)?;
        if before == 0 {
            // Most tests do not listen.
            let _ = first_echo.send(());
        }
    }
}

/// The client has closed its half; how does the server close its own?
fn finish(mut stream: TcpStream, conduct: Conduct) -> io::Result<()> {
    match conduct {
        Conduct::AddAtEnd => stream.write_all(b"and another thing"),
        Conduct::NeverClose => {
            thread::park();
            drop(stream);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Answers the first client with the second one's bytes, and the other way round.
fn cross_over(clients: &Receiver<TcpStream>) {
    let (Ok(mut first), Ok(mut second)) = (clients.recv(), clients.recv()) else {
        return;
    };
    let mut here = [0; 64];
    let mut there = [0; 64];
    let both = first.read_exact(&mut here).and_then(|()| second.read_exact(&mut there));
    both.and_then(|()| first.write_all(&there))
        .and_then(|()| second.write_all(&here))
        .expect("both clients are there");
    thread::park();
}
