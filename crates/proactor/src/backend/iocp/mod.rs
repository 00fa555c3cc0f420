//! The native completion port of Windows, through documented functions only.
//!
//! The queue, its order, the release of threads and the concurrency limit are the kernel's. What
//! is left for this backend is to give operations to the kernel in a way that no safe program can
//! misuse, and to make its packets mean what the other backends' packets mean.
//!
//! | module | what it holds |
//! |---|---|
//! | `port` | associate, dequeue, post, close |
//! | `queue` | the kernel's port, and how many operations are out |
//! | `overlapped` | an operation in flight: who owns it, and how its packet finds it |
//! | `socket` | a socket and its pending operations |
//! | `stream`, `stream_receive`, `stream_send`, `listener`, `datagram` | what each kind does |
//! | `file` | overlapped files |
//! | `clock` | timers |
//! | `syscall`, `code` | raw calls, and their codes as portable kinds |

mod clock;
mod code;
mod datagram;
mod file;
mod listener;
mod overlapped;
mod port;
mod queue;
mod socket;
mod stream;
mod stream_receive;
mod stream_send;
mod syscall;

use std::sync::Arc;

use super::{Backend, BackendDescription, Capability};
use crate::error::Error;
use crate::port::Config;
pub(crate) use overlapped::Native;

/// What the backend uses. All of it is in every version of Windows that Rust supports.
pub(crate) fn describe() -> BackendDescription {
    let capability = |name, detail: &str| Capability {
        name,
        available: true,
        required: true,
        detail: detail.to_owned(),
    };
    BackendDescription {
        name: "iocp",
        capabilities: vec![
            capability("GetQueuedCompletionStatusEx", "takes several packets in one call"),
            capability("AcceptEx", "as many accepts outstanding as the program starts"),
            capability("ConnectEx", "connects without a thread that waits"),
            capability("CancelIoEx", "cancels one operation, from any thread"),
            capability("ReOpenFile", "overlapped I/O on files that were opened without it"),
        ],
        degraded: None,
        refused_capabilities: Vec::new(),
    }
}

/// Opens a port.
pub(crate) fn open(config: &Config) -> Result<Arc<dyn Backend>, Error> {
    Ok(port::Port::new(config, describe())?)
}
