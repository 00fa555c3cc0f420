//! The server layer, as it is: services with framing, groups, limits, times, job queues and a
//! drain; clients that misbehave, and a client service that connects again.

mod books;
mod client;
mod server;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::books::{Books, Terms};
use self::client::{Asker, Client};
use self::server::{Handler, Room};
use self::wire::Wire;
use super::Plan;
use crate::service::groups::Groups;
use crate::service::job_queue::{JobQueue, JobTimer};
use crate::service::{
    Backoff, ClientService, Limits, Overflow, Phase, Runtime, ServerService, Timeouts,
    TransferRate, WaterMarks,
};
use crate::sim::{Random, World};

const HOUR: Duration = Duration::from_secs(3600);
/// Tries to start a service for which no descriptor is left.
const START_TRIES: usize = 100;

fn seconds(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.between(least * 1000, most * 1000))
}

fn perhaps<T>(random: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.chance(0.6).then(|| make(random))
}

/// What a run's service is like.
struct Setting {
    wire: Wire,
    maximum_frame_bytes: usize,
    limits: Limits,
    water_marks: WaterMarks,
    timeouts: Timeouts,
    drain: Duration,
    /// Connections of the client service.
    connections: usize,
}

impl Setting {
    fn draw(plan: &Plan, random: &mut Random) -> Self {
        let session_queued_bytes = 1 << random.between(11, 18);
        let high_bytes = random.between(200, session_queued_bytes as u64) as usize;
        Self {
            wire: Wire::draw(random),
            maximum_frame_bytes: random.between(600, 6000) as usize,
            limits: Limits {
                sessions: random.between(1, plan.clients as u64 + 4) as usize,
                sessions_per_address: random.between(1, 30) as usize,
                session_queued_bytes,
                service_queued_bytes: 1 << random.between(13, 20),
                overflow: if random.chance(0.5) { Overflow::Refuse } else { Overflow::Disconnect },
                notifications: random.between(1, 8) as usize,
                outstanding_accepts: random.between(1, 4) as usize,
                backlog: random.between(1, 8) as u32,
            },
            water_marks: WaterMarks {
                high_bytes,
                low_bytes: random.between(0, high_bytes as u64 - 1) as usize,
                pause_receiving: random.chance(0.5),
            },
            timeouts: Timeouts {
                handshake: perhaps(random, |random| seconds(random, 2, 60)),
                explicit_handshake: random.chance(0.3),
                idle: perhaps(random, |random| seconds(random, 5, 100)),
                read: perhaps(random, |random| seconds(random, 2, 60)),
                write: perhaps(random, |random| seconds(random, 2, 60)),
                heartbeat: perhaps(random, |random| seconds(random, 1, 30)),
                flush: seconds(random, 1, 10),
                linger: seconds(random, 1, 10),
                connect: seconds(random, 1, 30),
                minimum_rate: perhaps(random, |random| TransferRate {
                    bytes_per_second: random.between(1, 100) as u32,
                    grace: seconds(random, 1, 20),
                }),
            },
            drain: Duration::from_millis(random.below(20_000)),
            connections: if random.chance(0.5) { random.between(1, 3) as usize } else { 0 },
        }
    }
}

pub(super) fn run(plan: &Plan, world: &World, random: &mut Random) {
    let address: SocketAddr = ([127, 0, 0, 1], 7000).into();
    let setting = Setting::draw(plan, random);
    let Some(runtime) = runtime(world, plan.workers, random) else { return };
    let is_disturbed = plan.faults.clock_jump > 0.0 || plan.faults.stalled_worker > 0.0;
    let terms = Terms {
        timeouts: setting.timeouts.clone(),
        session_queued_bytes: setting.limits.session_queued_bytes,
        sessions: setting.limits.sessions,
        drain: setting.drain,
        is_disturbed,
    };
    let timer = JobTimer::new(runtime.scheduler());
    let room = Arc::new(Room {
        books: Books::new(world, terms),
        groups: Groups::new(),
        jobs: JobQueue::builder()
            .maximum_jobs(random.between(1, 60) as usize)
            .jobs_per_turn(random.between(1, 9) as usize)
            .build(runtime.scheduler(), ()),
        timer,
        port: Arc::clone(runtime.port()),
        flood: random.below(30) as u32,
        keeps_sending: random.chance(0.3),
    });
    let Some(server) = start_server(world, &runtime, &room, &setting, address) else {
        return world.violation("the server does not start");
    };
    for _ in 0..plan.clients {
        let (wire, most) = (setting.wire, setting.maximum_frame_bytes);
        let mut client = Client::new(&room, address, wire, most, plan.messages);
        world.actor(move |hand| client.act(hand));
    }
    let client_runtime = runtime_for_clients(world, &setting, random);
    let client = client_runtime
        .as_ref()
        .and_then(|runtime| start_client(runtime, &room, &setting, address, plan.messages, random));
    let is_over = Arc::new(AtomicBool::new(false));
    watch(world, &room, &server, &is_over);

    let drains_early = random.chance(0.4);
    let time = seconds(random, 1, if drains_early { 60 } else { 600 });
    world.run_until(time, || world.actors_left() == 0);
    if !drains_early {
        world.stop_faults();
        if setting.timeouts.idle.is_some() && setting.timeouts.write.is_some() {
            if !world.run_until(HOUR, || world.actors_left() == 0) {
                world.violation(format!("{} clients are still there", world.actors_left()));
            }
        } else {
            world.run_for(seconds(random, 60, 600));
        }
    }
    if let Some(client) = client {
        let report = client.stop(Duration::from_millis(random.below(3000)));
        if report.left > 0 || client.handle().phase() != Phase::Stopped {
            world.violation("the client service does not stop");
        }
    }
    stop(world, &room, &server, &setting, is_disturbed);
    world.stop_faults();
    is_over.store(true, Ordering::Relaxed);
    if !world.run_until(HOUR, || world.actors_left() == 0) {
        world.violation(format!("{} clients outlive the server", world.actors_left()));
    }
    let waiting =
        || runtime.waiting_timers() + client_runtime.as_ref().map_or(0, Runtime::waiting_timers);
    if waiting() > 0 {
        world.violation(format!("{} timers of the service are left", waiting()));
    }
    if !room.groups.is_empty() {
        world.violation("a group has members that are gone");
    }
    // Jobs that were put off still come; then the port's last timers are due.
    if !world.run_until(HOUR, || room.timer.is_empty() && world.pending_operations() == 0) {
        world.violation("operations are left after the end of the service");
    }
    world.run_for(Duration::from_secs(30));
    drop(server);
    room.books.close();
    drop(room);
    drop((client_runtime, runtime));
}

