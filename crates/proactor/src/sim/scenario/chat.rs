//! A server with frames, broadcasts, an idle time limit and a drain, on the bare port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Plan;
use super::chat_client::Client;
use super::frames::{BROADCAST, Cutter, ECHO, frame};
use crate::sim::{Random, World};
use crate::{
    Completion, CompletionPort, ErrorKind, ListenSocket, Operation, OperationId, OperationKind,
    StreamSocket,
};

const LISTENER: usize = 1;
const FIRST_SESSION: usize = 1000;
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// A session with more sends under way reads too slowly.
const MOST_SENDS: usize = 200;
const HOUR: Duration = Duration::from_secs(3600);

struct Server {
    world: World,
    port: CompletionPort,
    is_continuous: bool,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    listener: Option<ListenSocket>,
    sessions: BTreeMap<usize, Session>,
    next_key: usize,
    /// Sessions that end when their sends are out, and have some.
    promised: BTreeSet<usize>,
    is_draining: bool,
}

struct Session {
    stream: StreamSocket,
    cutter: Cutter,
    /// Packets of a continuous receive that came before their turn.
    early: BTreeMap<u64, Option<Vec<u8>>>,
    next_sequence: u64,
    sends: usize,
    heard_at: Duration,
    /// The same, for the check.
    truly_heard_at: Duration,
    timer: Option<OperationId>,
    /// It ends when its sends are out.
    is_ending: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn run(plan: &Plan, world: &World, random: &mut Random) {
    let address: SocketAddr = ([127, 0, 0, 1], 7000).into();
    let port = world
        .port()
        .concurrency(random.between(1, 3) as usize)
        .receive_buffer_bytes(random.between(64, 2000) as usize)
        .receive_window_bytes(random.between(64, 8000) as usize)
        .build();
    let listener = world.listen_with_backlog(address, random.between(1, 8) as usize);
    let (Ok(port), Ok(listener)) = (port, listener) else {
        return world.violation("the server does not start");
    };
    let Ok(listener) = port.associate(listener, LISTENER) else {
        return world.violation("the listener is refused");
    };
    let server = Arc::new(Server {
        world: world.clone(),
        port,
        // Its packets can be handled side by side, and the answers would lose their order.
        is_continuous: random.chance(0.5) && !plan.seed.is_multiple_of(3),
        shared: Mutex::new(Shared { next_key: FIRST_SESSION, ..Shared::default() }),
    });
    for _ in 0..random.between(1, 4) {
        server.accept(&listener, Operation::new());
    }
    lock(&server.shared).listener = Some(listener);
    for _ in 0..plan.workers {
        let server = Arc::clone(&server);
        world.spawn("worker", move || {
            while let Ok(completion) = server.port.dequeue(None) {
                server.handle(completion);
            }
        });
    }
    for number in 0..plan.clients {
        let mut client = Client::new(world, address, number as u8, plan.messages);
        world.actor(move |hand| client.act(hand));
    }
    // Clients that fall silent are cut off by the idle time limit, so all of them end.
    world.run_until(Duration::from_secs(random.between(1, 600)), || world.actors_left() == 0);
    world.stop_faults();
    if !world.run_until(HOUR, || world.actors_left() == 0) {
        world.violation(format!("{} clients are still there", world.actors_left()));
    }
    server.drain();
    if !world.run_until(HOUR, || lock(&server.shared).sessions.is_empty()) {
        world.violation("the drain does not end");
    }
    lock(&server.shared).sessions.clear();
    if !world.run_until(HOUR, || world.pending_operations() == 0) {
        world.violation("operations are left after the drain");
    }
    world.run_for(Duration::from_secs(30));
    server.port.close();
}

impl Server {
    fn handle(&self, completion: Completion) {
        match (completion.kind(), completion.key()) {
            (OperationKind::Accept, _) => self.accepted(completion),
            (OperationKind::Timer, LISTENER) => self.accept_again(completion),
            (OperationKind::Timer, key) => self.look_at_idle(key),
            (OperationKind::Recv | OperationKind::RecvContinuous, _) => self.received(completion),
            (OperationKind::Send, _) => self.sent(&completion),
            _ => {}
        }
    }

