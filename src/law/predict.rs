//! A predicted energy, with its uncertainty.

use super::units::Joules;
use serde::{Deserialize, Serialize};

/// What a run will cost: a Student-t distribution of ln E.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    pub median: Joules,
    /// Scale of ln E.
    pub ln_sd: f64,
    /// Degrees of freedom: how well the scale itself is known.
    pub df: f64,
    /// Runs of this model the law has learnt from; 0 = never seen.
    pub runs_of_model: u64,
    /// Where the workload lies outside of what the law has learnt from.
    #[serde(default)]
    pub outside: Outside,
}

/// Dimensions in which a workload lies outside of what was learnt from: names for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outside(u8);

/// Dimensions of a workload that a law generalises over, in the order of the bits.
pub(super) const DIMENSIONS: [&str; 5] = ["work of a call", "steps", "size", "batch", "GPUs"];

impl Outside {
    pub(super) fn of(by: &[f64; 5]) -> Self {
        let outside = by.iter().enumerate().filter(|(_, by)| **by > 0.0);
        Self(outside.fold(0, |sum, (bit, _)| sum | 1 << bit))
    }

    /// Their names; none where the workload lies within.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = DIMENSIONS.iter().enumerate();
        named
            .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| *name)
    }
}

impl Prediction {
    /// Half the width of the 90 % interval, as a fraction of the median.
    pub fn relative_90(&self) -> f64 {
        self.quantile(0.95).0 / self.median.0 - 1.0
    }

    /// True where `energy` lies within the two-sided interval of probability `p`.
    pub fn covers(&self, energy: Joules, p: f64) -> bool {
        let tail = (1.0 - p) / 2.0;
        energy >= self.quantile(tail) && energy <= self.quantile(1.0 - tail)
    }
}
