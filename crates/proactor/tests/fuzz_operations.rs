//! What the fuzz target `operations` runs (`fuzz/`), without a fuzzer: its corpus, and random
//! inputs. `PROACTOR_FUZZ_INPUTS=100000` tries more of them, `PROACTOR_FUZZ_SEED=7` others;
//! `PROACTOR_FUZZ_INPUT=file` runs one.
#![cfg(target_os = "linux")]

#[macro_use]
mod common;
#[path = "../../../fuzz/src/operations.rs"]
mod operations;

use std::path::Path;

use common::*;
use proactor::BackendChoice;

const INPUTS: u64 = 150;
const LONGEST_INPUT_BYTES: u64 = 600;

fn choice(ports: &Ports) -> BackendChoice {
    if ports.name() == "io_uring" { BackendChoice::IoUring } else { BackendChoice::Epoll }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

on_each_backend! {
    /// Inputs that once showed something, or reach far.
    fn the_corpus_of_operations_runs(ports: &Ports) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/operations");
        let mut inputs: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        if let Some(input) = std::env::var_os("PROACTOR_FUZZ_INPUT") {
            inputs = vec![input.into()];
        }
        inputs.sort();
        assert!(!inputs.is_empty());
        for input in inputs {
            println!("{}", input.display());
            let bytes = std::fs::read(input).unwrap();
            // The first byte chooses the backend for the fuzzer.
            operations::run(choice(ports), bytes.get(1..).unwrap_or_default());
        }
    }

    fn random_operations_keep_the_promises(ports: &Ports) {
        let first = number("PROACTOR_FUZZ_SEED", 0);
        for seed in first..first + number("PROACTOR_FUZZ_INPUTS", INPUTS) {
            let mut random = Random::new(seed);
            let length = random.below(LONGEST_INPUT_BYTES);
            let input: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            println!("seed {seed}");
            operations::run(choice(ports), &input);
        }
    }
}
