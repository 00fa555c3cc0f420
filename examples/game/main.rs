//! A game server: binary packets with a `{size, id}` header, rooms that tick 20 times a second, and
//! bots that join by the hundred.
//!
//! ```text
//! cargo run --release --example game -- server [ADDRESS]
//! cargo run --release --example game -- bots [ADDRESS] [BOTS] [SECONDS]
//! ```
//!
//! - `protocol`: the packets.
//! - `room`: a room. It lives in a job queue, so everything that happens to it (a player comes,
//!   moves, goes; time passes) is a job that has the room to itself. No locks, and rooms run in
//!   parallel.
//! - `server`: a session's packets become jobs of its room.
//! - `bots`: a client service with many connections, which checks what it is told.

mod bots;
mod protocol;
mod room;
mod server;

use std::process::ExitCode;
use std::time::Duration;

const ADDRESS: &str = "127.0.0.1:7001";
const USAGE: &str = "usage: game server [ADDRESS] | game bots [ADDRESS] [BOTS] [SECONDS]";

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("game: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let address = arguments.next().unwrap_or_else(|| ADDRESS.to_owned());
    match mode.as_str() {
        "server" => server::run(&address)?,
        "bots" => {
            let bots = arguments.next().map_or(Ok(300), |number| number.parse());
            let seconds = arguments.next().map_or(Ok(10), |number| number.parse());
            let (Ok(bots), Ok(seconds)) = (bots, seconds) else {
                eprintln!("{USAGE}");
                return Ok(ExitCode::from(2));
            };
            let good = bots::run(&address, bots, Duration::from_secs(seconds))?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}
