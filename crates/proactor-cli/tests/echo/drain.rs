//! How the server ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Server, args_of, echo_all, fill, read_to_end, round_trip};

crate::on_each_server!(
    ends_at_once_without_sessions,
    idle_sessions_are_ended_in_order,
    what_was_received_is_sent,
    new_clients_are_refused,
    sessions_that_take_too_long_are_cut_off,
    the_end_of_standard_input_counts_if_it_is_told_so,
    #[cfg(unix)]
    the_end_of_standard_input_is_nothing_else,
    #[cfg(unix)]
    a_second_signal_ends_at_once,
    totals_are_printed_as_text,
    quiet_prints_the_first_line_only,
);

fn ends_at_once_without_sessions(kind: &str) {
    let server = Server::start(kind, &[]);
    let begin = Instant::now();
    let ended = server.stop();
    assert_eq!(ended.totals()["sessions"], 0);
    assert!(begin.elapsed() < Duration::from_secs(4), "took {:?}", begin.elapsed());
}

fn idle_sessions_are_ended_in_order(kind: &str) {
    let mut server = Server::start(kind, &["--drain-timeout", "20s"]);
    let mut clients: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
    for (seed, client) in clients.iter_mut().enumerate() {
        round_trip(client, seed as u64, 100);
    }
    let begin = Instant::now();
    server.interrupt();
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "an orderly end");
    }
    // The clients stay: the server does not wait for them.
    let totals = server.await_end().totals();
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
    assert_eq!(totals["sessions"], 50);
    assert_eq!((&totals["cut_off"], &totals["resets"]), (&0.into(), &0.into()));
}

fn what_was_received_is_sent(kind: &str) {
    let mut server = Server::start(kind, &["--drain-timeout", "20s"]);
    let mut client = server.connect();
    let sent = fill(&mut client, 1, 200 << 20);
    server.ask_to_end();
    server.await_stderr("draining");
    // The client still has bytes under way to the server, and the end is no reset for all that.
    let received = read_to_end(&client, 1).expect("an orderly end");
    drop(client);
    assert!(received > 0 && received <= sent, "{received} of {sent}");
    let totals = server.await_end().totals();
    assert_eq!(totals["bytes_received"], received);
    assert_eq!(totals["bytes_sent"], received);
    assert_eq!(totals["cut_off"], 0);
}

fn new_clients_are_refused(kind: &str) {
    let mut server = Server::start(kind, &["--drain-timeout", "20s"]);
    let mut client = server.connect();
    fill(&mut client, 1, 200 << 20);
    server.ask_to_end();
    server.await_stderr("draining");
    // The line is printed behind the end of the listening socket's accepts; the socket itself may
    // close a little later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(server.address()).is_ok_and(|mut late| {
        late.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        !matches!(late.read(&mut [0]), Ok(0) | Err(_))
    }) {
        assert!(Instant::now() < deadline, "a draining server still accepts");
    }
    read_to_end(&client, 1).expect("an orderly end");
    drop(client);
    assert_eq!(server.await_end().totals()["sessions"], 1);
}

fn sessions_that_take_too_long_are_cut_off(kind: &str) {
    let server = Server::start(kind, &["--drain-timeout", "300ms"]);
    let mut client = server.connect();
    fill(&mut client, 1, 200 << 20);
    round_trip(&mut server.connect(), 2, 100);
    // It goes on sending, and never reads.
    client.set_write_timeout(None).unwrap();
    let sender = thread::spawn(move || while client.write_all(&[0; 1000]).is_ok() {});
    let begin = Instant::now();
    let totals = server.stop().totals();
    assert!(begin.elapsed() >= Duration::from_millis(300), "{totals}");
    assert_eq!(totals["cut_off"], 1);
    sender.join().unwrap();
}

fn the_end_of_standard_input_counts_if_it_is_told_so(kind: &str) {
    let more: &[&str] = if cfg!(windows) { &[] } else { &["--until-stdin-ends"] };
    let mut server = Server::start(kind, more);
    let mut client = server.connect();
    round_trip(&mut client, 1, 100);
    server.end_stdin();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "an orderly end");
    assert_eq!(server.await_end().totals()["sessions"], 1);
}

#[cfg(unix)]
fn the_end_of_standard_input_is_nothing_else(kind: &str) {
    let mut server = Server::start(kind, &[]);
    server.end_stdin();
    let mut client = server.connect();
    round_trip(&mut client, 1, 100);
    assert_eq!(server.stop().totals()["sessions"], 1);
}

#[cfg(unix)]
fn a_second_signal_ends_at_once(kind: &str) {
    let mut server = Server::start(kind, &["--drain-timeout", "60s"]);
    let mut client = server.connect();
    fill(&mut client, 1, 200 << 20);
    server.ask_to_end();
    server.await_stderr("draining");
    server.ask_to_end();
    let ended = server.await_end();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains("second signal")), "{ended:?}");
}

fn totals_are_printed_as_text(kind: &str) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(["echo", "--listen", "127.0.0.1:0"]).args(args_of(kind));
    let server = Server::spawn(command);
    echo_all(server.connect(), 1, 1000, 1000);
    let ended = server.stop();
    assert!(ended.status.success());
    let text = ended.stdout.join("\n");
    let counter = match kind {
        "io_uring" | "epoll" | "iocp" => "completions  ",
        "threads" => "receives     ",
        "readiness" | "poll" | "select" => "events       ",
        _ => "routines     ",
    };
    for part in ["sessions     1 ", "bytes        1000 received, 1000 sent", counter] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn quiet_prints_the_first_line_only(kind: &str) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(["echo", "--quiet", "--listen", "127.0.0.1:0"]).args(args_of(kind));
    let server = Server::spawn(command);
    let mut client = server.connect();
    round_trip(&mut client, 1, 100);
    let ended = server.stop();
    assert!(ended.status.success());
    assert_eq!((ended.stdout.len(), ended.stderr.len()), (1, 0), "{ended:?}");
}
