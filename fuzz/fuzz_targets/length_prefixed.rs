#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::service::framing::{ByteOrder, LengthPrefixed};
use proactor_fuzz::{Input, check};

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let [wide, little, includes_head] = input.switches();
    let framing = if wide { LengthPrefixed::u32() } else { LengthPrefixed::u16() };
    let order = if little { ByteOrder::LittleEndian } else { ByteOrder::BigEndian };
    let framing = framing
        .byte_order(order)
        .length_includes_head(includes_head)
        .with_maximum_frame_bytes(input.maximum_frame_bytes());
    check(&framing, &input);
});
