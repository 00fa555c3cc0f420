//! `proactor compare` with servers that behave and servers that do not.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the tests of `proactor load` use the rest")]
#[path = "../load/server.rs"]
mod server;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use server::{Conduct, Server};

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(60);

fn compare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.args(["compare", "--quick", "--slice", "100ms"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Runs a comparison that writes JSON, and gives what it wrote.
fn report_of(args: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let output = compare(args).arg("--json").arg(&file).output().expect("it runs");
    let json = std::fs::read(&file).expect("the report was written");
    let json = serde_json::from_slice(&json)
        .unwrap_or_else(|error| panic!("{error}; stderr: {}", text(&output.stderr)));
    (output, json)
}

fn server_of<'a>(report: &'a Value, scenario: usize, name: &str) -> &'a Value {
    let servers = report["scenarios"][scenario]["servers"].as_array().expect("a list");
    servers.iter().find(|server| server["name"] == name).expect("it took part")
}

fn figure<'a>(server: &'a Value, metric: &str) -> &'a Value {
    let figures = server["figures"].as_array().expect("a list");
    figures.iter().find(|figure| figure["metric"] == metric).unwrap_or(&Value::Null)
}

/// Processes whose command line has this word.
fn processes_with(word: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("it is mounted");
    entries
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .filter(|line| line.split('\0').any(|other| other == word))
        .collect()
}