fn runtime(world: &World, workers: usize, random: &mut Random) -> Option<Runtime> {
    let port = world
        .port()
        .receive_buffer_bytes(random.between(64, 2000) as usize)
        .receive_window_bytes(random.between(64, 8000) as usize);
    let concurrency = random.between(1, 3) as usize;
    let built = Runtime::builder().port(port).concurrency(concurrency).threads(workers).build();
    built.map_err(|error| world.violation(error.to_string())).ok()
}

fn runtime_for_clients(world: &World, setting: &Setting, random: &mut Random) -> Option<Runtime> {
    let workers = random.between(1, 2) as usize;
    if setting.connections == 0 { None } else { runtime(world, workers, random) }
}

fn start_server(
    world: &World,
    runtime: &Runtime,
    room: &Arc<Room>,
    setting: &Setting,
    address: SocketAddr,
) -> Option<ServerService> {
    for _ in 0..START_TRIES {
        let factory = Arc::clone(room);
        let started = ServerService::builder(move |session| Handler::new(&factory, session))
            .listen(address)
            .framing(setting.wire.framing(setting.maximum_frame_bytes))
            .limits(setting.limits.clone())
            .water_marks(setting.water_marks.clone())
            .timeouts(setting.timeouts.clone())
            .start_on(runtime);
        if let Ok(server) = started {
            return Some(server);
        }
        world.sleep(Duration::from_millis(100));
    }
    None
}

fn start_client(
    runtime: &Runtime,
    room: &Arc<Room>,
    setting: &Setting,
    address: SocketAddr,
    messages: usize,
    random: &mut Random,
) -> Option<ClientService> {
    let factory = Arc::clone(room);
    let first = Duration::from_millis(random.between(1, 2000));
    ClientService::builder(move |_session| Asker::new(&factory, messages))
        .connect(address)
        .connections(setting.connections)
        .framing(setting.wire.framing(setting.maximum_frame_bytes))
        .timeouts(Timeouts { handshake: None, idle: None, ..setting.timeouts.clone() })
        .backoff(Backoff { first, longest: 10 * first, jitter: 0.5 })
        .start_on(runtime)
        .ok()
}

/// Looks at the service now and then, from a thread of its own.
fn watch(world: &World, room: &Arc<Room>, server: &ServerService, is_over: &Arc<AtomicBool>) {
    let (handle, is_over) = (server.handle(), Arc::clone(is_over));
    let (same, room) = (world.clone(), Arc::clone(room));
    world.spawn("watch", move || {
        let mut phase = Phase::Running;
        while !is_over.load(Ordering::Relaxed) {
            let snapshot = handle.snapshot();
            if snapshot.phase < phase {
                same.violation(format!("the service went from {phase} to {}", snapshot.phase));
            }
            phase = snapshot.phase;
            room.books.look(snapshot.sessions);
            same.sleep(Duration::from_secs(2));
        }
    });
}

fn stop(world: &World, room: &Room, server: &ServerService, setting: &Setting, is_disturbed: bool) {
    let began = world.now();
    room.books.drain_begins();
    let report = server.stop(setting.drain);
    let took = world.now() - began;
    if report.left > 0 {
        world.violation(format!("{} sessions are left when the service has stopped", report.left));
    }
    let slack = if is_disturbed { Duration::from_secs(300) } else { Duration::from_secs(7) };
    let limit = setting.drain + setting.timeouts.flush + setting.timeouts.linger + slack;
    if took > limit {
        world.violation(format!("the stop took {took:?}, and {limit:?} are allowed"));
    }
    if server.charged_bytes() > 0 {
        world.violation(format!("{} bytes stay counted as queued", server.charged_bytes()));
    }
    let handle = server.handle();
    if handle.session_count() > 0 || handle.phase() != Phase::Stopped {
        world.violation("the service says that it has stopped, and has not");
    }
}
