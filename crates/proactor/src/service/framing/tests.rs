//! All framings, held to the same: any split of a stream gives the same frames, and nothing that a
//! peer sends makes a decoder panic, stand still, or hold more than the maximum.

use std::panic::catch_unwind;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const MAXIMUM: usize = 40;

fn length_prefixed() -> Vec<LengthPrefixed> {
    let mut all = Vec::new();
    for width in [LengthPrefixed::u16(), LengthPrefixed::u32()] {
        for order in [ByteOrder::BigEndian, ByteOrder::LittleEndian] {
            for includes in [false, true] {
                all.push(width.byte_order(order).length_includes_head(includes));
            }
        }
    }
    all
}

fn packets() -> Vec<Packets> {
    let mut all = Vec::new();
    for order in [ByteOrder::BigEndian, ByteOrder::LittleEndian] {
        for includes in [false, true] {
            all.push(Packets::new().byte_order(order).size_includes_header(includes));
        }
    }
    all
}

/// Every framing that has frames, with a small maximum.
fn framings() -> Vec<Arc<dyn Framing>> {
    let mut all: Vec<Arc<dyn Framing>> = Vec::new();
    for framing in length_prefixed() {
        all.push(Arc::new(framing.with_maximum_frame_bytes(MAXIMUM)));
    }
    for framing in packets() {
        all.push(Arc::new(framing.with_maximum_frame_bytes(MAXIMUM)));
    }
    for end in [LineEnd::Lf, LineEnd::CrLf] {
        all.push(Arc::new(Lines::new().line_end(end).with_maximum_frame_bytes(MAXIMUM)));
    }
    for delimiter in ["|", "ab", "aab", "--boundary--"] {
        all.push(Arc::new(Delimited::by(delimiter).with_maximum_frame_bytes(MAXIMUM)));
    }
    all
}

/// The payloads of a stream that comes in `pieces`, and how it ended.
fn read(framing: &dyn Framing, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut reader = FrameReader::new(framing);
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(reader.held_bytes() <= framing.maximum_frame_bytes());
    }
    (frames, None)
}

/// Which error it is; by how much a frame is too long depends on how much of it had come.
fn same_error(one: Option<FrameError>, other: Option<FrameError>) -> bool {
    match (one, other) {
        (Some(FrameError::TooLong { .. }), Some(FrameError::TooLong { .. })) => true,
        (one, other) => one == other,
    }
}

fn write(framing: &dyn Framing, payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for payload in payloads {
        let mut head = FrameHead::new();
        framing.head(payload.len(), &mut head).expect("the payload fits");
        stream.extend_from_slice(&head);
        stream.extend_from_slice(payload);
        stream.extend_from_slice(framing.tail());
    }
    stream
}

fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in cuts.into_iter().chain([stream.len()]) {
        pieces.push(&stream[start..end]);
        start = end;
    }
    pieces
}

fn one_byte_each(stream: &[u8]) -> Vec<&[u8]> {
    stream.chunks(1).collect()
}

