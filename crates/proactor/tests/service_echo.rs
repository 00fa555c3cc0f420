//! The server layer's first promise: what comes in goes to the handler, what it sends goes out.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use proactor::PoolBuffer;
use proactor::service::framing::{LengthPrefixed, Lines};
use proactor::service::{
    DisconnectReason, HandlerResult, Runtime, ServerService, Session, SessionHandler,
};

struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        session.send(frame)?;
        Ok(())
    }
}

/// Sends receive buffers on as they are.
struct HandsOn(Arc<AtomicUsize>);

impl SessionHandler for HandsOn {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        session.send(frame)?;
        Ok(())
    }
    fn received_buffer(&mut self, session: &Session, frame: PoolBuffer) -> HandlerResult {
        self.0.fetch_add(1, Ordering::Relaxed);
        session.send_buffer(frame)?;
        Ok(())
    }
}

/// Pieces of every length up to `length_limit`, and the stream that a framing makes of them.
fn framed(count: u64, length_limit: u64, frame: impl Fn(&[u8], &mut Vec<u8>)) -> Vec<u8> {
    let mut random = Random::new(11);
    let mut stream = Vec::new();
    for seed in 0..count {
        let mut payload = pattern(seed, random.below(length_limit) as usize);
        payload.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        frame(&payload, &mut stream);
    }
    stream
}

fn runtime(ports: &Ports) -> Runtime {
    Runtime::builder().port(ports.builder()).concurrency(2).threads(4).build().unwrap()
}

type Log = Arc<Mutex<Vec<String>>>;

struct Logging {
    log: Log,
}

impl Logging {
    fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }
}

impl SessionHandler for Logging {
    fn connected(&mut self, _session: &Session) -> HandlerResult {
        self.note("connected");
        Ok(())
    }
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        self.note(format!("received {}", String::from_utf8_lossy(frame)));
        session.send(frame)?;
        if frame == b"quit" {
            session.disconnect();
        }
        Ok(())
    }
    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        assert!(session.send("too late").is_err());
        self.note(format!("disconnected: {reason}"));
    }
}

