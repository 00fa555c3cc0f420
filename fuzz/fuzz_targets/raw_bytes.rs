#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::service::framing::RawBytes;
use proactor_fuzz::{Input, check_raw};

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let framing = RawBytes::new().with_maximum_frame_bytes(input.maximum_frame_bytes());
    check_raw(&framing, &input);
});