proptest! {
    /// What was written is read, in whatever pieces it comes. The payloads have only bytes that
    /// are in no delimiter.
    #[test]
    fn what_is_written_is_read_in_any_pieces(
        payloads in prop::collection::vec(prop::collection::vec(0x80_u8.., 2..24), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        for framing in framings() {
            let stream = write(&*framing, &payloads);
            prop_assert_eq!(read(&*framing, &cut(&stream, &cuts)), (payloads.clone(), None));
            prop_assert_eq!(read(&*framing, &one_byte_each(&stream)), (payloads.clone(), None));
        }
    }

    /// Any bytes, in any pieces: the same frames, and the same error at the same place. Few
    /// different bytes, so that lengths are small and delimiters are met.
    #[test]
    fn any_bytes_are_read_the_same_in_any_pieces(
        stream in prop::collection::vec(
            prop_oneof![6 => 0_u8..6, 3 => Just(b'\n'), 1 => Just(b'\r'), 3 => Just(b'a'),
                        3 => Just(b'b'), 1 => Just(b'|'), 1 => any::<u8>()],
            0..200,
        ),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        for framing in framings() {
            let (frames, error) = read(&*framing, &[&stream]);
            for pieces in [cut(&stream, &cuts), one_byte_each(&stream)] {
                let (other_frames, other_error) = read(&*framing, &pieces);
                prop_assert_eq!(&other_frames, &frames);
                prop_assert!(same_error(error, other_error), "{:?} and {:?}", error, other_error);
            }
        }
    }

    /// Raw bytes are the stream, whatever the pieces, and no piece is over the maximum.
    #[test]
    fn raw_bytes_are_the_stream(
        stream in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let framing = RawBytes::new().with_maximum_frame_bytes(16);
        let (frames, error) = read(&framing, &cut(&stream, &cuts));
        prop_assert_eq!(error, None);
        prop_assert!(frames.iter().all(|frame| (1..=16).contains(&frame.len())));
        prop_assert_eq!(frames.concat(), stream);
    }
}

#[test]
fn lengths_are_written_as_the_protocol_says() {
    let head = |framing: LengthPrefixed| {
        let mut head = FrameHead::new();
        framing.head(0x0102, &mut head).unwrap();
        head.to_vec()
    };
    let little = ByteOrder::LittleEndian;
    assert_eq!(head(LengthPrefixed::u16()), [1, 2]);
    assert_eq!(head(LengthPrefixed::u16().byte_order(little)), [2, 1]);
    assert_eq!(head(LengthPrefixed::u16().length_includes_head(true)), [1, 4]);
    assert_eq!(head(LengthPrefixed::u32()), [0, 0, 1, 2]);
    let both = LengthPrefixed::u32().byte_order(little).length_includes_head(true);
    assert_eq!(head(both), [6, 1, 0, 0]);
}

#[test]
fn the_size_of_a_packet_counts_its_header_or_its_body() {
    let big = Packets::new().byte_order(ByteOrder::BigEndian);
    let payload = big.payload(0x0102, b"xyz");
    assert_eq!(write(&big, std::slice::from_ref(&payload)), *b"\x00\x07\x01\x02xyz");
    let body_only = big.size_includes_header(false);
    assert_eq!(write(&body_only, std::slice::from_ref(&payload)), *b"\x00\x03\x01\x02xyz");
    assert_eq!(body_only.split(&payload), Some((0x0102, &b"xyz"[..])));
    assert_eq!(body_only.split(&payload[..1]), None);
    // A body of no bytes is a packet.
    assert_eq!(read(&body_only, &[&[0, 0, 1, 2]]).0, [[1, 2]]);
}

/// Sizes that lead a careless parser into an endless loop or below its buffer.
#[test]
fn a_size_less_than_the_header_is_an_error() {
    let too_short =
        |length_bytes, minimum_bytes| Some(FrameError::TooShort { length_bytes, minimum_bytes });
    for size in 0..4_u8 {
        let (frames, error) = read(&Packets::new(), &[&[size, 0, 1, 0]]);
        assert_eq!((frames.len(), error), (0, too_short(usize::from(size), 4)));
    }
    let including = LengthPrefixed::u32().length_includes_head(true);
    assert_eq!(read(&including, &[&[0, 0, 0, 3]]).1, too_short(3, 4));
    assert_eq!(read(&including, &[&[0, 0, 0, 4]]), (vec![vec![]], None));
    // Without the header a length of zero is an empty frame, and the stream goes on behind it.
    let (frames, error) = read(&LengthPrefixed::u16(), &[&[0, 0, 0, 0, 0, 1, 9]]);
    assert_eq!((frames, error), (vec![vec![], vec![], vec![9]], None));
    // And a payload that is too short for its id is not sent.
    let mut head = FrameHead::new();
    assert!(matches!(Packets::new().head(1, &mut head), Err(FrameError::TooShort { .. })));
}

#[test]
fn a_length_over_the_maximum_is_an_error_before_the_payload_comes() {
    for framing in length_prefixed() {
        let huge = [0xFF; 4];
        let (_, error) = read(&framing.with_maximum_frame_bytes(MAXIMUM), &[&huge]);
        assert!(matches!(error, Some(FrameError::TooLong { .. })), "{framing:?}: {error:?}");
    }
    let too_much = (DEFAULT_MAXIMUM_FRAME_BYTES as u32 - 3).to_be_bytes();
    assert!(read(&LengthPrefixed::u32(), &[&too_much]).1.is_some());
    let just_enough = (DEFAULT_MAXIMUM_FRAME_BYTES as u32 - 4).to_be_bytes();
    assert!(read(&LengthPrefixed::u32(), &[&just_enough]).1.is_none());
}

#[test]
fn the_longest_frame_goes_through_and_one_byte_more_does_not() {
    for framing in framings() {
        let mut head = FrameHead::new();
        framing.head(2, &mut head).unwrap();
        let longest = MAXIMUM - head.len() - framing.tail().len();
        let payload = vec![0xEE; longest];
        let stream = write(&*framing, std::slice::from_ref(&payload));
        assert_eq!(stream.len(), MAXIMUM);
        assert_eq!(read(&*framing, &[&stream]), (vec![payload], None));
        let mut head = FrameHead::new();
        let refused = framing.head(longest + 1, &mut head);
        assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{refused:?}");
        assert!(framing.head(usize::MAX, &mut head).is_err());
        assert!(head.is_empty());
        // What never ends is an error as soon as the maximum has come.
        let (frames, error) = read(&*framing, &[&[0xEE; MAXIMUM]]);
        assert!(frames.is_empty() && matches!(error, Some(FrameError::TooLong { .. })));
    }
}

#[test]
fn a_length_that_two_bytes_cannot_say_is_refused() {
    let wide = LengthPrefixed::u16().with_maximum_frame_bytes(1 << 20);
    let mut head = FrameHead::new();
    assert!(wide.head(65_535, &mut head).is_ok());
    let error = wide.head(65_536, &mut head).unwrap_err();
    let (payload_bytes, maximum_payload_bytes) = (65_536, 65_535);
    assert_eq!(error, FrameError::Unrepresentable { payload_bytes, maximum_payload_bytes });
    let error = wide.length_includes_head(true).head(65_534, &mut head).unwrap_err();
    assert!(error.to_string().contains("at most 65533"), "{error}");
}

#[test]
fn a_long_line_in_small_pieces_is_searched_once() {
    // A million bytes, one at a time: without a memory of what was searched this would look at
    // 5e11 bytes, and not end in a sensible time.
    let bytes = 1_000_000;
    let framing = Lines::new().with_maximum_frame_bytes(bytes + 1);
    let mut line = vec![b'x'; bytes];
    line.push(b'\n');
    let mut decoder = framing.decoder();
    for end in 1..=bytes {
        let incomplete = Decoded::Incomplete { needed_bytes: end + 1 };
        assert_eq!(decoder.decode(&line[..end]), Ok(incomplete));
    }
    let frame = Decoded::Frame { payload: 0..bytes, consumed_bytes: bytes + 1 };
    assert_eq!(decoder.decode(&line), Ok(frame));
}

/// A decoder that answers as told.
struct Wrong(Decoded);

impl Decoder for Wrong {
    fn decode(&mut self, _input: &[u8]) -> Result<Decoded, FrameError> {
        Ok(self.0.clone())
    }
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "that is the offence")]
fn a_decoder_that_breaks_its_contract_is_an_error() {
    let frame = |payload, consumed_bytes| Decoded::Frame { payload, consumed_bytes };
    let wrong = [
        Decoded::Incomplete { needed_bytes: 0 },
        Decoded::Incomplete { needed_bytes: 10 },
        Decoded::Incomplete { needed_bytes: MAXIMUM + 1 },
        frame(0..0, 0),
        frame(0..11, 11),
        frame(0..6, 5),
        frame(3..2, 5),
    ];
    for answer in wrong {
        let checked = decode_checked(&mut Wrong(answer.clone()), &[0; 10], MAXIMUM);
        assert!(checked.is_err(), "{answer:?}");
    }
    for answer in [Decoded::Incomplete { needed_bytes: MAXIMUM }, frame(2..5, 10), frame(0..0, 1)] {
        let checked = decode_checked(&mut Wrong(answer.clone()), &[0; 10], MAXIMUM);
        assert_eq!(checked, Ok(answer));
    }
    assert!(decode_checked(&mut Wrong(frame(0..1, 10)), &[0; 10], 9).is_err());
}

#[test]
fn settings_that_make_no_sense_panic() {
    assert!(catch_unwind(|| Delimited::by("")).is_err());
    assert!(catch_unwind(|| Delimited::by("ab").with_maximum_frame_bytes(2)).is_err());
    assert!(catch_unwind(|| LengthPrefixed::u32().with_maximum_frame_bytes(4)).is_err());
    assert!(catch_unwind(|| Packets::new().with_maximum_frame_bytes(4)).is_err());
    assert!(catch_unwind(|| Lines::new().with_maximum_frame_bytes(2)).is_err());
    assert!(catch_unwind(|| RawBytes::new().with_maximum_frame_bytes(0)).is_err());
}
