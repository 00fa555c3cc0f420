//! A socket that is associated: what is the same for each kind.
//!
//! Lock order, from the outside in: a worker's own lock, a source's state, the table of residents,
//! the shared queue. The library drops no operation while it holds one of them, because an
//! operation's context may hold handles that take them again.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockRef;

use super::datagram::Datagrams;
use super::driver::Driver;
use super::engine::Engine;
use super::errno::{error_of, kind_of};
use super::listener::Listener;
use super::sink::Sink;
use super::stream::Stream;
use super::worker::Worker;
use crate::backend::BackendSource;
use crate::backend::window::Window;
use crate::buffer::{Consumer, Pool};
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};
use crate::port::Completion;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What a socket can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    Stream,
    Listener,
    Datagram,
}

pub(crate) struct Socket<D: Driver> {
    me: Weak<Self>,
    pub(crate) engine: Arc<Engine<D>>,
    pub(crate) key: usize,
    kind: SourceKind,
    inode: u64,
    pub(crate) socket: socket2::Socket,
    state: Mutex<State<D>>,
    /// Room of receive buffers that were read ahead and not given back.
    window: Window,
    /// It waits in its home's inbox.
    attending: AtomicBool,
}

/// What a source's lock guards.
pub(crate) struct State<D: Driver> {
    /// The worker that serves it; `None` until there is one.
    pub(crate) home: Option<Home<D>>,
    /// What its home's epoll set watches it for; 0: it is not in the set.
    pub(crate) interest: u32,
    /// The last handle is gone, or the port is closed.
    pub(crate) closed: bool,
    pub(crate) role: Role,
}

pub(crate) struct Home<D: Driver> {
    pub(crate) worker: Arc<Worker<D>>,
    pub(crate) token: u64,
}

/// The pending operations, by what the socket can do.
pub(crate) enum Role {
    Stream(Stream),
    Listener(Listener),
    Datagram(Datagrams),
}

/// In what circumstances a source acts: on a worker of its port or not, and where packets go.
pub(crate) struct Context<'a, 'b, D: Driver> {
    /// The driver of the worker that acts, to queue submissions with.
    pub(crate) driver: Option<&'a mut D>,
    /// Which worker that is.
    pub(crate) worker: Option<usize>,
    pub(crate) sink: &'a mut Sink<'b>,
}

impl<'a, 'b, D: Driver> Context<'a, 'b, D> {
    pub(crate) fn new(
        driver: Option<&'a mut D>,
        worker: Option<usize>,
        sink: &'a mut Sink<'b>,
    ) -> Self {
        Self { driver, worker, sink }
    }

    /// The driver, where the acting worker is worker `worker`.
    pub(crate) fn driver_of(&mut self, worker: usize) -> Option<&mut D> {
        if self.worker == Some(worker) { self.driver.as_deref_mut() } else { None }
    }

    /// The driver, where the acting worker is the home of a source.
    pub(crate) fn home_driver(&mut self, home: Option<&Home<D>>) -> Option<&mut D> {
        self.driver_of(home?.worker.slot.index)
    }
}

