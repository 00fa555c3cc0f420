//! Many timers on one job queue.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use proactor::service::Runtime;
use proactor::service::job_queue::{JobQueue, JobTimer};

use crate::Outcome;

/// The timers expire within this time, evenly.
const SPAN: Duration = Duration::from_secs(2);

struct Lateness {
    left: usize,
    late: Vec<Duration>,
    done: mpsc::Sender<Vec<Duration>>,
}

pub(crate) fn measure(timers: usize) -> Outcome {
    let runtime = Runtime::new()?;
    let timer = JobTimer::new(runtime.scheduler());
    let (done, all_done) = mpsc::channel();
    let object = Lateness { left: timers, late: Vec::with_capacity(timers), done };
    let queue = JobQueue::builder().maximum_jobs(timers).build(runtime.scheduler(), object);
    let cpu_before = cpu_time();
    let began = Instant::now();
    let first = began + Duration::from_secs(1);
    for number in 0..timers {
        // In an order that is not that of the deadlines.
        let place = number * 7919 % timers;
        let deadline = first + SPAN.mul_f64(place as f64 / timers as f64);
        timer.push_at(&queue, deadline, move |lateness: &mut Lateness| {
            lateness.late.push(Instant::now().saturating_duration_since(deadline));
            lateness.left -= 1;
            if lateness.left == 0 {
                let _ = lateness.done.send(std::mem::take(&mut lateness.late));
            }
        })?;
    }
    let inserted = began.elapsed();
    let mut late = all_done.recv_timeout(Duration::from_secs(60))?;
    let cpu = cpu_time().saturating_sub(cpu_before);
    late.sort_unstable();
    let at = |share: f64| late[((timers - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{timers} timers within {SPAN:?}: {:.0} ns to start one, {:.2} us of CPU for each in all; late \
         by {:.2} ms (median), {:.2} ms (99 %), {:.2} ms (most); none early",
        inserted.as_secs_f64() * 1e9 / timers as f64,
        cpu.as_secs_f64() * 1e6 / timers as f64,
        at(0.5),
        at(0.99),
        at(1.0),
    );
    Ok(())
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
