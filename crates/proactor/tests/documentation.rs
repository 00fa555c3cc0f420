//! `docs/semantics.md` and the tests agree: every test that it names is there, every test that
//! names a rule is in it, and it has all rules.

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