impl<D: Driver> Socket<D> {
    pub(crate) fn new(
        engine: Arc<Engine<D>>,
        socket: socket2::Socket,
        role: Role,
        key: usize,
        inode: u64,
    ) -> Arc<Self> {
        let kind = match role {
            Role::Stream(_) => SourceKind::Stream,
            Role::Listener(_) => SourceKind::Listener,
            Role::Datagram(_) => SourceKind::Datagram,
        };
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            engine,
            key,
            kind,
            inode,
            socket,
            state: Mutex::new(State { home: None, interest: 0, closed: false, role }),
            window: Window::new(),
            attending: AtomicBool::new(false),
        })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.kind == SourceKind::Stream
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This socket, shared. It is alive: somebody called a method of it through an `Arc`.
    pub(crate) fn shared(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// Takes `home` as the place that serves this socket, and starts what is pending there.
    pub(crate) fn settle(
        self: &Arc<Self>,
        worker: &Arc<Worker<D>>,
        context: &mut Context<'_, '_, D>,
    ) {
        let mut state = self.lock();
        if state.closed || state.home.is_some() {
            return;
        }
        let token = worker.poller.insert(self);
        state.home = Some(Home { worker: Arc::clone(worker), token });
        let watched = self.watch_at_home(&mut state);
        self.serve_locked(&mut state, context);
        if let Err(errno) = watched {
            // What is pending still would wait for ever.
            self.end_role(&mut state, kind_of(errno), context.sink);
        }
    }

    /// Makes its home's epoll set watch it for what its kind is always watched for, where that was
    /// not done yet or was refused.
    fn watch_at_home(&self, state: &mut State<D>) -> Result<(), i32> {
        match D::first_interest(self.kind) {
            0 => Ok(()),
            interest => self.watch(state, interest),
        }
    }

    /// Ends everything that is pending, and says how much that was.
    fn end_role(&self, state: &mut State<D>, kind: ErrorKind, sink: &mut Sink<'_>) -> usize {
        match &mut state.role {
            Role::Stream(stream) => stream.end_all(self, kind, sink),
            Role::Listener(listener) => listener.end_all(self, kind, sink),
            Role::Datagram(datagrams) => datagrams.end_all(self, kind, sink),
        }
    }

    /// Leaves its home, whose thread goes. What is pending stays pending.
    pub(crate) fn unsettle(&self) {
        let mut state = self.lock();
        let interest = std::mem::take(&mut state.interest);
        if let Some(home) = state.home.take() {
            home.worker.poller.remove(self, home.token, interest);
        }
    }

    /// Makes its home's epoll set watch it for `interest`, too.
    pub(crate) fn watch(&self, state: &mut State<D>, interest: u32) -> Result<(), i32> {
        let wanted = state.interest | interest;
        if let Some(home) = &state.home
            && wanted != state.interest
        {
            home.worker.poller.watch(self.raw_fd(), home.token, state.interest, wanted)?;
            state.interest = wanted;
        }
        Ok(())
    }

    /// Its home's epoll set has events for it.
    pub(crate) fn ready(self: &Arc<Self>, events: u32, context: &mut Context<'_, '_, D>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        match state.role {
            Role::Stream(_) => self.stream_ready(&mut state, events, context),
            Role::Listener(_) => self.listener_ready(&mut state, context),
            Role::Datagram(_) => self.datagram_ready(&mut state, events, context),
        }
    }

    /// Its home serves it: does whatever its state calls for. Called again and again without harm.
    pub(crate) fn serve(self: &Arc<Self>, context: &mut Context<'_, '_, D>) {
        self.attending.store(false, Ordering::SeqCst);
        let mut state = self.lock();
        let elsewhere = match &state.home {
            Some(home) => !state.closed && context.worker != Some(home.worker.slot.index),
            None => false,
        };
        if elsewhere {
            self.attend(&state);
        } else {
            self.serve_locked(&mut state, context);
        }
    }

    fn serve_locked(self: &Arc<Self>, state: &mut State<D>, context: &mut Context<'_, '_, D>) {
        match state.role {
            Role::Stream(_) => self.serve_stream(state, context),
            Role::Listener(_) => self.listener_ready(state, context),
            Role::Datagram(_) => {
                self.datagram_ready(state, (libc::EPOLLIN | libc::EPOLLOUT) as u32, context);
            }
        }
    }

    /// Asks its home to serve it, from any thread.
    pub(crate) fn attend(&self, state: &State<D>) {
        if let (Some(home), Some(shared)) = (&state.home, self.shared())
            && !self.attending.swap(true, Ordering::SeqCst)
        {
            home.worker.hand(shared);
            self.engine.central.wake(&home.worker.slot);
        }
    }

    /// Whether it waits in its home's inbox.
    pub(crate) fn is_attending(&self) -> bool {
        self.attending.load(Ordering::SeqCst)
    }

    /// Whether receive buffers of it are out, each of which holds the socket.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.window.is_held()
    }

    /// Counts buffer room of `pool` that was read ahead; `false` when reading has to pause.
    pub(crate) fn hold(&self, bytes: usize, pool: &Pool) -> bool {
        self.window.hold(bytes, pool.window_bytes(self.engine.config.receive_window_bytes))
    }

    /// Whether reading is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.window.is_paused()
    }

    /// Counts buffer room as given back, without asking for attention; `true` when a pause ends.
    pub(crate) fn release_quietly(&self, bytes: usize) -> bool {
        self.window.release(bytes)
    }

    /// Queues the packet of an operation that ended.
    pub(crate) fn finish(
        &self,
        sink: &mut Sink<'_>,
        operation: Operation,
        bytes: usize,
        error: Option<Error>,
    ) {
        sink.push(Completion::finished(self.key, operation, bytes, error));
    }

    /// Queues the packet of an operation that was cancelled.
    pub(crate) fn finish_cancelled(
        &self,
        sink: &mut Sink<'_>,
        operation: Operation,
        kind: ErrorKind,
    ) {
        let bytes = operation.inner.done_bytes;
        let error = Error::new(operation.kind(), kind);
        self.finish(sink, operation, bytes, Some(error));
    }

    /// Runs `act` in the context of the calling thread.
    fn act<R>(&self, act: impl FnOnce(&mut Context<'_, '_, D>) -> R) -> R {
        let result = self.engine.in_context(act);
        self.engine.central.drop_late();
        result
    }

    /// The port closes: everything pending comes out, to be dropped outside the lock.
    pub(crate) fn abandon(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut state = self.lock();
        state.closed = true;
        match &mut state.role {
            Role::Stream(stream) => stream.abandon(&mut operations),
            Role::Listener(listener) => listener.abandon(&mut operations),
            Role::Datagram(datagrams) => datagrams.abandon(&mut operations),
        }
        operations
    }
}

