//! Sessions: what a player sends becomes a job of its room.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proactor::service::job_queue::{JobQueue, JobTimer, PortScheduler, PushError};
use proactor::service::{
    DisconnectReason, HandlerResult, Limits, Runtime, ServerService, ServiceHandle, Session,
    SessionHandler, Timeouts, WaterMarks,
};

use crate::protocol::{PACKETS, Request};
use crate::room::{Room, Totals};

const TICK: Duration = Duration::from_millis(50);
const MAXIMUM_ROOMS: u16 = 256;
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// All rooms. They are made when somebody comes, and stay.
struct World {
    rooms: Mutex<HashMap<u16, JobQueue<Room>>>,
    scheduler: PortScheduler,
    timer: JobTimer,
    totals: Arc<Totals>,
}

impl World {
    fn room(&self, number: u16) -> Result<JobQueue<Room>, PushError> {
        let mut rooms = self.rooms.lock().expect("nobody panics with it");
        if let Some(room) = rooms.get(&number) {
            return Ok(room.clone());
        }
        let room = JobQueue::new(self.scheduler.clone(), Room::new(self.totals.clone()));
        self.timer.push_every(&room, Instant::now() + TICK, TICK, Room::tick)?;
        rooms.insert(number, room.clone());
        Ok(room)
    }
}

struct Player {
    world: Arc<World>,
    room: Option<JobQueue<Room>>,
}

impl SessionHandler for Player {
    fn received(&mut self, session: &Session, payload: &[u8]) -> HandlerResult {
        let id = session.id();
        match (Request::parse(payload), &self.room) {
            (Some(Request::Join { room }), None) if room < MAXIMUM_ROOMS => {
                let room = self.world.room(room)?;
                let session = session.clone();
                room.push(move |room| room.join(session))?;
                self.room = Some(room);
            }
            (Some(Request::Move { dx, dy }), Some(room)) => {
                match room.push(move |room| room.steer(id, dx, dy)) {
                    // The room is behind: a move less is no harm.
                    Ok(()) | Err(PushError::Full { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            (request, _) => return Err(format!("a packet out of place: {request:?}").into()),
        }
        Ok(())
    }

    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        if !matches!(reason, DisconnectReason::PeerEnded | DisconnectReason::ServiceStopped) {
            println!("session {}: {reason}", session.id());
        }
    }
}

pub fn run(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = Runtime::new()?;
    let world = Arc::new(World {
        rooms: Mutex::default(),
        scheduler: runtime.scheduler(),
        timer: JobTimer::new(runtime.scheduler()),
        totals: Arc::default(),
    });
    let totals = world.totals.clone();
    let server = ServerService::builder(move |_| Player { world: world.clone(), room: None })
        .name("game")
        .listen(address)
        .framing(PACKETS.with_maximum_frame_bytes(16 * 1024))
        .limits(Limits { sessions: 20_000, session_queued_bytes: 256 * 1024, ..Limits::default() })
        .water_marks(WaterMarks {
            high_bytes: 64 * 1024,
            low_bytes: 16 * 1024,
            ..WaterMarks::default()
        })
        .timeouts(Timeouts { idle: Some(Duration::from_secs(30)), ..Timeouts::default() })
        .drain(Duration::ZERO)
        .start_on(&runtime)?;
    println!("game at {}; Enter stops it", server.local_address().expect("it has an address"));

    let handle = server.handle();
    std::thread::spawn(move || {
        for _line in std::io::stdin().lock().lines() {
            handle.request_stop();
        }
    });
    let handle = server.handle();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(REPORT_EVERY);
            report(&handle, &totals);
        }
    });
    println!("{:?}", server.run());
    Ok(())
}

fn report(handle: &ServiceHandle, totals: &Totals) {
    let snapshot = handle.snapshot();
    if snapshot.sessions == 0 {
        return;
    }
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} sessions, {} players; ticks {}, missed {}; moves {}; frames out {}; refused {}; \
         callbacks p99 {:?}",
        snapshot.sessions,
        load(&totals.players),
        load(&totals.ticks),
        load(&totals.missed_ticks),
        load(&totals.moves),
        snapshot.sent_frames,
        snapshot.refused_sends,
        snapshot.handler_p99.unwrap_or_default(),
    );
}
