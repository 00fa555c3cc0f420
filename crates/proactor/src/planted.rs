//! Bugs that are built in on purpose, to see the simulated world find them (`docs/testing.md`).
//!
//! Compiled only with `--cfg proactor_planted_bugs`, and even then off until one is switched on.

use std::sync::atomic::{AtomicUsize, Ordering};

macro_rules! bugs {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $text])+ $name,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)+];
        }
    };
}

bugs! {
    /// A post does not release a waiting thread.
    LostWake,
    /// A finished send is reported a second time.
    DoubleCompletion,
    /// The buffer of a send is used for something else after its first part went out.
    FreedEarlyBuffer,
    /// A send that went out in part is reported as whole.
    MissedPartialSend,
    /// A cancel takes a receive out and queues no packet.
    LostCancel,
    /// A cancel of an accept drops the connection that was there for it.
    LostAcceptedOnCancel,
    /// One thread more than the limit is released.
    LimitOffByOne,
    /// A post goes to the front of a queue that holds packets.
    PostsOutOfOrder,
    /// The thread that has waited longest is released.
    OldestReleasedFirst,
    /// A reset is reported as an orderly end.
    ResetAsEnd,
    /// The end of the stream overtakes the last bytes.
    EndBeforeBytes,
    /// A dequeue times out early.
    ShortTimeout,
    /// A thread that waits keeps its slot.
    SlotLeak,
    /// Reading that paused at the window does not go on.
    PauseNotEnded,
    /// Closing a source forgets its pending receives.
    LostOnClose,
    /// Of several receives the newest is served first.
    ReceivesReversed,
    /// A listener's backlog holds one connection too many.
    BacklogOffByOne,
    /// A cancel ends the oldest operation instead of the one that was named.
    CancelHitsNeighbour,
    /// A file write beyond the end is placed at the end.
    WriteAtWrongOffset,
    /// A receive takes more bytes than its buffer's share and loses them.
    LostBytes,
    /// Room that a reader makes does not wake the sender.
    LostRoom,
    /// Timers expire a millisecond early.
    TimerEarly,
    /// A cancelled timer leaves the heap in disorder.
    TimerHeapDisorder,
    /// Of the timers that are due only the first expires.
    TimerOnlyFirst,
    /// A cancelled timer is not taken out.
    TimerLeak,
    /// A receive buffer is given back twice.
    PoolDoubleFree,
    /// A receive buffer that was parsed in part is never given back.
    PoolLeak,
    /// Who reads is not told that a buffer came back.
    ConsumerNotTold,
    /// An operation that is started again keeps its id.
    OperationIdReused,
    /// An operation that is started again keeps its count of bytes done.
    DoneBytesKept,
    /// The server takes a frame one byte short.
    FrameLengthOffByOne,
    /// The server forgets a header that comes in two parts.
    FrameHeaderSplit,
    /// The server reads the second frame of a buffer from the buffer's start.
    FrameSecondFromStart,
    /// A broadcast leaves the last session out.
    BroadcastSkipsLast,
    /// Traffic does not put the idle time limit off.
    IdleNotPutOff,
    /// The drain closes sessions whose sends are still queued.
    DrainLosesQueued,
    /// Service: who runs a session does not look once more at what came meanwhile.
    SessionNotLookedAt,
    /// Service: a session that timed out is told its end twice.
    DisconnectedTwice,
    /// Service: a callback comes after `disconnected`.
    CallbackAfterEnd,
    /// Service: the last buffer of a gathered send is left out.
    GatheredForgotten,
    /// Service: a session's timer that was due is not set again.
    TimesNotRearmed,
    /// Service: the timer of a session that is over stays.
    SessionTimerLeak,
    /// Service: sessions are disconnected before the time to drain is over.
    DrainCutShort,
    /// Service: the handler is not told that the queue has fallen to its low mark.
    LowWaterLost,
    /// Service: one session more than the limit is admitted.
    SessionLimitOffByOne,
    /// Service: who disconnects stays in its groups.
    GroupNotLeft,
    /// Service: what is left of a buffer when receiving pauses is lost.
    LeftoverLost,
    /// Service: a buffer that was received before its turn is handed over at once.
    EarlyChunkAtOnce,
    /// Service: a send that exceeds the session's limit is taken where there was room before it.
    QueueLimitIgnored,
    /// Service: what a queue that is dropped held stays counted against the service.
    DiscardNotCounted,
    /// Service: a connection whose session has ended is not made again.
    NotConnectedAgain,
    /// Service: an accept that failed is not tried again.
    AcceptNotTriedAgain,
}

static ON: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Switches one bug on for the whole process, or all off.
pub fn plant(bug: Option<Bug>) {
    ON.store(bug.map_or(usize::MAX, |bug| bug as usize), Ordering::SeqCst);
}

pub(crate) fn is_on(bug: Bug) -> bool {
    ON.load(Ordering::Relaxed) == bug as usize
}
