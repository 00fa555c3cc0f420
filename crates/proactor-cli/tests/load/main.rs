//! `proactor load` against servers that behave and servers that do not.

#[cfg(unix)]
mod own_server;
mod server;

#[cfg(unix)]
use std::io::{BufReader, Read};
use std::net::TcpListener;
#[cfg(unix)]
use std::process::Stdio;
use std::process::{Command, Output};

use serde_json::Value;
use server::{Conduct, Server};

/// Short, since most tests need no more than a few messages.
const SHORT: [&str; 6] = ["--duration", "300ms", "--warmup", "50ms", "--connections", "10"];

fn proactor() -> Command {
    Command::new(env!("CARGO_BIN_EXE_proactor"))
}

fn load(address: &str, args: &[&str]) -> Output {
    proactor().args(["load", address]).args(SHORT).args(args).output().expect("the binary runs")
}

fn load_server(conduct: Conduct, args: &[&str]) -> Output {
    load(&Server::start(conduct).address.to_string(), args)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error} in {:?}; stderr: {}",
            String::from_utf8_lossy(&output.stdout),
            stderr(output)
        )
    })
}

/// The load must succeed; gives its report.
fn report_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    assert_eq!(stderr(output), "");
    let report = json(output);
    assert_eq!(report["ok"], true);
    assert_eq!(report["errors"]["total"], 0);
    report
}

/// The load must fail, with one line that holds `words` and a report that counts a `kind`.
fn assert_fails(conduct: Conduct, args: &[&str], kind: &str, words: &str) {
    let args = [args, &["--json", "--timeout", "1s"]].concat();
    let output = load_server(conduct, &args);
    assert_eq!(output.status.code(), Some(1), "{conduct:?}: {}", stderr(&output));
    let line = stderr(&output);
    assert_eq!(line.lines().count(), 1, "{conduct:?}: {line}");
    assert!(line.contains(words), "{conduct:?}: {line}");
    let report = json(&output);
    assert_eq!(report["ok"], false);
    assert!(report["errors"][kind].as_u64() > Some(0), "{conduct:?}: {}", report["errors"]);
}

