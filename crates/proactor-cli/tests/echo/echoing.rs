//! What clients get back.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::thread;

#[cfg(unix)]
use crate::support::LIMIT;
use crate::support::{
    Server, args_of, assert_pattern, echo_all, fill, is_port, pattern_bytes, read_to_end,
    round_trip,
};

crate::on_each_server!(
    first_line_says_how_it_serves,
    sizes_come_back_whole,
    many_clients_at_once,
    half_close_gets_everything_then_the_end,
    an_end_without_bytes_is_answered_with_an_end,
    order_holds_while_handlers_stall,
    a_client_that_does_not_read_holds_up_nobody,
    resets_are_counted_and_harm_nobody,
    #[cfg(unix)]
    serves_a_unix_socket,
    serves_ipv6,
);

fn first_line_says_how_it_serves(kind: &str) {
    let more: &[&str] =
        if is_port(kind) { &["--workers", "3", "--concurrency", "2"] } else { &["--quiet"] };
    let server = Server::start(kind, more);
    assert_ne!(server.address().port(), 0);
    let parts: &[&str] = match kind {
        "io_uring" | "epoll" | "iocp" => &[kind, "3 workers, concurrency 2"],
        "overlapped_io_uring" => &["1 thread in alertable waits", "io_uring"],
        "overlapped_epoll" => &["1 thread in alertable waits", "epoll"],
        "overlapped_iocp" => &["1 thread in alertable waits", "iocp"],
        "alternating" => &["1 thread that alternates"],
        "threads" => &["a thread for each client"],
        "readiness" => &["3 event loops"],
        _ => &["1 event loop", kind],
    };
    for part in parts {
        assert!(server.first_line.contains(part), "{part}: {}", server.first_line);
    }
    round_trip(&mut server.connect(), 1, 64);
    let ended = server.stop();
    assert_eq!(ended.totals()["sessions"], 1);
    assert_eq!(ended.stdout.len(), 2, "the first line, and the totals: {ended:?}");
}

fn sizes_come_back_whole(kind: &str) {
    let server = Server::start(kind, &[]);
    let mut sum = 0;
    for (seed, len) in
        [1, 2, 64, 4095, 4096, 16_384, 16_385, 65_536, 1 << 20, 5_000_001].into_iter().enumerate()
    {
        echo_all(server.connect(), seed as u64, len, len.min(100_000));
        sum += len;
    }
    let totals = server.stop().totals();
    assert_eq!(totals["sessions"], 10);
    assert_eq!(totals["bytes_received"], sum);
    assert_eq!(totals["bytes_sent"], sum);
    assert_eq!(totals["resets"], 0);
    assert_eq!(totals["failures"], 0);
}