on_each_backend! {
    fn receive_buffers_are_sent_on(ports: &Ports) {
        let runtime = runtime(ports);
        let line = |payload: &[u8], out: &mut Vec<u8>| out.extend([payload, b"\n"].concat());
        let packet = |payload: &[u8], out: &mut Vec<u8>| {
            out.extend((payload.len() as u32).to_be_bytes());
            out.extend(payload);
        };
        for what in ["lines", "packets", "raw bytes"] {
            let taken = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&taken);
            let server = ServerService::builder(move |_| HandsOn(Arc::clone(&counted)));
            let (server, stream) = match what {
                "lines" => (server.framing(Lines::new()), framed(400, 900, line)),
                "packets" => (server.framing(LengthPrefixed::u32()), framed(200, 30_000, packet)),
                // More than the limit of a session's queue: the receive window bounds what waits.
                _ => (server, framed(400, 30_000, packet)),
            };
            let server = server.listen("127.0.0.1:0").start_on(&runtime).unwrap();
            let mut client = connect(server.local_address().unwrap());
            // Alone in its receive buffer, and sent on with its head and tail around it.
            let mut first = Vec::new();
            if what == "lines" { line(b"hello", &mut first) } else { packet(b"hello", &mut first) };
            client.write_all(&first).unwrap();
            assert_eq!(read_bytes(&mut client, first.len()), first, "{what}");
            assert_eq!(taken.load(Ordering::Relaxed), 1, "{what}");
            let mut writer = client.try_clone().unwrap();
            let sent = stream.clone();
            let sender = std::thread::spawn(move || {
                let mut random = Random::new(3);
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(5000) as usize));
                    writer.write_all(piece).unwrap();
                    rest = behind;
                }
            });
            let got = read_bytes(&mut client, stream.len());
            sender.join().unwrap();
            assert_same_bytes(&got, &stream);
            let total = (first.len() + stream.len()) as u64;
            assert_eq!(server.handle().snapshot().received_bytes, total, "{what}");
        }
    }

    fn a_reader_that_does_not_read_is_not_read_from(ports: &Ports) {
        let runtime = runtime(ports);
        let taken = Arc::new(AtomicUsize::new(0));
        let server = ServerService::builder(move |_| HandsOn(Arc::clone(&taken)))
            .listen("127.0.0.1:0")
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let chunk = vec![5; 64 * 1024];
        let mut sent = 0_u64;
        // Ends when nobody takes more.
        while let Ok(bytes) = client.write(&chunk) {
            sent += bytes as u64;
            assert!(sent < 256 << 20, "a server that takes everything");
        }
        let snapshot = server.handle().snapshot();
        assert!(snapshot.queued_bytes <= 1024 * 1024, "{snapshot:?}");
        assert_eq!(snapshot.refused_sends, 0);
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match client.read(&mut buffer).unwrap() {
                0 => break,
                bytes => {
                    assert!(buffer[..bytes].iter().all(|byte| *byte == 5));
                    received += bytes as u64;
                }
            }
        }
        assert_eq!(received, sent);
    }

    fn frames_of_any_split_are_echoed_in_order(ports: &Ports) {
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Echo)
            .listen("127.0.0.1:0")
            .framing(LengthPrefixed::u32())
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        let mut random = Random::new(7);
        let mut stream = Vec::new();
        for seed in 0..300 {
            let length = if seed % 10 == 0 { 60_000 } else { random.below(300) as usize };
            stream.extend_from_slice(&(length as u32).to_be_bytes());
            stream.extend_from_slice(&pattern(seed, length));
        }
        let mut reader = client.try_clone().unwrap();
        let expected = stream.clone();
        let checked = std::thread::spawn(move || {
            let got = read_bytes(&mut reader, expected.len());
            assert_same_bytes(&got, &expected);
        });
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let step = (1 + random.below(5000) as usize).min(rest.len());
            client.write_all(&rest[..step]).unwrap();
            rest = &rest[step..];
        }
        checked.join().unwrap();
        let snapshot = server.handle().snapshot();
        assert_eq!((snapshot.sessions, snapshot.accepted), (1, 1));
        assert_eq!((snapshot.received_frames, snapshot.sent_frames), (300, 300));
        assert_eq!(snapshot.received_bytes, stream.len() as u64);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        wait_until("the session ends", || server.handle().session_count() == 0);
        assert_eq!(server.handle().snapshot().disconnected.peer_ended, 1);
    }

    fn connected_first_disconnected_last_and_the_answer_before_the_end(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let handler_log = Arc::clone(&log);
        let server = ServerService::builder(move |_| Logging { log: Arc::clone(&handler_log) })
            .listen("127.0.0.1:0")
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"one\r\ntwo\nquit\nnever seen\n").unwrap();
        let (answer, error) = read_to_end(&mut client);
        assert_eq!(error, None);
        assert_eq!(String::from_utf8(answer).unwrap(), "one\ntwo\nquit\n");
        drop(client);
        wait_until("the session ends", || server.handle().session_count() == 0);
        let report = server.stop(Duration::from_secs(5));
        assert_eq!((report.left, report.aborted), (0, 0));
        let expected = [
            "connected",
            "received one",
            "received two",
            "received quit",
            "disconnected: disconnected on this side",
        ];
        assert_eq!(*log.lock().unwrap(), expected);
    }

    fn stopping_ends_sessions_in_order(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let handler_log = Arc::clone(&log);
        let server = ServerService::builder(move |_| Logging { log: Arc::clone(&handler_log) })
            .listen("127.0.0.1:0")
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let mut clients: Vec<_> =
            (0..10).map(|_| connect(server.local_address().unwrap())).collect();
        for client in &mut clients {
            client.write_all(b"hello\n").unwrap();
            assert_eq!(read_bytes(client, 6), b"hello\n");
        }
        let stopper = std::thread::spawn(move || {
            let report = server.stop(Duration::ZERO);
            assert_eq!((report.disconnected, report.aborted, report.left), (10, 0, 0));
        });
        for client in &mut clients {
            assert_eq!(read_to_end(client), (vec![], None));
        }
        drop(clients);
        stopper.join().unwrap();
        let count = log.lock().unwrap().iter().filter(|line| line.starts_with("disc")).count();
        assert_eq!(count, 10);
        runtime.shut_down();
        drop(runtime);
    }
}
