//! One message to many sessions: what it costs the caller, and when the last one has it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proactor::service::framing::LengthPrefixed;
use proactor::service::{
    ClientService, HandlerResult, Limits, Runtime, ServerService, Session, SessionHandler, Timeouts,
};

use crate::Outcome;

/// The longest that sessions or messages are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

struct Silent;

impl SessionHandler for Silent {
    fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
        Ok(())
    }
}

struct Counter(Arc<AtomicUsize>);

impl SessionHandler for Counter {
    fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

pub(crate) fn measure(sessions: usize, bytes: usize, rounds: usize) -> Outcome {
    let runtime = Runtime::new()?;
    let server = ServerService::builder(|_session| Silent)
        .listen("127.0.0.1:0")
        .framing(LengthPrefixed::u32())
        .limits(Limits { sessions, ..Limits::default() })
        .timeouts(Timeouts { handshake: None, ..Timeouts::default() })
        .start_on(&runtime)?;
    let address = server.local_address().ok_or("the server has no address")?;
    // A process of their own, because a process has only so many descriptors.
    let mut receivers = Command::new(std::env::current_exe()?)
        .args(["receive", &address.to_string(), &sessions.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(receivers.stdout.take().ok_or("no pipe")?).lines();
    said.next().ok_or("the receivers ended")??;

    let message = vec![7; bytes];
    println!("{sessions} sessions, {bytes} B, received by another process");
    for round in 1..=rounds {
        let began = Instant::now();
        let reached = server.handle().broadcast(&message)?;
        let queued = began.elapsed();
        said.next().ok_or("the receivers ended")??;
        println!(
            "round {round}: {reached} sessions, the call took {:.2} ms ({:.2} us a session), the \
             last one had it after {:.1} ms",
            queued.as_secs_f64() * 1e3,
            queued.as_secs_f64() * 1e6 / reached as f64,
            began.elapsed().as_secs_f64() * 1e3,
        );
    }
    server.stop(Duration::ZERO);
    receivers.kill()?;
    receivers.wait()?;
    Ok(())
}

/// The receivers: says a line when all are connected, and one whenever all have had a message.
pub(crate) fn receive(address: &str, sessions: usize) -> Outcome {
    let runtime = Runtime::new()?;
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let client = ClientService::builder(move |_session| Counter(Arc::clone(&counted)))
        .connect(address)
        .connections(sessions)
        .framing(LengthPrefixed::u32())
        .limits(Limits { sessions, ..Limits::default() })
        .timeouts(Timeouts { handshake: None, ..Timeouts::default() })
        .start_on(&runtime)?;
    wait_until(|| client.handle().session_count() == sessions)?;
    println!("connected");
    for round in 1.. {
        wait_until(|| received.load(Ordering::Relaxed) >= round * sessions)?;
        println!("round {round}");
    }
    Ok(())
}

fn wait_until(condition: impl Fn() -> bool) -> Result<(), String> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > PATIENCE {
            return Err(format!("not within {PATIENCE:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
