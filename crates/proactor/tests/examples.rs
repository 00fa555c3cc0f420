//! The examples that are servers, started as programs and talked to.
//!
//! `cargo test` builds them; where this file is run alone, `cargo build --examples` has to come
//! first. On Windows it was not tried.

#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use common::*;

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

/// An example that runs. It is ended with the test, however that ends.
struct Running {
    child: Child,
    address: SocketAddr,
    /// Kept, so that the example can go on printing.
    _output: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it, and waits until it says `... at ADDRESS ...`.
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once(" at ").and_then(|(_, rest)| rest.split_whitespace().next());
        let address = address.and_then(|address| address.trim_end_matches(';').parse().ok());
        let Some(address) = address else {
            let _ = child.kill();
            panic!("{name} said {line:?}, and no address");
        };
        Self { child, address, _output: output }
    }

    fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Stops it as a person does, and checks that it ends well.
    fn stop(mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut status = None;
        wait_until("the example ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{status:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn relay_to(server: &TcpListener) -> Running {
    Running::start("relay", &["127.0.0.1:0", &server.local_addr().unwrap().to_string()])
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    bound_waits(&stream);
    stream
}

const MANY: usize = 16 * 1024 * 1024;

#[test]
fn the_relay_carries_both_ways_and_a_slow_reader_holds_up_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = relay_to(&listener);
    let bytes = &pattern(1, MANY);
    std::thread::scope(|scope| {
        // Reads nothing until the others are done.
        let mut slow = relay.connect();
        let mut slow_server = accept(&listener);
        let sent = scope.spawn(move || {
            slow_server.write_all(bytes).unwrap();
            slow_server.shutdown(Shutdown::Write).unwrap();
        });
        for _ in 0..3 {
            let mut client = relay.connect();
            let mut server = accept(&listener);
            scope.spawn(move || std::io::copy(&mut server.try_clone().unwrap(), &mut server));
            let mut writer = client.try_clone().unwrap();
            scope.spawn(move || {
                writer.write_all(bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut answer = vec![0; MANY];
            client.read_exact(&mut answer).unwrap();
            assert_same_bytes(&answer, bytes);
        }
        assert!(!sent.is_finished(), "the relay took more than a bounded number of bytes");
        assert_same_bytes(&read_to_end(&mut slow).0, bytes);
    });
    relay.stop();
}

#[test]
fn the_relay_passes_the_end_of_each_direction_on_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = relay_to(&listener);
    for client_first in [true, false] {
        let mut client = relay.connect();
        let mut server = accept(&listener);
        let (first, second) =
            if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let (question, answer) = (pattern(2, 500_000), pattern(3, 500_000));
        // The kernel holds this much, or the relay does.
        first.write_all(&question).unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(second), (question, None));
        // The other direction is still there.
        second.write_all(&answer).unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(first), (answer, None));
    }
    relay.stop();
}

#[test]
fn the_relay_gives_up_a_half_closed_connection_that_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let relay = Running::start("relay", &["127.0.0.1:0", &server, "1"]);
    for client_first in [true, false] {
        let mut client = relay.connect();
        let mut server = accept(&listener);
        let (first, second) =
            if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(second), (b"question".to_vec(), None));
        // The second one neither answers nor ends.
        assert_eq!(read_to_end(first), (Vec::new(), Some(IoErrorKind::ConnectionReset)));
    }
    relay.stop();
}

#[test]
fn the_relay_passes_resets_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = relay_to(&listener);
    for client_first in [true, false] {
        let mut client = relay.connect();
        let mut server = accept(&listener);
        client.write_all(b"x").unwrap();
        assert_eq!(read_bytes(&mut server, 1), b"x");
        let (first, mut second) = if client_first { (client, server) } else { (server, client) };
        reset(first);
        assert_eq!(read_to_end(&mut second), (Vec::new(), Some(IoErrorKind::ConnectionReset)));
    }
    // Nobody to relay to.
    drop(listener);
    let (bytes, error) = read_to_end(&mut relay.connect());
    assert_eq!((bytes, error), (Vec::new(), Some(IoErrorKind::ConnectionReset)));
    relay.stop();
}

/// The status line and the body of an answer.
fn get(server: &Running, request: &str) -> (String, Vec<u8>) {
    let mut client = server.connect();
    write!(client, "{request}\r\nHost: x\r\n\r\n").unwrap();
    answer_of(&mut client)
}

fn answer_of(client: &mut TcpStream) -> (String, Vec<u8>) {
    let (answer, error) = read_to_end(client);
    assert_eq!(error, None);
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    let text = String::from_utf8(answer[..head].to_vec()).unwrap();
    (text.lines().next().unwrap().to_owned(), answer[head..].to_vec())
}

