//! One connection, from its first callback to its last.
//!
//! | | |
//! |---|---|
//! | `mod` | the handle that programs hold, and what all files here share |
//! | `mailbox` | what happened, put in order for one thread at a time |
//! | `core` | the part that callbacks run on |
//! | `run` | the thread that has the core: callbacks in order, and the end |
//! | `receive` | bytes into frames |
//! | `filtered` | a filter, such as TLS, in between |
//! | `send`, `outgoing` | frames into bytes: the queue, one gathered send at a time |
//! | `times` | timeouts, heartbeats, the slow-peer rule |

mod core;
mod filtered;
mod mailbox;
#[cfg(all(test, proactor_model, target_os = "linux"))]
mod models;
mod outgoing;
mod receive;
mod run;
mod send;
mod times;

use std::any::Any;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use self::filtered::Filtered;
use self::mailbox::{Ending, Mailbox, Received, Signals};
use self::outgoing::Outgoing;
use self::times::Times;
use super::error::{DisconnectReason, NotifyError, SendError};
use super::filter::{Filter, FilterError};
use super::groups::Member;
use super::handle::ServiceHandle;
use super::runtime::{Key, Source};
use super::shared::ServiceShared;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, lock};
use crate::{Completion, OperationKind, PoolBuffer, SendBuffer, StreamSocket};

/// Names a session in its process: no two have the same, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

impl SessionId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What one session has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionCounters {
    /// Bytes received, heads of frames included.
    pub received_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Bytes that the system has taken to send.
    pub sent_bytes: u64,
    /// Frames queued to be sent.
    pub sent_frames: u64,
    /// Bytes that wait to be sent or are being sent.
    pub queued_bytes: usize,
}

/// A handle of a session. Clones are handles of the same one.
///
/// Any thread may use it at any time, inside callbacks and outside. It keeps neither the connection
/// open nor anything in flight alive: on a session that has ended sends are refused and everything
/// else does nothing.
#[derive(Clone)]
pub struct Session {
    pub(super) shared: Arc<SessionShared>,
}

/// What [`Session::notify`] takes, without its type.
type Message = Box<dyn Any + Send>;

/// Nothing is received for a while.
const PAUSED: u8 = 1;
/// Nothing is received until the queue of sends has fallen to its low mark.
const OVER_MARK: u8 = 1 << 1;
/// An end was asked for.
const ENDING: u8 = 1 << 2;
/// The handshake is over.
const SHAKEN: u8 = 1 << 3;
/// The peer is to be told the end of what is sent, and was not yet.
const ENDS_SENDING: u8 = 1 << 4;

pub(super) struct SessionShared {
    id: SessionId,
    key: Key,
    peer: Option<SocketAddr>,
    service: Arc<ServiceShared>,
    flags: AtomicU8,
    mailbox: Mutex<Mailbox>,
    outgoing: Mutex<Outgoing>,
    times: Times,
    /// What lies between the bytes and the frames, where the service has something there.
    filter: Option<Box<Mutex<Filtered>>>,
    received_bytes: AtomicU64,
    received_frames: AtomicU64,
    /// What most sessions have only at their end.
    late: OnceLock<Box<Late>>,
}

#[derive(Default)]
struct Late {
    reason: OnceLock<DisconnectReason>,
    user_data: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Session {
    /// Queues a frame with this payload, which is copied. It goes out at once where nothing is in
    /// flight, else behind what is, together with what else was sent meanwhile. Never blocks.
    ///
    /// # Errors
    /// [`Closed`](SendError::Closed), [`SessionFull`](SendError::SessionFull),
    /// [`ServiceFull`](SendError::ServiceFull), [`Frame`](SendError::Frame). Nothing was queued.
    pub fn send(&self, payload: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.shared.send(payload.as_ref())
    }

    /// The same with a payload that is shared by reference and not copied: for large ones, and for
    /// those that go to many sessions.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_shared(&self, payload: impl Into<Bytes>) -> Result<(), SendError> {
        self.shared.send_whole(SendBuffer::Shared(payload.into()))
    }

    /// The same with a receive buffer as the payload, neither copied nor shared: what
    /// [`received_buffer`](super::SessionHandler::received_buffer) was given.
    ///
    /// # Errors
    /// As [`send`](Self::send). The buffer goes back to its pool.
    pub fn send_buffer(&self, payload: PoolBuffer) -> Result<(), SendError> {
        self.shared.send_whole(SendBuffer::Pool(payload))
    }

