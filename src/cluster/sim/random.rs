//! Numbers from a seed: the same seed tells the same story.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub(in crate::cluster) struct Random(u64);

impl Random {
    pub(in crate::cluster) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(in crate::cluster) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number in 0..n.
    pub(in crate::cluster) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// An index in 0..n.
    pub(in crate::cluster) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }

    /// A number in [0, 1).
    pub(in crate::cluster) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True once in n times.
    pub(in crate::cluster) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
