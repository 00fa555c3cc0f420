//! The contract of a session's callbacks: which come, in which order, never two at once.

mod common;
mod service_common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::*;
use proactor::service::framing::{LengthPrefixed, Lines};
use proactor::service::{
    AfterEnd, DisconnectReason, HandlerResult, NotifyError, Phase, SendError, ServerService,
    Session, SessionHandler,
};
use service_common::*;

/// Fails where two callbacks of one session run at once.
struct Alone {
    busy: AtomicBool,
    twice: Arc<AtomicUsize>,
}

impl Alone {
    fn enter(&self) {
        if self.busy.swap(true, Ordering::SeqCst) {
            self.twice.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::yield_now();
        self.busy.store(false, Ordering::SeqCst);
    }
}

impl SessionHandler for Alone {
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        self.enter();
        Ok(session.send(frame)?)
    }
    fn sent(&mut self, _session: &Session, _bytes: usize) {
        self.enter();
    }
    fn notified(
        &mut self,
        session: &Session,
        message: Box<dyn std::any::Any + Send>,
    ) -> HandlerResult {
        self.enter();
        let text = message.downcast::<&'static str>().unwrap();
        Ok(session.send(*text)?)
    }
}

on_each_backend! {
    fn never_two_callbacks_at_once_and_no_byte_out_of_order(ports: &Ports) {
        let runtime = runtime(ports);
        let twice = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&twice);
        let server = ServerService::builder(move |_| {
            Alone { busy: AtomicBool::new(false), twice: Arc::clone(&seen) }
        })
        .listen("127.0.0.1:0")
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            for seed in 0..200 {
                writer.write_all(&pattern(seed, 7_000)).unwrap();
            }
        });
        for seed in 0..200 {
            assert_same_bytes(&read_bytes(&mut client, 7_000), &pattern(seed, 7_000));
        }
        writing.join().unwrap();
        assert_eq!(twice.load(Ordering::SeqCst), 0);
        stop_after(client, &server);
    }

    fn messages_and_sends_of_other_threads_meet_the_callbacks_one_at_a_time(ports: &Ports) {
        let runtime = runtime(ports);
        let twice = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&twice);
        let server = ServerService::builder(move |_| {
            Alone { busy: AtomicBool::new(false), twice: Arc::clone(&seen) }
        })
        .listen("127.0.0.1:0")
        .framing(Lines::new())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        wait_for_sessions(&server.handle(), 1);
        let session = server.handle().sessions().pop().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..100).for_each(|_| session.notify("abcd").unwrap()));
                scope.spawn(|| (0..100).for_each(|_| session.send("efgh").unwrap()));
            }
            scope.spawn(|| (0..100).for_each(|_| session.send_shared("ijkl").unwrap()));
        });
        let lines = read_bytes(&mut client, 700 * 5);
        assert!(lines.chunks(5).all(|line| [b"abcd\n", b"efgh\n", b"ijkl\n"].contains(&line.try_into().unwrap())));
        assert_eq!(twice.load(Ordering::SeqCst), 0);
        stop_after(client, &server);
    }

    fn who_ends_its_sending_still_receives(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            // More than one send takes: the end is behind all of it.
            if session.counters().sent_frames == 0 {
                session.send(vec![7; 300_000])?;
            }
            session.end_sending();
            assert_eq!(session.send("x"), Err(SendError::Closed));
            Ok(())
        })
        .timeouts(patient())
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"first").unwrap();
        assert_eq!(read_to_end(&mut client), (vec![7; 300_000], None));
        let session = server.handle().sessions().pop().expect("it goes on");
        assert!(!session.is_ending());
        client.write_all(b"second").unwrap();
        wait_until("it still receives", || session.counters().received_bytes == 11);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        log.wait_for("disconnected");
        log.check_order();
        wait_for_sessions(&server.handle(), 0);
    }

    fn a_peer_that_half_closes_gets_every_answer(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| Ok(session.send(frame)?))
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"a\nb\nc\nrest without an end").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), (b"a\nb\nc\n".to_vec(), None));
        wait_for_sessions(&server.handle(), 0);
        let expected = [
            "connected",
            "received a",
            "received b",
            "received c",
            "disconnected: the peer ended the connection",
        ];
        assert_eq!(log.all(), expected);
    }

    fn a_handler_may_go_on_sending_after_the_peers_end(ports: &Ports) {
        struct Late;
        impl SessionHandler for Late {
            fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
                Ok(())
            }
            fn peer_ended(&mut self, session: &Session) -> AfterEnd {
                session.send("in the callback").unwrap();
                let later = session.clone();
                std::thread::spawn(move || {
                    later.send("and after it").unwrap();
                    later.disconnect();
                    assert_eq!(later.send("no more"), Err(SendError::Closed));
                });
                AfterEnd::KeepSending
            }
        }
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Late)
            .listen("127.0.0.1:0")
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.shutdown(Shutdown::Write).unwrap();
        let (answer, _) = read_to_end(&mut client);
        assert_eq!(String::from_utf8(answer).unwrap(), "in the callback\nand after it\n");
        wait_for_sessions(&server.handle(), 0);
    }

    fn a_panic_ends_its_session_and_nothing_else(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| {
            assert_ne!(frame, b"boom", "as the test wants it");
            if frame == b"fail" {
                return Err("a reason".into());
            }
            Ok(session.send(frame)?)
        })
        .framing(Lines::new())
        .start_on(&runtime)
        .unwrap();
        let mut other = connect(server.local_address().unwrap());
        for round in 1..=3 {
            let mut client = connect(server.local_address().unwrap());
            client.write_all(b"boom\n").unwrap();
            read_to_end(&mut client);
            wait_until("the end", || log.count("disconnected: the handler panicked") == round);
            other.write_all(b"still here\n").unwrap();
            assert_eq!(read_bytes(&mut other, 11), b"still here\n");
        }
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"good\nfail\n").unwrap();
        assert_eq!(read_to_end(&mut client), (b"good\n".to_vec(), None));
        drop(client);
        log.wait_for("disconnected: the handler failed: a reason");
        wait_for_sessions(&server.handle(), 1);
        let snapshot = server.handle().snapshot();
        assert_eq!((snapshot.panics, snapshot.sessions), (3, 1));
        assert_eq!((snapshot.disconnected.panicked, snapshot.disconnected.handler), (3, 1));
        stop_after(other, &server);
        log.check_order();
    }

    fn a_factory_that_panics_costs_its_connection_only(ports: &Ports) {
        let runtime = runtime(ports);
        let first = AtomicBool::new(true);
        let server = ServerService::builder(move |_| {
            assert!(!first.swap(false, Ordering::SeqCst), "as the test wants it");
            Echo
        })
        .listen("127.0.0.1:0")
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        read_to_end(&mut client);
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"hello").unwrap();
        assert_eq!(read_bytes(&mut client, 5), b"hello");
        stop_after(client, &server);
    }

    fn a_handle_that_is_kept_is_harmless(ports: &Ports) {
        let runtime = runtime(ports);
        let server = ServerService::builder(|_| Echo)
            .listen("127.0.0.1:0")
            .start_on(&runtime)
            .unwrap();
        let client = connect(server.local_address().unwrap());
        let address = client.local_addr().unwrap();
        wait_for_sessions(&server.handle(), 1);
        let session = server.handle().sessions().pop().unwrap();
        assert_eq!(session.set_user_data(7_u32), Ok(()));
        assert_eq!(session.set_user_data(8_u32), Err(8));
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        for _ in 0..2 {
            assert_eq!(session.send(b"x"), Err(SendError::Closed));
            assert_eq!(session.send_shared(Bytes::from_static(b"x")), Err(SendError::Closed));
            assert_eq!(session.notify(1), Err(NotifyError::Closed(1)));
            session.pause_receiving();
            session.resume_receiving();
            session.disconnect();
            session.abort();
            assert!(session.is_ending());
            assert!(matches!(session.reason(), Some(DisconnectReason::PeerEnded)));
            assert_eq!(session.peer_address(), Some(address));
            assert_eq!(session.user_data::<u32>(), Some(&7));
            assert_eq!(session.service().phase(), Phase::Running);
        }
        drop(server);
        drop(runtime);
        session.disconnect();
        assert_eq!(session.send(b"x"), Err(SendError::Closed));
        assert_eq!(session.service().phase(), Phase::Stopped);
    }

    fn ended_from_everywhere_at_once_it_ends_once(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            session.disconnect();
            session.abort();
            session.disconnect();
            Ok(())
        })
        .framing(Lines::new())
        .start_on(&runtime)
        .unwrap();
        let mut clients: Vec<_> =
            (0..50).map(|_| connect(server.local_address().unwrap())).collect();
        wait_for_sessions(&server.handle(), 50);
        let sessions = server.handle().sessions();
        std::thread::scope(|scope| {
            scope.spawn(|| sessions.iter().for_each(Session::disconnect));
            scope.spawn(|| sessions.iter().rev().for_each(Session::abort));
            scope.spawn(|| sessions.iter().for_each(|session| _ = session.send("bye")));
            for client in &mut clients {
                // May be reset by now.
                let _ = client.write_all(b"x\n");
            }
        });
        drop(clients);
        wait_for_sessions(&server.handle(), 0);
        assert_eq!(log.count("disconnected"), 50);
        log.check_order();
    }

    fn callbacks_that_disconnect_all_the_others(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _frame| {
            for other in session.service().sessions() {
                other.abort();
            }
            Ok(())
        })
        .start_on(&runtime)
        .unwrap();
        for _ in 0..3 {
            let mut clients: Vec<_> =
                (0..30).map(|_| connect(server.local_address().unwrap())).collect();
            wait_for_sessions(&server.handle(), 30);
            for client in &mut clients {
                let _ = client.write_all(b"x");
            }
            wait_for_sessions(&server.handle(), 0);
        }
        assert_eq!(log.count("disconnected"), 90);
        log.check_order();
    }

    fn frames_of_no_bytes_of_the_maximum_and_beyond(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| Ok(session.send(frame)?))
            .framing(LengthPrefixed::u32().with_maximum_frame_bytes(1004))
            .start_on(&runtime)
            .unwrap();
        let frame = |length: usize| {
            let mut frame = (length as u32).to_be_bytes().to_vec();
            frame.extend(std::iter::repeat_n(b'x', length));
            frame
        };
        let mut client = connect(server.local_address().unwrap());
        for length in [0, 1, 1000, 0, 999] {
            client.write_all(&frame(length)).unwrap();
            assert_eq!(read_bytes(&mut client, length + 4), frame(length));
        }
        // The head alone is enough to be refused.
        client.write_all(&1001_u32.to_be_bytes()).unwrap();
        read_to_end(&mut client);
        wait_for_sessions(&server.handle(), 0);
        let mut client = connect(server.local_address().unwrap());
        client.write_all(&u32::MAX.to_be_bytes()).unwrap();
        read_to_end(&mut client);
        wait_for_sessions(&server.handle(), 0);
        assert_eq!(server.handle().snapshot().disconnected.frame, 2);
        log.check_order();
        // What is to be sent has the same maximum.
        let client = connect(server.local_address().unwrap());
        wait_for_sessions(&server.handle(), 1);
        let session = server.handle().sessions().pop().unwrap();
        assert!(matches!(session.send([0; 1001]), Err(SendError::Frame(_))));
        assert_eq!(session.counters().queued_bytes, 0);
        stop_after(client, &server);
    }

    fn the_phases_of_a_stop(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |_, _| Ok(()))
            .framing(Lines::new())
            .timeouts(proactor::service::Timeouts {
                linger: Duration::from_millis(50),
                ..patient()
            })
            .start_on(&runtime)
            .unwrap();
        let address = server.local_address().unwrap();
        let leaves = connect(address);
        let mut stays = connect(address);
        // It is told the end, and does not end its own side.
        let ignores = connect(address);
        wait_for_sessions(&server.handle(), 3);
        let handle = server.handle();
        let stopping = std::thread::spawn(move || {
            let report = server.stop(Duration::from_secs(1000));
            (report, server)
        });
        wait_until("all are told", || log.count("draining") == 3);
        assert_eq!(handle.phase(), Phase::Draining);
        assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
        drop(leaves);
        wait_for_sessions(&handle, 2);
        let closing = std::thread::spawn(move || {
            read_to_end(&mut stays);
            drop(stays);
        });
        // Forced, it does not wait for the drain's end.
        handle.request_stop();
        let (report, server) = stopping.join().unwrap();
        closing.join().unwrap();
        assert_eq!(report.drained, 1, "{report:?}");
        assert_eq!(report.disconnected + report.aborted, 2, "{report:?}");
        assert_eq!((report.left, handle.phase()), (0, Phase::Stopped));
        assert_eq!(log.count("disconnected"), 3);
        log.check_order();
        drop((ignores, server));
    }

    fn a_handler_that_blocks_does_not_keep_the_others_from_ending(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let server = noting(&log, move |_, _| {
            // A lock of the test's own: only one session comes here.
            let _ = blocked.lock().unwrap().recv_timeout(HANG);
            Ok(())
        })
        .framing(Lines::new())
        .start_on(&runtime)
        .unwrap();
        let mut blocker = connect(server.local_address().unwrap());
        let others: Vec<_> = (0..8).map(|_| connect(server.local_address().unwrap())).collect();
        wait_for_sessions(&server.handle(), 9);
        blocker.write_all(b"block\n").unwrap();
        log.wait_for("received block");
        drop(others);
        wait_until("the others end", || log.count("disconnected") == 8);
        release.send(()).unwrap();
        stop_after(blocker, &server);
        log.check_order();
    }
}

/// The client goes, and the server has nothing left to do.
#[track_caller]
fn stop_after(client: std::net::TcpStream, server: &ServerService) {
    drop(client);
    wait_for_sessions(&server.handle(), 0);
    stop_cleanly(server);
}
