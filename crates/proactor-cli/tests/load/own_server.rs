//! `proactor load` without an address: it starts a server, loads it, and stops it.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;

use crate::server::{Conduct, serve};
use serde_json::Value;

/// Set in the process that serves.
const VARIABLE: &str = "PROACTOR_TEST_SERVER";

/// Not a test: in a process started by [`program`] this is the server.
#[test]
fn serve_if_told_to() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\nlistening on {address}").and_then(|()| stdout.flush()).expect("a reader");
    serve(&listener, Conduct::Good, &mpsc::channel().0);
}

/// A program that ignores its arguments and runs `script`.
fn program(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("server");
    // Written under another name first: a program that is open for writing cannot be started.
    let draft = folder.join("draft");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).expect("a writable folder");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("our own file");
    fs::rename(&draft, &path).expect("the same folder");
    path
}

fn load_with(script: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    Command::new(env!("CARGO_BIN_EXE_proactor"))
        .args([
            "load",
            "--json",
            "--duration",
            "200ms",
            "--warmup",
            "0s",
            "--server-args",
            "--quiet -x",
        ])
        .arg("--server-program")
        .arg(program(folder.path(), script))
        .output()
        .expect("the binary runs")
}

#[test]
fn a_server_of_our_own_is_started_loaded_and_stopped() {
    let this = std::env::current_exe().expect("a path");
    let output = load_with(&format!(
        "[ \"$*\" = 'echo --listen 127.0.0.1:0 --quiet -x' ] || exit 9\n\
         {VARIABLE}=1 exec '{}' --exact own_server::serve_if_told_to --nocapture",
        this.display()
    ));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["round_trips"].as_u64() > Some(0));
    let server = &report["server"];
    if cfg!(target_os = "linux") {
        let pid = server["pid"].as_u64().expect("a pid");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the server has ended");
        assert!(server["cpu_us_per_round_trip"].as_f64() > Some(0.0));
    }
}

#[test]
fn a_server_that_does_not_start_is_one_clear_line() {
    let output = load_with("exit 3");
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).expect("text");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("ended before it listened") && line.contains('3'), "{line}");
}
