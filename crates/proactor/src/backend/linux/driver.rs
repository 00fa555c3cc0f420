//! What a kernel interface supplies to the user-space port.

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::file::{Deliver, FileService};
use super::poller::Poller;
use super::sink::Sink;
use super::socket::{Socket, SourceKind};
use crate::buffer::Pool;
use crate::error::Error;
use crate::port::Config;

/// How a worker turns to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Submit and collect what is there.
    No,
    /// Submit, then wait for anything, at most so long (`None`: without end).
    Upto(Option<Duration>),
}

/// One worker's interface to the kernel.
///
/// It belongs to the worker's thread and is guarded by the worker's lock. Others call `rescue`
/// only, under that lock, while the thread is not inside the library.
pub(crate) trait Driver: Send + Sized + 'static {
    /// Whether streams are received and sent by system calls on readiness. Else the driver
    /// completes them itself, from `queue_receive` and `queue_send` on.
    const STREAMS_BY_READINESS: bool;
    /// Whether `has_completions` knows. Else only a turn can tell.
    const KNOWS_COMPLETIONS: bool;

    /// Opens the interface for the calling thread, to be woken by either of `wakes`: an eventfd and
    /// a timerfd.
    fn open(config: &Config, poller: &Poller<Self>, wakes: [RawFd; 2]) -> Result<Self, Error>;
    /// The service for files, one per port; it starts its threads when it is first used.
    fn file_service(config: &Config, deliver: Weak<dyn Deliver>) -> Arc<dyn FileService>;
    /// What the worker's epoll set watches a source of this kind for, from the start.
    fn first_interest(kind: SourceKind) -> u32;

    /// The pool that this worker's receives are fed from.
    fn pool(&self) -> &Arc<Pool>;
    /// Asks for a stream's bytes, at the next turn.
    fn queue_receive(&mut self, socket: &Arc<Socket<Self>>);
    /// Asks to stop receiving from a stream, at the next turn.
    fn queue_stop(&mut self, socket: &Arc<Socket<Self>>);
    /// Asks to send what is at the head of a stream's queue, at the next turn.
    fn queue_send(&mut self, socket: &Arc<Socket<Self>>);
    /// Whether sends are queued that a turn would submit.
    fn has_sends(&self) -> bool;
    /// Whether the kernel says, without a system call, that there is something to collect.
    fn has_completions(&self) -> bool;
    /// Submits what was asked for and collects what is finished, as worker `worker`. Own thread
    /// only.
    fn turn(
        &mut self,
        wait: Wait,
        poller: &Poller<Self>,
        worker: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error>;
    /// Another thread takes over what it can while the owner is stuck: completions that lie ready,
    /// sends that were not submitted, sockets that are readable. Returns how much that was.
    fn rescue(&mut self, poller: &Poller<Self>, sink: &mut Sink<'_>) -> usize;
    /// The thread goes: ends everything that the kernel holds for it, and hands over what came of
    /// it. Own thread only; nothing is asked of the driver afterwards.
    fn retire(&mut self, sink: &mut Sink<'_>);
    /// System calls made so far that submitted or waited.
    fn wait_calls(&self) -> u64;
}
