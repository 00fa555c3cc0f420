//! The simulated kernel: every schedule and every fault, from a seed.
//!
//! | module | what it holds |
//! |---|---|
//! | `kernel` | the world's state and its loop |
//! | `threads`, `waiting` | its threads, the baton that they pass on, and what they wait for |
//! | `event` | what is to happen, by virtual time |
//! | `port` | the queue, waiting threads, the limit, timers |
//! | `source` | an associated source: start, cancel, close |
//! | `stream`, `connect`, `datagram`, `file` | what the sources do |
//! | `peer` | the far end of a connection, for a test to hold |
//! | `monitor` | the checkers |
//! | `random`, `faults`, `trace` | chance, what goes wrong, what happened |
//!
//! There is no system call and no real time here: a run follows from its seed.

#![deny(unsafe_code)]

mod connect;
mod datagram;
mod event;
mod faults;
mod file;
mod kernel;
mod monitor;
mod peer;
mod port;
mod random;
mod source;
mod stream;
mod threads;
mod trace;
mod waiting;

use std::sync::Arc;

pub use faults::Faults;
pub use kernel::Next;
pub(crate) use kernel::{ActorBody, Kernel};
pub use peer::{Peer, PeerError};
pub use random::Random;
pub(crate) use source::{SimulatedSource, What};
pub(crate) use waiting::lock_in_world;

use super::Backend;
use crate::port::Config;
use crate::sim::World;

/// Opens a port in a world.
pub(crate) fn open(world: &World, config: &Config) -> Arc<dyn Backend> {
    port::SimulatedPort::open(world.kernel(), config)
}
