//! A file that is associated: its operations go to the driver's file service.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::SockRef;

use super::driver::Driver;
use super::engine::Engine;
use super::file::FileRequest;
use crate::backend::BackendSource;
use crate::error::{Error, ErrorKind, Rejected};
use crate::operation::{Operation, OperationId, OperationKind};

pub(crate) struct FileSource<D: Driver> {
    engine: Arc<Engine<D>>,
    file: Arc<File>,
    key: usize,
    /// Names this source to the file service.
    id: u64,
    closed: AtomicBool,
}

static NEXT_SOURCE: AtomicU64 = AtomicU64::new(1);

impl<D: Driver> FileSource<D> {
    pub(crate) fn new(engine: Arc<Engine<D>>, file: File, key: usize) -> Self {
        let id = NEXT_SOURCE.fetch_add(1, Ordering::Relaxed);
        Self { engine, file: Arc::new(file), key, id, closed: AtomicBool::new(false) }
    }
}

impl<D: Driver> BackendSource for FileSource<D> {
    fn key(&self) -> usize {
        self.key
    }

    fn socket(&self) -> io::Result<SockRef<'_>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a file is not a socket"))
    }

    fn start(self: Arc<Self>, operation: Operation) -> Result<(), Rejected> {
        let kind = operation.kind();
        if self.closed.load(Ordering::Acquire) || self.engine.central.is_closed() {
            return Err(Rejected::new(Error::new(kind, ErrorKind::PortClosed), operation));
        }
        if !matches!(kind, OperationKind::ReadAt | OperationKind::WriteAt) {
            return Err(Rejected::new(Error::new(kind, ErrorKind::InvalidInput), operation));
        }
        let file = Arc::clone(&self.file);
        let request = FileRequest { file, source: self.id, key: self.key, operation };
        let outcome = self.engine.files().start(request);
        outcome.map_err(|(error, operation)| Rejected::new(error, operation))
    }

    fn cancel(&self, operation: OperationId) -> bool {
        self.engine.files().cancel(self.id, operation)
    }

    fn cancel_all(&self) -> usize {
        self.engine.files().cancel_all(self.id)
    }

    fn shutdown(&self, _how: Shutdown) -> Result<(), Error> {
        Err(Error::new(OperationKind::Shutdown, ErrorKind::InvalidInput))
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.engine.files().cancel_all(self.id);
        self.engine.central.drop_late();
    }
}
