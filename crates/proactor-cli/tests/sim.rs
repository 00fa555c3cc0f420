//! `proactor sim`: runs seeds, repeats one to the byte, and refuses what it does not know.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor"));
    command.arg("sim").args(arguments).output().expect("the program starts")
}

#[test]
fn seeds_hold() {
    let output = sim(&["--seeds", "12", "--scenario", "queue"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("12 seeds: "), "{output:?}");
}

#[test]
fn a_replay_is_the_same_each_time() {
    let first = sim(&["--replay", "5"]);
    assert!(first.status.success() && !first.stdout.is_empty(), "{first:?}");
    assert_eq!(first.stdout, sim(&["--replay", "5"]).stdout);
    let smaller = sim(&["--replay", "5", "--clients", "1", "--without", "reset,delay"]);
    assert_ne!(first.stdout, smaller.stdout);
}

#[test]
fn unknown_names_are_refused() {
    for arguments in [["--scenario", "chess"], ["--without", "gravity"]] {
        let output = sim(&arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(arguments[0]), "{output:?}");
    }
}
