//! Threads that a test gives pieces of work to, one after the other.
//!
//! Between two pieces a worker spins. To the port it is a thread that runs its handler: it neither
//! waits nor blocks, so it keeps its slot (rule 39).

use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::HANG;

type Work = Box<dyn FnOnce() + Send>;

/// One thread.
pub struct Worker {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    task: Task,
}

impl Worker {
    pub fn spawn() -> Self {
        let (work, queue) = mpsc::channel::<Work>();
        let (tell_task, task) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell_task.send(Task::current()).unwrap();
            loop {
                match queue.try_recv() {
                    Ok(work) => work(),
                    Err(TryRecvError::Empty) => thread::yield_now(),
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        });
        let task = task.recv_timeout(HANG).expect("the thread starts");
        Self { work: Some(work), thread: Some(thread), task }
    }

    /// Gives the thread work; does not wait for it.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
        let (tell, answer) = mpsc::channel();
        let work: Work = Box::new(move || {
            // Nobody listens where the test is over.
            let _ = tell.send(work());
        });
        self.work.as_ref().unwrap().send(work).expect("the worker is there");
        Answer(answer)
    }

    /// Gives the thread work and waits for its end.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).wait()
    }

    /// Gives the thread work that ends in a wait at the port, and returns once it waits there.
    pub fn park<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
        let (tell_started, started) = mpsc::channel();
        let answer = self.start(move || {
            tell_started.send(()).unwrap();
            work()
        });
        started.recv_timeout(HANG).expect("the worker takes its work");
        self.task.wait_until_asleep();
        answer
    }

    /// Ends the thread.
    pub fn exit(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.work = None;
        let thread = self.thread.take();
        // A test that has failed does not wait for a thread that may wait for it.
        if !thread::panicking() {
            thread.map(JoinHandle::join).transpose().expect("the worker did not panic");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// What a piece of work will give.
pub struct Answer<T>(mpsc::Receiver<T>);

impl<T> Answer<T> {
    #[track_caller]
    pub fn wait(self) -> T {
        match self.0.recv_timeout(HANG) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => panic!("a worker did not come back"),
            Err(RecvTimeoutError::Disconnected) => panic!("a worker panicked"),
        }
    }

    /// The answer, if it comes within `time`.
    pub fn within(&self, time: Duration) -> Option<T> {
        self.0.recv_timeout(time).ok()
    }
}

#[cfg(windows)]
pub use super::windows::Task;

/// A thread, as `/proc/self/task` names it.
#[cfg(target_os = "linux")]
pub struct Task(u32);

#[cfg(target_os = "linux")]
impl Task {
    /// The calling thread.
    pub fn current() -> Self {
        let link = std::fs::read_link("/proc/thread-self").expect("/proc is mounted");
        Self(link.file_name().unwrap().to_str().unwrap().parse().unwrap())
    }

    /// Waits until the thread sleeps and goes on sleeping. It may wake now and then to look around.
    pub fn wait_until_asleep(&self) {
        const LOOKS: u32 = 20;
        let deadline = Instant::now() + HANG;
        let mut asleep = 0;
        while asleep < LOOKS {
            assert!(Instant::now() < deadline, "a worker should wait at the port, and does not");
            let stat = format!("/proc/self/task/{}/stat", self.0);
            let stat = std::fs::read_to_string(stat).unwrap();
            let state = stat.rsplit(") ").next().unwrap();
            if state.starts_with('S') {
                asleep += 1;
            }
            // Looks that are too close together could all fall into one short wait for a lock.
            thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Keeps the calling thread busy until `done`, and never waits in the kernel.
#[track_caller]
pub fn spin_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !done() {
        assert!(Instant::now() < deadline, "spun in vain");
        for _ in 0..100 {
            std::hint::spin_loop();
        }
    }
}
