//! The program on this system's backends: it finds none to differ, and it does see a difference.

use std::fs;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proactor-differential"));
    command.args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Windows may be Wine here.
const RULES: &[&str] = if cfg!(windows) { &["--leave-out", "wine"] } else { &[] };

#[test]
fn backends_do_not_differ() {
    let output = run(&[&["--seeds", "0..12"], RULES].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("12 seeds, 720 steps"), "{}", text(&output.stdout));
}

#[test]
fn a_record_is_compared() {
    let output = run(&[&["--print-outcomes", "--seeds", "3..5"], RULES].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let record = text(&output.stdout);
    let folder = tempfile::tempdir().unwrap();
    let compare = |record: &str| {
        let path = folder.path().join("record");
        fs::write(&path, record).unwrap();
        let output = run(&["--compare", path.to_str().unwrap()]);
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = compare(&record);
    assert_eq!(code, Some(0), "{said}");

    // One hash that differs, one line that is missing, one that is too many.
    let at = record.rfind(" bytes ").expect("something was moved") + " bytes ".len();
    let digit = if &record[at..=at] == "0" { "1" } else { "0" };
    let changed = format!("{}{digit}{}", &record[..at], &record[at + 1..]);
    let shorter = record.trim_end().rsplit_once('\n').unwrap().0.to_owned();
    let longer = format!("{record}60 and another\n");
    for wrong in [changed, shorter, longer] {
        let (code, said) = compare(&wrong);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("seed 4: they differ at step") && said.contains("\n> "), "{said}");
    }
    let (code, _) = compare("nothing of the kind");
    assert_eq!(code, Some(2));
}

#[test]
fn bad_arguments_are_refused() {
    for arguments in [
        &["--seeds", "5..5"][..],
        &["--seeds", "many"],
        &["--backends", "kqueue"],
        &["--leave-out", "linux"],
        &["--compare", "/no/such/file"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}
