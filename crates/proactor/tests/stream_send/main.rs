//! Sending on a stream (rules 17, 67 to 73, 90).

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod delivery;
mod ends;
