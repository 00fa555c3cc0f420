//! A process that has nothing to do with any server: it spins 10 ms at random
//! moments, `--rate N` times a second on average.
//!
//! Beside a server that does not stall it gives the floor of the `spin`
//! scenario: what such bursts of CPU use cost by the scheduler alone.

use std::thread;
use std::time::{Duration, Instant};

use bench_peers::STALL_TIME;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rate: f64 = match arguments.get(1..) {
        Some([name, value]) if name == "--rate" => value.parse().expect("--rate takes a number"),
        _ => panic!("usage: spinner --rate BURSTS_PER_SECOND"),
    };
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = Instant::now();
    loop {
        // Exponential gaps, the same arrivals as the marked messages have.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let uniform = (state >> 11) as f64 / (1_u64 << 53) as f64;
        next += Duration::from_secs_f64(-(1.0 - uniform).ln() / rate);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let start = Instant::now();
        while start.elapsed() < STALL_TIME {
            std::hint::spin_loop();
        }
    }
}
