//! Services that connect, and both kinds together.

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::*;
use proactor::service::framing::LengthPrefixed;
use proactor::service::{
    AfterEnd, Backoff, ClientService, DisconnectReason, HandlerResult, Phase, Runtime,
    ServerService, Session, SessionHandler,
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

/// One side of a relay: what comes goes to the other side, no faster than that takes it.
struct Relay {
    other: Arc<OnceLock<Session>>,
}

impl SessionHandler for Relay {
    fn received(&mut self, session: &Session, bytes: &[u8]) -> HandlerResult {
        let other = self.other.get().expect("it was connected first");
        other.send(bytes)?;
        if other.is_over_mark() {
            session.pause_receiving();
            if !other.is_over_mark() {
                // It fell before the pause, and nobody will say so any more.
                session.resume_receiving();
            }
        }
        Ok(())
    }
    fn low_water(&mut self, _session: &Session) {
        self.other.get().expect("it was connected first").resume_receiving();
    }
    fn peer_ended(&mut self, session: &Session) -> AfterEnd {
        let _ = session;
        if let Some(other) = self.other.get() {
            other.disconnect();
        }
        AfterEnd::Disconnect
    }
    fn disconnected(&mut self, _session: &Session, _reason: DisconnectReason) {
        if let Some(other) = self.other.get() {
            other.disconnect();
        }
    }
}

/// A relay's server side: dials when it is connected, and receives nothing until that stands.
struct Inbound {
    dialer: Arc<ClientService>,
    target: SocketAddr,
    relay: Relay,
}

impl SessionHandler for Inbound {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        session.pause_receiving();
        let (here, failing) = (session.clone(), session.clone());
        let outbound = Arc::clone(&self.relay.other);
        let made = move |there: &Session| {
            let back = Arc::new(OnceLock::new());
            back.set(here.clone()).unwrap();
            outbound.set(there.clone()).unwrap();
            here.resume_receiving();
            Relay { other: back }
        };
        self.dialer.dial(self.target, made, move |_error| failing.abort());
        Ok(())
    }
    fn received(&mut self, session: &Session, bytes: &[u8]) -> HandlerResult {
        self.relay.received(session, bytes)
    }
    fn low_water(&mut self, session: &Session) {
        self.relay.low_water(session);
    }
    fn peer_ended(&mut self, session: &Session) -> AfterEnd {
        self.relay.peer_ended(session)
    }
    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        self.relay.disconnected(session, reason);
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

    #[cfg(unix)]
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

    fn a_relay_of_a_server_and_a_dialer(ports: &Ports) {
        const PIECES: u64 = 100;
        let runtime = runtime(ports);
        let origin = ServerService::builder(|_| Echo).listen("127.0.0.1:0").start_on(&runtime).unwrap();
        let target = origin.local_address().unwrap();
        let dialer = Arc::new(ClientService::dialer().start_on(&runtime).unwrap());
        let dialing = Arc::clone(&dialer);
        let relay = ServerService::builder(move |_| Inbound {
            dialer: Arc::clone(&dialing),
            target,
            relay: Relay { other: Arc::default() },
        })
        .listen("127.0.0.1:0")
        .start_on(&runtime)
        .unwrap();
        let address = relay.local_address().unwrap();
        std::thread::scope(|scope| {
            for client in 0..3 {
                scope.spawn(move || {
                    let mut stream = connect(address);
                    let mut writer = stream.try_clone().unwrap();
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            for piece in 0..PIECES {
                                writer.write_all(&pattern(client * PIECES + piece, 50_000)).unwrap();
                            }
                        });
                        // Slower than it is sent, so that every queue on the way fills.
                        for piece in 0..PIECES {
                            let got = read_bytes(&mut stream, 50_000);
                            assert_same_bytes(&got, &pattern(client * PIECES + piece, 50_000));
                            assert!(stream.peer_addr().is_ok());
                        }
                    });
                });
            }
        });
        wait_until("all are gone", || {
            [origin.handle(), relay.handle(), dialer.handle()].iter().all(|s| s.session_count() == 0)
        });
        // Nobody there: the relay ends the connection.
        drop(origin);
        let mut stream = connect(address);
        read_to_end(&mut stream);
        wait_until("it is gone", || relay.handle().session_count() == 0);
        relay.stop(Duration::ZERO);
        dialer.stop(Duration::ZERO);
        assert_eq!(dialer.handle().phase(), Phase::Stopped);
        assert_eq!(dialer.handle().snapshot().accepted, 3);
    }
}
