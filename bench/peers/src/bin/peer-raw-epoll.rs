//! Echo server as a bare epoll loop, at its best.
//!
//! Edge-triggered with one `epoll_ctl` per connection for its whole life:
//! write interest is in the set from the start, because an edge for it comes
//! only after a send has found no room. A message costs one `recv` and one
//! `send`, directly after it; a short receive is known to have emptied the
//! socket, so no second `recv` asks. One buffer serves all connections; bytes
//! are kept per connection only while its peer does not read.
//!
//! With `--workers N` there are N such loops, each with its own listening
//! socket on the port.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use bench_peers::{Handler, Options, pause_for, serve_per_worker};

/// Events taken per wait.
const EVENTS: usize = 512;
const INTEREST: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let per_worker = options.clone();
    serve_per_worker(&options, move |listener| Server::new(listener, &per_worker)?.run())
}

/// Bytes that a connection's peer had no room for.
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

struct Server {
    epoll: RawFd,
    listener: TcpListener,
    handler: Handler,
    /// The one receive buffer.
    buffer: Vec<u8>,
    /// By descriptor; `Some` only while a connection waits for room.
    unsent: Vec<Option<Box<Unsent>>>,
}

/// Whether a connection goes on after an event.
#[derive(PartialEq)]
enum Next {
    Continue,
    Close,
}

impl Server {
    fn new(listener: TcpListener, options: &Options) -> io::Result<Self> {
        // SAFETY: no pointers.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let server = Self {
            epoll,
            handler: options.handler(),
            buffer: vec![0; options.buffer_bytes],
            unsent: Vec::new(),
            listener,
        };
        // Level-triggered: one accept that fails is tried again.
        server.add(server.listener.as_raw_fd(), libc::EPOLLIN as u32)?;
        Ok(server)
    }

    fn add(&self, fd: RawFd, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: fd as u64 };
        // SAFETY: `event` is valid for the call, which copies it.
        check(unsafe { libc::epoll_ctl(self.epoll, libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let listener = self.listener.as_raw_fd();
        loop {
            // SAFETY: `events` has room for EVENTS entries.
            let count =
                unsafe { libc::epoll_wait(self.epoll, events.as_mut_ptr(), EVENTS as i32, -1) };
            let count = match check(count) {
                Ok(count) => count as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // A descriptor occurs once per batch, so one that is closed here
            // and taken again by an accept has no old event in the batch.
            for event in &events[..count] {
                let (fd, flags) = (event.u64 as RawFd, event.events);
                if fd == listener {
                    self.accept_all();
                } else if self.serve(fd, flags) == Next::Close {
                    self.close(fd);
                }
            }
        }
    }

    fn accept_all(&mut self) {
        loop {
            // SAFETY: null address pointers are allowed.
            let accepted = check(unsafe {
                libc::accept4(
                    self.listener.as_raw_fd(),
                    ptr::null_mut(),
                    ptr::null_mut(),
                    libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                )
            });
            match accepted {
                Ok(fd) => {
                    let slots = fd as usize + 1;
                    if self.unsent.len() < slots {
                        self.unsent.resize_with(slots, || None);
                    }
                    // Data that came before this call is reported as an edge.
                    if self.add(fd, INTEREST).is_err() {
                        self.close(fd);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(pause) = pause_for(&error) {
                        std::thread::sleep(pause);
                        return;
                    }
                }
            }
        }
    }

    fn close(&mut self, fd: RawFd) {
        self.unsent[fd as usize] = None;
        // SAFETY: `fd` is a connection that nothing else owns.
        unsafe { libc::close(fd) };
    }

    fn serve(&mut self, fd: RawFd, flags: u32) -> Next {
        if self.unsent[fd as usize].is_some() {
            match self.flush(fd) {
                Ok(true) => return self.echo(fd, true), // edges were ignored meanwhile
                Ok(false) => return Next::Continue,
                Err(_) => return Next::Close,
            }
        }
        if flags & (libc::EPOLLIN as u32 | ENDED) == 0 {
            return Next::Continue; // room to send, and nothing to send
        }
        self.echo(fd, flags & ENDED != 0)
    }

    /// Receives and sends back until the socket is empty. With `to_the_end` a
    /// short receive is not trusted: the end of the stream is behind it.
    fn echo(&mut self, fd: RawFd, to_the_end: bool) -> Next {
        loop {
            // SAFETY: the buffer is valid for its length.
            let received =
                unsafe { libc::recv(fd, self.buffer.as_mut_ptr().cast(), self.buffer.len(), 0) };
            let length = match check_size(received) {
                Ok(0) => return Next::Close,
                Ok(length) => length,
                Err(error) => return next_after(&error),
            };
            self.handler.handle(&self.buffer[..length]);
            match send(fd, &self.buffer[..length]) {
                Ok(sent) if sent == length => {}
                Ok(sent) => {
                    let bytes = self.buffer[sent..length].to_vec();
                    self.unsent[fd as usize] = Some(Box::new(Unsent { bytes, sent: 0 }));
                    return Next::Continue; // no more is read until it is gone
                }
                Err(_) => return Next::Close,
            }
            if length < self.buffer.len() && !to_the_end {
                return Next::Continue;
            }
        }
    }

    /// Sends what a connection still owes; true when all is gone.
    fn flush(&mut self, fd: RawFd) -> io::Result<bool> {
        let slot = &mut self.unsent[fd as usize];
        let Some(unsent) = slot else { return Ok(true) };
        unsent.sent += send(fd, &unsent.bytes[unsent.sent..])?;
        let done = unsent.sent == unsent.bytes.len();
        if done {
            *slot = None;
        }
        Ok(done)
    }
}

/// Sends until all is gone or there is no room, and returns how much went.
fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = &bytes[sent..];
        // SAFETY: `rest` is valid for its length.
        let result =
            unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
        match check_size(result) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

fn next_after(error: &io::Error) -> Next {
    match error.kind() {
        io::ErrorKind::WouldBlock => Next::Continue,
        _ => Next::Close,
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
