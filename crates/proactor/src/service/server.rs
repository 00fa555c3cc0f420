//! A service that listens.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::config::{Limits, Timeouts, WaterMarks};
use super::error::StartError;
use super::filter::FilterFactory;
use super::framing::{Framing, RawBytes};
use super::handle::ServiceHandle;
use super::handler::SessionHandler;
use super::listener::{Listener, Place};
use super::options::service_options;
use super::phases::StopReport;
use super::runtime::Runtime;
use super::session::Session;
use super::shared::{ServiceShared, Settings};

/// How long a service that is stopped by [`ServiceHandle::request_stop`] drains, unless said.
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// A server: listeners, and a session for each connection.
///
/// Dropping it aborts the sessions that are left; [`stop`](Self::stop) ends them in order.
pub struct ServerService {
    shared: Arc<ServiceShared>,
    listeners: Vec<Arc<Listener>>,
    drain: Duration,
    /// Last, so that it is dropped when all else is closed.
    runtime: Runtime,
}

/// What a [`ServerService`] is made of. Every limit has a default: see [`Limits`], [`Timeouts`] and
/// [`WaterMarks`].
pub struct ServerBuilder {
    places: Vec<Place>,
    error: Option<StartError>,
    drain: Duration,
    settings: Settings,
}

impl ServerService {
    /// A server of raw bytes, on nothing yet, with every option at its default. `factory` makes the
    /// handler of each session.
    pub fn builder<H: SessionHandler>(
        factory: impl Fn(&Session) -> H + Send + Sync + 'static,
    ) -> ServerBuilder {
        ServerBuilder {
            places: Vec::new(),
            error: None,
            drain: DEFAULT_DRAIN,
            settings: Settings {
                name: "server".to_owned(),
                framing: Arc::new(RawBytes::new()),
                filter: None,
                factory: Box::new(move |session| Box::new(factory(session))),
                limits: Limits::default(),
                water_marks: WaterMarks::default(),
                timeouts: Timeouts::default(),
                nodelay: true,
            },
        }
    }

    /// The address of the first listener that has one: the port number that the system chose, where
    /// it was to.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| listener.address())
    }

    /// The addresses of all listeners; `None` for a Unix socket.
    pub fn local_addresses(&self) -> Vec<Option<SocketAddr>> {
        self.listeners.iter().map(|listener| listener.address()).collect()
    }

    /// A handle, for other threads.
    pub fn handle(&self) -> ServiceHandle {
        ServiceHandle::new(Arc::clone(&self.shared))
    }

    /// Bytes that are counted against the limit of the service, for the simulated world's checks.
    #[cfg(feature = "sim")]
    pub(crate) fn charged_bytes(&self) -> usize {
        self.shared.charged_bytes()
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

    /// Stops the service, phase by phase ([`Phase`](super::Phase)): closes the listeners, tells the
    /// sessions ([`SessionHandler::draining`]) and gives them `drain` to end by themselves; then
    /// disconnects those that are left, in order, within [`Timeouts::flush`] and
    /// [`Timeouts::linger`]; then aborts what
    /// is still left. [`ServiceHandle::request_stop`] from another thread cuts the waits short.
    ///
    /// In a callback of the same runtime it goes as far as to disconnect, and does not wait.
    pub fn stop(&self, drain: Duration) -> StopReport {
        self.shared.stop(drain)
    }
}

impl Drop for ServerService {
    fn drop(&mut self) {
        self.handle().request_stop();
        self.handle().request_stop();
        self.shared.stop(Duration::ZERO);
        self.shared.drop_factory();
    }
}

impl fmt::Debug for ServerService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServerService")
            .field("name", &self.shared.name)
            .field("addresses", &self.local_addresses())
            .finish_non_exhaustive()
    }
}

service_options!(
    ServerBuilder of "ServerService",
    "How many sessions, and how many bytes for them.",
    "How long things may take.",
    "server"
);

impl ServerBuilder {
    /// Listens at an address, also; `"[::]:7000"` is every address of the machine. Port 0 lets the
    /// system choose. A name that has several addresses is listened at on all of them.
    pub fn listen(mut self, address: impl ToSocketAddrs) -> Self {
        match address.to_socket_addrs() {
            Ok(addresses) => self.places.extend(addresses.map(Place::Address)),
            Err(error) => {
                self.error
                    .get_or_insert(StartError::new("resolving an address to listen at", error));
            }
        }
        self
    }

    /// Listens at a Unix socket, also. Its file must not be there yet, and is removed at the end.
    #[cfg(unix)]
    pub fn listen_unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.places.push(Place::Path(path.into()));
        self
    }

    /// Accepts from this listener, also: one that was bound with options of the program's, or that
    /// was inherited.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.places.push(Place::Tcp(listener));
        self
    }

    /// Accepts from this Unix listener, also.
    #[cfg(unix)]
    pub fn unix_listener(mut self, listener: UnixListener) -> Self {
        self.places.push(Place::Unix(listener));
        self
    }

    /// Starts it on a runtime of its own, with every option at its default.
    ///
    /// # Errors
    /// As [`start_on`](Self::start_on), and as [`Runtime::new`].
    pub fn start(self) -> Result<ServerService, StartError> {
        let runtime = Runtime::new()?;
        self.start_on(&runtime)
    }

    /// Starts it on `runtime`. Sessions may begin before this returns.
    ///
    /// # Errors
    /// An address could not be resolved, bound or listened at: in use, not of this machine, not
    /// permitted, no descriptor left.
    pub fn start_on(self, runtime: &Runtime) -> Result<ServerService, StartError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let shared = ServiceShared::new(self.settings, Arc::clone(runtime.shared()));
        let mut service = ServerService {
            shared: Arc::clone(&shared),
            listeners: Vec::new(),
            drain: self.drain,
            runtime: runtime.clone(),
        };
        for place in self.places {
            let tried = place.to_string();
            match Listener::open(&shared, place) {
                Ok(listener) => service.listeners.push(listener),
                Err(error) => {
                    // None has accepted anything.
                    service.listeners.iter().for_each(|listener| listener.give_up());
                    service.listeners.clear();
                    return Err(StartError::new(tried, error));
                }
            }
        }
        // Weakly: the listeners hold the service.
        let closing: Vec<Weak<Listener>> = service.listeners.iter().map(Arc::downgrade).collect();
        let close = move || {
            closing.iter().filter_map(Weak::upgrade).for_each(|listener| listener.close());
        };
        assert!(shared.close_hook.set(Box::new(close)).is_ok(), "set once");
        for listener in &service.listeners {
            tracing::info!(service = shared.name, address = ?listener.address(), "listening");
            listener.start();
        }
        Ok(service)
    }
}
