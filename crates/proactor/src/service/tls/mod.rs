//! TLS for services, by [`rustls`]: TLS 1.3 and 1.2, with `ring` for the cryptography.
//!
//! A [`TlsServer`] is the [filter](super::FilterFactory) of a server, a [`TlsClient`] that of a
//! client. A session of such a service begins when the handshake is done: `connected` is called
//! then, and [`TlsInformation`] tells what was agreed. A handshake that fails ends the connection
//! without any callback; it is counted
//! ([`DisconnectedCounters::filter`](super::DisconnectedCounters::filter)). The time of
//! [`Timeouts::handshake`](super::Timeouts::handshake) includes it.
//!
//! A peer that ends its side says so (*close_notify*). A connection that ends without was cut off,
//! by a careless peer or by somebody in between, and the session ends with
//! [`DisconnectReason::Filter`](super::DisconnectReason::Filter) instead of
//! [`PeerEnded`](super::DisconnectReason::PeerEnded).
//!
//! ```no_run
//! use proactor::service::framing::Lines;
//! use proactor::service::tls::TlsServer;
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
//! let tls = TlsServer::from_pem_files("certificate.pem", "key.pem")?;
//! let server = ServerService::builder(|_session| Echo)
//!     .listen("0.0.0.0:7443")
//!     .framing(Lines::new())
//!     .filter(tls.clone())
//!     .start()?;
//!
//! // When the certificate was renewed: new connections get the new one.
//! tls.reload()?;
//! # Ok(()) }
//! ```

mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::filter::{Filter, FilterError, FilterFactory};
use crate::sync::{Mutex, lock};
pub use rustls;
use stream::TlsStream;

/// TLS for the connections that a server accepts. Clones are handles of the same one.
#[derive(Clone)]
pub struct TlsServer {
    shared: Arc<ServerShared>,
}

struct ServerShared {
    config: Mutex<Arc<ServerConfig>>,
    files: Option<PemFiles>,
}

struct PemFiles {
    certificates: PathBuf,
    key: PathBuf,
}

impl TlsServer {
    /// With a certificate chain and its key from PEM files: the server's own certificate first.
    ///
    /// # Errors
    /// A file cannot be read, holds no certificate or key, or the two do not belong together.
    pub fn from_pem_files(
        certificates: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, TlsError> {
        let files = PemFiles { certificates: certificates.into(), key: key.into() };
        let config = Mutex::new(files.load()?);
        Ok(Self { shared: Arc::new(ServerShared { config, files: Some(files) }) })
    }

    /// With a configuration of rustls, which can do everything else: client certificates,
    /// application protocols, a certificate for each name.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { shared: Arc::new(ServerShared { config: Mutex::new(config), files: None }) }
    }

    /// Reads the files again. New connections get the new certificate; those that are there keep
    /// theirs. Where it fails nothing is changed.
    ///
    /// # Errors
    /// As [`from_pem_files`](Self::from_pem_files); or it was not made from files.
    pub fn reload(&self) -> Result<(), TlsError> {
        let Some(files) = &self.shared.files else {
            return Err(TlsError::new("reloading", "it was not made from files"));
        };
        self.set_config(files.load()?);
        Ok(())
    }

    /// Sets another configuration for new connections.
    pub fn set_config(&self, config: Arc<ServerConfig>) {
        let before = std::mem::replace(&mut *lock(&self.shared.config), config);
        drop(before);
    }
}

impl PemFiles {
    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let certificates = load_certificates(&self.certificates)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::of_file(&self.key, error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|error| TlsError::of_file(&self.certificates, error))?;
        Ok(Arc::new(config))
    }
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| TlsError::of_file(path, error))?;
    if certificates.is_empty() {
        return Err(TlsError::of_file(path, "there is no certificate in it"));
    }
    Ok(certificates)
}

impl FilterFactory for TlsServer {
    fn filter(&self) -> Result<Box<dyn Filter>, FilterError> {
        let config = lock(&self.shared.config).clone();
        let connection = ServerConnection::new(config).map_err(FilterError::new)?;
        Ok(Box::new(TlsStream::new(connection.into())))
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.shared.files.as_ref().map(|files| &files.certificates);
        formatter.debug_struct("TlsServer").field("certificates", &files).finish_non_exhaustive()
    }
}

/// TLS for the connections that a client opens. Clones share the configuration.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl TlsClient {
    /// With the certificate authorities in a PEM file, and the name that the server's certificate
    /// must have.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate; the name is no DNS name or address.
    pub fn from_pem_file(
        authorities: impl AsRef<Path>,
        server_name: &str,
    ) -> Result<Self, TlsError> {
        let path = authorities.as_ref();
        let mut roots = RootCertStore::empty();
        for certificate in load_certificates(path)? {
            roots.add(certificate).map_err(|error| TlsError::of_file(path, error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("a client", error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::new(Arc::new(config), server_name)
    }

    /// With a configuration of rustls, and the name that the server's certificate must have.
    ///
    /// # Errors
    /// The name is no DNS name or address.
    pub fn new(config: Arc<ClientConfig>, server_name: &str) -> Result<Self, TlsError> {
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|error| TlsError::new(format!("the name {server_name:?}"), error))?;
        Ok(Self { config, server_name })
    }
}

impl FilterFactory for TlsClient {
    fn filter(&self) -> Result<Box<dyn Filter>, FilterError> {
        let connection = ClientConnection::new(self.config.clone(), self.server_name.clone());
        Ok(Box::new(TlsStream::new(connection.map_err(FilterError::new)?.into())))
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TlsClient")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// What was agreed in the handshake:
/// [`Session::filter_information::<TlsInformation>`](super::Session::filter_information).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsInformation {
    /// The version of the protocol, for example `TLSv1_3`.
    pub protocol_version: String,
    /// The cipher suite, for example `TLS13_AES_256_GCM_SHA384`.
    pub cipher_suite: String,
    /// The name that the client asked for; `None` at the client, and where it asked for none.
    pub server_name: Option<String>,
    /// The application protocol that was agreed.
    pub application_protocol: Option<Vec<u8>>,
    /// The peer's certificates, its own first. A server has them only where its configuration asks
    /// for them.
    pub peer_certificates: Vec<CertificateDer<'static>>,
}

/// Why TLS could not be set up: with which file or part, and the cause.
#[derive(Debug)]
pub struct TlsError {
    part: String,
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl TlsError {
    fn new(
        part: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { part: part.into(), cause: cause.into() }
    }

    fn of_file(path: &Path, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(path.display().to_string(), cause)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TLS: {}: {}", self.part, self.cause)
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}
