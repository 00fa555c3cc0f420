//! Bots: a client service whose connections each play, and check what they are told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proactor::service::{ClientService, DisconnectReason, HandlerResult, Session, SessionHandler};

use crate::protocol::{EDGE, News, PACKETS, Position, Request};

/// Bots of one room.
const ROOM_SIZE: u64 = 50;
/// A bot turns at every so many snapshots.
const TURN_EVERY: u64 = 4;

#[derive(Default)]
struct Totals {
    bots: AtomicU64,
    joined: AtomicU64,
    snapshots: AtomicU64,
    moves: AtomicU64,
    lost: AtomicU64,
    /// Milliseconds between a bot's snapshots.
    gaps_ms: Mutex<Vec<f32>>,
}

struct Bot {
    totals: Arc<Totals>,
    number: u64,
    player: Option<u32>,
    snapshots: u64,
    tick: u32,
    position: Option<Position>,
    last: Instant,
    gaps_ms: Vec<f32>,
}

impl Bot {
    fn new(totals: Arc<Totals>) -> Self {
        let number = totals.bots.fetch_add(1, Ordering::Relaxed);
        Self {
            totals,
            number,
            player: None,
            snapshots: 0,
            tick: 0,
            position: None,
            last: Instant::now(),
            gaps_ms: Vec::new(),
        }
    }

    /// Each tick is later than the last, we are in it, and nobody is outside of the room.
    fn check(&mut self, tick: u32, positions: &[Position]) -> HandlerResult {
        let player = self.player.ok_or("a snapshot before the welcome")?;
        if self.snapshots > 0 && tick <= self.tick {
            return Err(format!("tick {tick} after {}", self.tick).into());
        }
        self.tick = tick;
        if positions.iter().any(|one| one.x.abs() > EDGE || one.y.abs() > EDGE) {
            return Err("somebody is outside of the room".into());
        }
        let own = positions.iter().find(|one| one.player == player);
        self.position = Some(*own.ok_or("we are not in the room that we are in")?);
        Ok(())
    }
}

impl SessionHandler for Bot {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        let room = (self.number / ROOM_SIZE) as u16;
        Ok(session.send(Request::Join { room }.payload())?)
    }

    fn received(&mut self, session: &Session, payload: &[u8]) -> HandlerResult {
        match News::parse(payload).ok_or("a packet that is none")? {
            News::Welcome { player } => {
                self.player = Some(player);
                self.totals.joined.fetch_add(1, Ordering::Relaxed);
            }
            News::Snapshot { tick, positions } => {
                self.check(tick, &positions)?;
                let now = Instant::now();
                if self.snapshots > 0 {
                    self.gaps_ms.push((now - self.last).as_secs_f32() * 1000.0);
                }
                self.last = now;
                self.snapshots += 1;
                self.totals.snapshots.fetch_add(1, Ordering::Relaxed);
                if self.snapshots % TURN_EVERY == 1 {
                    let angle = (self.number + self.snapshots) as f32;
                    let (dx, dy) = ((angle.cos() * 10.0) as i8, (angle.sin() * 10.0) as i8);
                    session.send(Request::Move { dx, dy }.payload())?;
                    self.totals.moves.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn disconnected(&mut self, _session: &Session, reason: DisconnectReason) {
        self.totals.gaps_ms.lock().expect("nobody panics with it").append(&mut self.gaps_ms);
        if !matches!(reason, DisconnectReason::ServiceStopped) {
            self.totals.lost.fetch_add(1, Ordering::Relaxed);
            eprintln!("bot {}: {reason}", self.number);
        }
    }
}

/// Plays for so long; `false` where a bot was lost or never got in.
pub fn run(address: &str, bots: usize, time: Duration) -> Result<bool, Box<dyn std::error::Error>> {
    let totals = Arc::new(Totals::default());
    let counted = totals.clone();
    let client = ClientService::builder(move |_| Bot::new(counted.clone()))
        .name("bots")
        .connect(address)
        .connections(bots)
        .framing(PACKETS)
        .start()?;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_secs(1).min(time));
        println!(
            "{} of {bots} bots have joined; {} snapshots, {} moves, {} lost",
            load(&totals.joined),
            load(&totals.snapshots),
            load(&totals.moves),
            load(&totals.lost),
        );
    }
    let seconds = start.elapsed().as_secs_f64();
    client.stop(Duration::ZERO);

    let mut gaps = std::mem::take(&mut *totals.gaps_ms.lock().expect("nobody panics with it"));
    gaps.sort_by(f32::total_cmp);
    let percentile = |percent: usize| gaps.get(gaps.len().saturating_sub(1) * percent / 100);
    println!(
        "{:.0} snapshots a second; between two of a bot, in ms: p1 {:.1?}, p50 {:.1?}, p99 {:.1?}",
        load(&totals.snapshots) as f64 / seconds,
        percentile(1).unwrap_or(&0.0),
        percentile(50).unwrap_or(&0.0),
        percentile(99).unwrap_or(&0.0),
    );
    if load(&totals.joined) == 0 {
        return Err(format!("no bot could join at {address}: is the server there?").into());
    }
    Ok(load(&totals.lost) == 0 && load(&totals.joined) == bots as u64)
}
