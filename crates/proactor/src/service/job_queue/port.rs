//! Job queues and their timers on a completion port, by the port's public interface alone.

use std::fmt;
use std::time::Instant;

use super::timer::WeakJobTimer;
use super::{Alarm, JobTimer, Runnable, Scheduler};
use crate::sync::{Arc, Mutex, Weak, lock};
use crate::{Completion, CompletionPort, Operation};

/// So many operations are kept to be posted again.
const SPARE_OPERATIONS: usize = 64;

/// Brings job queues to the worker threads of a completion port, with packets that it posts, and
/// wakes job timers with the port's timers.
///
/// The workers hand each packet to [`run`](Self::run), which knows its own:
///
/// ```no_run
/// use proactor::{Completion, CompletionPort};
/// use proactor::service::job_queue::PortScheduler;
///
/// fn work(port: &CompletionPort, handle: impl Fn(Completion)) {
///     while let Ok(mut completion) = port.dequeue(None) {
///         if !PortScheduler::run(&mut completion) {
///             handle(completion);
///         }
///     }
/// }
/// ```
///
/// It does not keep the port. Queues whose port is closed or gone are closed with their next turn
/// or push.
#[derive(Clone)]
pub struct PortScheduler {
    shared: Arc<Shared>,
}

struct Shared {
    port: Weak<CompletionPort>,
    key: usize,
    spare: Mutex<Vec<Operation>>,
}

/// The context of a posted operation.
struct Turn {
    runnable: Option<Runnable>,
    scheduler: Weak<Shared>,
}

/// The context of a port's timer.
struct Wake {
    timer: WeakJobTimer,
    port: Weak<CompletionPort>,
}

impl PortScheduler {
    /// Posts packets with `key` at `port`.
    pub fn new(port: &Arc<CompletionPort>, key: usize) -> Self {
        let port = Arc::downgrade(port);
        Self { shared: Arc::new(Shared { port, key, spare: Mutex::new(Vec::new()) }) }
    }

    /// Where the packet is one of a scheduler: runs the jobs that it stands for and says `true`.
    /// Any other packet is untouched, and the answer is `false`.
    pub fn run(completion: &mut Completion) -> bool {
        let Some(operation) = completion.operation_mut() else { return false };
        if let Some(turn) = operation.context_mut::<Turn>() {
            let runnable = turn.runnable.take();
            let scheduler = turn.scheduler.upgrade();
            // Kept before the jobs run: the queue may need it for its next turn.
            if let (Some(scheduler), Some(operation)) = (scheduler, completion.take_operation()) {
                scheduler.keep(operation);
            }
            if let Some(runnable) = runnable {
                runnable.run();
            }
            return true;
        }
        if let Some(wake) = operation.context::<Wake>() {
            let (timer, port) = (wake.timer.upgrade(), wake.port.upgrade());
            drop(completion.take_operation());
            if let (Some(timer), Some(port)) = (timer, port) {
                timer.advance(port.now());
            }
            return true;
        }
        false
    }
}

impl Shared {
    fn take(self: &Arc<Self>) -> Operation {
        let spare = lock(&self.spare).pop();
        spare.unwrap_or_else(|| {
            let scheduler = Arc::downgrade(self);
            Operation::with_context(Turn { runnable: None, scheduler })
        })
    }

    fn keep(&self, operation: Operation) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_OPERATIONS {
            spare.push(operation);
        }
    }
}

fn turn_of(operation: &mut Operation) -> &mut Turn {
    operation.context_mut().expect("the scheduler's operations have its context")
}

impl Scheduler for PortScheduler {
    fn schedule(&self, runnable: Runnable) -> Result<(), Runnable> {
        let Some(port) = self.shared.port.upgrade() else { return Err(runnable) };
        let mut operation = self.shared.take();
        turn_of(&mut operation).runnable = Some(runnable);
        match port.post(self.shared.key, 0, Some(operation)) {
            Ok(()) => Ok(()),
            Err(rejected) => {
                let mut operation = rejected.into_operation();
                Err(turn_of(&mut operation).runnable.take().expect("it was just put in"))
            }
        }
    }
}

impl Alarm for PortScheduler {
    fn set(&self, timer: &JobTimer, deadline: Instant) {
        let Some(port) = self.shared.port.upgrade() else { return };
        let operation = Operation::with_context(Wake {
            timer: timer.downgrade(),
            port: self.shared.port.clone(),
        });
        // It fails where the port is closed. Its queues are then closed too, so nothing waits for
        // the timer.
        if let Err(rejected) = port.start_timer_at(self.shared.key, deadline, operation) {
            tracing::debug!(error = %rejected, "a job timer's port is closed");
        }
    }

    /// The port's clock.
    fn now(&self) -> Instant {
        let port = self.shared.port.upgrade();
        port.map_or_else(crate::sync::now, |port| port.now())
    }
}

impl fmt::Debug for PortScheduler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PortScheduler")
            .field("key", &self.shared.key)
            .finish_non_exhaustive()
    }
}
