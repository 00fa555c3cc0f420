//! A TCP relay: whoever connects is connected to another server, and bytes go both ways.
//!
//! Run it:  cargo run --release --example relay -- LISTEN SERVER
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
}

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
                    move |_| End { dial: None, other: Some(accepted), ended },
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

    fn peer_ended(&mut self, _session: &Session) -> AfterEnd {
        let Some(other) = &self.other else { return AfterEnd::Disconnect };
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
    let [listen, server] = &arguments[..] else {
        eprintln!("usage: relay LISTEN SERVER");
        return Ok(ExitCode::from(2));
    };
    let targets = server.to_socket_addrs().map_err(|error| format!("{server}: {error}"))?;
    let target = { targets }.next().ok_or("the server has no address")?;
    // Who may speak first, and when, is up to the two ends. The end of a connection takes as long
    // as a slow peer takes to read what is left.
    let timeouts =
        Timeouts { handshake: None, disconnect: Duration::from_secs(60), ..Timeouts::default() };
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
    let relay = ServerService::builder(move |_| End {
        dial: Some((target, Arc::clone(&dialer))),
        other: None,
        ended: Arc::default(),
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
