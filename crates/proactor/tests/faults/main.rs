//! System calls that fail on the real backends: each call of a small program once, at random, for
//! good, or in part (`docs/testing.md`, "Faults on the real backends").
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod at_random;
mod each_call;
mod inject;
mod launcher;
mod program;
