//! Job queues by hand, on a port, and with timers on a virtual clock.

mod on_port;
mod queue;
mod timer;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;

/// Keeps what is scheduled until the test runs it.
#[derive(Clone, Default)]
struct ByHand {
    runnables: Arc<Mutex<VecDeque<Runnable>>>,
}

impl Scheduler for ByHand {
    fn schedule(&self, runnable: Runnable) -> Result<(), Runnable> {
        self.runnables.lock().unwrap().push_back(runnable);
        Ok(())
    }
}

impl ByHand {
    fn waiting(&self) -> usize {
        self.runnables.lock().unwrap().len()
    }

    fn take(&self) -> Option<Runnable> {
        self.runnables.lock().unwrap().pop_front()
    }

    /// Runs one turn of one queue.
    fn turn(&self) {
        self.take().expect("a queue waits for its turn").run();
    }

    fn run_all(&self) {
        while let Some(runnable) = self.take() {
            runnable.run();
        }
    }
}

type Log = Vec<u32>;
