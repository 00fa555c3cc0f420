//! The port as a work queue: posts from other threads, timers, and a section that blocks.
//!
//! One thread may handle at once (the limit is 1), and two dequeue. A job that sleeps inside
//! `blocking` gives its turn up, so the second thread handles the jobs behind it meanwhile.
//!
//! Run it:  cargo run --release --example post_work

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use proactor::{Completion, CompletionPort, DequeueError, Operation, OperationKind};

const JOB: usize = 1;
const TICK: usize = 2;
const STOP: usize = 3;

/// What is posted: anything that can be sent to another thread.
enum Job {
    Square(u64),
    Sleep(Duration),
}

fn main() -> io::Result<()> {
    let port = CompletionPort::new(1)?;
    let start = Instant::now();
    let work = |name: &str| -> Result<(), DequeueError> {
        loop {
            match port.dequeue(None) {
                Ok(completion) => handle(&port, completion, name, start),
                Err(DequeueError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    thread::scope(|scope| {
        let workers = ["first", "second"].map(|name| scope.spawn(move || work(name)));

        // Any thread posts; the number after the key is the program's own, as the key is.
        scope.spawn(|| -> io::Result<()> {
            port.post(
                JOB,
                1,
                Some(Operation::with_context(Job::Sleep(Duration::from_millis(50)))),
            )?;
            for number in 2..6 {
                port.post(JOB, number, Some(Operation::with_context(Job::Square(number as u64))))?;
            }
            Ok(())
        });

        port.start_timer(TICK, Duration::from_millis(20), Operation::new())?;
        let never = port.start_timer(TICK, Duration::from_secs(3600), Operation::new())?;
        // A cancelled timer gives its packet at once.
        assert!(port.cancel_timer(never));
        port.start_timer(STOP, Duration::from_millis(100), Operation::new())?;

        for worker in workers {
            worker.join().expect("no handler panics")?;
        }
        Ok(())
    })
}

fn handle(port: &CompletionPort, mut completion: Completion, thread: &str, start: Instant) {
    let operation = completion.take_operation();
    let job = operation.and_then(|mut operation| operation.take_context::<Job>());
    let what = match (completion.kind(), completion.key(), job.as_deref()) {
        (OperationKind::Timer, STOP, _) => {
            // Every dequeue ends with `Closed`: the threads go home.
            port.close();
            "stop".into()
        }
        (OperationKind::Timer, ..) => match completion.error() {
            None => "tick".into(),
            Some(error) => error.to_string(),
        },
        (_, _, Some(Job::Square(number))) => format!("{number} squared is {}", number * number),
        (_, _, Some(Job::Sleep(time))) => {
            port.blocking(|| thread::sleep(*time));
            format!("slept {time:?}")
        }
        (..) => "a packet that nobody expected".into(),
    };
    let job = completion.bytes();
    println!("{:>4} ms  {thread:>6} thread, job {job}: {what}", start.elapsed().as_millis());
}
