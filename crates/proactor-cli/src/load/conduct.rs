//! Conducts a load: starts the threads, sets the times, samples the processes, and waits for all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::address::Endpoint;
use super::args::Plan;
use super::control::{Control, duration_ns};
use super::engine::{Engine, Shared};
use super::pattern::Pattern;
use super::process::{Usage, usage};
use super::progress::Progress;
use super::stream::Connector;
use super::tally::{Tally, Window};
use crate::failure::Failure;
use crate::interrupt::Watch;

/// How often the main thread looks for Ctrl-C and draws the bar.
const TICK_NS: u64 = 50_000_000;
/// How long after its own deadlines a thread is given up.
const GRACE_NS: u64 = 5_000_000_000;

/// What a load came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) endpoint: Endpoint,
    pub(crate) tally: Tally,
    /// The measured window, empty if the load ended before it.
    pub(crate) window: Window,
    pub(crate) interrupted: bool,
    pub(crate) server_pid: Option<u32>,
    /// What the server used, if it is known, and what this process used.
    pub(crate) server: Option<Samples>,
    pub(crate) client: Option<Samples>,
}

/// What a process had used at three moments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples {
    /// Before the first connect.
    pub(crate) idle: Usage,
    /// When measuring began.
    pub(crate) first: Usage,
    /// When sending stopped.
    pub(crate) last: Usage,
}

/// A moment of a load at which whoever had it run may look at something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the first connect.
    Idle,
    /// Measuring begins.
    First,
    /// Sending stops; the connections are open still, except in a churn.
    Last,
}

/// What a thread says to the main thread.
enum News {
    Ready,
    Finished(io::Result<Box<Tally>>),
}

/// Lets Ctrl-C and SIGTERM set a flag, which ends the load; a second one gives it up.
pub(crate) fn catch_interrupts() -> Result<(Watch, Arc<AtomicBool>), Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::clone(&flag);
    let watch = Watch::start(move || interrupted.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::new(format!("cannot watch for Ctrl-C: {error}")))?;
    Ok((watch, flag))
}

/// Runs the plan to its end, which its deadlines bound.
pub(crate) fn conduct(
    plan: Plan,
    connector: Connector,
    server_pid: Option<u32>,
    show_progress: bool,
    interrupted: &AtomicBool,
    observe: &mut dyn FnMut(Moment),
) -> Result<Outcome, Failure> {
    let progress = Progress::new(show_progress, plan.connections, is_churn(&plan));
    let threads = plan.threads;
    let shared =
        Arc::new(Shared { plan, pattern: Pattern::new(), connector, control: Control::new() });
    let mut conductor = Conductor {
        shared: Arc::clone(&shared),
        interrupted,
        was_interrupted: false,
        progress,
        news: start_threads(&shared)?,
        waiting_for: threads,
        running: threads,
        tally: Tally::new(),
        server: Sampler::new(server_pid)?,
        client: Sampler::new(Some(std::process::id())).unwrap_or_default(),
        observe,
    };
    conductor.run()?;
    conductor.progress.clear();
    Ok(Outcome {
        plan: shared.plan.clone(),
        endpoint: shared.connector.endpoint().clone(),
        window: shared.control.window(),
        interrupted: conductor.was_interrupted,
        server_pid,
        server: conductor.server.samples,
        client: conductor.client.samples,
        tally: conductor.tally,
    })
}

fn is_churn(plan: &Plan) -> bool {
    matches!(plan.pace, super::args::Pace::Churn { .. })
}

fn start_threads(shared: &Arc<Shared>) -> Result<Receiver<News>, Failure> {
    let (sender, news) = mpsc::channel();
    for thread in 0..shared.plan.threads {
        let (shared, sender) = (Arc::clone(shared), sender.clone());
        thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || run_thread(shared, thread, &sender))
            .map_err(|error| Failure::new(format!("cannot start a thread: {error}")))?;
    }
    Ok(news)
}

fn run_thread(shared: Arc<Shared>, thread: usize, sender: &Sender<News>) {
    // If the main thread has given up there is nobody to tell.
    let on_ready = || drop(sender.send(News::Ready));
    let result = Engine::new(shared, thread).and_then(|engine| engine.run(on_ready));
    drop(sender.send(News::Finished(result.map(Box::new))));
}

/// The main thread's view of a load.
struct Conductor<'a> {
    shared: Arc<Shared>,
    interrupted: &'a AtomicBool,
    was_interrupted: bool,
    progress: Progress,
    news: Receiver<News>,
    /// Threads that are not ready, and threads that have not finished.
    waiting_for: usize,
    running: usize,
    tally: Tally,
    server: Sampler,
    client: Sampler,
    observe: &'a mut dyn FnMut(Moment),
}

