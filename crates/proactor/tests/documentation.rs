//! `docs/semantics.md` and the tests agree: every test that it names is there, every test that
//! names a rule is in it, it has all rules, with what each backend does, and it lists the tests
//! that are skipped under Wine.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

const RULES: usize = 142;

fn semantics() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/semantics.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every function of the test files, as `file::function`.
fn functions() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut functions = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if let Some(rest) = line.trim_start().strip_prefix("fn ") {
                let name: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                functions.insert(format!("{file}::{name}"));
            }
        }
    }
    functions
}

/// The tests that the document names.
fn named(document: &str) -> HashSet<&str> {
    document.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect()
}

/// A test that is renamed or removed takes its place in the document with it.
#[test]
fn the_document_names_tests_that_exist() {
    let functions = functions();
    let document = semantics();
    let files: HashSet<&str> =
        functions.iter().map(|function| function.split("::").next().unwrap()).collect();
    for test in named(&document) {
        // Names of types in running text have no test file in front.
        if files.contains(test.split("::").next().unwrap()) {
            assert!(functions.contains(test), "docs/semantics.md names {test}, which is not there");
        }
    }
}

/// A test that names a rule stands in the document.
#[test]
fn tests_of_rules_are_in_the_document() {
    let document = semantics();
    let named = named(&document);
    for function in functions().iter().filter(|function| function.contains("::rule_")) {
        assert!(named.contains(function.as_str()), "docs/semantics.md does not name {function}");
    }
}

/// Every rule has one row.
#[test]
fn the_document_has_all_rules() {
    let document = semantics();
    for rule in 1..=RULES {
        let start = format!("| {rule} | ");
        let rows = document.lines().filter(|line| line.starts_with(&start)).count();
        assert_eq!(rows, 1, "rows of rule {rule}");
    }
}

/// Every rule that a program can meet says what each backend does with it.
#[test]
fn each_rule_says_what_each_backend_does() {
    const COLUMNS: &str =
        "| rule | what it says | tag | on Linux, both backends | on Windows | tests |";
    let document = semantics();
    let mut rows = 0;
    let mut in_table = false;
    for line in document.lines() {
        in_table = line.starts_with("| ") && (in_table || line == COLUMNS)
            || in_table && line.starts_with("|---");
        if !in_table || line == COLUMNS || line.starts_with("|---") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "an empty cell: {line}");
        rows += 1;
    }
    // The rules of completion routines (A15) have a table of their own.
    assert_eq!(rows, RULES - (138 - 126 + 1));
}

/// The tests that are skipped under Wine, as `rule N` and `file::function`.
fn skipped_under_wine() -> BTreeSet<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut skipped = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // A test program is a file, or a folder with a file for each topic.
        let program = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            for topic in std::fs::read_dir(&path).unwrap() {
                note_skipped(program, &topic.unwrap().path(), &mut skipped);
            }
        } else {
            note_skipped(program, &path, &mut skipped);
        }
    }
    skipped
}

fn note_skipped(program: &str, path: &Path, skipped: &mut BTreeSet<(String, String)>) {
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let mut function = String::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line = line.trim_start();
        if let Some(rest) = line.strip_prefix("fn ") {
            function = rest.split('(').next().unwrap().to_owned();
        } else if let Some(rest) = line.strip_prefix("skip_under_wine!(") {
            let rule = rest.split(',').next().unwrap();
            skipped.insert((format!("rule {rule}"), format!("{program}::{function}")));
        }
    }
}

/// The list of what Wine does not keep is that of the tests.
#[test]
fn the_document_lists_what_is_skipped_under_wine() {
    let document = semantics();
    let listed: BTreeSet<(String, String)> = document
        .lines()
        .filter(|line| line.starts_with("| rule ") && !line.starts_with("| rule |"))
        .flat_map(|line| {
            let rule = line.trim_matches('|').split(" | ").next().unwrap().trim().to_owned();
            let tests = line.split('`').skip(1).step_by(2).filter(|code| code.contains("::"));
            tests.map(move |test| (rule.clone(), test.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    let skipped = skipped_under_wine();
    assert!(!skipped.is_empty(), "no test is found that is skipped");
    assert_eq!(listed, skipped);
}
