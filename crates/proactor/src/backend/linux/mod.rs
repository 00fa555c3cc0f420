//! The completion port in user space, as both Linux backends share it: the queue, the threads and
//! the concurrency limit, timers, and the sources' state machines.
//!
//! | module | what it holds |
//! |---|---|
//! | `engine` | the port: register a thread, dequeue, post, close |
//! | `central` | the shared queue, parked threads, who holds a slot (the concurrency limit) |
//! | `slot`, `sink` | what others see of a worker; where finished operations go |
//! | `counters` | what workers count; the snapshot |
//! | `worker` | one thread that dequeues: its queue, its driver, its lock |
//! | `watch`, `alarm` | who looks after the busy threads, and when |
//! | `rescue` | finding threads that are stuck in a handler, and taking over from them |
//! | `follow` | letting the sockets of a stuck thread wake an idle one |
//! | `source`, `stream`, `listener`, `datagram` | a source and its pending operations |
//! | `file` | what a driver's file service supplies |
//! | `driver` | what a kernel interface supplies |
//! | `syscall`, `errno` | raw calls and their errors |

mod alarm;
pub(crate) mod central;
mod counters;
mod datagram;
pub(crate) mod driver;
mod engine;
pub(crate) mod errno;
pub(crate) mod file;
pub(crate) mod file_operation;
mod file_source;
#[cfg(test)]
pub(crate) mod file_tests;
mod follow;
mod listener;
#[cfg(all(test, proactor_model))]
mod models;
pub(crate) mod poller;
mod queue;
mod rescue;
mod residents;
pub(crate) mod sink;
mod slot;
pub(crate) mod socket;
pub(crate) mod stream;
mod stream_receive;
mod stream_send;
pub(crate) mod syscall;
mod watch;
mod worker;

use std::sync::{Arc, Once};

use super::epoll::EpollDriver;
use super::io_uring::RingDriver;
use super::io_uring::probe::probe_once;
use super::{Backend, BackendChoice, BackendDescription};
use crate::error::{Error, ErrorKind};
use crate::operation::OperationKind;
use crate::port::Config;
use engine::Engine;

/// Probed, and not used by the driver yet: no part of a description of what is in use.
const PROBED_FOR_LATER: [&str; 3] =
    ["IORING_REGISTER_RING_FDS", "IORING_RECVSEND_BUNDLE", "IORING_SETUP_NO_SQARRAY"];

/// What a port created with `choice` would use. An automatic choice that has to do without
/// io_uring says why; a forced one fails.
pub(crate) fn probe(choice: BackendChoice) -> Result<BackendDescription, Error> {
    if choice == BackendChoice::Epoll {
        return Ok(epoll_description());
    }
    let probe = probe_once();
    if probe.usable {
        return Ok(BackendDescription {
            name: "io_uring",
            capabilities: probe
                .capabilities
                .iter()
                .filter(|capability| !PROBED_FOR_LATER.contains(&capability.name))
                .cloned()
                .collect(),
            degraded: None,
            refused_capabilities: Vec::new(),
        });
    }
    let refusal = probe.refusal.as_ref();
    if choice == BackendChoice::IoUring {
        let error = Error::new(OperationKind::CreatePort, ErrorKind::Unsupported);
        return Err(refusal.map_or(error, |refusal| error.with_cause(refusal)));
    }
    let reason = refusal.map_or("io_uring: not to be had", String::as_str);
    Ok(BackendDescription {
        degraded: Some(format!("{reason}; using epoll")),
        refused_capabilities: probe.capabilities.clone(),
        ..epoll_description()
    })
}

fn epoll_description() -> BackendDescription {
    BackendDescription {
        name: "epoll",
        capabilities: Vec::new(),
        degraded: None,
        refused_capabilities: Vec::new(),
    }
}

pub(crate) fn open(choice: BackendChoice, config: &Config) -> Result<Arc<dyn Backend>, Error> {
    let description = probe(choice)?;
    if let Some(reason) = &description.degraded {
        // Once for the process: every further port would say the same.
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!(%reason, "the epoll backend is used"));
    }
    Ok(match description.name {
        "epoll" => Engine::<EpollDriver>::new(config, description),
        _ => Engine::<RingDriver>::new(config, description),
    })
}
