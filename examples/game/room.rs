//! A room and what happens in it. All of it runs as jobs of the room's queue, one at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proactor::service::groups::{Group, Membership};
use proactor::service::job_queue::PeriodicTick;
use proactor::service::{Session, SessionId};

use crate::protocol::{self, EDGE, Position};

/// So many fit: a snapshot of them is far below the maximum of a packet.
const MAXIMUM_PLAYERS: usize = 1000;

/// What all rooms together have done.
#[derive(Default)]
pub struct Totals {
    pub players: AtomicU64,
    pub ticks: AtomicU64,
    pub missed_ticks: AtomicU64,
    pub moves: AtomicU64,
}

pub struct Room {
    group: Group<Session>,
    players: HashMap<SessionId, Player>,
    next_player: u32,
    tick: u32,
    totals: Arc<Totals>,
}

struct Player {
    session: Session,
    position: Position,
    dx: i8,
    dy: i8,
    /// Dropped with the player, and with it the place in the group.
    _membership: Membership<Session>,
}

impl Room {
    pub fn new(totals: Arc<Totals>) -> Self {
        Self {
            group: Group::new(MAXIMUM_PLAYERS),
            players: HashMap::new(),
            next_player: 1,
            tick: 0,
            totals,
        }
    }

    pub fn join(&mut self, session: Session) {
        let Ok(membership) = self.group.join(session.clone()) else {
            session.disconnect();
            return;
        };
        let player = self.next_player;
        self.next_player += 1;
        let position = Position { player, x: 0, y: 0 };
        // Where it is refused the session has ended, and the next tick takes the player out.
        let _ = session.send(protocol::welcome(player));
        let id = session.id();
        let player = Player { session, position, dx: 0, dy: 0, _membership: membership };
        self.players.insert(id, player);
        self.totals.players.fetch_add(1, Ordering::Relaxed);
    }

    /// Those whose session is over are gone. This is looked at here and not told by the sessions,
    /// so that nobody stays who left while the room's queue was full.
    fn remove_gone(&mut self) {
        let before = self.players.len();
        self.players.retain(|_, player| !player.session.is_ending());
        let gone = before - self.players.len();
        self.totals.players.fetch_sub(gone as u64, Ordering::Relaxed);
    }

    pub fn steer(&mut self, id: SessionId, dx: i8, dy: i8) {
        if let Some(player) = self.players.get_mut(&id) {
            (player.dx, player.dy) = (dx, dy);
            self.totals.moves.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A twentieth of a second has passed; or more, where the room had too much to do.
    pub fn tick(&mut self, tick: PeriodicTick) {
        let steps = 1 + tick.missed;
        self.totals.ticks.fetch_add(1, Ordering::Relaxed);
        self.totals.missed_ticks.fetch_add(tick.missed, Ordering::Relaxed);
        self.tick = self.tick.wrapping_add(steps as u32);
        self.remove_gone();
        if self.players.is_empty() {
            return;
        }
        for player in self.players.values_mut() {
            let go = |from: i16, by: i8| {
                let to = i64::from(from) + i64::from(by) * steps.min(100) as i64;
                to.clamp(-i64::from(EDGE), i64::from(EDGE)) as i16
            };
            player.position.x = go(player.position.x, player.dx);
            player.position.y = go(player.position.y, player.dy);
        }
        let positions = self.players.values().map(|player| player.position);
        // Framed once, shared by all. A player who does not read is not waited for: what does not
        // fit into its queue is dropped, and the next snapshot says it all again.
        self.group.broadcast(&protocol::snapshot(self.tick, positions));
    }
}
