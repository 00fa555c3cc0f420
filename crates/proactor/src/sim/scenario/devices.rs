//! Files and datagrams: each answer is compared with a model.

use std::net::SocketAddr;
use std::time::Duration;

use super::Plan;
use crate::sim::{Random, World};
use crate::{
    AssociatedFile, CompletionPort, DatagramSocket, DequeueError, Operation, OperationKind,
};

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn run(plan: &Plan, world: &World, random: &mut Random) {
    let Ok(port) = world.port().concurrency(1).build() else {
        return world.violation("the port does not open");
    };
    let Ok(file) = port.associate(world.file(0), 1) else {
        return world.violation("the file is refused");
    };
    files(plan, world, random, &port, &file);
    let addresses: [SocketAddr; 2] = [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()];
    let sockets: Vec<DatagramSocket> = addresses
        .iter()
        .filter_map(|address| port.associate(world.bind_datagram(*address).ok()?, 2).ok())
        .collect();
    let [one, other] = &sockets[..] else {
        return world.violation("the sockets are refused");
    };
    for number in 0..plan.messages {
        let body = vec![number as u8; 1 + random.part_of(1000)];
        let _ = one.send_to(Operation::new(), body, addresses[1]);
        let _ = other.recv_from(Operation::new(), Vec::with_capacity(random.part_of(1500)));
        for _ in 0..random.below(3) {
            datagram(world, &port, addresses[0], Duration::from_millis(random.below(50)));
        }
    }
    world.stop_faults();
    other.cancel_all();
    while datagram(world, &port, addresses[0], MINUTE) {}
    drop((file, sockets));
    if !matches!(port.dequeue(Some(MINUTE)), Err(DequeueError::TimedOut)) {
        world.violation("a packet came that nobody waits for");
    }
}

/// One packet of a datagram; `false` where none came.
fn datagram(world: &World, port: &CompletionPort, from: SocketAddr, patience: Duration) -> bool {
    let Ok(completion) = port.dequeue(Some(patience)) else { return false };
    let received = completion.kind() == OperationKind::RecvFrom && completion.error().is_none();
    if let (true, Some(operation)) = (received, completion.operation()) {
        let bytes = operation.buffer();
        let is_one = bytes.windows(2).all(|pair| pair[0] == pair[1]);
        if !is_one || operation.peer_address() != Some(from) {
            world.violation("a datagram that nobody sent");
        }
    }
    true
}

/// Reads and writes at random places, one at a time, against a vector.
fn files(
    plan: &Plan,
    world: &World,
    random: &mut Random,
    port: &CompletionPort,
    file: &AssociatedFile,
) {
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..plan.messages * plan.clients {
        let offset = random.below(5000) as usize;
        if random.chance(0.5) {
            let bytes = vec![random.bits() as u8; random.part_of(900)];
            let _ = file.write_at(Operation::new(), bytes.clone(), offset as u64);
            let Ok(completion) = port.dequeue(None) else { return };
            if completion.error().is_none() {
                model.resize(model.len().max(offset + bytes.len()), 0);
                model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        } else {
            let buffer = Vec::with_capacity(random.part_of(900));
            let room = buffer.capacity();
            let _ = file.read_at(Operation::new(), buffer, offset as u64);
            let Ok(completion) = port.dequeue(None) else { return };
            let expected = &model[offset.min(model.len())..];
            let expected = &expected[..room.min(expected.len())];
            let is_read = completion.error().is_none();
            if let (true, Some(operation)) = (is_read, completion.operation())
                && operation.buffer() != expected
            {
                world.violation("a file gives back what was not written there");
            }
        }
    }
}
