//! The completion port in user space, as both Linux backends share it: the queue, the threads and
//! the concurrency limit, timers, and the sources' state machines.
//!
//! | module | what it holds |
//! |---|---|
//! | `engine` | the port: register a thread, dequeue, post, close |
//! | `central` | the shared queue, parked threads, slots (the concurrency limit) |
//! | `worker` | one thread that dequeues: its queue, its driver, its lock |
//! | `watch` | finding threads that are stuck in a handler, and taking over from them |
//! | `timers` | deadlines |
//! | `source`, `stream`, `listener`, `datagram` | a source and its pending operations |
//! | `file` | what a driver's file service supplies |
//! | `driver` | what a kernel interface supplies |
//! | `syscall`, `errno` | raw calls and their errors |

pub(crate) mod central;
mod datagram;
pub(crate) mod driver;
mod engine;
pub(crate) mod errno;
pub(crate) mod file;
pub(crate) mod file_operation;
mod file_source;
#[cfg(test)]
pub(crate) mod file_tests;
mod listener;
pub(crate) mod poller;
mod residents;
pub(crate) mod socket;
pub(crate) mod stream;
mod stream_receive;
mod stream_send;
pub(crate) mod syscall;
pub(crate) mod timers;
mod watch;
mod worker;

use std::sync::Arc;

use super::epoll::EpollDriver;
use super::io_uring::RingDriver;
use super::{Backend, BackendChoice, BackendDescription};
use crate::error::Error;
use crate::port::Config;
use engine::Engine;

pub(crate) fn probe(_choice: BackendChoice) -> Result<BackendDescription, Error> {
    Ok(BackendDescription { name: "epoll", capabilities: Vec::new(), degraded: None })
}

pub(crate) fn open(choice: BackendChoice, config: &Config) -> Result<Arc<dyn Backend>, Error> {
    let description = probe(choice)?;
    Ok(match choice {
        BackendChoice::Epoll => Engine::<EpollDriver>::new(config, description),
        _ => Engine::<RingDriver>::new(config, description),
    })
}
