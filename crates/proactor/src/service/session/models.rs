//! A session under a scheduler that tries many interleavings: see `docs/testing.md`.
//!
//! The session is whole: its own code, the runtime's and the port's, on the epoll driver and a
//! socket pair. What is lost shows as a deadlock: the main thread waits for the last callback.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread;

use super::*;
use crate::service::config::{Limits, Timeouts, WaterMarks};
use crate::service::framing::RawBytes;
use crate::service::handler::{HandlerResult, SessionHandler};
use crate::service::runtime::Runtime;
use crate::service::shared::Settings;
use crate::sync::{Condvar, Mutex, atomic::AtomicBool, model};
use crate::{BackendChoice, CompletionPort};

fn explore(schedules: usize, model: fn()) {
    let config = || {
        let mut config = shuttle::Config::new();
        config.stack_size = 256 * 1024;
        config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
        config.silence_warnings = true;
        config
    };
    if let Ok(schedule) = std::env::var("PROACTOR_MODEL_REPLAY") {
        let replay = shuttle::scheduler::ReplayScheduler::new_from_encoded(schedule.trim());
        shuttle::Runner::new(replay, config()).run(model);
        return;
    }
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let half = schedules * number("PROACTOR_MODEL_SCALE").unwrap_or(1) as usize / 2;
    let seed = number("PROACTOR_MODEL_SEED").unwrap_or(0x5eed);
    let random = RandomScheduler::new_from_seed(seed, half);
    shuttle::Runner::new(random, config()).run(model);
    let priorities = PctScheduler::new_from_seed(seed, 3, half);
    shuttle::Runner::new(priorities, config()).run(model);
}

/// What the callbacks were, and what was wrong with them: a callback that panics is caught, so it is
/// said at the end.
#[derive(Default)]
struct Seen {
    events: Mutex<Vec<Event>>,
    busy: AtomicBool,
    /// Somebody heard two callbacks at once.
    at_once: AtomicBool,
    over: Condvar,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Connected,
    Received(Vec<u8>),
    Sent(usize),
    Notified(u8),
    Disconnected,
}

impl Seen {
    fn note(&self, event: Event) {
        if self.busy.swap(true, Ordering::SeqCst) {
            self.at_once.store(true, Ordering::SeqCst);
        }
        thread::yield_now();
        let last = event == Event::Disconnected;
        lock(&self.events).push(event);
        self.busy.store(false, Ordering::SeqCst);
        if last {
            self.over.notify_all();
        }
    }

    /// Waits for the last callback. A wake-up that is lost is a deadlock.
    fn wait_for_end(&self) {
        let mut events = lock(&self.events);
        while !events.contains(&Event::Disconnected) {
            events = self.over.wait(events).unwrap();
        }
    }

    fn check(&self) -> Vec<Event> {
        assert!(!self.at_once.load(Ordering::SeqCst), "two callbacks at once");
        let events = lock(&self.events).clone();
        let count = |event| events.iter().filter(|other| **other == event).count();
        assert_eq!(count(Event::Connected), 1, "{events:?}");
        assert_eq!(count(Event::Disconnected), 1, "{events:?}");
        assert_eq!(events.first(), Some(&Event::Connected), "{events:?}");
        assert_eq!(events.last(), Some(&Event::Disconnected), "{events:?}");
        events
    }
}

/// Echoes what it receives, and notes everything.
struct Handler(Arc<Seen>);

impl SessionHandler for Handler {
    fn connected(&mut self, _session: &Session) -> HandlerResult {
        self.0.note(Event::Connected);
        Ok(())
    }
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        self.0.note(Event::Received(frame.to_vec()));
        let _ = session.send(frame);
        Ok(())
    }
    fn sent(&mut self, _session: &Session, bytes: usize) {
        self.0.note(Event::Sent(bytes));
    }
    fn notified(&mut self, _session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        self.0.note(Event::Notified(*message.downcast().expect("only numbers are sent")));
        Ok(())
    }
    fn disconnected(&mut self, _session: &Session, _reason: DisconnectReason) {
        self.0.note(Event::Disconnected);
    }
}

/// One session on a port with some threads.
struct World {
    runtime: Runtime,
    service: Arc<ServiceShared>,
    workers: Vec<thread::JoinHandle<()>>,
    seen: Arc<Seen>,
    peer: Option<UnixStream>,
}

