//! A TCP relay: whoever connects is connected to another server, and bytes go both ways.
//!
//! Run it:  cargo run --release --example relay -- LISTEN SERVER [SECONDS]
//! Try it:  cargo run --release --example relay -- 127.0.0.1:7010 example.com:80
//!          curl -H 'Host: example.com' http://127.0.0.1:7010/
//!
//! A server service and a client service on one runtime. Each connection is two sessions, one of
//! each, that know each other by their handles:
//!
//! - what one receives the other sends, and who is faster than its other end is paused until the
//!   queue there has fallen to the low mark: a relay holds a bounded number of bytes, however large
//!   the difference;
//! - the end of one direction is passed on behind its last byte, and the other direction goes on;
//! - where one peer has ended its side and the other one says nothing for a minute or two (or the
//!   seconds that are given behind SERVER), both are reset;
//! - a reset, a time limit and everything else that is no end in order is passed on as a reset.
//!
//! Enter in this terminal stops the relay in order; twice, at once.

use std::any::Any;
use std::io::BufRead;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proactor::service::{
    AfterEnd, ClientService, DisconnectReason, HandlerResult, Runtime, ServerService, Session,
    SessionHandler, Timeouts, WaterMarks,
};

/// One end of a relayed connection.
struct End {
    /// Where the server is, and who connects to it: at the end that was accepted.
    dial: Option<(SocketAddr, Arc<ClientService>)>,
    /// The other end. `None` until it is connected; nothing is received before that.
    other: Option<Session>,
    /// How many of the two peers have ended their side.
    ended: Arc<AtomicUsize>,
    /// Since this one has, for how many looks nothing was sent to it; `None`: it has not.
    silent_looks: Option<u32>,
}

impl End {
    fn new(
        dial: Option<(SocketAddr, Arc<ClientService>)>,
        other: Option<Session>,
        ended: Arc<AtomicUsize>,
    ) -> Self {
        Self { dial, other, ended, silent_looks: None }
    }
}

/// How long nothing is sent to a peer before one looks whether its connection is only half there.
const SILENCE: Duration = Duration::from_secs(60);

/// Tells the accepted end that the other one is there.
struct Connected(Session);

impl SessionHandler for End {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        match (self.dial.take(), &self.other) {
            (Some((server, client)), _) => {
                session.pause_receiving();
                let (accepted, ended) = (session.clone(), Arc::clone(&self.ended));
                let failed = session.clone();
                client.dial(
                    server,
                    move |_| End::new(None, Some(accepted), ended),
                    move |error| {
                        eprintln!("{server}: {error}");
                        failed.abort();
                    },
                );
            }
            (None, Some(accepted)) => {
                if accepted.notify(Connected(session.clone())).is_err() {
                    session.abort();
                }
            }
            (None, None) => unreachable!("an end that does not connect knows the other one"),
        }
        Ok(())
    }

    fn notified(&mut self, session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        if let Ok(connected) = message.downcast::<Connected>() {
            self.other = Some(connected.0);
            session.resume_receiving();
        }
        Ok(())
    }

    fn received(&mut self, session: &Session, bytes: &[u8]) -> HandlerResult {
        let Some(other) = &self.other else { return Err("received before connected".into()) };
        if other.send(bytes).is_err() {
            // It has gone, or the memory for all queues together is used up.
            session.abort();
        } else if other.is_over_mark() {
            session.pause_receiving();
            // Its queue may have fallen, and its `low_water` come, before the pause.
            if !other.is_over_mark() {
                session.resume_receiving();
            }
        }
        Ok(())
    }

    fn low_water(&mut self, _session: &Session) {
        if let Some(other) = &self.other {
            other.resume_receiving();
        }
    }

    fn sent(&mut self, _session: &Session, _bytes: usize) {
        self.silent_looks = self.silent_looks.map(|_| 0);
    }

    /// Nothing was sent to this peer for a while. Where it has ended its own side, nobody would
    /// notice that the other one never says anything again.
    fn heartbeat(&mut self, session: &Session) {
        let Some(looks) = &mut self.silent_looks else { return };
        *looks += 1;
        // The first may come right behind the end.
        if *looks > 1 {
            session.abort();
        }
    }

    fn peer_ended(&mut self, _session: &Session) -> AfterEnd {
        let Some(other) = &self.other else { return AfterEnd::Disconnect };
        self.silent_looks = Some(0);
        other.end_sending();
        if self.ended.fetch_add(1, Ordering::SeqCst) == 0 {
            return AfterEnd::KeepSending;
        }
        other.disconnect();
        AfterEnd::Disconnect
    }

    fn disconnected(&mut self, _session: &Session, reason: DisconnectReason) {
        let Some(other) = &self.other else { return };
        match reason {
            DisconnectReason::PeerEnded
            | DisconnectReason::Local
            | DisconnectReason::ServiceStopped => other.disconnect(),
            _ => other.abort(),
        }
    }
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("relay: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (listen, server, silence) = match &arguments[..] {
        [listen, server] => (listen, server, SILENCE),
        [listen, server, seconds] => {
            let seconds = seconds.parse().map_err(|error| format!("{seconds}: {error}"))?;
            (listen, server, Duration::from_secs(seconds))
        }
        _ => {
            eprintln!("usage: relay LISTEN SERVER [SECONDS]");
            return Ok(ExitCode::from(2));
        }
    };
    let targets = server.to_socket_addrs().map_err(|error| format!("{server}: {error}"))?;
    let target = { targets }.next().ok_or("the server has no address")?;
    // Who may speak first, and when, is up to the two ends.
    let timeouts = Timeouts { handshake: None, heartbeat: Some(silence), ..Timeouts::default() };
    // The two directions are independent: an end that does not read may still be sending.
    let water_marks = WaterMarks { pause_receiving: false, ..WaterMarks::default() };

    let runtime = Runtime::new()?;
    let client = ClientService::dialer()
        .name("relay to the server")
        .timeouts(timeouts.clone())
        .water_marks(water_marks.clone())
        .start_on(&runtime)?;
    let client = Arc::new(client);
    let dialer = Arc::clone(&client);
    let relay = ServerService::builder(move |_| {
        End::new(Some((target, Arc::clone(&dialer))), None, Arc::default())
    })
    .name("relay")
    .listen(listen)
    .timeouts(timeouts)
    .water_marks(water_marks)
    .drain(Duration::from_secs(5))
    .start_on(&runtime)?;
    let address = relay.local_address().expect("a TCP listener has an address");
    println!("relay at {address} to {target}");

    let handle = relay.handle();
    std::thread::spawn(move || {
        for _line in std::io::stdin().lock().lines() {
            handle.request_stop();
        }
    });
    println!("{:?}", relay.run());
    println!("{:?}", client.stop(Duration::from_secs(1)));
    Ok(ExitCode::SUCCESS)
}
