//! What happens at the limits: descriptors, sessions.

use std::io::{Read, Write};
#[cfg(target_os = "linux")]
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{LIMIT, Server, assert_pattern, pattern_bytes, round_trip};

crate::on_each_server!(
    #[cfg(target_os = "linux")]
    without_descriptors_accepting_pauses_and_recovers,
    a_limit_on_sessions_makes_further_clients_wait,
);

#[cfg(target_os = "linux")]
const CLIENTS: usize = 200;

#[cfg(target_os = "linux")]
fn without_descriptors_accepting_pauses_and_recovers(kind: &str) {
    let mut server = Server::start_limited(kind, 64, &[]);
    let mut waiting: Vec<TcpStream> = (0..CLIENTS).map(|_| server.connect()).collect();
    for (seed, client) in waiting.iter_mut().enumerate() {
        client.write_all(&pattern_bytes(seed as u64, 0, 100)).unwrap();
    }
    server.await_stderr("accepting pauses");

    // Clients hold their sessions: the others wait, and the server does not spin.
    let ticks = server.cpu_ticks();
    let last = waiting.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(last.read(&mut [0]).is_err(), "the last of {CLIENTS} clients is not served yet");
    let used = server.cpu_ticks() - ticks;
    assert!(used < 30, "a second of pause took {used} ticks of processor time");
    last.set_read_timeout(Some(LIMIT)).unwrap();

    // As clients leave, the others are served, in the order in which they came.
    for (seed, client) in waiting.into_iter().enumerate() {
        let mut client = client;
        let mut bytes = [0; 100];
        client.read_exact(&mut bytes).unwrap_or_else(|error| panic!("client {seed}: {error}"));
        assert_pattern(seed as u64, 0, &bytes);
    }
    server.await_stderr("accepting again");
    round_trip(&mut server.connect(), 5, 100);

    let ended = server.stop();
    let totals = ended.totals();
    assert_eq!(totals["sessions"], CLIENTS + 1);
    assert_eq!((&totals["failures"], &totals["cut_off"]), (&0.into(), &0.into()));
    let pauses = ended.stderr.iter().filter(|line| line.contains("accepting pauses")).count();
    assert!((1..=3).contains(&pauses), "one line for each pause: {:?}", ended.stderr);
}

fn a_limit_on_sessions_makes_further_clients_wait(kind: &str) {
    let server = Server::start(kind, &["--max-sessions", "2"]);
    let mut first = server.connect();
    let mut second = server.connect();
    round_trip(&mut first, 1, 100);
    round_trip(&mut second, 2, 100);
    let mut third = server.connect();
    third.write_all(&pattern_bytes(3, 0, 100)).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(third.read(&mut [0]).is_err(), "two are served, so the third waits");
    drop(first);
    third.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = [0; 100];
    third.read_exact(&mut bytes).unwrap();
    assert_pattern(3, 0, &bytes);
    let totals = server.stop().totals();
    assert_eq!(totals["sessions"], 3);
    assert_eq!(totals["peak_sessions"], 2);
}