    fn accept_again(&self, mut completion: Completion) {
        let listener = lock(&self.shared).listener.clone();
        if let (Some(listener), Some(operation)) = (listener, completion.take_operation()) {
            self.accept(&listener, operation);
        }
    }

    fn accept(&self, listener: &ListenSocket, operation: Operation) {
        if let Err(rejected) = listener.accept(operation) {
            self.accept_later(rejected.into_operation());
        }
    }

    /// So that a lack of descriptors is not met again at once.
    fn accept_later(&self, operation: Operation) {
        let _ = self.port.start_timer(LISTENER, Duration::from_millis(100), operation);
    }

    fn accepted(&self, mut completion: Completion) {
        let Some(mut operation) = completion.take_operation() else { return };
        if completion.error().is_some() {
            return self.accept_later(operation);
        }
        let Some(accepted) = operation.take_accepted() else { return };
        let listener = lock(&self.shared).listener.clone();
        if let Some(listener) = listener {
            self.accept(&listener, operation);
        }
        let key = {
            let mut shared = lock(&self.shared);
            if shared.is_draining {
                return;
            }
            shared.next_key += 1;
            shared.next_key
        };
        let Ok(stream) = self.port.associate(accepted, key) else { return };
        let heard_at = self.world.now();
        let timer = self.port.start_timer(key, IDLE_LIMIT, Operation::new()).ok();
        let session = Session {
            stream: stream.clone(),
            cutter: Cutter::default(),
            early: BTreeMap::new(),
            next_sequence: 0,
            sends: 0,
            heard_at,
            truly_heard_at: heard_at,
            timer,
            is_ending: false,
        };
        lock(&self.shared).sessions.insert(key, session);
        self.receive(key, &stream, Operation::new());
    }

    fn receive(&self, key: usize, stream: &StreamSocket, operation: Operation) {
        let result = if self.is_continuous {
            stream.recv_continuous(operation)
        } else {
            stream.recv(operation, Vec::with_capacity(1 + key % 7 * 300))
        };
        if result.is_err() {
            self.end(key);
        }
    }

    /// Ends a session, whatever is under way.
    fn end(&self, key: usize) {
        lock(&self.shared).promised.remove(&key);
        self.close(key);
    }

    fn close(&self, key: usize) {
        let session = lock(&self.shared).sessions.remove(&key);
        if let Some(timer) = session.as_ref().and_then(|session| session.timer) {
            self.port.cancel_timer(timer);
        }
        drop(session);
    }

    fn received(&self, mut completion: Completion) {
        let key = completion.key();
        if completion.error().is_some() {
            return self.end(key);
        }
        let now = self.world.now();
        let is_end = completion.bytes() == 0 && !completion.more();
        let bytes = match completion.take_chunk() {
            Some(mut chunk) => {
                let bytes = chunk.to_vec();
                chunk.advance(bytes.len() / 2);
                bytes
            }
            None => completion.operation().map(|one| one.buffer().to_vec()).unwrap_or_default(),
        };
        let arrived = if is_end { None } else { Some(bytes) };
        let mut shared = lock(&self.shared);
        let Some(session) = shared.sessions.get_mut(&key) else { return };
        session.truly_heard_at = now;
        if !planted!(IdleNotPutOff) {
            session.heard_at = now;
        }
        let mut has_ended = false;
        if self.is_continuous {
            session.early.insert(completion.sequence(), arrived);
            while let Some(next) = session.early.remove(&session.next_sequence) {
                session.next_sequence += 1;
                match next {
                    Some(bytes) => session.cutter.push(&bytes),
                    None => has_ended = true,
                }
            }
        } else {
            match arrived {
                Some(bytes) => session.cutter.push(&bytes),
                None => has_ended = true,
            }
        }
        let frames = session.cutter.frames_of_server();
        let is_broken = session.cutter.is_broken;
        let stream = session.stream.clone();
        drop(shared);
        for body in frames {
            self.answer(key, &body);
        }
        if is_broken {
            return self.end(key);
        }
        if has_ended {
            return self.end_in_order(key);
        }
        if let Some(operation) = completion.take_operation() {
            self.receive(key, &stream, operation);
        }
    }

