//! What cannot be served is refused in one line, and with an exit code.

use std::net::TcpListener;

use crate::support::{Server, run_to_end};

/// Runs `proactor echo` with arguments that are wrong, and gives its one line.
fn refusal(args: &[&str]) -> String {
    refusal_with(args, &[])
}

fn refusal_with(args: &[&str], environment: &[(&str, &str)]) -> String {
    let args: Vec<&str> = std::iter::once("echo").chain(args.iter().copied()).collect();
    let ended = run_to_end(&args, environment);
    assert!(!ended.status.success(), "{args:?}: {ended:?}");
    assert!(ended.status.code().is_some(), "{args:?}: {ended:?}");
    assert_eq!((ended.stdout.len(), ended.stderr.len()), (0, 1), "{args:?}: {ended:?}");
    ended.stderr[0].clone()
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = refusal(&["--listen", &address]);
    assert!(line.contains(&address) && line.contains("another program listens there"), "{line}");
}

#[test]
fn a_port_in_use_by_another_echo_server() {
    let server = Server::start("auto", &[]);
    let line = refusal(&["--listen", server.address_text()]);
    assert!(line.contains("another program listens there"), "{line}");
}

#[test]
fn an_address_of_another_machine() {
    let line = refusal(&["--listen", "192.0.2.1:7000"]);
    assert!(line.contains("this machine has no such address"), "{line}");
}

#[test]
fn a_bad_address() {
    for bad in ["", "nonsense", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:70000", "::1:7000"] {
        let line = refusal(&["--listen", bad]);
        assert!(line.contains("bad address"), "{bad}: {line}");
    }
}

#[test]
#[cfg(unix)]
fn a_path_that_cannot_be() {
    let line = refusal(&["--listen", "unix:/no/such/directory/socket"]);
    assert!(line.contains("cannot listen on unix:/no/such/directory/socket"), "{line}");
}

#[test]
fn a_bad_flag() {
    assert!(refusal(&["--no-such-flag"]).contains("--no-such-flag"));
    assert!(refusal(&["--workers", "0"]).contains("--workers"));
    assert!(refusal(&["--workers", "many"]).contains("many"));
    assert!(refusal(&["--drain-timeout", "soon"]).contains("soon"));
    assert!(refusal(&["--backlog", "0"]).contains("--backlog"));
}

#[test]
fn a_bad_backend() {
    assert!(refusal(&["--backend", "kqueue"]).contains("io_uring, epoll or iocp"));
    let line = refusal_with(&["--listen", "127.0.0.1:0"], &[("PROACTOR_BACKEND", "kqueue")]);
    assert!(line.contains("PROACTOR_BACKEND") && line.contains("kqueue"), "{line}");
}

#[test]
#[cfg(unix)]
fn a_backend_that_is_not_to_be_had() {
    // Room for the listening socket, and then for no ring.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 4; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_proactor")]);
    command.args(["echo", "--listen", "127.0.0.1:0", "--backend", "io_uring"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("proactor: ") && output.stdout.is_empty(), "{text}");
}
