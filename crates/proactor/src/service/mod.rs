//! The server layer: services, listeners and sessions, as they are built on a completion port every
//! time.
//!
//! A *service* has sessions: a [`ServerService`] one for each connection that it accepts. The
//! program says what a [`SessionHandler`] does; the service cuts the stream into frames
//! ([`framing`]), queues what is sent, holds everybody to limits ([`Limits`], [`Timeouts`],
//! [`WaterMarks`]), and ends in phases ([`Phase`]). Everything in here is built on the port's public
//! API alone.
//!
//! An echo server for lines, and one client:
//!
//! ```
//! use std::io::{BufRead, BufReader, Write};
//! use std::time::Duration;
//! use proactor::service::framing::Lines;
//! use proactor::service::{HandlerResult, ServerService, Session, SessionHandler};
//!
//! struct Echo;
//!
//! impl SessionHandler for Echo {
//!     fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
//!         session.send(line)?;
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = ServerService::builder(|_session| Echo)
//!     .listen("127.0.0.1:0")
//!     .framing(Lines::new())
//!     .start()?;
//!
//! let mut client = std::net::TcpStream::connect(server.local_address().unwrap())?;
//! client.write_all(b"hello\n")?;
//! let mut answer = String::new();
//! BufReader::new(&client).read_line(&mut answer)?;
//! assert_eq!(answer, "hello\n");
//!
//! drop(client);
//! server.stop(Duration::from_secs(1));
//! # Ok(()) }
//! ```
//!
//! # Callbacks
//! The callbacks of one session run one at a time, in an order that is promised: `connected` first,
//! `disconnected` last, each once. Those of different sessions run at the same time, on the worker
//! threads of a [`Runtime`]; a callback that blocks holds up its own session and no other, because
//! the port releases a spare thread.
//!
//! # Sending
//! [`Session::send`] works from any thread and never blocks: it queues. At most one send of a
//! session is in flight, and what is sent meanwhile goes out gathered behind it. A queue has marks,
//! at which the handler is told and receiving pauses, and a limit, beyond which sends are refused.
//!
//! # Receiving
//! A session that waits for bytes holds no buffer. Frames are handed over in the port's own receive
//! buffers; only the beginning of a frame whose rest has not come is copied.

mod changed;
mod client;
mod config;
mod dial;
mod error;
mod filter;
pub mod framing;
pub mod groups;
mod handle;
mod handler;
pub mod job_queue;
mod link;
mod listener;
#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod phases;
mod recycle;
mod runtime;
mod server;
mod session;
mod shared;
mod snapshot;
pub mod timer_wheel;
#[cfg(feature = "tls")]
pub mod tls;

pub use client::{ClientBuilder, ClientService};
pub use config::{Backoff, Limits, Overflow, Timeouts, TransferRate, WaterMarks};
pub use error::{DisconnectReason, NotifyError, SendError, StartError, Timeout};
pub use filter::{Filter, FilterError, FilterFactory};
pub use handle::ServiceHandle;
pub use handler::{AfterEnd, HandlerResult, SessionHandler};
pub use phases::{Phase, StopReport};
pub use runtime::{Runtime, RuntimeBuilder};
pub use server::{ServerBuilder, ServerService};
pub use session::{Session, SessionCounters, SessionId};
pub use snapshot::{DisconnectedCounters, RejectedCounters, ServiceSnapshot};