    /// Queues bytes that are a frame, or several, already, as
    /// [`ServiceHandle::encode`](super::ServiceHandle::encode) makes them: the cheapest way to send
    /// the same to many sessions.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_encoded(&self, frames: Bytes) -> Result<(), SendError> {
        self.shared.send_encoded(frames)
    }

    /// Ends the session in order: further sends are refused, nothing more is received, what is
    /// queued is sent, within [`Timeouts::flush`](super::Timeouts::flush), the peer is told the end
    /// and has the time of [`Timeouts::linger`](super::Timeouts::linger) to end its side. The first reason to
    /// end is the one that `disconnected` is told.
    pub fn disconnect(&self) {
        self.shared.request_end(DisconnectReason::Local, Ending::Orderly);
    }

    /// Ends what this side sends, and nothing else: further sends are refused, what is queued is
    /// sent, then the peer is told the end of the stream. Receiving goes on, until the peer ends
    /// its side or the session is disconnected. Where the peer has ended its side already,
    /// [`disconnect`](Self::disconnect) is what ends the session. For protocols in which the end of a request is the
    /// end of the stream, and for relays that pass it on.
    pub fn end_sending(&self) {
        self.shared.request_end_of_sending();
    }

    /// Ends the session at once: what is queued is dropped, and the connection is reset.
    pub fn abort(&self) {
        self.shared.request_end(DisconnectReason::Aborted, Ending::Abrupt);
    }

    /// Stops handing over frames, after the one that is being handled. What the port has received
    /// stays where it is, the connection is read no further than its receive window, and then TCP
    /// holds the peer back.
    pub fn pause_receiving(&self) {
        self.shared.flags.fetch_or(PAUSED, Ordering::SeqCst);
    }

    /// Goes on handing over frames.
    pub fn resume_receiving(&self) {
        if self.shared.flags.fetch_and(!PAUSED, Ordering::SeqCst) & PAUSED != 0 {
            self.shared.signal(Signals::LOOK);
        }
    }

    /// Ends the time of [`Timeouts::handshake`](super::Timeouts::handshake).
    pub fn complete_handshake(&self) {
        self.shared.flags.fetch_or(SHAKEN, Ordering::Relaxed);
    }

    /// Calls [`SessionHandler::notified`](super::SessionHandler::notified) with `message`, among
    /// the session's other callbacks. Never blocks. A message that still waits when the runtime
    /// ends under the session is dropped.
    ///
    /// # Errors
    /// [`Closed`](NotifyError::Closed): the session has ended. [`Full`](NotifyError::Full):
    /// [`Limits::notifications`](super::Limits::notifications) messages wait already. Both give
    /// the message back.
    pub fn notify<M: Any + Send>(&self, message: M) -> Result<(), NotifyError<M>> {
        self.shared.notify(Box::new(message)).map_err(|refused| {
            let message = |boxed: Message| *boxed.downcast::<M>().expect("it is what was given");
            match refused {
                NotifyError::Closed(boxed) => NotifyError::Closed(message(boxed)),
                NotifyError::Full(boxed) => NotifyError::Full(message(boxed)),
            }
        })
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.shared.id
    }

    /// The address of the peer; `None` for a Unix socket.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.shared.peer
    }

    /// The service that the session belongs to.
    pub fn service(&self) -> ServiceHandle {
        ServiceHandle::new(Arc::clone(&self.shared.service))
    }

    /// Whether an end was asked for or has come. Sends are refused from then on.
    pub fn is_ending(&self) -> bool {
        self.shared.has(ENDING)
    }

    /// Why the session ends or has ended.
    pub fn reason(&self) -> Option<DisconnectReason> {
        self.shared.reason().cloned()
    }

    /// Whether more bytes wait to be sent than the high water mark, and not fewer than the low one
    /// since. Where this says `true`, `low_water` comes later, unless the session ends.
    pub fn is_over_mark(&self) -> bool {
        self.shared.is_over_mark()
    }

    /// What the filter of the service knows of this connection, if it is of type `T`: for TLS a
    /// `tls::TlsInformation`.
    pub fn filter_information<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let information = lock(self.shared.filter.as_ref()?).filter().information()?;
        information.downcast().ok()
    }

    /// What it has moved so far.
    pub fn counters(&self) -> SessionCounters {
        self.shared.counters()
    }

    /// Puts a value of the program's with the session, for all its handles to see; once. `Err`
    /// gives it back where there is one already.
    ///
    /// # Errors
    /// The value.
    pub fn set_user_data<T: Any + Send + Sync>(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.shared.late().user_data.get_or_init(|| {
            let value = value.take().expect("called once");
            Box::new(value)
        });
        value.map_or(Ok(()), Err)
    }

    /// The value that was put with the session, if it is of type `T`.
    pub fn user_data<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.shared.late.get()?.user_data.get()?.downcast_ref()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("id", &self.shared.id.0)
            .field("peer", &self.shared.peer)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        self.shared.id == other.shared.id
    }
}

impl Eq for Session {}

/// By its id, so that a set of sessions can be asked for an id.
impl Hash for Session {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shared.id.hash(state);
    }
}

/// By its id: in the order in which they began.
impl Ord for Session {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.shared.id.cmp(&other.shared.id)
    }
}

impl PartialOrd for Session {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Borrow<SessionId> for Session {
    fn borrow(&self) -> &SessionId {
        &self.shared.id
    }
}

/// Sessions of one service share the frame that a broadcast makes of its payload.
impl Member for Session {
    fn member_id(&self) -> u64 {
        self.shared.id.0
    }

    fn encoding(&self) -> usize {
        Arc::as_ptr(&self.shared.service) as usize
    }

    fn encode(&self, payload: &Bytes) -> Option<Bytes> {
        self.service().encode(payload).ok()
    }

