//! The limits and times of a service, with their defaults.

use std::time::Duration;

/// How many sessions, how many bytes for them, and how many messages to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of the service at once. A connection beyond it is closed at once. Default 100,000.
    pub sessions: usize,
    /// Sessions of one peer address at once: of an IPv4 address, or of a /64 network of IPv6
    /// addresses. A connection beyond it is closed at once. Default: no limit but `sessions`.
    pub sessions_per_address: usize,
    /// Bytes that wait to be sent, or are being sent, of one session. Default 1 MiB.
    pub session_queued_bytes: usize,
    /// The same of all sessions of the service together, of each what is over 4 KiB. Default
    /// 256 MiB.
    pub service_queued_bytes: usize,
    /// What happens to a send that would exceed one of the two. Default [`Overflow::Refuse`].
    pub overflow: Overflow,
    /// Messages of [`Session::notify`](super::Session::notify) that one session holds while they
    /// wait for its handler. A message beyond it is refused and given back. Default 1,024.
    pub notifications: usize,
    /// Accepts that are outstanding at the listener. Default 16.
    pub outstanding_accepts: usize,
    /// Connections that the system keeps while they wait to be accepted; its own limit
    /// (`net.core.somaxconn`) may be lower. Default 4,096.
    pub backlog: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 100_000,
            sessions_per_address: usize::MAX,
            session_queued_bytes: 1024 * 1024,
            service_queued_bytes: 256 * 1024 * 1024,
            overflow: Overflow::Refuse,
            notifications: 1024,
            outstanding_accepts: 16,
            backlog: 4096,
        }
    }
}

/// What happens when a send would exceed a limit of queued bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The send is refused; the session goes on.
    Refuse,
    /// The send is refused, and the session ends at once: its peer does not read.
    Disconnect,
}

/// When a session's send queue counts as long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaterMarks {
    /// Above this many queued bytes the handler is told. Default 256 KiB.
    pub high_bytes: usize,
    /// At this many or fewer it is told again. Default 64 KiB.
    pub low_bytes: usize,
    /// Whether the session stops receiving in between, so that a peer that does not read cannot
    /// ask for more. Default `true`.
    pub pause_receiving: bool,
}

impl Default for WaterMarks {
    fn default() -> Self {
        Self { high_bytes: 256 * 1024, low_bytes: 64 * 1024, pause_receiving: true }
    }
}

/// How long things may take. `None` means for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to the first whole frame. Default 30 s.
    pub handshake: Option<Duration>,
    /// Whether the handshake is over only when
    /// [`Session::complete_handshake`](super::Session::complete_handshake) is called, and not with
    /// the first frame. Default `false`.
    pub explicit_handshake: bool,
    /// Without anything received, since the last bytes. Default: none.
    pub idle: Option<Duration>,
    /// From the first byte of a frame to its last. Default 30 s.
    pub read: Option<Duration>,
    /// While bytes wait to be sent, without any being taken. Default 30 s.
    pub write: Option<Duration>,
    /// After so long without anything sent the handler's
    /// [`heartbeat`](super::SessionHandler::heartbeat) is called. Default: never.
    pub heartbeat: Option<Duration>,
    /// For an orderly end, to send what is queued, from the request on. Meanwhile `write` and
    /// `minimum_rate` hold as before. Then the connection is reset. Default 60 s.
    pub flush: Duration,
    /// For an orderly end, for the peer to end its side, from when all was sent. Then the connection
    /// is reset. Default 5 s.
    pub linger: Duration,
    /// For a client's connection to come to stand. Default 10 s.
    pub connect: Duration,
    /// The slow-peer rule. Default 64 bytes in a second, after 10 s.
    pub minimum_rate: Option<TransferRate>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Some(Duration::from_secs(30)),
            explicit_handshake: false,
            idle: None,
            read: Some(Duration::from_secs(30)),
            write: Some(Duration::from_secs(30)),
            heartbeat: None,
            flush: Duration::from_secs(60),
            linger: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            minimum_rate: Some(TransferRate {
                bytes_per_second: 64,
                grace: Duration::from_secs(10),
            }),
        }
    }
}

/// The least that a peer has to move while there is something to move: of a frame that it has
/// begun, and of bytes that wait to be sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRate {
    /// Bytes in a second, on average since the frame, or the queue, began.
    pub bytes_per_second: u32,
    /// For so long the rate is not looked at.
    pub grace: Duration,
}

/// How long a client waits before it connects again.
///
/// The wait doubles with each failure, from `first` to `longest`, and is cut by a random part of up
/// to `jitter` of it, so that many clients that lost one server do not come back at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// After the first failure, or the end of a session. Default 100 ms.
    pub first: Duration,
    /// At most. Default 30 s.
    pub longest: Duration,
    /// The random part, from 0 to 1. Default 0.5.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(30), jitter: 0.5 }
    }
}
