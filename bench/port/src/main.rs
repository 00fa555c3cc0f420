//! What the port's own calls cost, without a network: posting while the consumer is busy, posting
//! and dequeuing on one thread, and waking a parked thread.
//!
//! Each figure is the median of the rounds, with the smallest and the largest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proactor::{BackendChoice, CompletionPort};

const ROUNDS: usize = 15;
const POSTS: u64 = 200_000;
const WAKES: u64 = 5_000;

fn main() {
    for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
        println!("{choice:?}");
        let report = |what: &str, measure: fn(&CompletionPort) -> f64| {
            let mut figures: Vec<f64> = (0..ROUNDS)
                .filter_map(|_| {
                    let port =
                        CompletionPort::builder().backend(choice).concurrency(2).build().ok()?;
                    Some(measure(&port))
                })
                .collect();
            figures.sort_by(f64::total_cmp);
            match figures[..] {
                [least, .., most] => {
                    let median = figures[figures.len() / 2];
                    println!("  {what:<44} {median:>8.0} ns ({least:.0}..{most:.0})");
                }
                _ => println!("  {what:<44} not to be had here"),
            }
        };
        report("post, consumer busy on another thread", post_to_busy_consumer);
        report("post and dequeue on one thread", post_and_dequeue);
        report("post to a parked thread, there and back", wake_a_parked_thread);
    }
}

/// The poster's time per post while another thread dequeues without a pause.
fn post_to_busy_consumer(port: &CompletionPort) -> f64 {
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut completions = [const { None }; 32];
            while taken.load(Ordering::Relaxed) < POSTS {
                let Ok(count) = port.dequeue_many(&mut completions, Some(Duration::from_secs(1)))
                else {
                    break;
                };
                completions[..count].iter_mut().for_each(|completion| *completion = None);
                taken.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        let mut spent = Duration::ZERO;
        for batch in 0..POSTS / 1000 {
            // The queue stays short and never empty: the consumer neither parks nor drowns.
            while batch * 1000 > taken.load(Ordering::Relaxed) + 4000 {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            for number in 0..1000 {
                port.post(1, number, None).expect("the port is open");
            }
            spent += start.elapsed();
        }
        spent.as_nanos() as f64 / POSTS as f64
    })
}

fn post_and_dequeue(port: &CompletionPort) -> f64 {
    let start = Instant::now();
    for number in 0..POSTS / 10 {
        for _ in 0..10 {
            port.post(1, number as usize, None).expect("the port is open");
        }
        for _ in 0..10 {
            port.dequeue(Some(Duration::ZERO)).expect("what was posted");
        }
    }
    start.elapsed().as_nanos() as f64 / POSTS as f64
}

/// A post, the wake of a parked thread, and its answer by a flag that this thread spins on.
fn wake_a_parked_thread(port: &CompletionPort) -> f64 {
    let answered = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Ok(completion) = port.dequeue(Some(Duration::from_millis(100))) {
                    answered.store(completion.bytes() as u64, Ordering::Release);
                }
            }
        });
        let start = Instant::now();
        for number in 1..=WAKES {
            port.post(1, number as usize, None).expect("the port is open");
            while answered.load(Ordering::Acquire) < number {
                std::hint::spin_loop();
            }
        }
        let figure = start.elapsed().as_nanos() as f64 / WAKES as f64;
        done.store(true, Ordering::Relaxed);
        figure
    })
}
