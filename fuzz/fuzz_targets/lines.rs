#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::service::framing::{LineEnd, Lines};
use proactor_fuzz::{Input, check};

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let [crlf, ..] = input.switches();
    let end = if crlf { LineEnd::CrLf } else { LineEnd::Lf };
    let lines = Lines::new().line_end(end).with_maximum_frame_bytes(input.maximum_frame_bytes());
    check(&lines, &input);
});