impl Conductor<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        self.server.sample(|samples, now| samples.idle = now);
        self.client.sample(|samples, now| samples.idle = now);
        (self.observe)(Moment::Idle);
        let connect_limit_ns = self.connect_limit_ns();
        self.wait(connect_limit_ns, |conductor| conductor.waiting_for == 0)?;
        let control = &self.shared.control;
        let plan = &self.shared.plan;
        if self.running > 0 {
            control.begin(control.now_ns(), plan.warmup, plan.duration);
        }
        let from_ns = control.window().from_ns;
        self.wait_until(from_ns)?;
        self.server.sample(|samples, now| samples.first = now);
        self.client.sample(|samples, now| samples.first = now);
        (self.observe)(Moment::First);
        // Ctrl-C can bring the end forward, so it is asked for again and again.
        while self.running > 0 && self.shared.control.now_ns() < self.shared.control.stop_ns() {
            let tick_ns = self.shared.control.now_ns() + TICK_NS;
            self.wait_until(tick_ns.min(self.shared.control.stop_ns()))?;
        }
        self.shared.control.stop_now();
        self.server.sample(|samples, now| samples.last = now);
        self.client.sample(|samples, now| samples.last = now);
        (self.observe)(Moment::Last);
        let drain_limit_ns =
            self.shared.control.now_ns() + duration_ns(self.shared.plan.timeout) + GRACE_NS;
        self.wait(drain_limit_ns, |conductor| conductor.running == 0)
    }

    /// When the last connect must have ended, if each wave of them takes as long as it may.
    fn connect_limit_ns(&self) -> u64 {
        let plan = &self.shared.plan;
        let waves = (plan.connections / 128 + 1) as u64;
        self.shared.control.now_ns()
            + duration_ns(plan.connect_timeout).saturating_mul(waves)
            + GRACE_NS
    }

    /// Waits until `moment_ns`, or until all threads have finished.
    fn wait_until(&mut self, moment_ns: u64) -> Result<(), Failure> {
        while self.running > 0
            && self.shared.control.now_ns() < moment_ns.min(self.shared.control.stop_ns())
        {
            self.attend(moment_ns)?;
        }
        Ok(())
    }

    /// Waits until `is_done`; past the deadline the threads have not kept theirs.
    fn wait(&mut self, deadline_ns: u64, is_done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        while self.running > 0 && !is_done(self) {
            if self.shared.control.now_ns() > deadline_ns {
                return Err(Failure::new("the load did not end in its time"));
            }
            self.attend(deadline_ns)?;
        }
        Ok(())
    }

    /// Waits a tick at most: for news, for Ctrl-C, to draw the bar.
    fn attend(&mut self, until_ns: u64) -> Result<(), Failure> {
        let now_ns = self.shared.control.now_ns();
        let tick = Duration::from_nanos(until_ns.saturating_sub(now_ns).min(TICK_NS));
        match self.news.recv_timeout(tick) {
            Ok(News::Ready) => self.waiting_for -= 1,
            Ok(News::Finished(Ok(tally))) => {
                self.running -= 1;
                self.tally.merge(*tally);
            }
            Ok(News::Finished(Err(error))) => {
                return Err(Failure::new(format!("a thread of the load failed: {error}")));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::new("a thread of the load panicked"));
            }
        }
        if self.interrupted.swap(false, Ordering::Relaxed) {
            if self.was_interrupted {
                return Err(Failure::new("interrupted twice, and so ended without a report"));
            }
            self.was_interrupted = true;
            self.shared.control.stop_now();
        }
        self.progress.show(&self.shared.control);
        Ok(())
    }
}

/// Samples one process, for as long as it can be looked at.
#[derive(Debug, Default)]
struct Sampler {
    pid: u32,
    samples: Option<Samples>,
}

impl Sampler {
    /// Fails if there is no such process, so that a mistyped pid is told at once.
    fn new(pid: Option<u32>) -> Result<Self, Failure> {
        let Some(pid) = pid else {
            return Ok(Self::default());
        };
        match usage(pid) {
            Ok(_) => Ok(Self { pid, samples: Some(Samples::default()) }),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Self::default()),
            Err(error) => Err(Failure::usage(format!("cannot look at process {pid}: {error}"))),
        }
    }

    /// Takes a sample. If the process is gone there are no figures at all, rather than wrong ones.
    fn sample(&mut self, put: impl FnOnce(&mut Samples, Usage)) {
        let Some(samples) = &mut self.samples else {
            return;
        };
        match usage(self.pid) {
            Ok(now) => put(samples, now),
            Err(_) => self.samples = None,
        }
    }
}
