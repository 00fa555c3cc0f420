//! Each kind of server under `proactor load`, which checks every byte.

use std::process::Command;

use serde_json::Value;

use crate::support::Server;

crate::on_each_server!(
    small_messages,
    large_messages_several_at_once,
    short_sessions,
    short_sessions_that_end_by_a_reset,
    thousands_of_clients,
);

/// Loads the server for a moment; the load must be without errors. Gives its report.
fn load(server: &Server, args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_proactor"))
        .args(["load", server.address_text(), "--json", "--warmup", "50ms", "--timeout", "20s"])
        .args(args)
        .output()
        .expect("the load generator starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {text}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["ok"], true, "{args:?}: {report}");
    assert_eq!(report["errors"]["total"], 0, "{args:?}: {report}");
    report
}

/// What went there came back, and the server has lost and broken nothing.
fn assert_sound(server: Server) -> Value {
    let totals = server.stop().totals();
    assert_eq!((&totals["failures"], &totals["cut_off"]), (&0.into(), &0.into()), "{totals}");
    totals
}

fn small_messages(kind: &str) {
    let server = Server::start(kind, &[]);
    load(&server, &["--connections", "40", "--duration", "300ms"]);
    let totals = assert_sound(server);
    assert_eq!(totals["sessions"], 40);
    assert_eq!(totals["bytes_sent"], totals["bytes_received"]);
}

fn large_messages_several_at_once(kind: &str) {
    let server = Server::start(kind, &[]);
    load(&server, &["--connections", "8", "--size", "300k", "--depth", "4", "--duration", "300ms"]);
    assert_sound(server);
}

fn short_sessions(kind: &str) {
    let server = Server::start(kind, &[]);
    load(&server, &["--connections", "30", "--churn", "1", "--duration", "300ms"]);
    let totals = assert_sound(server);
    assert!(totals["sessions"].as_u64().unwrap() > 30, "{totals}");
    assert_eq!(totals["resets"], 0, "{totals}");
}

fn short_sessions_that_end_by_a_reset(kind: &str) {
    let server = Server::start(kind, &[]);
    load(&server, &["--connections", "30", "--churn", "2", "--reset", "--duration", "300ms"]);
    assert_sound(server);
}

fn thousands_of_clients(kind: &str) {
    // What select has room for; and a number that no table of a thousand holds.
    let clients = if kind == "select" { "900" } else { "2500" };
    let server = Server::start(kind, &[]);
    load(&server, &["--connections", clients, "--duration", "1s"]);
    let totals = assert_sound(server);
    assert_eq!(totals["sessions"].to_string(), clients, "{totals}");
}
