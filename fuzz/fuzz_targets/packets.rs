#![no_main]

use libfuzzer_sys::fuzz_target;
use proactor::service::framing::{ByteOrder, FrameReader, Packets};
use proactor_fuzz::{Input, check};

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let [big, body_only, _] = input.switches();
    let order = if big { ByteOrder::BigEndian } else { ByteOrder::LittleEndian };
    let packets = Packets::new()
        .byte_order(order)
        .size_includes_header(!body_only)
        .with_maximum_frame_bytes(input.maximum_frame_bytes());
    check(&packets, &input);
    let mut reader = FrameReader::new(&packets);
    reader.push(&data[2..]);
    while let Ok(Some(payload)) = reader.next_frame() {
        let (id, body) = packets.split(payload).expect("every packet has an id");
        assert_eq!(packets.payload(id, body), payload);
    }
});
