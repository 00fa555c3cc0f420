//! What goes wrong in a world, and how often.

use super::random::Random;

macro_rules! faults {
    ($($(#[doc = $text:literal])+ $name:ident: $most:literal,)+) => {
        /// How often each fault strikes, as a probability (0 to 1) wherever it could.
        ///
        /// ```
        /// use proactor::sim::Faults;
        /// let faults = Faults { reset: 0.001, ..Faults::NONE };
        /// assert_eq!(faults.short_read, 0.0);
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Faults {
            $($(#[doc = $text])+ pub $name: f64,)+
        }

        impl Faults {
            /// No fault: reads and writes are whole, nothing is refused, time flows evenly.
            pub const NONE: Self = Self { $($name: 0.0,)+ };
            /// The names of all faults.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];

            /// A mixture that `random` chooses: about half of the faults are on.
            pub fn mixture(random: &mut Random) -> Self {
                Self {
                    $($name: if random.chance(0.5) {
                        $most * random.between(1, 100) as f64 / 100.0
                    } else {
                        0.0
                    },)+
                }
            }

            /// The probability of the fault of this name, to change it; `None` for another name.
            pub fn by_name(&mut self, name: &str) -> Option<&mut f64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)+
                    _ => None,
                }
            }
        }
    };
}

faults! {
    /// A read gives fewer bytes than there are.
    short_read: 0.8,
    /// A write takes fewer bytes than there is room for.
    short_write: 0.8,
    /// A connection is reset, before a transfer of bytes or behind any byte of it.
    reset: 0.005,
    /// A connect is refused though somebody listens.
    refused: 0.2,
    /// A connect is never answered.
    connect_timeout: 0.1,
    /// A connection in the backlog is gone before it is accepted.
    aborted_in_backlog: 0.1,
    /// The process has no descriptor left (`EMFILE`): an accept or a new socket fails.
    no_descriptor: 0.1,
    /// The system's table of files is full (`ENFILE`): for a while each accept and each new socket
    /// fails.
    file_table_full: 0.02,
    /// No memory is left (`ENOMEM`): a receive or send fails when it is under way.
    no_memory: 0.005,
    /// No buffer space, or no room in the queue of submissions (`ENOBUFS`): an operation on a socket
    /// is refused by the call that starts it.
    no_buffer_space: 0.003,
    /// The pool has no receive buffer at the moment.
    pool_exhausted: 0.2,
    /// A cancel comes too late, or later than asked for.
    late_cancel: 0.7,
    /// A packet, a datagram or an operation is held back for long, so that others overtake it.
    delay: 0.1,
    /// The world looks at a source again though nothing has happened.
    spurious_wake: 0.2,
    /// A released thread does not run for long.
    stalled_worker: 0.02,
    /// The clock jumps ahead by seconds, as after a machine's sleep.
    clock_jump: 0.0005,
    /// A datagram is lost.
    lost_datagram: 0.1,
    /// A datagram comes twice.
    doubled_datagram: 0.1,
    /// A file operation fails.
    file_error: 0.05,
    /// In a world that may interrupt calls: another thread runs before the call has returned.
    interrupted_call: 0.3,
    /// In such a world: another thread runs before a lock of the service layer is taken.
    preempted: 0.1,
}
