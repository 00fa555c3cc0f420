//! The bytes that are sent, and so the bytes that must come back.
//!
//! Each connection has an endless stream of its own. It is cut into laps of
//! 64 KiB; each lap is a slice of one shared buffer of random bytes, and where
//! the slice starts is a hash of the connection and the lap. So what a
//! connection must receive at a position is known without storing anything,
//! checking it is a comparison of two slices, and bytes that were lost,
//! repeated, swapped or taken from another connection do not match.
//!
//! What it cannot see: two connections agree in a lap by chance, once in
//! 196,608 pairs, and a single byte agrees by chance once in 254.

/// A message that starts with this byte blocks its handler at a `--stall-marks` server.
pub(crate) const MARK_BLOCK: u8 = 0xF1;
/// A message that starts with this byte spins in its handler at a `--stall-marks` server.
pub(crate) const MARK_SPIN: u8 = 0xF2;

/// How long a stretch of the stream comes from one place of the buffer.
const LAP_BYTES: u64 = 64 << 10;
/// In how many places of the buffer a lap can start. With a lap it makes 256 KiB,
/// which stays in a core's second-level cache.
const START_COUNT: u64 = 192 << 10;
/// How many bytes, and how many messages, the diagnosis looks around a wrong byte.
const DIAGNOSIS_SHIFTS: u64 = 1024;
/// How many bytes have to agree before the diagnosis says where they come from.
const DIAGNOSIS_MATCH_BYTES: usize = 12;

/// A small generator of random numbers: SplitMix64, by Steele, Lea and Flood.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator that always gives the same numbers for a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// True in a `fraction` of the calls.
    pub(crate) fn chance(&mut self, fraction: f64) -> bool {
        // 53 bits are what a double holds exactly.
        ((self.next() >> 11) as f64) < fraction * (1u64 << 53) as f64
    }
}

/// SplitMix64's finisher: each input bit changes each output bit half of the time.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// The streams of all connections.
#[derive(Debug)]
pub(crate) struct Pattern {
    bytes: Box<[u8]>,
}

impl Pattern {
    /// Fills the shared buffer. No byte of it is a mark: a server without frames takes
    /// any chunk for a message, and must not meet a mark that was not meant.
    pub(crate) fn new() -> Self {
        let mut random = Random::new(0x5052_4F41_4354_4F52);
        let bytes = std::iter::repeat_with(|| random.next().to_le_bytes())
            .flatten()
            .filter(|byte| !matches!(*byte, MARK_BLOCK | MARK_SPIN))
            .take((START_COUNT + LAP_BYTES) as usize)
            .collect();
        Self { bytes }
    }

    /// The stream of `connection` from `position` on: at least one byte, at most `limit`,
    /// and fewer where a lap ends.
    pub(crate) fn run(&self, connection: u64, position: u64, limit: usize) -> &[u8] {
        assert!(limit > 0, "an empty run would never end a loop");
        let lap = position / LAP_BYTES;
        let within = position % LAP_BYTES;
        let seed = mix(connection.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(lap));
        let start = (seed % START_COUNT + within) as usize;
        let length = limit.min((LAP_BYTES - within) as usize);
        &self.bytes[start..start + length]
    }

