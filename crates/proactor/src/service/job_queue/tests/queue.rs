//! Order, turns, limits, panics and closing.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn queue(by_hand: &ByHand) -> JobQueue<Log> {
    JobQueue::new(by_hand.clone(), Log::new())
}

/// What the object is, asked through the queue itself.
fn log_of(queue: &JobQueue<Log>, by_hand: &ByHand) -> Log {
    let (tell, told) = std::sync::mpsc::channel();
    queue.push(move |log| tell.send(log.clone()).unwrap()).unwrap();
    by_hand.run_all();
    told.recv().unwrap()
}

#[test]
fn jobs_run_in_order_and_never_inside_a_push() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    for number in 0..10 {
        queue.push(move |log| log.push(number)).unwrap();
    }
    assert_eq!((queue.len(), by_hand.waiting()), (10, 1), "one runnable for all of them");
    by_hand.turn();
    assert_eq!((queue.len(), by_hand.waiting()), (0, 0));
    assert_eq!(log_of(&queue, &by_hand), (0..10).collect::<Vec<_>>());
}

/// The queue is used from inside its own job: that would hang if a lock were held.
#[test]
fn a_job_that_pushes_runs_before_what_it_pushes() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    let own = queue.downgrade();
    queue
        .push(move |log| {
            let own = own.upgrade().expect("a queue that runs is kept");
            own.push(|log| log.push(2)).unwrap();
            assert_eq!(own.len(), 1);
            log.push(1);
        })
        .unwrap();
    by_hand.turn();
    assert_eq!(log_of(&queue, &by_hand), [1, 2]);
}

#[test]
fn a_long_queue_gives_way_to_others_after_its_turn() {
    let by_hand = ByHand::default();
    let order = Arc::new(Mutex::new(Vec::new()));
    let build = || JobQueue::builder().jobs_per_turn(3).build(by_hand.clone(), ());
    let (long, short) = (build(), build());
    for number in 0..7 {
        let order = order.clone();
        long.push(move |()| order.lock().unwrap().push(number)).unwrap();
    }
    let other = order.clone();
    short.push(move |()| other.lock().unwrap().push(100)).unwrap();
    by_hand.run_all();
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 100, 3, 4, 5, 6]);
}

#[test]
fn a_full_queue_refuses_and_takes_again_later() {
    let by_hand = ByHand::default();
    let queue = JobQueue::builder().maximum_jobs(2).build(by_hand.clone(), Log::new());
    queue.push(|log| log.push(1)).unwrap();
    queue.push(|log| log.push(2)).unwrap();
    let refused = queue.push(|log| log.push(3)).unwrap_err();
    assert_eq!(refused, PushError::Full { maximum_jobs: 2 });
    assert!(refused.to_string().contains("2 jobs wait"), "{refused}");
    by_hand.run_all();
    assert_eq!(log_of(&queue, &by_hand), [1, 2]);
}

#[test]
fn a_panic_closes_the_queue_unless_its_owner_says_otherwise() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    queue.push(|_| panic!("on purpose")).unwrap();
    queue.push(|log| log.push(1)).unwrap();
    by_hand.run_all();
    assert!(queue.is_closed() && queue.is_empty());
    assert_eq!(queue.push(|log| log.push(2)), Err(PushError::Closed));
    assert_eq!(by_hand.waiting(), 0);

    let told = Arc::new(Mutex::new(String::new()));
    let hook = told.clone();
    let queue = JobQueue::builder()
        .on_panic(move |log: &mut Log, panic| {
            hook.lock().unwrap().push_str(panic.message());
            log.clear();
            AfterPanic::Continue
        })
        .build(by_hand.clone(), vec![0]);
    queue.push(|_| panic!("job {}", 7)).unwrap();
    queue.push(|log| log.push(1)).unwrap();
    by_hand.run_all();
    assert_eq!(*told.lock().unwrap(), "job 7");
    assert_eq!(log_of(&queue, &by_hand), [1], "the hook repairs the object");
}

#[test]
fn a_panic_hook_that_panics_closes_the_queue() {
    let by_hand = ByHand::default();
    let queue = JobQueue::builder()
        .on_panic(|(), panic| std::panic::resume_unwind(panic.payload))
        .build(by_hand.clone(), ());
    queue.push(|()| panic!("on purpose")).unwrap();
    by_hand.run_all();
    assert!(queue.is_closed());
}

#[test]
fn closing_drops_what_waits_and_lets_the_running_job_end() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    let done = Arc::new(AtomicUsize::new(0));
    let (own, counter) = (queue.clone(), done.clone());
    queue
        .push(move |_| {
            own.close();
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    let counter = done.clone();
    let job = move |_: &mut Log| assert_eq!(counter.fetch_add(10, Ordering::Relaxed), 0);
    queue.push(job).unwrap();
    by_hand.run_all();
    assert_eq!(done.load(Ordering::Relaxed), 1);
    assert_eq!(Arc::strong_count(&done), 1, "the jobs are gone with what they own");
}

/// Pushes when it is dropped: that would hang if a queue dropped its jobs under its lock.
struct PushOnDrop(JobQueue<Log>);

impl Drop for PushOnDrop {
    fn drop(&mut self) {
        assert_eq!(self.0.push(|_| {}), Err(PushError::Closed));
    }
}

#[test]
fn jobs_are_dropped_without_a_lock() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    let own = PushOnDrop(queue.clone());
    queue.push(move |_| drop(own)).unwrap();
    queue.close();
    by_hand.run_all();
}

#[test]
fn a_runnable_that_is_never_run_closes_its_queue() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    let kept = Arc::new(());
    let owned = kept.clone();
    queue.push(move |_| drop(owned)).unwrap();
    drop(by_hand.take());
    assert!(queue.is_closed());
    assert_eq!(Arc::strong_count(&kept), 1, "its jobs are dropped");

    let nowhere = |runnable: Runnable| Err(runnable);
    let queue = JobQueue::new(nowhere, ());
    assert_eq!(queue.push(|()| unreachable!()), Err(PushError::Closed));
    assert!(queue.is_closed());
}

#[test]
fn what_was_pushed_runs_though_the_last_handle_is_gone() {
    let by_hand = ByHand::default();
    let queue = queue(&by_hand);
    let weak = queue.downgrade();
    let (tell, told) = std::sync::mpsc::channel();
    queue.push(move |_| tell.send(()).unwrap()).unwrap();
    drop(queue);
    assert!(weak.upgrade().is_some());
    by_hand.run_all();
    told.try_recv().expect("the job ran");
    assert!(weak.upgrade().is_none());
}
