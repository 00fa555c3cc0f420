//! Many short sessions: nothing of them may stay.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use proactor::service::{HandlerResult, Runtime, ServerService, Session, SessionHandler};

use crate::Outcome;

const CLIENTS: usize = 8;
const STEPS: usize = 5;

struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, bytes: &[u8]) -> HandlerResult {
        session.send(bytes)?;
        Ok(())
    }
}

/// What the process holds.
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
}

fn held() -> std::io::Result<Held> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    Ok(Held {
        resident_kib: number("VmRSS:"),
        descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
        threads: number("Threads:") as usize,
    })
}

pub(crate) fn measure(sessions: usize) -> Outcome {
    let runtime = Runtime::new()?;
    let server =
        ServerService::builder(|_session| Echo).listen("127.0.0.1:0").start_on(&runtime)?;
    let address = server.local_address().ok_or("the server has no address")?;
    let report = |done: usize| -> std::io::Result<()> {
        let held = held()?;
        println!(
            "{done:>8} sessions: {:>7} KiB resident, {} descriptors, {} threads",
            held.resident_kib, held.descriptors, held.threads
        );
        Ok(())
    };
    report(0)?;
    let began = Instant::now();
    for step in 1..=STEPS {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(move || visit(address, sessions / STEPS / CLIENTS)))
                .collect();
            clients.into_iter().try_for_each(|client| client.join().expect("no client panics"))
        })?;
        let patience = Instant::now();
        while server.handle().session_count() > 0 && patience.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        report(sessions / STEPS * step)?;
    }
    let rate = sessions as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} sessions a second, clients in the same process");
    println!("{:?}", server.stop(Duration::from_secs(1)));
    Ok(())
}

fn visit(address: SocketAddr, sessions: usize) -> std::io::Result<()> {
    for _ in 0..sessions {
        let mut stream = TcpStream::connect(address)?;
        let mut answer = [0; 5];
        stream.write_all(b"hello")?;
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer, b"hello");
        // A reset leaves no connection in TIME_WAIT, of which there may only be so many.
        socket_reset(&stream)?;
    }
    Ok(())
}

fn socket_reset(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}
