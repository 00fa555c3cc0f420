//! An echo server for lines on the server layer. `cargo run --release --example service_echo`, then
//! `nc 127.0.0.1 7000`; Enter in this terminal stops it in order, twice at once.

use std::io::BufRead;
use std::process::ExitCode;

use proactor::service::framing::Lines;
use proactor::service::{DisconnectReason, HandlerResult, ServerService, Session, SessionHandler};

struct Echo {
    lines: u64,
}

impl SessionHandler for Echo {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        session.send("Say something; \"quit\" ends it.")?;
        Ok(())
    }

    fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
        if line == b"quit" {
            session.disconnect();
            return Ok(());
        }
        self.lines += 1;
        session.send(line)?;
        Ok(())
    }

    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        println!("session {}: {} lines, {reason}", session.id(), self.lines);
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("service_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let server = ServerService::builder(|_session| Echo { lines: 0 })
        .listen(&address)
        .framing(Lines::new())
        .start()?;
    println!("listening at {}", server.local_address().expect("a TCP listener has an address"));

    let handle = server.handle();
    std::thread::spawn(move || {
        for _line in std::io::stdin().lock().lines() {
            handle.request_stop();
        }
    });
    let report = server.run();
    println!("{report:?}");
    Ok(())
}
