//! Connections that come and go by the hundred, end in every way and in every state: nothing is
//! left. One test at a time in this process, because it counts its descriptors and threads.

mod common;
mod service_common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use proactor::service::framing::LengthPrefixed;
use proactor::service::{ServerService, Session};
use service_common::*;

const CYCLES: u64 = if cfg!(debug_assertions) { 2_000 } else { 100_000 };

/// One client, which ends in one of many ways.
fn one_client(address: std::net::SocketAddr, way: u64, length: usize) {
    let mut client = connect(address);
    let mut frame = (length as u32).to_be_bytes().to_vec();
    frame.resize(length + 4, way as u8);
    // The server may end it at any moment: then this fails, and that is that.
    let talk = |client: &mut std::net::TcpStream| -> std::io::Result<()> {
        client.write_all(&frame)?;
        client.read_exact(&mut vec![0; frame.len()])
    };
    match way % 8 {
        0 => {}
        1 => reset(client),
        2 => _ = talk(&mut client),
        3 => {
            let _ = talk(&mut client);
            reset(client);
        }
        // In the middle of a frame, and of its answer.
        4 => _ = client.write_all(&frame[..frame.len() / 2]),
        5 => {
            let _ = client.write_all(&frame);
            reset(client);
        }
        6 => {
            let _ = client.write_all(&frame);
            let _ = client.shutdown(Shutdown::Write);
            read_to_end(&mut client);
        }
        _ => {
            let _ = client.write_all(b"\xff\xff\xff\xff no frame");
            read_to_end(&mut client);
        }
    }
}

fn storm(ports: &Ports) {
    let threads_before = thread_count();
    let descriptors_before = descriptor_count();
    let runtime = runtime(ports);
    let log = Log::default();
    let server = noting(&log, |session, frame| Ok(session.send(frame)?))
        .framing(LengthPrefixed::u32())
        .start_on(&runtime)
        .unwrap();
    let address = server.local_address().unwrap();
    let handle = server.handle();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = Random::new(thread + 1);
                    for _ in 0..CYCLES / 4 {
                        let length = if random.below(10) == 0 { 60_000 } else { 100 };
                        one_client(address, random.below(8), length);
                    }
                })
            })
            .collect();
        // Meanwhile sessions are ended here as well.
        scope.spawn(|| {
            let mut random = Random::new(99);
            while !over.load(Ordering::SeqCst) {
                for session in handle.sessions() {
                    match random.below(20) {
                        0 => session.abort(),
                        1 => session.disconnect(),
                        2 => _ = session.send([1; 500]),
                        3 => _ = session.notify(0_u8),
                        _ => {}
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        over.store(true, Ordering::SeqCst);
    });
    wait_for_sessions(&server.handle(), 0);
    let snapshot = server.handle().snapshot();
    // A connection that is reset in the backlog may never be seen.
    assert!(snapshot.accepted <= CYCLES && snapshot.accepted > CYCLES / 2, "{snapshot:?}");
    assert_eq!(snapshot.queued_bytes, 0);
    log.check_order();
    assert_eq!(log.count("connected") as u64, snapshot.accepted);
    // It goes on serving.
    let mut client = connect(address);
    client.write_all(&[0, 0, 0, 1, 7]).unwrap();
    assert_eq!(read_bytes(&mut client, 5), [0, 0, 0, 1, 7]);
    drop(client);
    wait_for_sessions(&server.handle(), 0);
    stop_cleanly(&server);
    drop(server);
    drop(runtime);
    wait_until("no descriptor is left", || descriptor_count() <= descriptors_before);
    wait_until("no thread is left", || thread_count() <= threads_before);
}

/// The runtime goes while sessions talk: each is told its end, and nothing is left.
fn sudden_end(ports: &Ports) {
    let descriptors_before = descriptor_count();
    for round in 0..20 {
        let runtime = runtime(ports);
        let log = Log::default();
        let server: ServerService = noting(&log, |session: &Session, frame: &[u8]| {
            let _ = session.send(frame);
            Ok(())
        })
        .start_on(&runtime)
        .unwrap();
        let address = server.local_address().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || {
                    // The server may be gone before it accepts.
                    let Ok(mut client) = std::net::TcpStream::connect(address) else { return };
                    bound_waits(&client);
                    while client.write_all(b"hello").is_ok()
                        && client.read(&mut [0; 5]).is_ok_and(|count| count > 0)
                    {
                    }
                });
            }
            wait_until("they talk", || log.count("received") > 20);
            if round % 2 == 0 {
                runtime.shut_down();
            }
            drop(server);
            drop(runtime);
        });
        log.check_order();
    }
    wait_until("no descriptor is left", || descriptor_count() <= descriptors_before);
}

#[test]
fn whatever_happens_nothing_is_left() {
    let _watchdog = Watchdog::start("service_storm".to_owned());
    for ports in backends() {
        storm(&ports);
        sudden_end(&ports);
    }
}
