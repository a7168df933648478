//! What a law has seen: outside of it, predictions are less sure, and say so.

use super::features::Features;
use serde::{Deserialize, Serialize};

/// Standard deviation added for each natural logarithm outside of the range.
pub(super) const WIDENING: f64 = 0.06;

/// Logarithms of the least and the most seen, by dimension, in the order of
/// [`super::predict::DIMENSIONS`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Range(Vec<(f32, f32)>);

#[expect(clippy::cast_possible_truncation, reason = "a range needs no more")]
fn place(f: &Features) -> [f32; 5] {
    let steps = f.calls * f.batch;
    let ln = |x: f64| x.max(1e-9).ln() as f32;
    [
        ln(f.flops.tera() / steps.max(1.0)),
        ln(steps),
        ln(f.tokens),
        ln(f.batch),
        ln(f.gpus),
    ]
}

impl Range {
    /// True where every least is at most its most.
    pub(super) fn is_possible(&self) -> bool {
        let ordered = self
            .0
            .iter()
            .all(|(low, high)| low <= high && high.abs() < 1e3);
        ordered && (self.0.is_empty() || self.0.len() == 5)
    }

    /// Makes room for a run.
    pub(super) fn cover(&mut self, f: &Features) {
        let at = place(f);
        if self.0.len() != at.len() {
            self.0 = at.iter().map(|x| (*x, *x)).collect();
        }
        for ((low, high), x) in self.0.iter_mut().zip(at) {
            *low = low.min(x);
            *high = high.max(x);
        }
    }

    /// By how many natural logarithms a run lies outside, by dimension; half a step up or
    /// down is no extrapolation.
    pub(super) fn outside(&self, f: &Features) -> [f64; 5] {
        let at = place(f);
        std::array::from_fn(|d| {
            let (low, high) = self.0.get(d).copied().unwrap_or((at[d], at[d]));
            let by = f64::from((low - at[d]).max(at[d] - high).max(0.0));
            if by > 0.2 { by } else { 0.0 }
        })
    }
}
