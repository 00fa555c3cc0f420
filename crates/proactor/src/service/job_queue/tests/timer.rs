//! Timed jobs on a virtual clock: the test says what time it is, so that nothing depends on how
//! fast this machine is.

use std::time::{Duration, Instant};

use super::*;

const MS: Duration = Duration::from_millis(1);

struct Scene {
    by_hand: ByHand,
    queue: JobQueue<Log>,
    timer: JobTimer,
    start: Instant,
    alarms: Arc<Mutex<Vec<u64>>>,
}

/// Notes for which milliseconds it is set.
struct NotingAlarm {
    start: Instant,
    alarms: Arc<Mutex<Vec<u64>>>,
}

impl Alarm for NotingAlarm {
    fn set(&self, _timer: &JobTimer, deadline: Instant) {
        let at_ms = (deadline - self.start).as_millis() as u64;
        self.alarms.lock().unwrap().push(at_ms);
    }
}

impl Scene {
    fn new(maximum_jobs: usize) -> Self {
        let by_hand = ByHand::default();
        let start = Instant::now();
        let alarms = Arc::new(Mutex::new(Vec::new()));
        let alarm = NotingAlarm { start, alarms: alarms.clone() };
        let builder = JobQueue::builder().maximum_jobs(maximum_jobs);
        let queue = builder.build(by_hand.clone(), Log::new());
        let timer = JobTimer::starting_at(start, alarm, MS, 1_000_000);
        Self { by_hand, queue, timer, start, alarms }
    }

    fn at(&self, at_ms: u64) -> Instant {
        self.start + Duration::from_millis(at_ms)
    }

    fn push_at(&self, at_ms: u64) -> TimedJob {
        let number = at_ms as u32;
        self.timer.push_at(&self.queue, self.at(at_ms), move |log| log.push(number)).unwrap()
    }

    /// Time goes on, and all jobs run.
    fn advance(&self, to_ms: u64) {
        self.timer.advance(self.at(to_ms));
        self.by_hand.run_all();
    }

    fn log(&self) -> Log {
        let (tell, told) = std::sync::mpsc::channel();
        self.queue.push(move |log| tell.send(std::mem::take(log)).unwrap()).unwrap();
        self.by_hand.run_all();
        told.recv().unwrap()
    }

    fn alarms(&self) -> Vec<u64> {
        std::mem::take(&mut self.alarms.lock().unwrap())
    }
}

#[test]
fn jobs_are_pushed_when_their_time_has_come() {
    let scene = Scene::new(100);
    for at_ms in [30, 10, 20, 10] {
        scene.push_at(at_ms);
    }
    scene.advance(9);
    assert_eq!(scene.log(), []);
    scene.advance(20);
    assert_eq!(scene.log(), [10, 10, 20]);
    assert_eq!(scene.timer.len(), 1);
    scene.advance(1_000);
    assert_eq!(scene.log(), [30]);
    assert!(scene.timer.is_empty() && scene.timer.next_deadline().is_none());
}

#[test]
fn the_alarm_is_set_for_the_earliest_and_only_when_that_changes() {
    let scene = Scene::new(100);
    scene.push_at(40);
    scene.push_at(50);
    scene.push_at(20);
    assert_eq!(scene.alarms(), [40, 20]);
    scene.advance(20);
    assert_eq!(scene.alarms(), [40]);
    // One that was set before, and says nothing new.
    scene.advance(25);
    assert_eq!(scene.alarms(), []);
    scene.advance(50);
    assert_eq!(scene.alarms(), []);
    scene.push_at(60);
    assert_eq!(scene.alarms(), [60]);
}

#[test]
fn a_cancelled_job_does_not_run() {
    let scene = Scene::new(100);
    let (first, second, third) = (scene.push_at(10), scene.push_at(20), scene.push_at(30));
    assert!(first.cancel() && !first.cancel());
    assert_eq!(scene.timer.len(), 2, "it leaves nothing behind");
    scene.timer.advance(scene.at(20));
    // Its job is in the queue, and has not started.
    assert!(second.cancel());
    scene.by_hand.run_all();
    scene.advance(30);
    assert_eq!(scene.log(), [30]);
    assert!(!third.cancel(), "it has run");
}

#[test]
fn a_job_whose_queue_is_gone_or_closed_is_dropped() {
    let scene = Scene::new(100);
    let kept = Arc::new(());
    let (one, other) = (kept.clone(), kept.clone());
    let gone = JobQueue::new(scene.by_hand.clone(), ());
    let _ = scene.timer.push_at(&gone, scene.at(5), move |()| drop(one)).unwrap();
    drop(gone);
    let _ = scene.timer.push_at(&scene.queue, scene.at(5), move |_| drop(other)).unwrap();
    scene.queue.close();
    assert_eq!(Arc::strong_count(&kept), 3);
    scene.advance(5);
    assert_eq!(Arc::strong_count(&kept), 1);
    let refused = scene.timer.push_at(&scene.queue, scene.at(9), |_| {}).unwrap_err();
    assert_eq!(refused, PushError::Closed);
}

