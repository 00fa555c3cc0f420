#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::BackendChoice;
use proactor_fuzz::operations;

// The first byte chooses the backend; where there is no io_uring, everything runs on epoll.
fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let wanted = if first & 1 == 1 { BackendChoice::IoUring } else { BackendChoice::Epoll };
    let backend = proactor::probe(wanted).map_or(BackendChoice::Epoll, |_| wanted);
    operations::run(backend, rest);
});
