//! Limits: how many sessions, how many bytes, and what happens beyond.

mod common;
mod service_common;

use std::any::Any;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::*;
use proactor::service::framing::{LengthPrefixed, Lines};
use proactor::service::{
    HandlerResult, NotifyError, Overflow, SendError, ServerService, Session, SessionHandler,
    WaterMarks,
};
use service_common::*;

/// More bytes than the system keeps for both ends of a connection.
const MANY: usize = 24 * 1024 * 1024;

/// Takes everything and says nothing.
struct Silent;

impl SessionHandler for Silent {
    fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
        Ok(())
    }
}

/// Tells of each message, and goes on when it is let.
struct Held {
    told: mpsc::Sender<usize>,
    held: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl SessionHandler for Held {
    fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
        Ok(())
    }
    fn notified(&mut self, _session: &Session, message: Box<dyn Any + Send>) -> HandlerResult {
        self.told.send(*message.downcast::<usize>().expect("a number"))?;
        Ok(self.held.lock().unwrap().recv_timeout(HANG)?)
    }
}

/// Writes until the peer has taken nothing for a while; says how much it took.
fn write_until_stuck(client: &mut TcpStream, most_bytes: usize) -> usize {
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = pattern(1, 64 * 1024);
    let mut written = 0;
    while written < most_bytes {
        match client.write(&piece[written % piece.len()..]) {
            Ok(count) => written += count,
            // A write with a time limit is not taken up again (signal(7)).
            Err(error) if error.kind() == IoErrorKind::Interrupted => {}
            Err(error) => {
                assert!(
                    matches!(error.kind(), IoErrorKind::WouldBlock | IoErrorKind::TimedOut),
                    "{error}"
                );
                break;
            }
        }
    }
    client.set_write_timeout(Some(HANG)).unwrap();
    written
}

/// So many payloads of `MANY` bytes are more than the system's buffers hold.
const OWNED: usize = 4;

