//! A service that connects.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Backoff, Limits, Timeouts, WaterMarks};
use super::dial::Dial;
use super::error::StartError;
use super::filter::FilterFactory;
use super::framing::{Framing, RawBytes};
use super::handle::ServiceHandle;
use super::handler::{HandlerResult, SessionHandler};
use super::link::{Links, Target};
use super::options::service_options;
use super::phases::StopReport;
use super::runtime::Runtime;
use super::session::Session;
use super::shared::{ServiceShared, Settings};

/// How long a service that is stopped by [`ServiceHandle::request_stop`] drains, unless said.
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// A client: keeps a number of connections to a server, with a session for each, and connects again
/// where one ends or fails, after a wait that grows ([`Backoff`]).
///
/// Dropping it aborts the sessions that are left; [`stop`](Self::stop) ends them in order.
///
/// ```no_run
/// use proactor::service::framing::LengthPrefixed;
/// use proactor::service::{ClientService, HandlerResult, Session, SessionHandler};
///
/// struct Link;
///
/// impl SessionHandler for Link {
///     fn connected(&mut self, session: &Session) -> HandlerResult {
///         session.send(b"hello, server")?;
///         Ok(())
///     }
///     fn received(&mut self, _session: &Session, frame: &[u8]) -> HandlerResult {
///         println!("{} bytes", frame.len());
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ClientService::builder(|_session| Link)
///     .connect("10.0.0.7:7000")
///     .connections(4)
///     .framing(LengthPrefixed::u32())
///     .start()?;
/// # client.run();
/// # Ok(()) }
/// ```
pub struct ClientService {
    shared: Arc<ServiceShared>,
    links: Arc<Links>,
    drain: Duration,
    /// Last, so that it is dropped when all else is closed.
    runtime: Runtime,
}

/// What a [`ClientService`] is made of.
pub struct ClientBuilder {
    targets: Vec<Target>,
    error: Option<StartError>,
    connections: usize,
    backoff: Backoff,
    drain: Duration,
    settings: Settings,
}

impl ClientService {
    /// A client for raw bytes with one connection, to nothing yet, with every option at its
    /// default. `factory` makes the handler of each session.
    pub fn builder<H: SessionHandler>(
        factory: impl Fn(&Session) -> H + Send + Sync + 'static,
    ) -> ClientBuilder {
        ClientBuilder {
            targets: Vec::new(),
            error: None,
            connections: 1,
            backoff: Backoff::default(),
            drain: DEFAULT_DRAIN,
            settings: Settings {
                name: "client".to_owned(),
                framing: Arc::new(RawBytes::new()),
                filter: None,
                factory: Box::new(move |session| Box::new(factory(session))),
                limits: Limits::default(),
                water_marks: WaterMarks::default(),
                timeouts: Timeouts { handshake: None, ..Timeouts::default() },
                nodelay: true,
            },
        }
    }

    /// A client that keeps no connections, for [`dial`](Self::dial) alone.
    pub fn dialer() -> ClientBuilder {
        struct Nobody;
        impl SessionHandler for Nobody {
            fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
                Ok(())
            }
        }
        Self::builder(|_session| Nobody).connections(0)
    }

    /// Makes one connection, once, with a handler of its own: for a relay, for example, one for
    /// each session of its server. It is a session of this service like the others, but is not
    /// connected again.
    ///
    /// Does not wait. On a worker thread, and once, either `made` is called with the session and
    /// makes its handler, or `failed` with the error: nobody there, no connection within
    /// [`Timeouts::connect`], the service stopping, no descriptor left. Where not even the attempt
    /// can be made `failed` is called at once, on this thread.
    pub fn dial<H: SessionHandler>(
        &self,
        address: SocketAddr,
        made: impl FnOnce(&Session) -> H + Send + 'static,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) {
        let made = move |session: &Session| -> Box<dyn SessionHandler> { Box::new(made(session)) };
        match Dial::start(&self.shared, address, Box::new(made), Box::new(failed)) {
            Ok(dial) => self.links.watch(&self.shared, &dial),
            Err((failed, error)) => failed(error),
        }
    }

    /// A handle, for other threads: its sessions are the connections that stand.
    pub fn handle(&self) -> ServiceHandle {
        ServiceHandle::new(Arc::clone(&self.shared))
    }

    /// The runtime that it runs on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Waits until somebody calls [`ServiceHandle::request_stop`], then stops the service, with the
    /// time to drain that the builder was told.
    pub fn run(&self) -> StopReport {
        self.shared.wait_for_request();
        self.shared.stop(self.drain)
    }

    /// Stops the service as [`ServerService::stop`](super::ServerService::stop) does: no new
    /// connections, then the same phases.
    pub fn stop(&self, drain: Duration) -> StopReport {
        self.shared.stop(drain)
    }
}

impl Drop for ClientService {
    fn drop(&mut self) {
        self.handle().request_stop();
        self.handle().request_stop();
        self.shared.stop(Duration::ZERO);
        self.shared.drop_factory();
    }
}

impl fmt::Debug for ClientService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientService")
            .field("name", &self.shared.name)
            .field("sessions", &self.handle().session_count())
            .finish_non_exhaustive()
    }
}

service_options!(
    ClientBuilder of "ClientService",
    "How many bytes for a session. The limits of listeners do not matter here.",
    "How long things may take. A client's default has no time limit for the handshake.",
    "client"
);

impl ClientBuilder {
    /// The server. Where there are several, or a name has several addresses, each attempt takes the
    /// next one. A name is resolved here, once.
    pub fn connect(mut self, address: impl ToSocketAddrs) -> Self {
        match address.to_socket_addrs() {
            Ok(addresses) => self.targets.extend(addresses.map(Target::Address)),
            Err(error) => {
                let tried = "resolving an address to connect to";
                self.error.get_or_insert(StartError::new(tried, error));
            }
        }
        self
    }

    /// A server at a Unix socket.
    #[cfg(unix)]
    pub fn connect_unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.targets.push(Target::Path(path.into()));
        self
    }

    /// How many connections are kept. Default 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// How long to wait before connecting again.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Starts it on a runtime of its own, with every option at its default.
    ///
    /// # Errors
    /// As [`start_on`](Self::start_on), and as [`Runtime::new`].
    pub fn start(self) -> Result<ClientService, StartError> {
        let runtime = Runtime::new()?;
        self.start_on(&runtime)
    }

    /// Starts it on `runtime`: begins to connect, and does not wait. A server that is not there is
    /// no error: it is tried again.
    ///
    /// # Errors
    /// An address could not be resolved, or there is none.
    pub fn start_on(self, runtime: &Runtime) -> Result<ClientService, StartError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.targets.is_empty() && self.connections > 0 {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(StartError::new("a client needs an address to connect to", error));
        }
        let shared = ServiceShared::new(self.settings, Arc::clone(runtime.shared()));
        let links = Links::new(&shared, self.targets, self.connections, self.backoff);
        // The hooks hold the links, which hold the service weakly.
        let (ended, closed) = (Arc::clone(&links), Arc::clone(&links));
        let end = move |id| ended.session_ended(id);
        let close = move || closed.close();
        assert!(shared.end_hook.set(Box::new(end)).is_ok(), "set once");
        assert!(shared.close_hook.set(Box::new(close)).is_ok(), "set once");
        tracing::info!(service = shared.name, connections = self.connections, "connecting");
        links.start();
        Ok(ClientService { shared, links, drain: self.drain, runtime: runtime.clone() })
    }
}
