//! A place for a connection in an engine, and how far that connection is.

use super::args::Plan;
use super::connection::Connection;
use super::stream::Stream;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is none.
    Vacant,
    /// A connect is under way.
    Connecting,
    /// Messages are exchanged.
    Open,
    /// Nothing more will be sent; the server's end of stream is awaited.
    Closing,
}

/// A place for a connection. With churn, connections follow one another in it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) stream: Option<Stream>,
    pub(crate) connection: Connection,
    /// When the phase began or, if later, bytes last moved.
    pub(crate) progress_ns: u64,
    /// A write found no room, so the poll will say when there is some.
    pub(crate) is_write_blocked: bool,
    /// The poll says so only if asked to.
    pub(crate) announces_room: bool,
    /// Stands in the queue of connections with room for a scheduled message.
    pub(crate) is_ready: bool,
}

impl Slot {
    /// Room for a connection of the plan.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            phase: Phase::Vacant,
            stream: None,
            connection: Connection::new(plan.message_bytes, plan.depth, plan.stall_kind),
            progress_ns: 0,
            is_write_blocked: false,
            announces_room: false,
            is_ready: false,
        }
    }
}
