//! Time limits, heartbeats, the slow-peer rule. The peers that break them do so by far, so that a
//! slow machine changes nothing.

mod common;
mod service_common;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use proactor::service::framing::{LengthPrefixed, Lines};
use proactor::service::{Runtime, ServerService, Session, Timeouts, TransferRate};
use service_common::*;

const SHORT: Duration = Duration::from_millis(40);

fn with(change: impl FnOnce(&mut Timeouts)) -> Timeouts {
    let mut timeouts = patient();
    change(&mut timeouts);
    timeouts
}

/// More bytes than the system keeps for both ends of a connection.
const MANY: usize = 24 * 1024 * 1024;

/// A server that sends `MANY` bytes on a question, and ends the session.
fn answering(runtime: &Runtime, log: &Log, timeouts: Timeouts) -> ServerService {
    let answer = |session: &Session, _: &[u8]| {
        session.send_shared(vec![b'x'; MANY])?;
        session.disconnect();
        Ok(())
    };
    let limits = limited(|limits| limits.session_queued_bytes = 2 * MANY);
    noting(log, answer).limits(limits).timeouts(timeouts).start_on(runtime).unwrap()
}

on_each_backend! {
    fn who_connects_and_says_nothing_is_disconnected(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| Ok(session.send(frame)?))
            .framing(Lines::new())
            .timeouts(with(|timeouts| timeouts.handshake = Some(Duration::from_secs(3))))
            .start_on(&runtime)
            .unwrap();
        let mut talker = connect(server.local_address().unwrap());
        talker.write_all(b"hello\n").unwrap();
        assert_eq!(read_bytes(&mut talker, 6), b"hello\n");
        // Both ends of each, for this test on every backend at once.
        let count = if raise_descriptors(6_000) { 1_000 } else { 100 };
        let mut silent: Vec<_> =
            (0..count).map(|_| connect(server.local_address().unwrap())).collect();
        for client in &mut silent {
            read_to_end(client);
        }
        wait_for_sessions(&server.handle(), 1);
        assert_eq!(log.count("disconnected: no handshake in time"), count);
        talker.write_all(b"still here\n").unwrap();
        assert_eq!(read_bytes(&mut talker, 11), b"still here\n");
        drop(talker);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn an_explicit_handshake_is_the_handlers_word(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| {
            if frame == b"password" {
                session.complete_handshake();
                session.send("welcome")?;
            }
            Ok(())
        })
        .framing(Lines::new())
        .timeouts(with(|timeouts| {
            timeouts.handshake = Some(Duration::from_secs(3));
            timeouts.explicit_handshake = true;
        }))
        .start_on(&runtime)
        .unwrap();
        let mut friend = connect(server.local_address().unwrap());
        let mut stranger = connect(server.local_address().unwrap());
        friend.write_all(b"password\n").unwrap();
        assert_eq!(read_bytes(&mut friend, 8), b"welcome\n");
        stranger.write_all(b"guess\nguess\n").unwrap();
        read_to_end(&mut stranger);
        log.wait_for("disconnected: no handshake in time");
        wait_for_sessions(&server.handle(), 1);
        drop(friend);
    }

    fn idle_and_unfinished_frames_end_a_session(ports: &Ports) {
        let runtime = runtime(ports);
        for (idle, reason) in [
            (true, "disconnected: nothing received in time"),
            (false, "disconnected: a frame was begun and not completed in time"),
        ] {
            let log = Log::default();
            let server = noting(&log, |session, frame| Ok(session.send(frame)?))
                .framing(Lines::new())
                .timeouts(with(|timeouts| {
                    *(if idle { &mut timeouts.idle } else { &mut timeouts.read }) = Some(SHORT);
                }))
                .start_on(&runtime)
                .unwrap();
            let mut client = connect(server.local_address().unwrap());
            client.write_all(b"hello\nunfinished").unwrap();
            read_to_end(&mut client);
            log.wait_for(reason);
            wait_for_sessions(&server.handle(), 0);
            assert_eq!(server.handle().snapshot().disconnected.timed_out, 1);
            log.check_order();
        }
    }

    fn who_takes_no_bytes_is_disconnected(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _| {
            session.send_shared(vec![1; 900_000])?;
            Ok(())
        })
        .timeouts(with(|timeouts| timeouts.write = Some(SHORT)))
        .framing(LengthPrefixed::u32().with_maximum_frame_bytes(1_000_000))
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        shrink_buffers(&client);
        for _ in 0..8 {
            // Enough to fill whatever the system holds for both ends.
            let _ = client.write_all(&[0, 0, 0, 0]);
        }
        log.wait_for("disconnected: the peer takes no bytes");
        wait_for_sessions(&server.handle(), 0);
        drop(client);
        log.check_order();
    }

    fn a_byte_now_and_then_is_too_slow(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| Ok(session.send(frame)?))
            .framing(LengthPrefixed::u32())
            .timeouts(with(|timeouts| {
                let grace = Duration::from_millis(100);
                timeouts.minimum_rate = Some(TransferRate { bytes_per_second: 1_000_000, grace });
            }))
            .start_on(&runtime)
            .unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let mut client = connect(server.local_address().unwrap());
                    client.write_all(&60_000_u32.to_be_bytes()).unwrap();
                    // Ends with the connection.
                    while !done.load(Ordering::SeqCst) && client.write_all(b"x").is_ok() {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                });
            }
            wait_until("all end", || log.count("disconnected") == 5);
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(server.handle().snapshot().disconnected.slow_peer, 5);
        log.check_order();
    }

    fn heartbeats_come_while_nothing_is_sent(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |_, _| Ok(()))
            .timeouts(with(|timeouts| timeouts.heartbeat = Some(Duration::from_millis(5))))
            .start_on(&runtime)
            .unwrap();
        let client = connect(server.local_address().unwrap());
        wait_until("heartbeats", || log.count("heartbeat") >= 5);
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn a_peer_that_never_ends_its_side_is_reset_at_last(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, _| {
            session.send("bye")?;
            session.disconnect();
            Ok(())
        })
        .framing(Lines::new())
        .timeouts(with(|timeouts| timeouts.linger = SHORT))
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"x\n").unwrap();
        assert_eq!(read_bytes(&mut client, 4), b"bye\n");
        // It does not close, and may go on sending into the void.
        wait_for_sessions(&server.handle(), 0);
        log.wait_for("disconnected: disconnected on this side");
        wait_until("the reset is seen", || client.write_all(b"x").is_err());
    }

    fn what_is_queued_has_longer_than_the_peers_end(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let server = answering(&runtime, &log, with(|timeouts| timeouts.linger = SHORT));
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"question").unwrap();
        log.wait_for("received question");
        // Longer than the peer's end may take: all of it is still to come.
        std::thread::sleep(3 * SHORT);
        let (answer, error) = read_to_end(&mut client);
        assert_eq!((answer.len(), error), (MANY, None));
        drop(client);
        wait_for_sessions(&server.handle(), 0);
        log.check_order();
    }

    fn a_peer_that_does_not_take_what_is_queued_is_reset_at_last(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let mut errors = Vec::new();
        for flush in [true, false] {
            // While the queue is sent, its own limit holds, and the others as well.
            let server = answering(
                &runtime,
                &log,
                with(|timeouts| {
                    timeouts.linger = HANG;
                    timeouts.flush = if flush { SHORT } else { 10 * HANG };
                    timeouts.write = (!flush).then_some(SHORT);
                }),
            );
            let mut client = connect(server.local_address().unwrap());
            client.write_all(b"question").unwrap();
            wait_until("it is over", || server.handle().snapshot().disconnected.local == 1);
            let (answer, error) = read_to_end(&mut client);
            assert!(answer.len() < MANY, "{} bytes", answer.len());
            errors.push(error);
        }
        log.check_order();
        skip_under_wine!(59, "a read after the reset sees an orderly end");
        assert!(errors.iter().all(Option::is_some), "{errors:?}");
    }

    fn a_pause_on_our_side_is_not_the_peers_fault(ports: &Ports) {
        let runtime = runtime(ports);
        let log = Log::default();
        let server = noting(&log, |session, frame| {
            if frame == b"pause" {
                session.pause_receiving();
            }
            Ok(())
        })
        .framing(Lines::new())
        .timeouts(with(|timeouts| {
            timeouts.idle = Some(Duration::from_secs(2));
            timeouts.heartbeat = Some(Duration::from_millis(500));
        }))
        .start_on(&runtime)
        .unwrap();
        let mut client = connect(server.local_address().unwrap());
        client.write_all(b"pause\n").unwrap();
        log.wait_for("received pause");
        // Longer than the limit.
        wait_until("five half seconds", || log.count("heartbeat") >= 5);
        assert_eq!(server.handle().session_count(), 1);
        server.handle().sessions()[0].resume_receiving();
        client.write_all(b"after\n").unwrap();
        log.wait_for("received after");
    }
}