impl<D: Driver> Consumer for Socket<D> {
    fn released(&self, held_bytes: usize) {
        if self.release_quietly(held_bytes) {
            let state = self.lock();
            if !state.closed {
                self.attend(&state);
            }
        }
    }
}

impl<D: Driver> BackendSource for Socket<D> {
    fn key(&self) -> usize {
        self.key
    }

    fn socket(&self) -> io::Result<SockRef<'_>> {
        Ok(SockRef::from(&self.socket))
    }

    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected> {
        self.act(|context| {
            let mut state = self.lock();
            if state.closed || self.engine.central.is_closed() {
                let error = Error::new(operation.kind(), ErrorKind::PortClosed);
                return Err(Rejected::new(error, operation));
            }
            if let Err(errno) = self.watch_at_home(&mut state) {
                return Err(Rejected::new(error_of(operation.kind(), errno), operation));
            }
            match (&state.role, operation.kind()) {
                (Role::Stream(_), OperationKind::Recv | OperationKind::RecvContinuous) => {
                    self.start_receive(&mut state, operation, context)
                }
                (Role::Stream(_), OperationKind::Send | OperationKind::Disconnect) => {
                    self.start_send(&mut state, operation, context)
                }
                (Role::Stream(_), OperationKind::Connect) => {
                    self.start_connect(&mut state, operation, context)
                }
                (Role::Listener(_), OperationKind::Accept) => {
                    self.start_accept(&mut state, operation, context)
                }
                (Role::Datagram(_), OperationKind::RecvFrom | OperationKind::SendTo) => {
                    self.start_datagram(&mut state, operation, context)
                }
                (_, kind) => {
                    Err(Rejected::new(Error::new(kind, ErrorKind::InvalidInput), operation))
                }
            }
        })
    }

    fn cancel(&self, operation: OperationId) -> bool {
        self.act(|context| {
            let mut state = self.lock();
            let found = match &mut state.role {
                Role::Stream(stream) => stream.cancel(self, operation, context.sink),
                Role::Listener(listener) => listener.cancel(self, operation, context.sink),
                Role::Datagram(datagrams) => datagrams.cancel(self, operation, context.sink),
            };
            self.stop_unwanted(&mut state, context);
            found
        })
    }

    fn cancel_all(&self) -> usize {
        self.act(|context| {
            let mut state = self.lock();
            let count = self.end_role(&mut state, ErrorKind::Cancelled, context.sink);
            self.stop_unwanted(&mut state, context);
            count
        })
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        let mut state = self.lock();
        match &mut state.role {
            Role::Stream(stream) => stream.shutdown(self, how),
            _ => {
                let outcome = self.socket.shutdown(how);
                outcome.map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    error_of(OperationKind::Shutdown, errno)
                })
            }
        }
    }

    fn close(&self) {
        self.act(|context| {
            let mut state = self.lock();
            if !state.closed {
                state.closed = true;
                match &mut state.role {
                    Role::Stream(stream) => {
                        stream.end_all(self, ErrorKind::ConnectionAborted, context.sink);
                        stream.discard();
                    }
                    Role::Listener(listener) => {
                        listener.end_all(self, ErrorKind::Cancelled, context.sink);
                    }
                    Role::Datagram(datagrams) => {
                        datagrams.end_all(self, ErrorKind::ConnectionAborted, context.sink);
                    }
                }
            }
            self.stop_reading(&mut state, context);
            let interest = std::mem::take(&mut state.interest);
            match state.home.take() {
                Some(home) => home.worker.poller.remove(self, home.token, interest),
                None => self.engine.forget_orphan(self),
            }
        });
    }
}

impl<D: Driver> Drop for Socket<D> {
    fn drop(&mut self) {
        self.engine.forget_inode(self.inode);
    }
}
