//! How good a law is, by what users care for: how far off a prediction is, whether its
//! interval holds, whether it ranks alternatives rightly.

mod splits;

pub use splits::{
    in_sample, leave_architecture_out, leave_one_model_out, one_step_ahead, own_runs, transfer,
};

use super::features::Observation;
use super::predict::Outside;
use super::state::Law;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One prediction beside what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    pub model: String,
    pub measured: f64,
    pub predicted: f64,
    /// Bounds of the nominal 90 % interval.
    pub low: f64,
    pub high: f64,
    /// Where the run lies outside of what the law had learnt from.
    #[serde(skip)]
    pub outside: Outside,
}

impl Judged {
    pub(super) fn of(law: &Law, run: &Observation) -> Self {
        let prediction = law.predict(&run.features);
        Self {
            model: run.features.model.clone(),
            measured: run.energy.0,
            predicted: prediction.median.0,
            low: prediction.quantile(0.05).0,
            high: prediction.quantile(0.95).0,
            outside: prediction.outside,
        }
    }

    /// |predicted − measured| / measured.
    pub fn error(&self) -> f64 {
        (self.predicted / self.measured - 1.0).abs()
    }

    pub fn is_covered(&self) -> bool {
        (self.low..=self.high).contains(&self.measured)
    }
}

/// A law's accuracy over a set of runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Score {
    pub runs: usize,
    pub models: usize,
    /// Mean of |predicted − measured| / measured.
    pub mape: f64,
    /// Nine in ten are below this.
    pub p90: f64,
    /// Largest of those.
    pub worst: f64,
    /// Spearman's rank correlation of predicted and measured.
    pub rank: f64,
    /// 1 − residual variance over variance, of ln E.
    pub r2_log: f64,
    /// Share of runs inside their nominal 90 % interval.
    pub coverage_90: f64,
    /// Mean interval score of ln E at 90 % (Gneiting and Raftery 2007): width, and 20 times
    /// what lies outside; less is better.
    pub interval_score: f64,
}

impl Score {
    /// Scores predictions; of none, nothing but zeros.
    pub fn of(judged: &[Judged]) -> Self {
        let n = judged.len().max(1) as f64;
        let mean = |f: &dyn Fn(&Judged) -> f64| judged.iter().map(f).sum::<f64>() / n;
        let mut errors: Vec<f64> = judged.iter().map(Judged::error).collect();
        errors.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * n).ceil() - 1.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index"
            )]
            errors.get(place.max(0.0) as usize).copied().unwrap_or(0.0)
        };
        let models: BTreeSet<&str> = judged.iter().map(|j| j.model.as_str()).collect();
        Self {
            runs: judged.len(),
            models: models.len(),
            mape: mean(&Judged::error),
            p90: at(0.9),
            worst: errors.last().copied().unwrap_or(0.0),
            rank: rank_correlation(judged),
            r2_log: r2_log(judged),
            coverage_90: mean(&|j| f64::from(u8::from(j.is_covered()))),
            interval_score: mean(&interval_score),
        }
    }
}

/// Width of the interval of ln E, and what a measured value outside of it adds.
fn interval_score(j: &Judged) -> f64 {
    let (low, high, y) = (j.low.ln(), j.high.ln(), j.measured.ln());
    (high - low) + 20.0 * ((low - y).max(0.0) + (y - high).max(0.0))
}

fn r2_log(judged: &[Judged]) -> f64 {
    let n = judged.len().max(1) as f64;
    let mean = judged.iter().map(|j| j.measured.ln()).sum::<f64>() / n;
    let total: f64 = judged
        .iter()
        .map(|j| (j.measured.ln() - mean).powi(2))
        .sum();
    let left: f64 = judged
        .iter()
        .map(|j| (j.measured / j.predicted).ln().powi(2))
        .sum();
    if total > 0.0 { 1.0 - left / total } else { 0.0 }
}

fn rank_correlation(judged: &[Judged]) -> f64 {
    let a = ranks(judged.iter().map(|j| j.measured).collect());
    let b = ranks(judged.iter().map(|j| j.predicted).collect());
    let n = a.len().max(1) as f64;
    let middle = f64::midpoint(n, 1.0);
    let products = |x: &[f64], y: &[f64]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(x, y)| (x - middle) * (y - middle))
            .sum()
    };
    let spread = (products(&a, &a) * products(&b, &b)).sqrt();
    if spread > 0.0 {
        products(&a, &b) / spread
    } else {
        0.0
    }
}

/// Ranks from 1; equals share the mean of theirs.
fn ranks(values: Vec<f64>) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start;
        while end + 1 < order.len() && values[order[end + 1]] <= values[order[start]] {
            end += 1;
        }
        for place in &order[start..=end] {
            ranks[*place] = (start + end) as f64 / 2.0 + 1.0;
        }
        start = end + 1;
    }
    ranks
}

/// Where each model's energy goes: the mean share of each part of the arithmetic.
pub fn shares(law: &Law, runs: &[Observation]) -> BTreeMap<String, BTreeMap<&'static str, f64>> {
    let mut shares: BTreeMap<String, BTreeMap<&'static str, f64>> = BTreeMap::new();
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for run in runs {
        let parts = law.explain(&run.features).parts;
        let all: f64 = parts.iter().map(|part| part.joules).sum();
        let own = shares.entry(run.features.model.clone()).or_default();
        for part in parts {
            *own.entry(part.name).or_default() += part.joules / all;
        }
        *counts.entry(&run.features.model).or_default() += 1.0;
    }
    for (model, own) in &mut shares {
        let count = counts.get(model.as_str()).copied().unwrap_or(1.0);
        for share in own.values_mut() {
            *share /= count;
        }
    }
    shares
}

/// Scores a law as it stands.
pub fn score(law: &Law, runs: &[Observation]) -> Score {
    Score::of(&in_sample(law, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pairs: &[(f64, f64)]) -> Vec<Judged> {
        let of = |(measured, predicted): &(f64, f64)| Judged {
            model: "m".to_owned(),
            measured: *measured,
            predicted: *predicted,
            low: predicted * 0.9,
            high: predicted * 1.1,
            outside: Outside::default(),
        };
        pairs.iter().map(of).collect()
    }

    #[test]
    fn what_is_right_scores_right() {
        let score = Score::of(&judged(&[(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]));
        assert!(score.mape < 1e-12 && (score.r2_log - 1.0).abs() < 1e-12);
        assert!((score.rank - 1.0).abs() < 1e-12 && (score.coverage_90 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn ranks_backwards_correlate_by_minus_one_and_equals_share() {
        let backwards = Score::of(&judged(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]));
        assert!((backwards.rank + 1.0).abs() < 1e-12);
        assert_eq!(ranks(vec![2.0, 1.0, 2.0]), [2.5, 1.0, 2.5]);
    }

    #[test]
    fn a_value_outside_costs_twenty_times_its_distance() {
        let inside = interval_score(&judged(&[(1.0, 1.0)])[0]);
        let outside = interval_score(&judged(&[(1.21, 1.0)])[0]);
        assert!((outside - inside - 20.0 * (1.21_f64 / 1.1).ln()).abs() < 1e-9);
    }
}
