//! The options of a port, with their defaults.

use crate::backend::{self, BackendChoice};
use crate::error::Error;
use crate::port::CompletionPort;

/// Options of a [`CompletionPort`].
///
/// ```
/// # fn main() -> Result<(), proactor::Error> {
/// let port = proactor::CompletionPort::builder()
///     .concurrency(2)
///     .receive_window_bytes(128 * 1024)
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    config: Config,
}

/// The options as the backends read them.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// As the caller gave it: 0 means one per processor.
    pub(crate) concurrency: usize,
    /// `None`: as the environment says, else probed.
    pub(crate) backend: Option<BackendChoice>,
    pub(crate) receive_buffer_bytes: usize,
    pub(crate) maximum_receive_buffers: usize,
    pub(crate) receive_window_bytes: usize,
    pub(crate) file_threads: usize,
    /// On Windows: whether what is done at once is to give no packet of the kernel's.
    pub(crate) skip_completion_port_on_success: bool,
    /// The simulated world that the port is part of, if it is.
    #[cfg(feature = "sim")]
    pub(crate) world: Option<crate::sim::World>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            concurrency: 0,
            backend: None,
            receive_buffer_bytes: 64 * 1024,
            maximum_receive_buffers: 4 * 1024,
            receive_window_bytes: 256 * 1024,
            file_threads: 4,
            skip_completion_port_on_success: false,
            #[cfg(feature = "sim")]
            world: None,
        }
    }
}

impl Builder {
    /// Every option at its default.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many threads may handle packets at once; 0, the default, means one per processor.
    pub fn concurrency(mut self, threads: usize) -> Self {
        self.config.concurrency = threads;
        self
    }

    /// Forces a backend. The default is what `PROACTOR_BACKEND` says, else
    /// [`BackendChoice::Automatic`].
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.config.backend = Some(choice);
        self
    }

    /// Makes the port part of a simulated world; see [`sim`](crate::sim).
    #[cfg(feature = "sim")]
    pub(crate) fn world(mut self, world: &crate::sim::World) -> Self {
        self.config.world = Some(world.clone());
        self
    }

    /// Bytes of one receive buffer of the pool: the most that one packet of a continuous receive
    /// carries. Default 64 KiB, of which only pages that bytes were received into use memory; from 64 bytes to 1 MiB, nearer bounds are used beyond that.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> Self {
        self.config.receive_buffer_bytes = bytes.clamp(64, 1024 * 1024);
        self
    }

    /// How many receive buffers the pool of one thread may have. Default 4,096 (256 MiB of address
    /// space; memory is used as it is touched), at most 32,768. Where all are in use, connections
    /// wait until one is given back.
    pub fn maximum_receive_buffers(mut self, buffers: usize) -> Self {
        self.config.maximum_receive_buffers = buffers.clamp(64, 32 * 1024);
        self
    }

    /// How far a connection may be read ahead of its consumer: buffers that were delivered and not
    /// given back, counted whole. Beyond it reading stops, and TCP holds the peer back. Default
    /// 256 KiB.
    pub fn receive_window_bytes(mut self, bytes: usize) -> Self {
        self.config.receive_window_bytes = bytes.max(1);
        self
    }

    /// Threads that serve file operations on the epoll backend. Default 4, from 1 to 64. (On
    /// io_uring and on Windows the kernel serves them.)
    pub fn file_threads(mut self, threads: usize) -> Self {
        self.config.file_threads = threads.clamp(1, 64);
        self
    }

    /// Only on Windows, and only for the tests: sets `FILE_SKIP_COMPLETION_PORT_ON_SUCCESS` for
    /// every source, so that the backend queues the packets of what is done at once itself. A
    /// program sees no difference.
    #[doc(hidden)]
    pub fn skip_completion_port_on_success(mut self, skip: bool) -> Self {
        self.config.skip_completion_port_on_success = skip;
        self
    }

    /// Creates the port.
    ///
    /// # Errors
    /// As [`CompletionPort::new`].
    pub fn build(self) -> Result<CompletionPort, Error> {
        backend::open(&self.config).map(CompletionPort::from_backend)
    }
}
