//! The epoll backend: sockets by readiness, files by a bounded pool of threads.
//!
//! Each worker has an epoll set, edge-triggered; a source is watched once, for everything, and its
//! state remembers what it is ready for. No memory of an operation is ever in the kernel's hands.

mod file;

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::backend::linux::driver::{Driver, Wait};
use crate::backend::linux::file::{Deliver, FileService};
use crate::backend::linux::poller::Poller;
use crate::backend::linux::sink::Sink;
use crate::backend::linux::socket::{Socket, SourceKind};
use crate::buffer::Pool;
use crate::error::Error;
use crate::port::Config;

pub(crate) struct EpollDriver {
    pool: Arc<Pool>,
    wait_calls: u64,
}

impl Driver for EpollDriver {
    const STREAMS_BY_READINESS: bool = true;
    const KNOWS_COMPLETIONS: bool = false;

    fn open(config: &Config, poller: &Poller<Self>, wakes: [RawFd; 2]) -> Result<Self, Error> {
        wakes.into_iter().try_for_each(|wake| poller.watch_wake(wake))?;
        let pool = Pool::new(config.receive_buffer_bytes, config.maximum_receive_buffers);
        Ok(Self { pool, wait_calls: 0 })
    }

    fn file_service(config: &Config, deliver: Weak<dyn Deliver>) -> Arc<dyn FileService> {
        Arc::new(file::ThreadFileService::new(config.file_threads, deliver))
    }

    fn first_interest(kind: SourceKind) -> u32 {
        let interest = match kind {
            // Urgent data is told of because a receive ends at it, whatever lies behind.
            SourceKind::Stream => {
                libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLOUT | libc::EPOLLRDHUP
            }
            SourceKind::Listener => libc::EPOLLIN,
            SourceKind::Datagram => libc::EPOLLIN | libc::EPOLLOUT,
        };
        (interest | libc::EPOLLET) as u32
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn queue_receive(&mut self, _socket: &Arc<Socket<Self>>) {
        unreachable!("streams are received by readiness");
    }

    fn queue_stop(&mut self, _socket: &Arc<Socket<Self>>) {
        unreachable!("streams are received by readiness");
    }

    fn queue_send(&mut self, _socket: &Arc<Socket<Self>>) {
        unreachable!("streams are sent by readiness");
    }

    fn has_sends(&self) -> bool {
        false
    }

    fn has_completions(&self) -> bool {
        false
    }

    fn turn(
        &mut self,
        wait: Wait,
        poller: &Poller<Self>,
        worker: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let timeout = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::Upto(timeout) => timeout,
        };
        self.wait_calls += 1;
        poller.poll(timeout, Some(self), Some(worker), sink).map(drop)
    }

    fn rescue(&mut self, poller: &Poller<Self>, sink: &mut Sink<'_>) -> usize {
        match poller.poll_ready(None, None, sink) {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(%error, "a stuck worker's epoll set cannot be read");
                0
            }
        }
    }

    fn retire(&mut self, _sink: &mut Sink<'_>) {}

    fn wait_calls(&self) -> u64 {
        self.wait_calls
    }
}
