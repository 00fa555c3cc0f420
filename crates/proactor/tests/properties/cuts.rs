//! One stream, cut in any way for sending and for receiving.

use std::collections::VecDeque;

use proactor::{Completion, CompletionPort, ErrorKind, Operation, SendBuffer, StreamSocket};
use proptest::prelude::*;

use crate::common::*;
use crate::{check, length};

/// How one piece of a stream is sent.
#[derive(Clone, Debug)]
enum Sending {
    One(usize),
    Gathered(Vec<usize>),
}

/// How the next piece of a stream is received.
#[derive(Clone, Debug)]
enum Receiving {
    One(usize),
    /// Several receives at once, each of this many bytes.
    Pending(Vec<usize>),
    Several(Vec<usize>),
    ZeroLength,
    /// Continuously, until this many packets came.
    Continuous(usize),
    /// A receive that is cancelled at once.
    Cancelled(usize),
}

fn sending() -> impl Strategy<Value = Sending> {
    prop_oneof![
        length().prop_map(Sending::One),
        prop::collection::vec(length(), 1..6).prop_map(Sending::Gathered),
    ]
}

fn receiving() -> impl Strategy<Value = Receiving> {
    let room = || prop_oneof![3 => 1..300_usize, 1 => 1..70_000_usize];
    prop_oneof![
        room().prop_map(Receiving::One),
        prop::collection::vec(room(), 1..5).prop_map(Receiving::Pending),
        prop::collection::vec(prop_oneof![room(), Just(0)], 1..5).prop_map(Receiving::Several),
        Just(Receiving::ZeroLength),
        (0..5_usize).prop_map(Receiving::Continuous),
        room().prop_map(Receiving::Cancelled),
    ]
}

on_each_backend! {
    /// Rules 56, 61, 62, 67 and 69: however a stream is cut for sending and for receiving, the same
    /// bytes come out in the same order.
    fn any_cut_of_a_stream_gives_the_same_bytes(ports: &Ports) {
        let ports = *ports;
        let strategy = (
            prop::collection::vec(sending(), 1..12),
            prop::collection::vec(receiving(), 1..12),
            any::<bool>(),
        );
        check(48, strategy, |(sends, receives, small)| {
            any_cut(&ports, &sends, &receives, small);
            Ok(())
        });
    }
}

fn any_cut(ports: &Ports, sends: &[Sending], receives: &[Receiving], small: bool) {
    let port = ports.open(1);
    let (near, far) = tcp_pair();
    if small {
        shrink_buffers(&near);
        shrink_buffers(&far);
    }
    let sender = port.associate(near, 1).unwrap();
    let receiver = port.associate(far, 2).unwrap();
    let mut expected = Vec::new();
    for (seed, sending) in sends.iter().enumerate() {
        let mut piece = |length: usize| {
            let bytes = pattern((seed + length) as u64, length);
            expected.extend_from_slice(&bytes);
            SendBuffer::from(bytes)
        };
        match sending {
            Sending::One(length) => sender.send(Operation::new(), piece(*length)).unwrap(),
            Sending::Gathered(lengths) => {
                let pieces = lengths.iter().map(|&length| piece(length)).collect();
                sender.send_vectored(Operation::new(), pieces).unwrap()
            }
        };
    }
    sender.disconnect(Operation::new()).unwrap();

    let mut reading = Reading { port: &port, stream: &receiver, got: Vec::new(), ended: false };
    // What is drawn may take nothing; this takes something in every round.
    for receiving in receives.iter().chain([&Receiving::One(4096)]).cycle() {
        if reading.ended {
            break;
        }
        reading.receive(receiving);
    }
    assert_same_bytes(&reading.got, &expected);
}

/// The receiving end of a stream.
struct Reading<'a> {
    port: &'a CompletionPort,
    stream: &'a StreamSocket,
    got: Vec<u8>,
    ended: bool,
}

impl Reading<'_> {
    /// The next packet of the receiving end; those of the sending end are checked on the way.
    fn next(&mut self) -> Completion {
        loop {
            let completion = dequeue(self.port);
            if completion.key() == 2 {
                return completion;
            }
            assert_eq!(completion.error(), None);
        }
    }

    fn take(&mut self, room: usize, bytes: &[u8]) {
        assert!(bytes.len() <= room);
        self.got.extend_from_slice(bytes);
        if room > 0 && bytes.is_empty() {
            self.ended = true;
        }
    }

    fn receive(&mut self, receiving: &Receiving) {
        match receiving {
            Receiving::One(room) => self.receive_pending(&[*room]),
            Receiving::Pending(rooms) => self.receive_pending(rooms),
            Receiving::ZeroLength => self.receive_pending(&[0]),
            Receiving::Several(rooms) => {
                let buffers: Vec<_> = rooms.iter().map(|&room| Vec::with_capacity(room)).collect();
                let room = buffers.iter().map(Vec::capacity).sum();
                self.stream.recv_vectored(Operation::new(), buffers).unwrap();
                let completion = self.next();
                let count = completion.result().unwrap();
                let bytes = completion.into_operation().unwrap().take_buffers().unwrap().concat();
                assert_eq!(bytes.len(), count);
                self.take(room, &bytes);
            }
            Receiving::Continuous(packets) => self.receive_continuously(*packets),
            Receiving::Cancelled(room) => {
                let buffer = Vec::with_capacity(*room);
                let capacity = buffer.capacity();
                let id = self.stream.recv(Operation::new(), buffer).unwrap();
                self.stream.cancel(id);
                let completion = self.next();
                match completion.error() {
                    Some(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                    None => self.take(capacity, completion.operation().unwrap().buffer()),
                }
            }
        }
    }

    fn receive_pending(&mut self, rooms: &[usize]) {
        let mut started = VecDeque::new();
        for &room in rooms {
            let buffer = Vec::with_capacity(room);
            let capacity = buffer.capacity();
            let id = self.stream.recv(Operation::new(), buffer).unwrap();
            started.push_back((id, capacity));
        }
        while let Some((id, capacity)) = started.pop_front() {
            let completion = self.next();
            assert_eq!(completion.operation_id(), Some(id), "a later receive came first");
            let count = completion.result().unwrap();
            let operation = completion.into_operation().unwrap();
            assert_eq!(operation.buffer().len(), count);
            self.take(capacity, operation.buffer());
        }
    }

    fn receive_continuously(&mut self, packets: usize) {
        let id = self.stream.recv_continuous(Operation::new()).unwrap();
        let mut count = 0;
        loop {
            if count == packets {
                self.stream.cancel(id);
            }
            count += 1;
            let mut completion = self.next();
            assert_eq!(completion.operation_id(), Some(id));
            if let Some(chunk) = completion.take_chunk() {
                self.got.extend_from_slice(&chunk);
            }
            if !completion.more() {
                match completion.error() {
                    None => self.ended = true,
                    Some(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                }
                return;
            }
        }
    }
}
