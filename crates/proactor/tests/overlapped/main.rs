//! Operations with completion routines, and alertable waits.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod ends;
mod routines;
mod sources;
mod waits;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use proactor::overlapped::{ApcQueue, Routine, Wake};
use proactor::{ErrorKind, OperationKind};

use common::{HANG, Ports, QUIET};

fn open(ports: &Ports) -> ApcQueue {
    ApcQueue::with_builder(ports.builder()).expect("the probed backend opens a queue")
}

/// What routines have been told, in the order in which they ran.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<Told>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    kind: OperationKind,
    bytes: usize,
    error: Option<ErrorKind>,
    contents: Vec<u8>,
}

impl Log {
    fn routine(&self) -> Routine {
        let log = self.clone();
        Routine::new(move |mut completed| {
            let contents = match (completed.take_chunk(), completed.operation()) {
                (Some(chunk), _) => chunk.to_vec(),
                (None, Some(operation)) => operation.buffer().to_vec(),
                (None, None) => Vec::new(),
            };
            log.0.borrow_mut().push(Told {
                kind: completed.kind(),
                bytes: completed.bytes(),
                error: completed.error().map(|error| error.kind()),
                contents,
            });
        })
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    #[track_caller]
    fn only(&self) -> Told {
        assert_eq!(self.len(), 1, "{:?}", self.0.borrow());
        self.0.borrow_mut().remove(0)
    }
}

/// Waits alertably until the condition holds.
#[track_caller]
fn sleep_until(queue: &ApcQueue, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert_ne!(queue.sleep(Some(left)), Ok(Wake::TimedOut), "waited in vain: {what}");
    }
}

/// No routine is queued and none comes.
#[track_caller]
fn assert_quiet(queue: &ApcQueue) {
    assert_eq!(queue.sleep(Some(QUIET)), Ok(Wake::TimedOut), "no routine should have run");
}