/// Owns a payload, and calls its session when it goes.
struct Owner {
    payload: Arc<[u8]>,
    session: Session,
    gone: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Each takes one of the session's locks. What they answer depends on how far the end is.
        let _ = self.session.send(b"x");
        let _ = self.session.notify(());
        self.session.counters();
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

on_each_backend! {
    fn no_more_sessions_than_the_limit_in_all_and_of_one_address(ports: &Ports) {
        let runtime = runtime(ports);
        for per_address in [false, true] {
            let server = ServerService::builder(|_| Echo)
                .listen("127.0.0.1:0")
                .limits(limited(|limits| {
                    let limit = if per_address {
                        &mut limits.sessions_per_address
                    } else {
                        &mut limits.sessions
                    };
                    *limit = 3;
                }))
                .start_on(&runtime)
                .unwrap();
            let address = server.local_address().unwrap();
            let mut clients: Vec<_> = (0..3).map(|_| connect(address)).collect();
            wait_for_sessions(&server.handle(), 3);
            for _ in 0..5 {
                // Turned away: closed without a byte.
                read_to_end(&mut connect(address));
            }
            let rejected = server.handle().snapshot().rejected;
            let counted = if per_address { rejected.address } else { rejected.sessions };
            assert_eq!(counted, 5, "{rejected:?}");
            for client in &mut clients {
                client.write_all(b"hello").unwrap();
                assert_eq!(read_bytes(client, 5), b"hello");
            }
            // One leaves, and there is room.
            clients.pop();
            wait_for_sessions(&server.handle(), 2);
            let mut client = connect(address);
            client.write_all(b"hello").unwrap();
            assert_eq!(read_bytes(&mut client, 5), b"hello");
        }
    }

    fn messages_beyond_the_limit_come_back_and_the_others_arrive(ports: &Ports) {
        let runtime = runtime(ports);
        let (told, hear) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let server = ServerService::builder(move |_| Held { told: told.clone(), held: held.clone() })
            .listen("127.0.0.1:0")
            .limits(limited(|limits| limits.notifications = 3))
            .start_on(&runtime)
            .unwrap();
        let client = connect(server.local_address().unwrap());
        wait_for_sessions(&server.handle(), 1);
        let session = server.handle().sessions().pop().unwrap();
        session.notify(0_usize).unwrap();
        // The handler has the first one and holds it, so the limit is for those behind.
        assert_eq!(hear.recv_timeout(HANG), Ok(0));
        for number in 1..=3_usize {
            session.notify(number).unwrap();
        }
        let refused = session.notify(4_usize).unwrap_err();
        assert_eq!((format!("{refused:?}"), refused.into_message()), ("Full(..)".to_owned(), 4));
        // A refusal gives back whatever type it is, and ends nothing.
        let text = String::from("not taken");
        assert_eq!(session.notify(text.clone()), Err(NotifyError::Full(text)));
        assert_eq!(server.handle().snapshot().refused_notifications, 2);
        (0..5).for_each(|_| release.send(()).unwrap());
        for number in 1..=3 {
            assert_eq!(hear.recv_timeout(HANG), Ok(number));
        }
        wait_until("there is room again", || session.notify(5_usize).is_ok());
        assert_eq!(hear.recv_timeout(HANG), Ok(5));
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        assert_eq!(session.notify(6_usize), Err(NotifyError::Closed(6)));
    }

    fn a_reader_that_never_reads_stops_its_own_sending_and_loses_nothing(ports: &Ports) {
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Echo)
            .listen("127.0.0.1:0")
            .timeouts(patient())
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        let most_bytes = 64 * 1024 * 1024;
        let written = write_until_stuck(&mut client, most_bytes);
        assert!(written < most_bytes, "the server took {written} bytes and sent none");
        let session = server.handle().sessions().pop().unwrap();
        let queued_bytes = session.counters().queued_bytes;
        // The mark, and what one receive buffer brought on top of it.
        let marks = WaterMarks::default();
        assert!(queued_bytes <= marks.high_bytes + 64 * 1024, "{queued_bytes} bytes are queued");
        assert!(session.is_over_mark());
        assert_eq!(server.handle().snapshot().sessions_over_mark, 1);
        // Another one is served as ever.
        let mut other = connect(server.local_address().unwrap());
        other.write_all(b"hello").unwrap();
        assert_eq!(read_bytes(&mut other, 5), b"hello");
        // Now it reads: everything comes, in order.
        client.shutdown(Shutdown::Write).unwrap();
        let (answer, error) = read_to_end(&mut client);
        assert_eq!(error, None);
        let piece = pattern(1, 64 * 1024);
        let expected: Vec<u8> = piece.iter().copied().cycle().take(written).collect();
        assert_same_bytes(&answer, &expected);
    }

