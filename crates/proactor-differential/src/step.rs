//! What a program does to a port, step by step, drawn from a seed.
//!
//! A step names its objects by numbers that are taken modulo what is there when its turn comes, so
//! every sequence can be run, also one from which steps were taken out.

use crate::random::Random;

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// Start operations on a thread that does not dequeue. To the port that is another way in.
    pub(crate) outside: bool,
    /// How many packets a dequeue may take.
    pub(crate) batch: usize,
}

/// Which end of a connection, among those that are open.
pub(crate) type At = usize;

/// How a large transfer is received.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    /// So many receives pending at a time, of so many bytes each.
    Receives { pending: usize, room: usize },
    /// Continuously.
    Continuous,
}

/// What a step does.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    // Connections.
    Accept,
    CancelAccept(usize),
    CancelAllAccepts,
    CloseListener,
    Connect,
    ConnectToNobody {
        retry: bool,
    },
    UseUnconnected,
    AssociateTwice,
    // Streams.
    Receive {
        at: At,
        rooms: Vec<usize>,
    },
    ReceiveContinuously(At),
    CancelReceive {
        at: At,
        which: usize,
    },
    CancelAll(At),
    CancelFinished(At),
    Send {
        at: At,
        sizes: Vec<usize>,
    },
    Transfer {
        at: At,
        sends: Vec<Vec<usize>>,
        reading: Reading,
    },
    CancelLargeSend(At),
    Disconnect(At),
    ShutdownSending(At),
    ShutdownReceiving(At),
    Close(At),
    Reset(At),
    SendToClosed(At),
    // Datagrams.
    ReceiveDatagram {
        socket: usize,
        room: usize,
    },
    SendDatagram {
        socket: usize,
        size: usize,
    },
    CancelDatagram {
        socket: usize,
        which: usize,
    },
    CancelAllDatagrams(usize),
    CloseDatagramSocket(usize),
    // Files.
    Write {
        offset: Option<u64>,
        size: usize,
    },
    Read {
        offset: u64,
        room: usize,
    },
    WriteMany {
        block: usize,
        count: usize,
    },
    // The port itself.
    Post {
        keys: Vec<usize>,
        with_operation: bool,
    },
    /// The delays are in a unit that grows where it is too short.
    Timers {
        delays: Vec<u32>,
    },
    StartLongTimer,
    CancelTimer(usize),
}

/// More than any datagram may have.
pub(crate) const OVERSIZE_BYTES: usize = 70_000;

/// The steps of this seed.
pub(crate) fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    // Nothing happens on streams before there is one.
    let opening = [Action::Connect, Action::Accept].map(|action| step(&mut random, action));
    let rest = (0..count.saturating_sub(opening.len())).map(|_| {
        let action = action(&mut random);
        step(&mut random, action)
    });
    opening.into_iter().collect::<Vec<_>>().into_iter().chain(rest).take(count).collect()
}

fn step(random: &mut Random, action: Action) -> Step {
    let outside = random.chance(25);
    let batch = if random.chance(40) { 1 + random.below(8) } else { 1 };
    Step { action, outside, batch }
}

fn action(random: &mut Random) -> Action {
    // Weights in percent.
    match random.below(100) {
        0..14 => connecting(random),
        14..76 => streaming(random),
        76..85 => datagram(random),
        85..92 => file(random),
        _ => port(random),
    }
}

fn connecting(random: &mut Random) -> Action {
    match random.below(100) {
        0..38 => Action::Connect,
        38..72 => Action::Accept,
        72..80 => Action::CancelAccept(random.below(8)),
        80..85 => Action::CancelAllAccepts,
        85..90 => Action::CloseListener,
        90..94 => Action::ConnectToNobody { retry: random.chance(50) },
        94..97 => Action::UseUnconnected,
        _ => Action::AssociateTwice,
    }
}

fn streaming(random: &mut Random) -> Action {
    let at = random.below(16);
    match random.below(100) {
        0..25 => Action::Receive { at, rooms: rooms(random) },
        25..32 => Action::ReceiveContinuously(at),
        32..40 => Action::CancelReceive { at, which: random.below(8) },
        40..44 => Action::CancelAll(at),
        44..46 => Action::CancelFinished(at),
        46..71 => Action::Send { at, sizes: sizes(random) },
        71..80 => transfer(random, at),
        80..84 => Action::CancelLargeSend(at),
        84..87 => Action::Disconnect(at),
        87..89 => Action::ShutdownSending(at),
        89..91 => Action::ShutdownReceiving(at),
        91..94 => Action::Close(at),
        94..97 => Action::Reset(at),
        _ => Action::SendToClosed(at),
    }
}

