//! What ends the server: the first request begins the drain, a second one by a signal ends the
//! program at once.
//!
//! How a server is told is its model's: on a port it is one more packet.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::interrupt::Watch;

/// What the shell gives for a program that a signal ended, for SIGINT.
const EXIT_AT_ONCE: i32 = 130;

/// Watches for signals and, where `stdin_counts`, for the end of standard input.
pub(super) fn watch(
    request_drain: impl Fn() + Send + Sync + 'static,
    stdin_counts: bool,
) -> io::Result<Watch> {
    let request_drain = Arc::new(request_drain);
    let is_draining = Arc::new(AtomicBool::new(false));
    if stdin_counts {
        let (request_drain, is_draining) = (Arc::clone(&request_drain), Arc::clone(&is_draining));
        // The thread is left to itself: nothing can end its wait but the input.
        thread::Builder::new().name("echo-stdin".into()).spawn(move || {
            wait_for_the_end(&mut io::stdin().lock());
            is_draining.store(true, Ordering::Relaxed);
            request_drain();
        })?;
    }
    Watch::start(move || {
        if is_draining.swap(true, Ordering::Relaxed) {
            eprintln!("proactor: a second signal: ending at once, without totals");
            std::process::exit(EXIT_AT_ONCE);
        }
        request_drain();
    })
}

/// Reads to the end; an input that cannot be read has ended too.
fn wait_for_the_end(input: &mut impl Read) {
    let mut buffer = [0; 1024];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