    /// Copies the stream into `out`. For diagnosis and tests: it is the slow way.
    pub(crate) fn copy(&self, connection: u64, position: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let run = self.run(connection, position + done as u64, out.len() - done);
            out[done..done + run.len()].copy_from_slice(run);
            done += run.len();
        }
    }

    /// Says where in the connection's own stream `received` would belong, if anywhere near.
    /// It came where `position` was expected.
    ///
    /// Streams are slices of one buffer, so far enough away anything can be found. Only likely
    /// places are looked at, the near ones first: a few bytes off, or some whole messages off.
    pub(crate) fn diagnose(
        &self,
        connection: u64,
        position: u64,
        message_bytes: u64,
        received: &[u8],
    ) -> Option<String> {
        let received = received.get(..DIAGNOSIS_MATCH_BYTES)?;
        let agrees = |position: u64| {
            let mut expected = [0; DIAGNOSIS_MATCH_BYTES];
            self.copy(connection, position, &mut expected);
            expected == *received
        };
        let few_bytes = 1..=DIAGNOSIS_SHIFTS;
        let whole_messages = (1..=DIAGNOSIS_SHIFTS).map(|count| count * message_bytes);
        for shift in few_bytes.chain(whole_messages) {
            if agrees(position + shift) {
                return Some(format!(
                    "what came belongs {shift} bytes further on: bytes were lost or reordered"
                ));
            }
            if shift <= position && agrees(position - shift) {
                return Some(format!(
                    "what came belongs {shift} bytes further back: bytes were repeated or reordered"
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(connection: u64, position: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        Pattern::new().copy(connection, position, &mut out);
        out
    }

    #[test]
    fn holds_no_marks() {
        assert!(!Pattern::new().bytes.iter().any(|byte| matches!(*byte, MARK_BLOCK | MARK_SPIN)));
    }

    #[test]
    fn a_run_is_never_empty_and_stays_in_its_lap() {
        let pattern = Pattern::new();
        assert_eq!(pattern.run(1, 0, 10).len(), 10);
        assert_eq!(pattern.run(1, LAP_BYTES - 3, 10).len(), 3);
        assert_eq!(pattern.run(1, LAP_BYTES, usize::MAX).len(), LAP_BYTES as usize);
    }

    #[test]
    fn however_it_is_cut_it_is_the_same_stream() {
        let whole = stream(7, 0, 200_000);
        let pattern = Pattern::new();
        let mut pieces = Vec::new();
        for length in (1..=977).cycle() {
            if pieces.len() == whole.len() {
                break;
            }
            let length = length.min(whole.len() - pieces.len());
            let begin = pieces.len();
            pieces.resize(begin + length, 0);
            pattern.copy(7, begin as u64, &mut pieces[begin..]);
        }
        assert!(pieces == whole);
    }

    #[test]
    fn any_shift_of_a_stream_differs_from_it() {
        // Loss or repetition of a number of bytes is a shift of all that follows.
        let own = stream(3, 0, 300_000);
        for shift in [1, 2, 63, 64, 65, 4096, 65_535, 65_536, 131_072, 196_608] {
            for at in (0..own.len() - shift - 64).step_by(7919) {
                assert_ne!(
                    own[at..at + 64],
                    own[at + shift..at + shift + 64],
                    "shift {shift} at {at}"
                );
            }
        }
    }

    #[test]
    fn connections_differ() {
        let first = stream(0, 0, 64);
        let agreeing = (1..10_000).filter(|id| stream_start_agrees(&first, *id)).count();
        assert!(agreeing <= 1, "{agreeing} of 10,000 connections start like the first");
    }

    fn stream_start_agrees(first: &[u8], connection: u64) -> bool {
        thread_local! { static PATTERN: Pattern = Pattern::new(); }
        PATTERN.with(|pattern| pattern.run(connection, 0, 64) == first)
    }

    #[test]
    fn the_diagnosis_names_the_shift() {
        let pattern = Pattern::new();
        let lost = pattern.diagnose(5, 1000, 64, &stream(5, 1064, 64)).expect("found");
        assert!(lost.contains("64 bytes further on"), "{lost}");
        let repeated = pattern.diagnose(5, 1000, 64, &stream(5, 936, 64)).expect("found");
        assert!(repeated.contains("64 bytes further back"), "{repeated}");
        assert_eq!(pattern.diagnose(5, 1000, 64, &stream(6, 1000, 64)), None);
    }

    #[test]
    fn chance_keeps_its_fraction() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| !random.chance(0.0)));
        assert!((0..1000).all(|_| random.chance(1.0)));
        let hits = (0..100_000).filter(|_| random.chance(0.01)).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
