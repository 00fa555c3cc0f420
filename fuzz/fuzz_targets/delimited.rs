#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::service::framing::Delimited;
use proactor_fuzz::{Input, check};

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let delimiter = ["\0", "ab", "aab", "--boundary--"][usize::from(input.variant & 3)];
    let framing = Delimited::by(delimiter).with_maximum_frame_bytes(input.maximum_frame_bytes());
    check(&framing, &input);
});
