//! `proactor doctor`, run as a program.

use std::process::{Command, Output};

use serde_json::Value;

fn doctor(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_proactor"))
        .arg("doctor")
        .args(args)
        .envs(environment.iter().copied())
        .output()
        .expect("the program starts")
}

#[test]
fn the_table_fits_80_columns() {
    let output = doctor(&[], &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        let has_long_word = line.split_whitespace().any(|word| word.len() > 40);
        assert!(line.chars().count() <= 80 || has_long_word, "{line}");
    }
    let parts: &[&str] = if cfg!(windows) {
        &["would use", "Backend iocp", "system", "What to change"]
    } else {
        &["would use", "Backend io_uring", "Backend epoll", "somaxconn", "What to change"]
    };
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn json_says_the_same() {
    let output = doctor(&["--json"], &[]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["can_run"], true);
    let would_use = report["would_use"].as_str().unwrap();
    assert!(["io_uring", "epoll", "iocp"].contains(&would_use));
    let backends = report["backends"].as_array().unwrap();
    let used = backends.iter().find(|state| state["name"] == would_use).unwrap();
    assert_eq!(used["refusal"], Value::Null);
    for feature in used["features"].as_array().unwrap() {
        assert!(!feature["detail"].as_str().unwrap().is_empty(), "{feature}");
    }
    assert!(report["findings"].as_array().unwrap().len() > if cfg!(windows) { 2 } else { 10 });
}

#[test]
#[cfg(unix)]
fn a_low_limit_is_found() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" doctor", env!("CARGO_BIN_EXE_proactor")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("soft 64, hard 64"), "{text}");
    assert!(text.contains("LimitNOFILE"), "{text}");
}

#[test]
fn the_environment_is_named() {
    let backend = if cfg!(windows) { "iocp" } else { "epoll" };
    let output = doctor(&[], &[("PROACTOR_BACKEND", backend)]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("PROACTOR_BACKEND={backend}")), "{text}");
}

#[test]
fn a_bad_flag_is_refused_in_one_line() {
    let output = doctor(&["--nonsense"], &[]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("--nonsense"), "{text}");
}