/// The rooms of one receive: one buffer mostly, at times several, at times none.
fn rooms(random: &mut Random) -> Vec<usize> {
    let room = |random: &mut Random| match random.below(10) {
        0..2 => 0,
        2..7 => 1 + random.below(200),
        _ => 1 + random.below(8_000),
    };
    match random.below(100) {
        0..70 => vec![room(random)],
        70..98 => (0..2 + random.below(4)).map(|_| room(random)).collect(),
        _ => Vec::new(),
    }
}

/// The sizes of one send. Small, because what is sent has to arrive as one piece.
fn sizes(random: &mut Random) -> Vec<usize> {
    let size = |random: &mut Random| match random.below(10) {
        0 => 0,
        1..7 => 1 + random.below(200),
        _ => 1 + random.below(1_000),
    };
    match random.below(100) {
        0..65 => vec![size(random)],
        65..98 => (0..2 + random.below(3)).map(|_| size(random)).collect(),
        _ => Vec::new(),
    }
}

fn transfer(random: &mut Random, at: At) -> Action {
    let size = |random: &mut Random| match random.below(4) {
        0 => random.below(200),
        1 => random.below(100_000),
        _ => random.below(12_000),
    };
    let sends = (0..1 + random.below(5))
        .map(|_| {
            let pieces = if random.chance(70) { 1 } else { 2 + random.below(4) };
            (0..pieces).map(|_| size(random)).collect()
        })
        .collect();
    let reading = match random.below(3) {
        0 => Reading::Continuous,
        1 => Reading::Receives { pending: 1, room: 1 + random.below(70_000) },
        _ => Reading::Receives { pending: 2 + random.below(4), room: 200 + random.below(9_000) },
    };
    Action::Transfer { at, sends, reading }
}

fn datagram(random: &mut Random) -> Action {
    let socket = random.below(2);
    match random.below(100) {
        0..40 => {
            let room = if random.chance(10) { 0 } else { 1 + random.below(1_500) };
            Action::ReceiveDatagram { socket, room }
        }
        40..80 => {
            let size = match random.below(20) {
                0..2 => 0,
                2 => OVERSIZE_BYTES,
                _ => 1 + random.below(1_400),
            };
            Action::SendDatagram { socket, size }
        }
        80..90 => Action::CancelDatagram { socket, which: random.below(8) },
        90..95 => Action::CancelAllDatagrams(socket),
        _ => Action::CloseDatagramSocket(socket),
    }
}

fn file(random: &mut Random) -> Action {
    match random.below(10) {
        0..3 => {
            let offset = if random.chance(30) { None } else { Some(random.below(50_000) as u64) };
            Action::Write { offset, size: random.below(8_000) }
        }
        3..8 => {
            let room = if random.chance(10) { 0 } else { random.below(20_000) };
            Action::Read { offset: random.below(60_000) as u64, room }
        }
        _ => Action::WriteMany { block: 1 + random.below(3_000), count: 2 + random.below(8) },
    }
}

fn port(random: &mut Random) -> Action {
    match random.below(10) {
        0..5 => {
            let keys = (0..1 + random.below(6))
                .map(|_| if random.chance(20) { usize::MAX } else { random.below(1000) })
                .collect();
            Action::Post { keys, with_operation: random.chance(50) }
        }
        5..7 => {
            let mut delays: Vec<u32> = (1..2 + random.below(3) as u32).collect();
            for index in (1..delays.len()).rev() {
                delays.swap(index, random.below(index + 1));
            }
            Action::Timers { delays }
        }
        7..8 => Action::StartLongTimer,
        _ => Action::CancelTimer(random.below(8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_each_time() {
        let text = |seed| format!("{:?}", steps(seed, 60));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn every_kind_of_step_is_drawn() {
        let drawn: std::collections::BTreeSet<String> = (0..40)
            .flat_map(|seed| steps(seed, 60))
            .map(|step| format!("{:?}", step.action))
            .map(|text| text.split([' ', '(']).next().unwrap().to_owned())
            .collect();
        assert_eq!(drawn.len(), 34, "{drawn:?}");
    }
}
