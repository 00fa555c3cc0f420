//! Runs a sequence of steps on one backend, from a new port to a closed one.

use std::time::Duration;

use proactor::{BackendChoice, DequeueError, ErrorKind};

use crate::rules::LeftOut;
use crate::step::{Action, At, Step, steps};
use crate::streams::Place;
use crate::world::{Awaited, Line, Stop, World};

/// A sequence of steps: those of a seed, or some of them.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) seed: u64,
    /// Each with its place in the whole sequence.
    pub(crate) steps: Vec<(usize, Step)>,
}

impl Sequence {
    /// The first `count` steps of this seed, or those of them that `only` names.
    pub(crate) fn new(seed: u64, count: usize, only: Option<&[usize]>) -> Self {
        let steps = steps(seed, count).into_iter().enumerate();
        let is_kept = |index: &usize| only.is_none_or(|only| only.contains(index));
        Self { seed, steps: steps.filter(|(index, _)| is_kept(index)).collect() }
    }
}

/// What comes of a sequence on a backend, line by line.
///
/// # Errors
/// Where not even a port with its sockets is to be had.
pub(crate) fn run(
    sequence: &Sequence,
    backend: BackendChoice,
    left_out: &LeftOut,
) -> std::io::Result<Vec<Line>> {
    let mut world = World::new(backend, left_out.clone())?;
    let end = sequence.steps.iter().map(|(index, _)| index + 1).max().unwrap_or(0);
    // What is wrong in itself is in the log, and nothing can be said about what comes after it.
    let _ = run_steps(&mut world, sequence, end);
    Ok(world.into_log())
}

fn run_steps(world: &mut World, sequence: &Sequence, end: usize) -> Result<(), Stop> {
    for (index, step) in &sequence.steps {
        world.begin_step(*index, step);
        run_step(world, &step.action)?;
        world.expect_nothing()?;
    }
    world.begin_step(end, &Step { action: Action::Accept, outside: false, batch: 1 });
    end_everything(world)
}

fn run_step(world: &mut World, action: &Action) -> Result<(), Stop> {
    if let Some(rule) = world.left_out.first_of(rules(action)) {
        return world.pass_over(&format!("it rests on rule {rule}"));
    }
    match action {
        Action::Accept => world.accept(),
        Action::CancelAccept(which) => world.cancel_accept(*which),
        Action::CancelAllAccepts => world.cancel_all_accepts(),
        Action::CloseListener => world.close_listener(),
        Action::Connect => world.connect(),
        Action::ConnectToNobody { retry } => world.connect_to_nobody(*retry),
        Action::UseUnconnected => world.use_unconnected(),
        Action::AssociateTwice => world.associate_twice(),
        Action::ReceiveDatagram { socket, room } => world.receive_datagram(*socket, *room),
        Action::SendDatagram { socket, size } => world.send_datagram(*socket, *size),
        Action::CancelDatagram { socket, which } => world.cancel_datagram(*socket, *which),
        Action::CancelAllDatagrams(socket) => world.cancel_all_datagrams(*socket),
        Action::CloseDatagramSocket(socket) => world.close_datagram_socket(*socket),
        Action::Write { offset, size } => world.write_file(*offset, *size),
        Action::Read { offset, room } => world.read_file(*offset, *room),
        Action::WriteMany { block, count } => world.write_many(*block, *count),
        Action::Post { keys, with_operation } => world.post(keys, *with_operation),
        Action::Timers { delays } => world.timers(delays),
        Action::StartLongTimer => world.start_long_timer(),
        Action::CancelTimer(which) => world.cancel_timer(*which),
        _ => {
            let at = at(action).expect("every other step is about a stream");
            let open = world.open_ends();
            match at.checked_rem(open.len()) {
                Some(index) => run_stream_step(world, action, open[index]),
                None => world.pass_over("no connection is open"),
            }
        }
    }
}

fn run_stream_step(world: &mut World, action: &Action, place: Place) -> Result<(), Stop> {
    match action {
        Action::Receive { rooms, .. } => world.receive(place, rooms),
        Action::ReceiveContinuously(_) => world.receive_continuously(place),
        Action::CancelReceive { which, .. } => world.cancel_receive(place, *which),
        Action::CancelAll(_) => world.cancel_all(place),
        Action::CancelFinished(_) => world.cancel_finished(place),
        Action::Send { sizes, .. } => world.send(place, sizes),
        Action::Transfer { sends, reading, .. } => world.transfer(place, sends, *reading),
        Action::CancelLargeSend(_) => world.cancel_large_send(place),
        Action::Disconnect(_) => world.disconnect(place),
        Action::ShutdownSending(_) => world.shutdown_sending(place),
        Action::ShutdownReceiving(_) => world.shutdown_receiving(place),
        Action::Close(_) => world.close(place),
        Action::Reset(_) => world.reset(place),
        Action::SendToClosed(_) => world.send_to_closed(place),
        other => unreachable!("{other:?} is not about a stream"),
    }
}

/// The end that a step on a stream is about.
fn at(action: &Action) -> Option<At> {
    match action {
        Action::Receive { at, .. }
        | Action::CancelReceive { at, .. }
        | Action::Send { at, .. }
        | Action::Transfer { at, .. }
        | Action::ReceiveContinuously(at)
        | Action::CancelAll(at)
        | Action::CancelFinished(at)
        | Action::CancelLargeSend(at)
        | Action::Disconnect(at)
        | Action::ShutdownSending(at)
        | Action::ShutdownReceiving(at)
        | Action::Close(at)
        | Action::Reset(at)
        | Action::SendToClosed(at) => Some(*at),
        _ => None,
    }
}

/// The rules that a step rests on, where one of them can be left out.
fn rules(action: &Action) -> &'static [u16] {
    match action {
        Action::CancelAllAccepts | Action::CancelAll(_) | Action::CancelAllDatagrams(_) => &[79],
        Action::CloseListener => &[76],
        Action::ConnectToNobody { .. } => &[105],
        Action::UseUnconnected => &[65],
        Action::AssociateTwice => &[8],
        Action::CancelFinished(_) => &[80],
        Action::CancelLargeSend(_) => &[17],
        Action::ShutdownReceiving(_) => &[84],
        Action::Disconnect(_) => &[109],
        Action::Close(_) => &[75],
        Action::Reset(_) => &[58, 59],
        Action::SendToClosed(_) => &[71],
        Action::CloseDatagramSocket(_) => &[75],
        _ => &[],
    }
}

/// Rules 20, 74, 76 and 79: everything that is pending ends, then the port.
fn end_everything(world: &mut World) -> Result<(), Stop> {
    world.accept_the_rest()?;
    while let Some(&place) = world.open_ends().first() {
        if world.left_out.first_of(&[75]).is_some() {
            world.cancel_all(place)?;
        }
        world.close(place)?;
    }
    for socket in 0..2 {
        world.cancel_all_datagrams(socket)?;
    }
    while !world.long_timers.is_empty() {
        world.cancel_timer(0)?;
    }
    world.collect_and_say(Awaited::default())?;
    world.expect_nothing()?;
    world.port.close();
    let dequeued = world.port.dequeue(Some(Duration::from_secs(10))).map(|packet| packet.kind());
    let posted = world.port.post(1, 2, None).map_err(|error| error.error().kind());
    world.say(format!("after the close: dequeue {dequeued:?}, post {posted:?}"));
    if dequeued != Err(DequeueError::Closed) || posted != Err(ErrorKind::PortClosed) {
        return Err(world.wrong("the port is closed, and does not say so (rule 20)"));
    }
    Ok(())
}