    fn an_owner_of_a_payload_that_is_not_sent_may_call_the_session(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let gone = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&gone);
        let payload: Arc<[u8]> = vec![b'x'; MANY].into();
        let server = noting(&log, move |session, _frame| {
            // More than the system takes of what nobody reads.
            for _ in 0..OWNED {
                session.send_shared(Bytes::from_owner(Owner {
                    payload: Arc::clone(&payload),
                    session: session.clone(),
                    gone: Arc::clone(&counted),
                }))?;
            }
            session.abort();
            Ok(())
        })
        .limits(limited(|limits| {
            limits.session_queued_bytes = 2 * OWNED * MANY;
            limits.service_queued_bytes = 2 * OWNED * MANY;
        }))
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"go").unwrap();
        wait_until("all payloads are gone", || gone.load(Ordering::SeqCst) == OWNED);
        log.wait_for("disconnected");
        drop(client);
        wait_for_sessions(&server.handle(), 0);
    }

    fn the_handler_is_told_at_the_marks(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            session.send_shared(vec![b'x'; MANY])?;
            Ok(())
        })
        .framing(LengthPrefixed::u32().with_maximum_frame_bytes(2 * MANY))
        .limits(limited(|limits| limits.session_queued_bytes = 2 * MANY))
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        for round in 1..=3 {
            client.write_all(&[0, 0, 0, 1, b'a']).unwrap();
            wait_until("high", || log.count("high water") == round);
            let answer = read_bytes(&mut client, MANY + 4);
            assert!(answer[4..].iter().all(|byte| *byte == b'x'));
            wait_until("low", || log.count("low water") == round);
        }
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn marks_that_were_crossed_up_and_down_unseen_are_told_all_the_same(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let server = noting(&log, move |_session, _frame| {
            released.lock().unwrap().recv_timeout(HANG)?;
            Ok(())
        })
        .limits(limited(|limits| limits.session_queued_bytes = 2 * MANY))
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"block").unwrap();
        log.wait_for("received block");
        let session = server.handle().sessions().pop().unwrap();
        for _ in 0..2 {
            session.send_shared(vec![b'x'; MANY]).unwrap();
            assert!(session.is_over_mark());
            read_bytes(&mut client, MANY);
            wait_until("the queue falls", || !session.is_over_mark());
        }
        assert_eq!((log.count("high water"), log.count("low water")), (0, 0));
        release.send(()).unwrap();
        log.wait_for("low water");
        // Told as one pair.
        assert_eq!(log.all()[2..], ["high water", "low water"]);
        drop(client);
        wait_for_sessions(&server.handle(), 0);
    }

    fn the_last_answer_is_not_lost_because_the_peer_sent_more(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            session.send_shared(vec![b'x'; MANY])?;
            session.disconnect();
            Ok(())
        })
        .limits(limited(|limits| limits.session_queued_bytes = 2 * MANY))
        .timeouts(proactor::service::Timeouts { linger: HANG, ..patient() })
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"question").unwrap();
        log.wait_for("received question");
        let session = server.handle().sessions().pop();
        // The system has all of the rest, some of it still on the server's side.
        read_bytes(&mut client, MANY - 2 * 1024 * 1024);
        wait_until("all is handed to the system", || {
            session.as_ref().is_none_or(|session| session.counters().queued_bytes == 0)
        });
        client.write_all(&pattern(1, 100_000)).unwrap();
        client.write_all(&pattern(2, 100_000)).unwrap();
        let (rest, error) = read_to_end(&mut client);
        assert_eq!((rest.len(), error), (2 * 1024 * 1024, None));
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn a_full_queue_refuses_or_ends_the_session(ports: &Ports) {
        let runtime = runtime(ports);
        for overflow in [Overflow::Refuse, Overflow::Disconnect] {
            let server = ServerService::builder(|_| Silent)
                .listen("127.0.0.1:0")
                .limits(limited(|limits| {
                    limits.session_queued_bytes = 300_000;
                    limits.overflow = overflow;
                }))
                .timeouts(patient())
                .start_on(&runtime)
                .unwrap();
            let mut client = connect(server.local_address().unwrap());
            wait_for_sessions(&server.handle(), 1);
            let session = server.handle().sessions().pop().unwrap();
            let mut taken = 0;
            let error = loop {
                match session.send(pattern(taken, 10_000)) {
                    Ok(()) => taken += 1,
                    Err(error) => break error,
                }
                assert!(taken < 10_000, "100 MB for a peer that does not read");
            };
            assert_eq!(error, SendError::SessionFull);
            assert!(session.counters().queued_bytes <= 300_000);
            match overflow {
                Overflow::Refuse => {
                    // What was taken comes, whole and in order.
                    for seed in 0..taken {
                        let got = read_bytes(&mut client, 10_000);
                        assert_same_bytes(&got, &pattern(seed, 10_000));
                    }
                    wait_until("there is room", || session.counters().queued_bytes == 0);
                    session.send(b"again").unwrap();
                    assert_eq!(read_bytes(&mut client, 5), b"again");
                }
                Overflow::Disconnect => {
                    wait_for_sessions(&server.handle(), 0);
                    assert_eq!(server.handle().snapshot().disconnected.queue_full, 1);
                }
            }
            assert_eq!(server.handle().snapshot().refused_sends, 1);
        }
    }

    fn all_queues_together_have_a_limit(ports: &Ports) {
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Silent)
            .listen("127.0.0.1:0")
            .limits(limited(|limits| limits.service_queued_bytes = 1_000_000))
            .timeouts(patient())
            .start_on(&runtime)
            .unwrap();
        let clients: Vec<_> = (0..8)
            .map(|_| connect(server.local_address().unwrap()))
            .collect();
        wait_for_sessions(&server.handle(), 8);
        let sessions = server.handle().sessions();
        let mut refused = 0;
        for round in 0..10_000 {
            let session = &sessions[round % sessions.len()];
            match session.send([7; 8_000]) {
                Ok(()) | Err(SendError::SessionFull) => {}
                Err(error) => {
                    assert_eq!(error, SendError::ServiceFull);
                    refused += 1;
                }
            }
        }
        assert!(refused > 0);
        let queued_bytes = server.handle().snapshot().queued_bytes;
        assert!(queued_bytes <= 1_000_000 + 8 * 4096, "{queued_bytes}");
        drop(clients);
        wait_for_sessions(&server.handle(), 0);
        // All of it is given back.
        let mut client = connect(server.local_address().unwrap());
        wait_for_sessions(&server.handle(), 1);
        server.handle().sessions()[0].send(vec![b'y'; 900_000]).unwrap();
        assert!(read_bytes(&mut client, 900_000).iter().all(|byte| *byte == b'y'));
    }

    fn paused_it_learns_of_a_reset_at_once(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            session.pause_receiving();
            Ok(())
        })
        .framing(Lines::new())
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        // The second line stays behind the pause, and the reset comes behind that.
        client.write_all(b"one\ntwo\n").unwrap();
        log.wait_for("received one");
        reset(client);
        wait_for_sessions(&server.handle(), 0);
        assert_eq!(log.count("received"), 1, "{:?}", log.all());
        assert_eq!(server.handle().snapshot().disconnected.failed, 1);
        log.check_order();
    }

    fn paused_it_receives_nothing_and_resumed_it_receives_all(ports: &Ports) {
        let runtime = runtime(ports);
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        let log = Log::default();
        let server = noting(&log, move |session, frame| {
            count.fetch_add(1, Ordering::SeqCst);
            if frame == b"pause" {
                session.pause_receiving();
            }
            Ok(())
        })
        .framing(Lines::new())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        for round in 1..=10 {
            client.write_all(b"one\npause\ntwo\npart").unwrap();
            wait_until("the pause", || log.count("received pause") == round);
            assert_eq!(received.load(Ordering::SeqCst), 3 * round - 1);
            client.write_all(b"ed\n").unwrap();
            client.write_all(b"").unwrap();
            let session = server.handle().sessions().pop().unwrap();
            assert_eq!(received.load(Ordering::SeqCst), 3 * round - 1);
            session.resume_receiving();
            wait_until("the rest", || log.count("received parted") == round);
            received.fetch_sub(1, Ordering::SeqCst);
        }
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn a_broadcast_reaches_all_who_take_it(ports: &Ports) {
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Silent)
            .listen("127.0.0.1:0")
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let mut clients: Vec<_> =
            (0..40).map(|_| connect(server.local_address().unwrap())).collect();
        wait_for_sessions(&server.handle(), 40);
        for round in 0..20 {
            let line = format!("round {round}");
            assert_eq!(server.handle().broadcast(line.as_bytes()), Ok(40));
        }
        for client in &mut clients {
            let lines: String = (0..20).map(|round| format!("round {round}\n")).collect();
            assert_eq!(String::from_utf8(read_bytes(client, lines.len())).unwrap(), lines);
        }
        drop(clients);
    }
}
