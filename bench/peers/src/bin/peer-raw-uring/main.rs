//! Echo server as a bare io_uring loop, at its best.
//!
//! - DEFER_TASKRUN and SINGLE_ISSUER: completions are produced only when this
//!   thread asks for them.
//! - One multishot accept and one multishot receive per connection, the
//!   latter from a ring of provided buffers, so that a message costs one
//!   submission: its send.
//! - The reply is sent out of the buffer it was received into; the buffer
//!   goes back to the ring when the send has completed. Sends of a connection
//!   go one after the other, which keeps their order; MSG_WAITALL makes the
//!   kernel finish short ones.
//! - Accepted sockets are registered ("direct") descriptors, and the ring's
//!   own descriptor is registered too: no look-up of either per call.
//! - All submissions of a turn go with the one call that waits for more.
//!
//! Not here, because an echo load never needs it: a limit on what one slow
//! reader may hold of the buffers. A client that never reads stops everybody.
//!
//! With `--workers N` there are N such loops, each with its own listening
//! socket on the port.

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use bench_peers::{Handler, Options, raise_descriptor_limit, serve_per_worker};
use buffers::{BufferRing, Chunk};
use io_uring::squeue::Entry;
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, opcode, types};

const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 16_384;
const BUFFER_GROUP: u16 = 0;
/// Registered descriptors: as many as the descriptor limit allows, at most.
const SLOTS: u64 = 16_384;

/// What a completion belongs to: the operation in the upper half of the user
/// data, the connection's slot in the lower.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u32)]
enum Kind {
    Accept = 0,
    Receive = 1,
    Send = 2,
    /// Shutdown and close, whose results change nothing.
    Ignored = 3,
}

fn user_data(kind: Kind, slot: u32) -> u64 {
    u64::from(kind as u32) << 32 | u64::from(slot)
}

fn kind_and_slot(user_data: u64) -> (Kind, usize) {
    let kind = match user_data >> 32 {
        0 => Kind::Accept,
        1 => Kind::Receive,
        2 => Kind::Send,
        _ => Kind::Ignored,
    };
    (kind, user_data as u32 as usize)
}

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let per_worker = options.clone();
    serve_per_worker(&options, move |listener| {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let (mut submitter, submissions, completions) = ring.split();
        submitter.register_ring_fd()?;
        submitter.register_files_sparse(SLOTS.min(raise_descriptor_limit()) as u32)?;
        let buffers =
            BufferRing::new(&submitter, BUFFER_GROUP, per_worker.buffers, per_worker.buffer_bytes)?;
        Server {
            submitter,
            submissions,
            buffers,
            handler: per_worker.handler(),
            connections: Vec::new(),
            starved: Vec::new(),
            listener,
        }
        .run(completions)
    })
}

/// A connection, in the slot of its registered descriptor.
#[derive(Default)]
struct Connection {
    /// The chunk whose send is in flight.
    sending: Option<Chunk>,
    /// Chunks received behind it.
    queue: VecDeque<Chunk>,
    /// No receive is armed and none is to be: end of stream, or an error.
    receive_ended: bool,
    /// A send failed; what was queued is gone.
    broken: bool,
}

struct Server<'ring> {
    submitter: Submitter<'ring>,
    submissions: SubmissionQueue<'ring>,
    buffers: BufferRing,
    handler: Handler,
    connections: Vec<Connection>,
    /// Slots whose receive found no buffer; armed again when one is back.
    starved: Vec<u32>,
    listener: TcpListener,
}

