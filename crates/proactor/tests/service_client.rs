//! Services that connect, and both kinds together.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use proactor::service::framing::LengthPrefixed;
use proactor::service::{
    Backoff, ClientService, HandlerResult, Phase, Runtime, ServerService, Session, SessionHandler,
};

fn runtime(ports: &Ports) -> Runtime {
    Runtime::builder().port(ports.builder()).concurrency(2).threads(4).build().unwrap()
}

/// Sends back what comes.
struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        Ok(session.send(frame)?)
    }
}

/// Sends a number, and the next for each that comes back.
struct Counting {
    rounds: Arc<AtomicUsize>,
}

impl SessionHandler for Counting {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        Ok(session.send(0_u64.to_le_bytes())?)
    }
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        let number = u64::from_le_bytes(frame.try_into()?);
        self.rounds.fetch_add(1, Ordering::SeqCst);
        Ok(session.send((number + 1).to_le_bytes())?)
    }
}

fn quickly() -> Backoff {
    Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(20),
        ..Backoff::default()
    }
}

on_each_backend! {
    fn a_client_keeps_its_connections_and_comes_back(ports: &Ports) {
        let runtime = runtime(ports);
        let serve = |address: &str| {
            ServerService::builder(|_| Echo)
                .listen(address)
                .framing(LengthPrefixed::u16())
                .start_on(&runtime)
                .unwrap()
        };
        let server = serve("127.0.0.1:0");
        let address = server.local_address().unwrap();
        let rounds = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&rounds);
        let client = ClientService::builder(move |_| Counting { rounds: Arc::clone(&count) })
            .connect(address)
            .connections(8)
            .framing(LengthPrefixed::u16())
            .backoff(quickly())
            .start_on(&runtime)
            .unwrap();
        wait_until("all connect", || client.handle().session_count() == 8);
        wait_until("they talk", || rounds.load(Ordering::SeqCst) > 100);

        drop(server);
        wait_until("all are gone", || client.handle().session_count() == 0);
        let server = serve(&address.to_string());
        wait_until("all are back", || client.handle().session_count() == 8);
        let before = rounds.load(Ordering::SeqCst);
        wait_until("they talk again", || rounds.load(Ordering::SeqCst) > before + 100);

        // One that is cut off comes back alone.
        server.handle().sessions()[0].abort();
        wait_until("it is back", || server.handle().snapshot().accepted == 9);
        let report = client.stop(Duration::ZERO);
        assert_eq!((report.left, report.aborted), (0, 0));
        assert_eq!(client.handle().phase(), Phase::Stopped);
        wait_until("the server sees the end", || server.handle().session_count() == 0);
    }

    fn nobody_there_is_no_error_and_stop_does_not_wait_for_the_next_attempt(ports: &Ports) {
        let runtime = runtime(ports);
        let client = ClientService::builder(|_| Echo)
            .connect(dead_address())
            .connections(3)
            .backoff(Backoff { first: Duration::from_secs(1000), ..Backoff::default() })
            .start_on(&runtime)
            .unwrap();
        let report = client.stop(Duration::from_secs(100));
        assert!(report.elapsed < Duration::from_secs(50));
        assert_eq!(client.handle().phase(), Phase::Stopped);
    }

    fn server_to_server_over_a_unix_socket(ports: &Ports) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link");
        let rounds = Arc::new(AtomicUsize::new(0));
        let (here, there) = (runtime(ports), runtime(ports));
        let server = ServerService::builder(|_| Echo)
            .listen_unix(&path)
            .listen("127.0.0.1:0")
            .framing(LengthPrefixed::u16())
            .start_on(&there)
            .unwrap();
        let count = Arc::clone(&rounds);
        let client = ClientService::builder(move |_| Counting { rounds: Arc::clone(&count) })
            .connect_unix(&path)
            .connections(2)
            .framing(LengthPrefixed::u16())
            .start_on(&here)
            .unwrap();
        wait_until("they talk", || rounds.load(Ordering::SeqCst) > 100);
        assert!(client.handle().sessions().iter().all(|s| s.peer_address().is_none()));
        drop(client);
        drop(server);
        assert!(!path.exists(), "the socket's file is removed");
    }
}