    fn answer(&self, key: usize, body: &[u8]) {
        let bytes = frame(body[0], &body[1..]);
        let mut to: Vec<(usize, StreamSocket)> = Vec::new();
        let mut too_slow = Vec::new();
        {
            let mut shared = lock(&self.shared);
            let count = shared.sessions.len();
            for (place, (other, session)) in shared.sessions.iter_mut().enumerate() {
                let is_meant = match body[0] {
                    ECHO => *other == key,
                    BROADCAST => !(planted!(BroadcastSkipsLast) && place + 1 == count),
                    _ => false,
                };
                if !is_meant || session.is_ending {
                    continue;
                }
                if session.sends >= MOST_SENDS {
                    too_slow.push(*other);
                    continue;
                }
                session.sends += 1;
                to.push((*other, session.stream.clone()));
            }
        }
        for (other, stream) in to {
            if stream.send(Operation::new(), bytes.clone()).is_err() {
                self.end(other);
            }
        }
        too_slow.into_iter().for_each(|other| self.end(other));
    }

    fn sent(&self, completion: &Completion) {
        let key = completion.key();
        let mut shared = lock(&self.shared);
        let is_aborted =
            completion.error().is_some_and(|error| error.kind() == ErrorKind::ConnectionAborted);
        if is_aborted && shared.promised.contains(&key) {
            self.world.violation("the server closed a session whose sends were queued");
        }
        let Some(session) = shared.sessions.get_mut(&key) else { return };
        session.sends -= 1;
        let is_through = session.is_ending && session.sends == 0;
        drop(shared);
        match completion.error() {
            None if is_through => self.end(key),
            None => {}
            Some(_) => self.end(key),
        }
    }

    /// Ends a session when what it was to be sent is out.
    fn end_in_order(&self, key: usize) {
        let mut shared = lock(&self.shared);
        let Some(session) = shared.sessions.get_mut(&key) else { return };
        session.is_ending = true;
        let has_sends = session.sends > 0;
        if has_sends {
            shared.promised.insert(key);
        }
        drop(shared);
        if !has_sends || planted!(DrainLosesQueued) {
            self.close(key);
        }
    }

    fn look_at_idle(&self, key: usize) {
        let now = self.world.now();
        let mut shared = lock(&self.shared);
        let Some(session) = shared.sessions.get_mut(&key) else { return };
        session.timer = None;
        let (idle, truly) =
            (now.saturating_sub(session.heard_at), now.saturating_sub(session.truly_heard_at));
        drop(shared);
        if idle >= IDLE_LIMIT {
            if truly < IDLE_LIMIT {
                self.world.violation("a session was ended as idle that was not");
            }
            return self.end(key);
        }
        let timer = self.port.start_timer(key, IDLE_LIMIT - idle, Operation::new()).ok();
        if let Some(session) = lock(&self.shared).sessions.get_mut(&key) {
            session.timer = timer;
        } else if let Some(timer) = timer {
            self.port.cancel_timer(timer);
        }
    }

    fn drain(&self) {
        let (listener, streams) = {
            let mut shared = lock(&self.shared);
            shared.is_draining = true;
            let streams: Vec<_> =
                shared.sessions.iter().map(|(key, one)| (*key, one.stream.clone())).collect();
            (shared.listener.take(), streams)
        };
        drop(listener);
        for (key, stream) in streams {
            let _ = stream.shutdown(Shutdown::Read);
            self.end_in_order(key);
        }
    }
}
