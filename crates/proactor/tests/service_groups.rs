//! Sessions in groups, and as the members of a room that lives in a job queue.

mod common;
mod service_common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use proactor::service::framing::{FrameReader, Lines, Packets};
use proactor::service::groups::{Group, Groups, Member, Membership};
use proactor::service::job_queue::{AfterPanic, JobQueue, JobTimer};
use proactor::service::{HandlerResult, ServerService, Session, SessionHandler};
use service_common::*;

/// Joins what it is told and says the rest to its group.
struct Chatter {
    groups: Groups<Session>,
    place: Option<Membership<Session>>,
}

impl SessionHandler for Chatter {
    fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
        let line = std::str::from_utf8(line)?;
        if let Some(name) = line.strip_prefix("join ") {
            self.place = Some(self.groups.join(name, session.clone())?);
            return Ok(session.send("joined")?);
        }
        if line == "panic" {
            panic!("on purpose");
        }
        let group = self.place.as_ref().and_then(Membership::group).ok_or("in no group")?;
        group.broadcast_except(&Bytes::copy_from_slice(line.as_bytes()), session.member_id());
        Ok(())
    }
}

struct Room {
    group: Group<Session>,
    memberships: Vec<Membership<Session>>,
}

fn read_lines(client: &mut std::net::TcpStream, count: usize) -> Vec<String> {
    let mut reader = FrameReader::new(&Lines::new());
    let mut lines = Vec::new();
    while lines.len() < count {
        reader.push(&read_bytes(client, 1));
        while let Some(line) = reader.next_frame().unwrap() {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
        }
    }
    lines
}

on_each_backend! {
    fn a_session_leaves_its_groups_however_it_ends(ports: &Ports) {
        let runtime = runtime(ports);
        let groups = Groups::new();
        let shared = groups.clone();
        let server = ServerService::builder(move |_| Chatter { groups: shared.clone(), place: None })
            .listen("127.0.0.1:0")
            .framing(Lines::new())
            .start_on(&runtime)
            .unwrap();
        let address = server.local_address().unwrap();
        let mut clients: Vec<_> = (0..6).map(|_| connect(address)).collect();
        for client in &mut clients {
            std::io::Write::write_all(client, b"join room\n").unwrap();
            assert_eq!(read_lines(client, 1), ["joined"]);
        }
        let room = groups.get("room").unwrap();
        assert_eq!(room.len(), 6);
        std::io::Write::write_all(&mut clients[0], b"hello\n").unwrap();
        for client in &mut clients[1..] {
            assert_eq!(read_lines(client, 1), ["hello"]);
        }
        // By its own end, by a reset, by a panic, by an error of its handler, and from here.
        drop(clients.remove(5));
        reset(clients.remove(4));
        std::io::Write::write_all(&mut clients[3], b"panic\n").unwrap();
        std::io::Write::write_all(&mut clients[2], b"join room\n").unwrap();
        wait_until("four have left", || room.len() == 2);
        for session in &*room.members() {
            session.abort();
        }
        wait_until("all have left", || groups.is_empty());
        assert_eq!(room.broadcast(&Bytes::from_static(b"anybody?")).taken, 0);
    }

    fn a_room_in_a_job_queue_ticks_and_survives_a_panic(ports: &Ports) {
        const PACKETS: Packets = Packets::new();
        let runtime = runtime(ports);
        let panics = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&panics);
        let room = JobQueue::builder()
            .on_panic(move |_: &mut Room, _| {
                seen.fetch_add(1, Ordering::SeqCst);
                AfterPanic::Continue
            })
            .build(runtime.scheduler(), Room { group: Group::new(100), memberships: Vec::new() });
        let timer = JobTimer::new(runtime.scheduler());
        let mut ticks = 0_u32;
        let period = Duration::from_millis(5);
        timer
            .push_every(&room, Instant::now(), period, move |room, _| {
                ticks += 1;
                room.group.broadcast(&PACKETS.payload(7, &ticks.to_le_bytes()).into());
            })
            .unwrap();

        struct Player(JobQueue<Room>);
        impl SessionHandler for Player {
            fn connected(&mut self, session: &Session) -> HandlerResult {
                let session = session.clone();
                self.0.push(move |room| {
                    let membership = room.group.join(session).unwrap();
                    room.memberships.push(membership);
                })?;
                Ok(())
            }
            fn received(&mut self, _session: &Session, _payload: &[u8]) -> HandlerResult {
                Ok(self.0.push(|_| panic!("on purpose"))?)
            }
        }
        let players = room.clone();
        let server = ServerService::builder(move |_| Player(players.clone()))
            .listen("127.0.0.1:0")
            .framing(PACKETS)
            .start_on(&runtime)
            .unwrap();
        let mut client = connect(server.local_address().unwrap());
        std::io::Write::write_all(&mut client, &[4, 0, 1, 0]).unwrap();
        let mut last = 0;
        for _ in 0..20 {
            let packet = read_bytes(&mut client, 8);
            assert_eq!(packet[..4], [8, 0, 7, 0]);
            let tick = u32::from_le_bytes(packet[4..].try_into().unwrap());
            assert!(tick > last, "{tick} after {last}");
            last = tick;
        }
        wait_until("the job has panicked", || panics.load(Ordering::SeqCst) == 1);
        assert!(!room.is_closed() && server.handle().session_count() == 1);
    }
}
