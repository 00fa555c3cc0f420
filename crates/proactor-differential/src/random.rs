//! Numbers and bytes that follow from a seed alone, on every platform and in every version.
//!
//! This is SplitMix64 (Steele, Lea and Flood, 2014). It stands here in ten lines because a crate
//! may draw other numbers in its next version, and a seed that was noted has to stay valid.

/// A sequence of numbers.
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix(self.0)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "there is no number below 0");
        (self.next() % bound as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The bytes of stream number `stream` from `position` on. Each byte follows from where it stands,
/// so that one that is lost, doubled or moved is seen.
pub(crate) fn content(stream: u64, position: u64, length: usize) -> Vec<u8> {
    let skip = (position % 8) as usize;
    let mut word = position / 8;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < skip + length {
        bytes.extend_from_slice(&mix(word ^ mix(stream ^ GOLDEN_GAMMA)).to_le_bytes());
        word += 1;
    }
    bytes.truncate(skip + length);
    bytes.drain(..skip);
    bytes
}

/// A short name of some bytes (FNV-1a).
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_follows_from_its_position() {
        let whole = content(3, 0, 100);
        for from in 0..40 {
            assert_eq!(content(3, from, 50), whole[from as usize..from as usize + 50]);
        }
        assert_ne!(content(4, 0, 100), whole);
    }

    #[test]
    fn a_seed_stays_what_it_is() {
        let mut random = Random::new(1);
        let drawn: Vec<usize> = (0..4).map(|_| random.below(1000)).collect();
        assert_eq!(drawn, [465, 519, 590, 235], "a new version draws otherwise");
    }
}