fn many_clients_at_once(kind: &str) {
    const CLIENTS: usize = 400;
    let server = Server::start(kind, &[]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for round in 0..5 {
        for (index, client) in clients.iter_mut().enumerate() {
            let bytes = pattern_bytes(index as u64, round * 100, 100);
            client.write_all(&bytes).unwrap();
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let mut bytes = [0; 100];
            client.read_exact(&mut bytes).unwrap();
            assert_pattern(index as u64, round * 100, &bytes);
        }
    }
    drop(clients);
    let totals = server.stop().totals();
    assert_eq!(totals["sessions"], CLIENTS);
    assert_eq!(totals["peak_sessions"], CLIENTS);
    assert_eq!(totals["bytes_sent"], CLIENTS * 500);
}

fn half_close_gets_everything_then_the_end(kind: &str) {
    let server = Server::start(kind, &[]);
    let clients: Vec<_> = (0..20)
        .map(|seed| {
            let mut stream = server.connect();
            thread::spawn(move || {
                // Less than the socket buffers hold, so that nothing has to be read meanwhile.
                let len = 50_000 + 1000 * seed as usize;
                stream.write_all(&pattern_bytes(seed, 0, len)).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(stream, seed).unwrap(), len);
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let totals = server.stop().totals();
    assert_eq!((&totals["resets"], &totals["failures"]), (&0.into(), &0.into()));
}

fn an_end_without_bytes_is_answered_with_an_end(kind: &str) {
    let server = Server::start(kind, &[]);
    let mut stream = server.connect();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.stop().totals()["sessions"], 1);
}

fn order_holds_while_handlers_stall(kind: &str) {
    // Many workers on few processors, handlers that block and spin, and several chunks of each
    // connection under way: neighbours are handled by different threads at the same time.
    let more: &[&str] = if is_port(kind) {
        &["--stall-marks", "--workers", "8", "--concurrency", "4"]
    } else {
        &["--stall-marks"]
    };
    let server = Server::start(kind, more);
    let clients: Vec<_> = (0..16)
        .map(|seed| {
            let stream = server.connect();
            thread::spawn(move || echo_all(stream, seed, 400_000, 1000 + 7 * seed as usize))
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let totals = server.stop().totals();
    assert_eq!(totals["bytes_sent"], 16 * 400_000);
    assert_eq!(totals["failures"], 0);
}

fn a_client_that_does_not_read_holds_up_nobody(kind: &str) {
    const MOST: usize = 200 << 20;
    const CLIENTS: usize = 4;
    let server = Server::start(kind, &[]);
    round_trip(&mut server.connect(), 1, 64);
    #[cfg(target_os = "linux")]
    let before_kib = server.status_kib("VmRSS");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let sent: Vec<usize> = clients
        .iter_mut()
        .enumerate()
        .map(|(index, client)| fill(client, index as u64, MOST))
        .collect();
    #[cfg(target_os = "linux")]
    {
        let grown_kib = server.status_kib("VmRSS").saturating_sub(before_kib);
        assert!(grown_kib < 16 * 1024, "memory grew by {grown_kib} KiB for {CLIENTS} clients");
    }
    echo_all(server.connect(), 7, 1 << 20, 16_384);
    // Nothing is lost for being late.
    for (index, client) in clients.into_iter().enumerate() {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(client, index as u64).unwrap(), sent[index]);
    }
    assert_eq!(server.stop().totals()["failures"], 0);
}

fn resets_are_counted_and_harm_nobody(kind: &str) {
    const RESETS: usize = 50;
    let server = Server::start(kind, &[]);
    let mut steady = server.connect();
    for seed in 0..RESETS {
        let mut client = server.connect();
        round_trip(&mut client, seed as u64, 100);
        // Some with an answer under way, some idle.
        if seed % 2 == 0 {
            client.write_all(&pattern_bytes(seed as u64, 0, 100_000)).unwrap();
        }
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        round_trip(&mut steady, 1, 100);
    }
    // An end that is in order, behind all the resets.
    echo_all(server.connect(), 3, 100_000, 1000);
    let totals = server.stop().totals();
    assert_eq!(totals["sessions"], RESETS + 2);
    assert_eq!(totals["failures"], 0);
    assert!(totals["resets"].as_u64().unwrap() > 0, "{totals}");
}

#[cfg(unix)]
fn serves_a_unix_socket(kind: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(["echo", "--json"]).args(args_of(kind)).arg("--listen");
    command.arg(format!("unix:{}", path.display()));
    let server = Server::spawn(command);
    assert_eq!(server.address_text(), format!("unix:{}", path.display()));
    for seed in 0..10 {
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        echo_all(stream, seed, 300_000, 10_000);
    }
    let totals = server.stop().totals();
    assert_eq!(totals["bytes_sent"], 3_000_000);
    assert!(!path.exists(), "the socket's path is removed");
}

fn serves_ipv6(kind: &str) {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6 loopback");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(["echo", "--json", "--listen", "[::1]:0"]).args(args_of(kind));
    let server = Server::spawn(command);
    assert!(server.address().is_ipv6());
    echo_all(server.connect(), 1, 100_000, 1000);
    assert_eq!(server.stop().totals()["sessions"], 1);
}