#[test]
fn servers_of_others_are_compared() {
    let (one, two) = (Server::start(Conduct::Good), Server::start(Conduct::Good));
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let (output, report) = report_of(&[
        "--models=none",
        &format!("--server=one={}@{}", one.address, std::process::id()),
        &format!("--server=two={}", two.address),
        "--scenarios=few-long,short,uneven,compute,block",
        "--html",
        page.to_str().expect("text"),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(report["ok"], true);
    assert_eq!(report["scenarios"][0]["reference"], "one");
    for scenario in 0..3 {
        for name in ["one", "two"] {
            let server = server_of(&report, scenario, name);
            let slices = server["slices"].as_array().expect("a list");
            // On a busy machine a slice may be empty, and is left out then.
            assert!((1..=3).contains(&slices.len()), "{server}");
            for slice in slices {
                assert!(slice["requests"].as_u64() > Some(0), "{slice}");
                assert!(slice["verified_bytes"].as_u64() > Some(0), "{slice}");
            }
            let rate = figure(server, "throughput");
            let of = |name: &str| rate["spread"][name].as_f64().expect("a number");
            assert!(of("min") <= of("median") && of("median") <= of("max"), "{rate}");
            assert!(rate["ratio"]["median"].as_f64() > Some(0.0), "{rate}");
            let has_cpu = !figure(server, "cpu").is_null();
            assert_eq!(has_cpu, cfg!(target_os = "linux") && name == "one", "{server}");
        }
    }
    for (scenario, reason) in [(3, "cannot be told to compute"), (4, "stall marks")] {
        let skipped = server_of(&report, scenario, "one")["skipped"].as_str().expect("it is told");
        assert!(skipped.contains(reason), "{skipped}");
    }
    let table = text(&output.stdout);
    for words in ["few-long", "requests/s", "one", "skipped: "] {
        assert!(table.contains(words), "{words} in {table}");
    }
    let page = std::fs::read_to_string(page).expect("the page was written");
    assert!(page.contains("<h2>few-long</h2>") && page.contains("</html>"));
    assert!(!page.contains("<script") && !page.contains("http"), "it needs nothing else");
}

#[test]
fn a_bad_server_is_reported_and_does_not_spoil_the_others() {
    for (conduct, words) in [
        (Conduct::FlipByte, &["wrong byte"][..]),
        (Conduct::CloseEarly, &["closed early", "broken"]),
        (Conduct::FallSilent, &["timed out"]),
    ] {
        let (good, bad) = (Server::start(Conduct::Good), Server::start(conduct));
        let (output, report) = report_of(&[
            "--models=none",
            &format!("--server=good={}", good.address),
            &format!("--server=bad={}", bad.address),
            // Each message is longer than what the server is good for.
            "--scenarios=large",
        ]);
        assert_eq!(output.status.code(), Some(1), "{conduct:?}: {}", text(&output.stderr));
        assert_eq!(report["ok"], false);
        let failure = server_of(&report, 0, "bad")["failure"].as_str().expect("it is told");
        assert!(words.iter().any(|words| failure.contains(words)), "{conduct:?}: {failure}");
        let good = server_of(&report, 0, "good");
        assert_eq!(good["failure"], Value::Null);
        assert!(good["slices"].as_array().map(Vec::len) > Some(0), "{good}");
        assert!(text(&output.stdout).contains("FAILED: "), "{}", text(&output.stdout));
        assert!(text(&output.stderr).lines().last().unwrap_or("").contains("bad in large: "));
    }
}

#[test]
fn a_server_that_is_not_there_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = listener.local_addr().expect("an address");
    drop(listener);
    let good = Server::start(Conduct::Good);
    let (output, report) = report_of(&[
        "--models=none",
        &format!("--server=nobody={nobody}"),
        &format!("--server=good={}", good.address),
        "--scenarios=few-long,short",
        "--rounds=1",
    ]);
    assert_eq!(output.status.code(), Some(1));
    for scenario in 0..2 {
        let failure = server_of(&report, scenario, "nobody")["failure"].as_str().expect("told");
        assert!(failure.contains("refused"), "{failure}");
        assert_eq!(server_of(&report, scenario, "good")["failure"], Value::Null);
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_measured() {
    for (args, words) in [
        (&["--models=none"][..], "nothing to compare"),
        (&["--models=nothing"], "nothing"),
        (&["--models=port,port"], "named twice"),
        (&["--server=port=127.0.0.1:1"], "choose another name"),
        (&["--server=x=127.0.0.1"], "bad address"),
        (&["--scenarios=long"], "long"),
        (&["--full"], "cannot be used with"),
        (&["--json=/nonexistent/file"], "cannot write"),
    ] {
        let output = compare(args).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(words), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

/// A model's server is started for each scenario, measured from outside, and ended.
#[test]
fn servers_of_our_own_are_measured_and_ended() {
    const BACKLOG: &str = "3071";
    let (output, report) = report_of(&[
        "--models=threads,readiness,overlapped,port",
        "--variant=port-1=--model port --workers 1",
        "--scenarios=few-long,short,uneven,compute,block",
        &format!("--server-args=--backlog {BACKLOG}"),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let names = ["threads", "readiness", "overlapped", "port", "port-1"];
    for (scenario, name) in (0..5).flat_map(|scenario| names.map(|name| (scenario, name))) {
        let server = server_of(&report, scenario, name);
        for metric in ["throughput", "p50", "cpu", "switches"] {
            let median = &figure(server, metric)["spread"]["median"];
            // One thread that is always busy may not be switched at all.
            let least = if metric == "switches" { 0.0 } else { 1e-3 };
            assert!(median.as_f64() >= Some(least), "{metric}: {server}");
        }
        assert_eq!(server["external"], false);
    }
    assert_eq!(processes_with(BACKLOG), [""; 0]);
}

/// A server of our own that dies in the middle is reported, with how it ended.
#[test]
fn a_server_that_dies_is_reported() {
    const BACKLOG: &str = "3072";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let good = Server::start(Conduct::Good);
    let mut command = compare(&["--models=port", "--scenarios=few-long,short", "--slice=500ms"]);
    command.arg(format!("--server-args=--backlog {BACKLOG}"));
    command.arg(format!("--server=good={}", good.address)).arg("--json").arg(&file);
    let child = command.spawn().expect("it starts");
    let pid = wait_for_echo(BACKLOG);
    kill(pid, rustix::process::Signal::KILL);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("it was written"))
        .expect("the report is JSON");
    let failure = server_of(&report, 0, "port")["failure"].as_str().expect("it is told");
    assert!(failure.contains("signal: 9"), "{failure}");
    assert_eq!(server_of(&report, 0, "good")["failure"], Value::Null);
    // The next scenario has a new one.
    assert_eq!(server_of(&report, 1, "port")["failure"], Value::Null);
    assert_eq!(processes_with(BACKLOG), [""; 0]);
}

/// Ctrl-C ends it soon, with what was measured, and with every server.
#[test]
fn ctrl_c_ends_it_in_order() {
    const BACKLOG: &str = "3073";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let mut command = compare(&["--models=port", "--slice=20s"]);
    command.arg(format!("--server-args=--backlog {BACKLOG}")).arg("--json").arg(&file);
    let child = command.spawn().expect("it starts");
    wait_for_echo(BACKLOG);
    kill(child.id(), rustix::process::Signal::INT);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ended early"), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("it was written"))
        .expect("the report is JSON");
    assert_eq!((&report["interrupted"], &report["ok"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(processes_with(BACKLOG), [""; 0]);
}

/// Waits for a server whose command line has this word and that has a connection's worth of
/// threads and CPU time: it is being loaded.
fn wait_for_echo(word: &str) -> u32 {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        for entry in std::fs::read_dir("/proc").expect("it is mounted").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
            let is_ours = words.contains(&&b"echo"[..]) && words.contains(&word.as_bytes());
            if is_ours && has_sessions(&entry.path()) {
                return pid;
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no server with {word}");
}

/// Whether a server has more sockets than its listening one.
fn has_sessions(process: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { return false };
    let links = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count() >= 10
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, signal).expect("it is there");
}