#[test]
fn the_file_server_serves_files_and_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    std::fs::create_dir_all(root.join("in side")).unwrap();
    let bytes = pattern(4, 1_000_003);
    std::fs::write(root.join("in side/file"), &bytes).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let server = Running::start("file_server", &["127.0.0.1:0", root.to_str().unwrap()]);

    let (status, body) = get(&server, "GET /in%20side/file HTTP/1.0");
    assert_eq!(status, "HTTP/1.0 200 OK");
    assert_same_bytes(&body, &bytes);
    let ok = ("HTTP/1.0 200 OK".to_owned(), Vec::new());
    assert_eq!(get(&server, "GET /empty HTTP/1.1"), ok);
    // A client that ends its side when it has asked, and one that asks byte by byte.
    let mut client = server.connect();
    client.write_all(b"GET /in%20side/file HTTP/1.0\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_same_bytes(&answer_of(&mut client).1, &bytes);
    let mut client = server.connect();
    b"GET /empty HTTP/1.0\r\n\r\n".iter().for_each(|byte| client.write_all(&[*byte]).unwrap());
    assert_eq!(answer_of(&mut client), ok);
    // The server waits for its end, lest a reset takes the answer away.
    drop(client);

    #[cfg(unix)]
    std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
    let mut refused = vec![
        ("GET /../secret HTTP/1.0", "403"),
        ("GET /%2e%2e/secret HTTP/1.0", "403"),
        ("GET /in%20side/../../secret HTTP/1.0", "403"),
        ("GET //etc/passwd HTTP/1.0", "403"),
        ("GET / HTTP/1.0", "403"),
        ("GET /in%20side HTTP/1.0", "403"),
        ("GET /absent HTTP/1.0", "404"),
        ("GET /a%0", "400"),
        ("GET /a%zz HTTP/1.0", "400"),
        ("GET /a%00 HTTP/1.0", "400"),
        ("POST /empty HTTP/1.0", "501"),
        ("", "400"),
    ];
    if cfg!(unix) {
        refused.push(("GET /link HTTP/1.0", "403"));
    }
    for (request, status) in refused {
        let (line, body) = get(&server, request);
        assert_eq!(line.split(' ').nth(1), Some(status), "{request}");
        assert!(!body.windows(6).any(|bytes| bytes == b"secret"), "{request}");
    }
    server.stop();
}

#[test]
fn the_file_server_holds_little_for_clients_that_do_not_read() {
    const LENGTH: u64 = 64 * 1024 * 1024;
    let root = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(root.path().join("large")).unwrap();
    file.set_len(LENGTH).unwrap();
    let server = Running::start("file_server", &["127.0.0.1:0", root.path().to_str().unwrap()]);
    let ask = || {
        let mut client = server.connect();
        client.write_all(b"GET /large HTTP/1.0\r\n\r\n").unwrap();
        client
    };
    let mut slow: Vec<_> = (0..16).map(|_| ask()).collect();
    for client in &mut slow {
        assert_eq!(read_bytes(client, 8), b"HTTP/1.0");
    }
    // Others are served meanwhile, and so are they when they read.
    for mut client in [ask(), slow.remove(0)] {
        let served = std::io::copy(&mut client, &mut std::io::sink()).unwrap();
        assert!(served >= LENGTH, "{served} bytes");
    }
    #[cfg(target_os = "linux")]
    {
        let status = format!("/proc/{}/status", server.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak_kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
        assert!(peak_kib < 128 * 1024, "{peak_kib} KiB were in use");
    }
    drop(slow);
    server.stop();
}

#[test]
fn the_chat_tells_a_room_what_somebody_says() {
    let chat = Running::start("chat", &["127.0.0.1:0"]);
    let mut ann = BufReader::new(chat.connect());
    let mut bob = BufReader::new(chat.connect());
    let read_until = |client: &mut BufReader<TcpStream>, end: &str| {
        let mut line = String::new();
        while !line.ends_with(end) {
            line.clear();
            assert!(client.read_line(&mut line).unwrap() > 0, "no line {end:?}");
        }
        line
    };
    for client in [&mut ann, &mut bob] {
        read_until(client, "you are in lobby\n");
    }
    ann.get_mut().write_all(b"/name ann\nhello\r\n").unwrap();
    assert_eq!(read_until(&mut bob, ": hello\n"), "ann: hello\n");
    bob.get_mut().write_all(b"/quit\n").unwrap();
    read_until(&mut ann, "has left\n");
    chat.stop();
}

#[test]
fn bots_play_the_game() {
    let game = Running::start("game", &["server", "127.0.0.1:0"]);
    let mut bots = Command::new(example("game"));
    bots.args(["bots", &game.address.to_string(), "20", "1"]).stdout(Stdio::piped());
    let mut bots = bots.spawn().unwrap();
    let _watchdog = Watchdog::start("bots_play_the_game".to_owned());
    let mut said = String::new();
    // Ends with the program.
    bots.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(bots.wait().unwrap().success(), "{said}");
    game.stop();
}
