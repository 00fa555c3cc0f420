//! `--status`: says how the server is doing to whoever connects on this machine.
//!
//! Off unless asked for. Clients are told and never asked: nothing that they send is read. One that
//! does not read what it is sent is dropped, and there are [`CLIENT_LIMIT`] at most. While there is
//! none, nothing is measured.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proactor::PortSnapshot;

use super::meter::Measured;
use super::server::Server;
use crate::failure::Failure;
use crate::status::address::{StatusAddress, StatusListener};
use crate::status::{FORM, HandlerStatus, SlowSession, Status, WorkerStatus};

/// How many may watch at once.
const CLIENT_LIMIT: usize = 8;
/// How often they are told.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a slow session is remembered, and how many are told.
const SLOW_MEMORY: Duration = Duration::from_secs(10);
const SLOW_TOLD: usize = 5;
/// How long accepting pauses where it fails, for example for want of descriptors.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The endpoint. A Unix socket's path is removed when it goes.
pub(crate) struct StatusEndpoint {
    listener: Arc<StatusListener>,
    address: StatusAddress,
}

impl StatusEndpoint {
    /// Listens; nobody is told anything yet.
    pub(crate) fn open(address: &StatusAddress) -> Result<Self, Failure> {
        let cannot =
            |error: io::Error| Failure::new(format!("cannot serve a status at {address}: {error}"));
        let listener = address.listen().map_err(cannot)?;
        let address = listener.address().map_err(cannot)?;
        Ok(Self { listener: Arc::new(listener), address })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &StatusAddress {
        &self.address
    }

    /// Tells clients about `server`, which serves at `served_at`, from threads that last as long
    /// as the process.
    pub(crate) fn start(&self, server: &Arc<Server>, served_at: &str) -> io::Result<()> {
        let audience = Arc::new(Audience::default());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
        };
        let (listener, entrance) = (Arc::clone(&self.listener), Arc::clone(&audience));
        spawn("status-accept", Box::new(move || admit(&listener, &entrance)))?;
        let (server, served_at) = (Arc::clone(server), served_at.to_owned());
        spawn("status", Box::new(move || tell(&server, served_at, &audience)))
    }
}

impl Drop for StatusEndpoint {
    fn drop(&mut self) {
        if let StatusAddress::Unix(path) = &self.address
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, "the path of the status socket was not removed");
        }
    }
}

type Client = Box<dyn Write + Send>;

/// Those who watch.
#[derive(Default)]
struct Audience {
    clients: Mutex<Vec<Client>>,
    somebody_came: Condvar,
}

impl Audience {
    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn admit(listener: &StatusListener, audience: &Audience) {
    loop {
        match listener.accept() {
            Ok(client) => {
                let mut clients = audience.lock();
                if clients.len() < CLIENT_LIMIT {
                    clients.push(client);
                    audience.somebody_came.notify_one();
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a status client was not accepted");
                thread::sleep(RETRY_INTERVAL);
            }
        }
    }
}

/// Tells everybody, at intervals; waits while nobody is there.
fn tell(server: &Server, served_at: String, audience: &Audience) {
    let mut reporter = Reporter::new(served_at);
    loop {
        let clients = audience.lock();
        if clients.is_empty() {
            server.meters().set_watched(false);
        }
        drop(audience.somebody_came.wait_while(clients, |clients| clients.is_empty()));
        server.meters().set_watched(true);
        // Measured for a while before it is told.
        thread::sleep(INTERVAL);
        let mut line =
            serde_json::to_vec(&reporter.report(server)).expect("a status is always JSON");
        line.push(b'\n');
        // Who cannot take a line whole has not read the ones before.
        audience
            .lock()
            .retain_mut(|client| matches!(client.write(&line), Ok(n) if n == line.len()));
    }
}

/// Puts statuses together.
struct Reporter {
    served_at: String,
    begin: Instant,
    /// Sessions by number: their longest handler in nanoseconds, and when it was.
    slow: HashMap<usize, (u64, Instant)>,
}

impl Reporter {
    fn new(served_at: String) -> Self {
        Self { served_at, begin: Instant::now(), slow: HashMap::new() }
    }

    fn report(&mut self, server: &Server) -> Status {
        let snapshot = server.port().snapshot();
        let sessions = server.session_counts();
        let measured = server.meters().take();
        let slow_sessions = self.slow_sessions(server, &measured);
        Status {
            form: FORM,
            address: self.served_at.clone(),
            backend: server.port().backend().name().to_owned(),
            uptime_seconds: self.begin.elapsed().as_secs_f64(),
            sessions: sessions.open,
            peak_sessions: sessions.peak,
            total_sessions: sessions.total,
            bytes_received: measured.bytes_received,
            bytes_sent: measured.bytes_sent,
            handler: handler_status(&measured),
            slow_sessions,
            ..port_status(&snapshot)
        }
    }

    fn slow_sessions(&mut self, server: &Server, measured: &Measured) -> Vec<SlowSession> {
        let now = Instant::now();
        self.slow.retain(|_, (_, at)| now.duration_since(*at) < SLOW_MEMORY);
        for (session, longest_ns) in &measured.slow {
            let entry = self.slow.entry(*session).or_insert((0, now));
            if *longest_ns >= entry.0 {
                *entry = (*longest_ns, now);
            }
        }
        let mut slow: Vec<(usize, u64)> =
            self.slow.iter().map(|(session, (longest_ns, _))| (*session, *longest_ns)).collect();
        slow.sort_by_key(|(session, longest_ns)| (std::cmp::Reverse(*longest_ns), *session));
        slow.truncate(SLOW_TOLD);
        let told = |(session, longest_ns): (usize, u64)| SlowSession {
            session,
            peer: server.peer_of(session),
            longest_us: longest_ns as f64 / 1e3,
        };
        slow.into_iter().map(told).collect()
    }
}

fn handler_status(measured: &Measured) -> HandlerStatus {
    let handlers = &measured.handlers;
    let quantile_us = |quantile| handlers.value_at_quantile(quantile) as f64 / 1e3;
    HandlerStatus {
        count: handlers.len(),
        p50_us: quantile_us(0.5),
        p99_us: quantile_us(0.99),
        p99_9_us: quantile_us(0.999),
        max_us: handlers.max() as f64 / 1e3,
    }
}

fn port_status(snapshot: &PortSnapshot) -> Status {
    let counters = &snapshot.counters;
    let workers = snapshot.workers.as_ref().map(|workers| {
        let told = |worker: &proactor::WorkerSnapshot| WorkerStatus {
            index: worker.index,
            thread_id: worker.thread_id,
            state: worker.state.name().to_owned(),
            dequeued_packets: worker.dequeued_packets,
            queued_packets: worker.queued_packets,
            sources: worker.sources,
        };
        workers.iter().map(told).collect()
    });
    Status {
        concurrency: snapshot.concurrency,
        queued_packets: snapshot.queued_packets,
        active_threads: snapshot.active_threads,
        posted_packets: snapshot.posted_packets,
        pending_timers: snapshot.pending_timers,
        dequeued_packets: counters.dequeued_packets,
        wait_calls: counters.wait_calls,
        rescues: counters.rescues,
        blocked_threads: counters.blocked_threads,
        wakes: counters.wakes,
        pool_bytes: counters.pool_bytes,
        lent_pool_bytes: snapshot.lent_pool_bytes,
        batches: snapshot.batches.map(|batches| batches.by_size.to_vec()),
        batched_packets: snapshot.batches.map(|batches| batches.packets),
        workers,
        ..Status::default()
    }
}