fn figure(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn a_good_server_passes_and_the_figures_agree() {
    let report = report_of(&load_server(Conduct::Good, &["--json"]));
    let round_trips = figure(&report, "round_trips");
    assert!(round_trips > 0.0);
    let seconds = figure(&report, "duration_seconds");
    assert!((seconds - 0.3).abs() < 0.001, "{seconds}");
    let rate = figure(&report, "round_trips_per_second");
    assert!((rate - round_trips / seconds).abs() < 1.0, "{rate}");
    assert!(figure(&report, "verified_bytes") >= round_trips * 64.0);
    let latency = &report["latency"];
    let order = ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us", "max_us"];
    let values: Vec<f64> = order.iter().map(|name| figure(latency, name)).collect();
    assert!(values.is_sorted() && values[0] > 0.0, "{values:?}");
    assert_eq!(report["connect_latency"]["count"], 10);
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn deep_pipelines_of_odd_sizes_pass() {
    for (size, depth, threads) in [("1", "100", "2"), ("100003", "7", "1"), ("65536", "3", "3")] {
        let args = ["--json", "--size", size, "--depth", depth, "--threads", threads];
        let report = report_of(&load_server(Conduct::Good, &args));
        assert_eq!(report["threads"].to_string(), threads);
        assert!(figure(&report, "round_trips") > 0.0);
    }
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn an_open_loop_keeps_its_rate() {
    let report = report_of(&load_server(Conduct::Good, &["--json", "--rate", "200"]));
    let open_loop = &report["open_loop"];
    assert_eq!(open_loop["scheduled_messages"], 60);
    assert_eq!(report["latency"]["count"], 60);
    let sent = figure(&open_loop["send_delay"], "count");
    assert_eq!(sent + figure(open_loop, "unsent_messages"), 60.0);
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn an_overloaded_schedule_is_reported() {
    let args = ["--json", "--rate", "50000000", "--connections", "1"];
    let report = report_of(&load_server(Conduct::Good, &args));
    let open_loop = &report["open_loop"];
    assert_eq!(open_loop["scheduled_messages"], 15_000_000);
    assert!(figure(open_loop, "unsent_messages") > 10_000_000.0);
    // Half of the messages had waited for more than about half of the time.
    assert!(figure(&report["latency"], "p50_us") > 100_000.0, "{}", report["latency"]);
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn churn_counts_sessions() {
    for extra in [[].as_slice(), &["--reset"]] {
        let args = [&["--json", "--churn", "3", "--depth", "2"], extra].concat();
        let report = report_of(&load_server(Conduct::Good, &args));
        let sessions = report["churn"]["sessions"].as_u64().expect("a count");
        assert!(sessions > 0);
        assert!(report["connects"].as_u64() >= Some(sessions));
        assert_eq!(report["churn"]["messages_per_session"], 3);
    }
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn stall_messages_are_told_apart() {
    let args = ["--json", "--stall-fraction", "0.2", "--stall-kind", "spin", "--depth", "4"];
    let report = report_of(&load_server(Conduct::Good, &args));
    let stalled = figure(&report["stall_latency"], "count");
    let all = stalled + figure(&report["latency"], "count");
    assert!((0.1..0.3).contains(&(stalled / all)), "{stalled} of {all}");
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn bytes_that_are_not_right_fail_the_load() {
    assert_fails(Conduct::FlipByte, &[], "wrong_byte", "1 connection received a wrong byte");
    assert_fails(Conduct::LoseByte, &["--depth", "8"], "wrong_byte", "1 bytes further on");
    // Whether more is awaited when the repetition comes is a matter of timing.
    assert_fails(Conduct::Repeat, &["--depth", "8"], "total", "1 connection received");
    assert_fails(Conduct::Repeat, &[], "total", "1 connection received");
    assert_fails(
        Conduct::CrossOver,
        &["--connections", "2"],
        "wrong_byte",
        "2 connections received a wrong byte",
    );
    assert_fails(Conduct::AddAtEnd, &[], "extra_bytes", "received bytes that were not sent");
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn lost_connections_fail_the_load() {
    assert_fails(Conduct::CloseEarly, &[], "closed_early", "1 connection closed early");
    assert_fails(Conduct::FallSilent, &[], "timed_out", "10 connections timed out");
    assert_fails(Conduct::NeverClose, &[], "bad_close", "10 connections not closed in order");
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn a_lost_byte_without_a_pipeline_is_a_reply_that_never_comes() {
    assert_fails(Conduct::LoseByte, &["--size", "1"], "timed_out", "1 connection timed out");
}

#[test]
fn a_refused_address_is_one_clear_line() {
    // A port that was just given back, so nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address").to_string();
    drop(listener);
    for args in [[].as_slice(), &["--churn", "2"], &["--rate", "100"]] {
        let output = load(&address, args);
        assert_eq!(output.status.code(), Some(1));
        let line = stderr(&output);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("refused") && line.contains(&address), "{line}");
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn bad_flags_are_one_clear_line() {
    let mut cases = vec![
        (vec!["127.0.0.1"], "bad address '127.0.0.1'"),
        (vec!["::1:7000"], "needs brackets"),
        (vec!["127.0.0.1:7000", "--size", "0"], "--size"),
        (vec!["127.0.0.1:7000", "--rate", "-1"], "-1"),
        (vec!["127.0.0.1:7000", "--rate", "5", "--churn", "5"], "cannot be used with"),
        (vec!["127.0.0.1:7000", "--stall-fraction", "2"], "from 0 to 1"),
        (vec!["127.0.0.1:7000", "--duration", "0"], "--duration"),
        (vec!["127.0.0.1:7000", "--frobnicate"], "--frobnicate"),
    ];
    if cfg!(unix) {
        cases.push((vec!["127.0.0.1:7000", "--connections", "9000000"], "descriptors"));
    }
    for (args, words) in cases {
        let output = proactor().arg("load").args(&args).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        let line = stderr(&output);
        assert_eq!(line.lines().count(), 1, "{args:?}: {line}");
        assert!(line.contains(words), "{args:?}: {line}");
    }
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
fn the_table_is_for_people_and_quiet_is_quiet() {
    let output = load_server(Conduct::Good, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    for words in ["10 connections", "64 bytes", "round trips", "p99.99", "errors          none"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let output = load_server(Conduct::Good, &["--quiet"]);
    assert!(output.status.success());
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
}

#[test]
#[cfg_attr(windows, ignore = "by the clock of a machine under Wine; scripts/windows runs a load")]
#[cfg(target_os = "linux")]
fn the_servers_cpu_time_is_that_of_its_process() {
    // The server's threads are in this process.
    let pid = std::process::id().to_string();
    let report = report_of(&load_server(Conduct::Good, &["--json", "--server-pid", &pid]));
    assert_eq!(report["server"]["pid"].to_string(), pid);
    assert!(figure(&report["server"], "cpu_seconds") > 0.0);
    assert!(figure(&report["server"], "cpu_us_per_round_trip") > 0.0);
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_early_and_still_reports() {
    use rustix::process::{Pid, Signal, kill_process};

    let server = Server::start(Conduct::Good);
    let mut child = proactor()
        .args([
            "load",
            &server.address.to_string(),
            "--json",
            "--duration",
            "10m",
            "--warmup",
            "0s",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    server.first_echo.recv().expect("the load begins");
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid");
    kill_process(pid, Signal::INT).expect("the load runs");
    let mut text = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    stdout.read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("it ends").success());
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["interrupted"], &report["ok"]), (&Value::Bool(true), &Value::Bool(true)));
    assert!(figure(&report, "duration_seconds") < 60.0);
}