impl World {
    fn new(threads: usize) -> (Self, Session) {
        let port = CompletionPort::builder()
            .backend(BackendChoice::Epoll)
            .concurrency(threads)
            .receive_buffer_bytes(4)
            .build()
            .unwrap();
        let runtime = Runtime::on(Arc::new(port));
        // Nothing ends by time: what is not told must not be saved by a limit.
        let timeouts = Timeouts {
            handshake: None,
            read: None,
            write: None,
            minimum_rate: None,
            flush: 2 * model::EXPIRES_WITHIN,
            linger: 2 * model::EXPIRES_WITHIN,
            ..Timeouts::default()
        };
        let settings = Settings {
            name: "model".to_owned(),
            framing: Arc::new(RawBytes::new()),
            filter: None,
            factory: Box::new(|_| unreachable!("the handler is made below")),
            limits: Limits { notifications: 2, ..Limits::default() },
            water_marks: WaterMarks::default(),
            timeouts,
            nodelay: false,
        };
        let service = ServiceShared::new(settings, Arc::clone(runtime.shared()));
        let workers = (0..threads)
            .map(|_| {
                let runtime = Arc::clone(runtime.shared());
                thread::spawn(move || {
                    while let Ok(packet) = runtime.port.dequeue(None) {
                        assert!(runtime.dispatch(packet).is_ok(), "a packet for nobody");
                    }
                })
            })
            .collect();
        let (ours, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let key = runtime.shared().registry.reserve();
        let stream = runtime.port().associate(ours, key.completion_key()).unwrap();
        assert!(service.admit(None));
        let seen = Arc::new(Seen::default());
        let (made, handler) = (Arc::new(Mutex::new(None)), Handler(Arc::clone(&seen)));
        let kept = Arc::clone(&made);
        service.begin_session_with(key, stream, None, SessionId::next(), move |session| {
            *lock(&kept) = Some(session.clone());
            Box::new(handler)
        });
        let session = lock(&made).take().expect("the session has begun");
        (Self { runtime, service, workers, seen, peer: Some(peer) }, session)
    }

    fn peer(&self) -> &UnixStream {
        self.peer.as_ref().expect("the peer was not dropped")
    }

    /// The session has to end, whatever was done to it, and all of it goes.
    fn end(self) -> (Vec<Event>, Vec<u8>) {
        self.seen.wait_for_end();
        let Self { runtime, service, workers, seen, peer } = self;
        while lock(&service.state).admitted > 0 {
            thread::yield_now();
        }
        runtime.port().close();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        let mut bytes = Vec::new();
        // A reset, or nothing more.
        if let Some(mut peer) = peer {
            let _ = peer.read_to_end(&mut bytes);
        }
        (seen.check(), bytes)
    }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn act(session: &Session, act: impl FnOnce(&Session) + Send + 'static) -> thread::JoinHandle<()> {
    let session = session.clone();
    thread::spawn(move || act(&session))
}

/// Sends and notes from two threads, and the peer's end in order, after what it sent.
#[test]
fn everything_that_was_given_is_told_before_the_end() {
    explore(1_000, || {
        let (world, session) = World::new(2);
        let mut peer = world.peer().try_clone().unwrap();
        let mut threads = vec![
            act(&session, |session| _ = session.send(b"s")),
            act(&session, |session| session.notify(1_u8).expect("there is room")),
        ];
        join(std::mem::take(&mut threads));
        threads.push(thread::spawn(move || {
            model::happen(|| peer.write_all(b"abcdefgh").unwrap());
            model::happen(|| peer.shutdown(Shutdown::Write).unwrap());
        }));
        join(threads);
        let (events, answer) = world.end();
        let received: Vec<u8> = events
            .iter()
            .flat_map(|event| match event {
                Event::Received(bytes) => bytes.clone(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(received, b"abcdefgh", "{events:?}");
        assert!(events.contains(&Event::Notified(1)), "{events:?}");
        let sent: usize = events.iter().map(|e| if let Event::Sent(n) = e { *n } else { 0 }).sum();
        assert_eq!((sent, answer.len()), (9, 9), "{events:?}");
    });
}

/// An end at once from one thread, while another one sends, a third one notifies, and bytes come.
#[test]
fn an_end_at_once_waits_for_nothing_that_does_not_come() {
    explore(2_000, || {
        let (world, session) = World::new(2);
        let mut peer = world.peer().try_clone().unwrap();
        let threads = vec![
            act(&session, |session| {
                let _ = session.send(b"one");
                let _ = session.send(b"two");
            }),
            act(&session, |session| {
                let _ = session.notify(1_u8);
                session.abort();
            }),
            thread::spawn(move || _ = model::happen(|| peer.write_all(b"abcd"))),
        ];
        join(threads);
        world.end();
        assert_eq!(session.send(b"late"), Err(SendError::Closed));
        assert!(session.notify(2_u8).is_err());
    });
}

/// Ends in order from two threads and at once from the peer, while others send.
#[test]
fn whoever_ends_it_first_it_ends_once() {
    explore(2_000, || {
        let (world, session) = World::new(2);
        let peer = world.peer().try_clone().unwrap();
        let threads = vec![
            act(&session, |session| {
                let _ = session.send(b"one");
                session.disconnect();
            }),
            act(&session, Session::disconnect),
            thread::spawn(move || _ = model::happen(|| peer.shutdown(Shutdown::Both))),
        ];
        join(threads);
        world.end();
    });
}

/// The peer goes with bytes unread, which is a reset, while others send: a send that is refused has
/// to be known to the end that waits for it.
#[test]
fn a_reset_ends_it_whoever_sends() {
    explore(2_000, || {
        let (mut world, session) = World::new(2);
        session.send(b"unread").unwrap();
        let peer = world.peer.take();
        let threads = vec![
            act(&session, |session| _ = session.send(b"one")),
            act(&session, |session| _ = session.send(b"two")),
            thread::spawn(move || model::happen(|| drop(peer))),
        ];
        join(threads);
        world.end();
    });
}

/// Receiving is paused from one thread and goes on from another: no byte stays behind.
#[test]
fn a_pause_that_ends_is_not_forgotten() {
    explore(1_000, || {
        let (world, session) = World::new(2);
        let mut peer = world.peer().try_clone().unwrap();
        let threads = vec![
            act(&session, |session| {
                session.pause_receiving();
                thread::yield_now();
                session.resume_receiving();
            }),
            thread::spawn(move || {
                model::happen(|| peer.write_all(b"abcdefgh").unwrap());
                model::happen(|| peer.shutdown(Shutdown::Write).unwrap());
            }),
        ];
        join(threads);
        let (_, answer) = world.end();
        assert_eq!(answer, b"abcdefgh");
    });
}