#[test]
fn a_job_whose_queue_is_full_is_tried_again() {
    let scene = Scene::new(1);
    scene.push_at(10);
    scene.queue.push(|log| log.push(0)).unwrap();
    scene.timer.advance(scene.at(10));
    assert_eq!((scene.queue.len(), scene.timer.len()), (1, 1));
    scene.advance(11);
    scene.advance(20);
    assert_eq!(scene.log(), [0, 10]);
}

#[test]
fn a_timer_has_a_limit() {
    let scene = Scene::new(1);
    let timer = JobTimer::with_limits((), MS, 2);
    let push = || timer.push_at(&scene.queue, scene.at(5), |_| {});
    let first = push().unwrap();
    push().unwrap();
    assert_eq!(push().unwrap_err(), PushError::TimerFull { maximum_timed_jobs: 2 });
    assert!(first.cancel());
    push().unwrap();
}

fn push_every(scene: &Scene, period_ms: u64) -> TimedJob {
    let period = Duration::from_millis(period_ms);
    let start = scene.start;
    let job = move |log: &mut Log, tick: PeriodicTick| {
        log.push((tick.due - start).as_millis() as u32);
        log.extend((0..tick.missed).map(|_| 0));
    };
    scene.timer.push_every(&scene.queue, scene.at(10), period, job).unwrap()
}

#[test]
fn a_periodic_job_keeps_its_rate() {
    let scene = Scene::new(100);
    let ticks = push_every(&scene, 50);
    for now_ms in [9, 10, 59, 63, 110, 160] {
        scene.advance(now_ms);
    }
    assert_eq!(scene.log(), [10, 60, 110, 160], "lateness does not add up");
    // Nobody looked for a while: the last one that was due, and two were left out before it.
    scene.advance(312);
    scene.advance(360);
    assert_eq!(scene.log(), [310, 0, 0, 360]);
    assert!(ticks.cancel());
    assert!(scene.timer.is_empty());
    scene.advance(10_000);
    assert_eq!(scene.log(), []);
}

#[test]
fn a_slow_queue_holds_one_periodic_job_at_a_time() {
    let scene = Scene::new(100);
    let ticks = push_every(&scene, 10);
    for now_ms in [10, 20, 30] {
        scene.timer.advance(scene.at(now_ms));
        assert_eq!(scene.queue.len(), 1);
    }
    scene.by_hand.run_all();
    scene.advance(40);
    // The first one is told what was left out until it ran.
    assert_eq!(scene.log(), [10, 0, 0, 40]);
    // One that is in the queue when it is cancelled does not run.
    scene.timer.advance(scene.at(50));
    assert!(ticks.cancel());
    scene.by_hand.run_all();
    assert_eq!(scene.log(), []);
}

#[test]
fn a_periodic_job_leaves_out_what_a_full_queue_refuses() {
    let scene = Scene::new(1);
    let _ticks = push_every(&scene, 10);
    scene.queue.push(|_| {}).unwrap();
    scene.timer.advance(scene.at(10));
    scene.by_hand.run_all();
    scene.advance(20);
    assert_eq!(scene.log(), [20, 0]);
}

#[test]
fn a_periodic_job_that_panics_is_over() {
    let scene = Scene::new(100);
    let queue = JobQueue::builder()
        .on_panic(|_: &mut u32, _| AfterPanic::Continue)
        .build(scene.by_hand.clone(), 0);
    let job = |count: &mut u32, _| {
        *count += 1;
        assert!(*count < 3, "on purpose");
    };
    let ticks = scene.timer.push_every(&queue, scene.at(1), MS, job).unwrap();
    for now_ms in 1..10 {
        scene.advance(now_ms);
    }
    assert!(scene.timer.is_empty());
    assert!(!ticks.cancel());
    queue.push(|count| assert_eq!(*count, 3)).unwrap();
    scene.by_hand.run_all();
    assert!(!queue.is_closed());
}

#[test]
fn a_period_that_no_clock_can_name_ends_after_one() {
    let scene = Scene::new(100);
    let job = |log: &mut Log, _| log.push(1);
    let _ = scene.timer.push_every(&scene.queue, scene.at(1), Duration::MAX, job).unwrap();
    scene.advance(1);
    scene.advance(10);
    assert_eq!(scene.log(), [1]);
    assert!(scene.timer.is_empty());
}

/// A cancel that comes between the expiry of a periodic job and its return into the wheel.
#[test]
fn a_periodic_job_that_cancels_itself_is_over() {
    let scene = Scene::new(100);
    let handle: Arc<Mutex<Option<TimedJob>>> = Arc::default();
    let own = handle.clone();
    let job = move |log: &mut Log, _| {
        log.push(1);
        assert!(own.lock().unwrap().as_ref().unwrap().cancel());
    };
    let ticks = scene.timer.push_every(&scene.queue, scene.at(1), MS, job).unwrap();
    *handle.lock().unwrap() = Some(ticks);
    scene.advance(1);
    assert!(scene.timer.is_empty());
    scene.advance(10);
    assert_eq!(scene.log(), [1]);
}