    fn send_encoded(&self, encoded: &Bytes) -> bool {
        self.shared.send_encoded(encoded.clone()).is_ok()
    }
}

impl SessionShared {
    pub(super) fn new(
        id: SessionId,
        key: Key,
        peer: Option<SocketAddr>,
        service: Arc<ServiceShared>,
        stream: StreamSocket,
        filter: Option<Box<dyn Filter>>,
    ) -> Arc<Self> {
        let now_ms = service.runtime.now_ms();
        Arc::new(Self {
            id,
            key,
            peer,
            service,
            flags: AtomicU8::new(0),
            mailbox: Mutex::default(),
            outgoing: Mutex::new(Outgoing::new(stream)),
            times: Times::new(now_ms),
            filter: filter.map(|filter| Box::new(Mutex::new(Filtered::new(filter)))),
            received_bytes: AtomicU64::new(0),
            received_frames: AtomicU64::new(0),
            late: OnceLock::new(),
        })
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn late(&self) -> &Late {
        self.late.get_or_init(Box::default)
    }

    fn reason(&self) -> Option<&DisconnectReason> {
        self.late.get()?.reason.get()
    }

    /// Sets why the session ends; only the first reason is kept.
    fn set_reason(&self, reason: DisconnectReason) {
        let _ = self.late().reason.set(reason);
    }

    fn has(&self, flags: u8) -> bool {
        self.flags.load(Ordering::SeqCst) & flags != 0
    }

    pub(super) fn counters(&self) -> SessionCounters {
        let outgoing = lock(&self.outgoing);
        SessionCounters {
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            received_frames: self.received_frames.load(Ordering::Relaxed),
            sent_bytes: outgoing.sent_bytes,
            sent_frames: outgoing.sent_frames,
            queued_bytes: outgoing.queued_bytes(),
        }
    }

    pub(super) fn is_over_mark(&self) -> bool {
        lock(&self.outgoing).is_over_mark()
    }

    /// Has a worker look at what was noted, unless one does already.
    fn signal(&self, signals: Signals) {
        let schedule = lock(&self.mailbox).signal(signals);
        if schedule {
            self.service.runtime.post(self.key);
        }
    }

    pub(super) fn drain(&self) {
        self.signal(Signals::DRAINING);
    }

    fn notify(&self, message: Message) -> Result<(), NotifyError<Message>> {
        let schedule = {
            let mut mailbox = lock(&self.mailbox);
            if mailbox.over {
                return Err(NotifyError::Closed(message));
            }
            if let Err(message) = mailbox.put_message(message, self.service.limits.notifications) {
                drop(mailbox);
                self.service.counters.refused_notifications.fetch_add(1, Ordering::Relaxed);
                return Err(NotifyError::Full(message));
            }
            mailbox.signal(Signals::LOOK)
        };
        if schedule {
            self.service.runtime.post(self.key);
        }
        Ok(())
    }

    /// Asks for the end of the session. The first reason stays; a more abrupt end overrides.
    fn request_end(&self, reason: DisconnectReason, ending: Ending) {
        self.set_reason(reason);
        self.flags.fetch_or(ENDING, Ordering::SeqCst);
        lock(&self.outgoing).refusing = true;
        let schedule = {
            let mut mailbox = lock(&self.mailbox);
            if mailbox.over || mailbox.ending >= Some(ending) {
                return;
            }
            mailbox.ending = Some(ending);
            mailbox.signal(Signals::LOOK)
        };
        if schedule {
            self.service.runtime.post(self.key);
        }
    }

    fn request_end_of_sending(&self) {
        {
            let mut outgoing = lock(&self.outgoing);
            if outgoing.refusing {
                // It has ended it before, or all of it ends.
                return;
            }
            outgoing.refusing = true;
            self.flags.fetch_or(ENDS_SENDING, Ordering::SeqCst);
        }
        self.signal(Signals::LOOK);
    }

    /// Its filter could not be made.
    pub(super) fn filter_failed(&self, error: FilterError) {
        self.request_end(DisconnectReason::Filter(error), Ending::Abrupt);
    }

    pub(super) fn stop(&self, orderly: bool) {
        let ending = if orderly { Ending::Orderly } else { Ending::Abrupt };
        self.request_end(DisconnectReason::ServiceStopped, ending);
    }
}

impl Source for SessionShared {
    fn completed(self: Arc<Self>, mut completion: Completion) {
        match completion.kind() {
            OperationKind::RecvContinuous => {
                let sequence = completion.sequence();
                let received = match completion.take_chunk() {
                    Some(chunk) => Received::Chunk(chunk),
                    None => Received::End(completion.result().map(drop)),
                };
                self.received(sequence, received);
            }
            OperationKind::Send => self.send_completed(completion),
            OperationKind::Post => self.posted(),
            kind => debug_assert!(false, "a session has no operation of kind {kind:?}"),
        }
    }

    fn abandoned(self: Arc<Self>) {
        self.finish_without_port();
    }
}

/// Milliseconds of a time limit, rounded up, and one more because what it counts from was rounded
/// down: so none ends early.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000) + 1).unwrap_or(u64::MAX / 4)
}