impl Server<'_> {
    fn run(mut self, mut completions: CompletionQueue<'_>) -> io::Result<()> {
        self.accept();
        loop {
            self.submissions.sync();
            match self.submitter.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
            completions.sync();
            for completion in &mut completions {
                self.complete(&completion);
            }
            completions.sync();
            if self.buffers.publish() || self.buffers.all_home() {
                while let Some(slot) = self.starved.pop() {
                    self.receive(slot);
                }
            }
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry) {
        let (kind, slot) = kind_and_slot(completion.user_data());
        let (result, flags) = (completion.result(), completion.flags());
        match kind {
            Kind::Receive => self.received(slot, result, flags),
            Kind::Send => self.sent(slot, result),
            Kind::Accept => self.accepted(result, flags),
            Kind::Ignored => {}
        }
    }

    fn accepted(&mut self, result: i32, flags: u32) {
        if let Ok(slot) = u32::try_from(result) {
            let slots = slot as usize + 1;
            if self.connections.len() < slots {
                self.connections.resize_with(slots, Connection::default);
            }
            self.connections[slot as usize] = Connection::default();
            self.receive(slot);
        } else if result == -libc::ENFILE || result == -libc::EMFILE {
            // No free slot: give the connections some time to end.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if !cqueue::more(flags) {
            self.accept();
        }
    }

    fn received(&mut self, slot: usize, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        if result > 0 {
            let buffer = cqueue::buffer_select(flags).expect("data comes in a provided buffer");
            let chunk = self.buffers.take(buffer, result as u32);
            self.handler.handle(self.buffers.bytes(&chunk));
            self.reply(slot, chunk);
            if !more {
                self.receive(slot as u32);
            }
        } else if result == -libc::ENOBUFS {
            self.starved.push(slot as u32);
        } else if !more {
            self.connections[slot].receive_ended = true;
            self.close_if_done(slot);
        }
    }

    fn reply(&mut self, slot: usize, chunk: Chunk) {
        let connection = &mut self.connections[slot];
        if connection.broken {
            self.buffers.give_back(chunk);
        } else if connection.sending.is_some() {
            connection.queue.push_back(chunk);
        } else {
            self.send(slot, chunk);
        }
    }

    fn sent(&mut self, slot: usize, result: i32) {
        let connection = &mut self.connections[slot];
        let mut chunk = connection.sending.take().expect("a send was in flight");
        if result < 0 {
            connection.broken = true;
            self.buffers.give_back(chunk);
            while let Some(queued) = self.connections[slot].queue.pop_front() {
                self.buffers.give_back(queued);
            }
            if !self.connections[slot].receive_ended {
                self.shutdown(slot as u32); // ends the armed receive
            }
        } else {
            chunk.advance(result as u32);
            if !chunk.is_empty() {
                return self.send(slot, chunk);
            }
            self.buffers.give_back(chunk);
            if let Some(next) = self.connections[slot].queue.pop_front() {
                return self.send(slot, next);
            }
        }
        self.close_if_done(slot);
    }

    /// Closes a connection once no operation names its slot any more.
    fn close_if_done(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        if connection.receive_ended && connection.sending.is_none() {
            let close = opcode::Close::new(types::Fixed(slot as u32)).build();
            self.push(close.user_data(user_data(Kind::Ignored, slot as u32)));
        }
    }

    fn accept(&mut self) {
        let accept = opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd()))
            .allocate_file_index(true)
            .build();
        self.push(accept.user_data(user_data(Kind::Accept, 0)));
    }

    fn receive(&mut self, slot: u32) {
        let receive = opcode::RecvMulti::new(types::Fixed(slot), BUFFER_GROUP).build();
        self.push(receive.user_data(user_data(Kind::Receive, slot)));
    }

    fn send(&mut self, slot: usize, chunk: Chunk) {
        let bytes = self.buffers.bytes(&chunk);
        let send = opcode::Send::new(types::Fixed(slot as u32), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.connections[slot].sending = Some(chunk);
        self.push(send.user_data(user_data(Kind::Send, slot as u32)));
    }

    fn shutdown(&mut self, slot: u32) {
        let shutdown = opcode::Shutdown::new(types::Fixed(slot), libc::SHUT_RDWR).build();
        self.push(shutdown.user_data(user_data(Kind::Ignored, slot)));
    }

    /// Queues one submission; a full queue is handed to the kernel first.
    fn push(&mut self, entry: Entry) {
        // SAFETY: what the entry points to is a provided buffer, which stays
        // mapped for the process's life and is given back to the kernel only
        // after the send that names it has completed.
        while unsafe { self.submissions.push(&entry) }.is_err() {
            self.submissions.sync();
            if let Err(error) = self.submitter.submit() {
                let code = error.raw_os_error();
                assert_eq!(code, Some(libc::EINTR), "submission failed: {error}");
            }
            self.submissions.sync();
        }
    }
}
