//! How good a law is: mean absolute percentage error and interval coverage, in sample
//! and with each model left out in turn.

use super::features::Observation;
use super::fit::fit;
use super::form::Form;
use super::gpu::Gpu;
use super::state::Law;
use serde::Serialize;
use std::collections::BTreeSet;

/// A law's accuracy over a set of runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    pub runs: usize,
    pub models: usize,
    /// Mean of |predicted − measured| / measured.
    pub mape: f64,
    /// Largest of those.
    pub worst: f64,
    /// Share of runs inside their nominal 90 % interval.
    pub coverage_90: f64,
}

/// Scores a law as it stands.
pub fn score(law: &Law, runs: &[Observation]) -> Score {
    summarise(runs, runs.iter().map(|run| judge(law, run)).collect())
}

/// Fits with each model left out in turn, and scores the law on the model it never saw.
/// The prior is that of an unmeasured product, since a known family's prior has seen the
/// model that is left out.
pub fn leave_one_model_out(form: Form, runs: &[Observation]) -> Score {
    let mut judged = Vec::with_capacity(runs.len());
    for model in models(runs) {
        let (out, rest): (Vec<_>, Vec<_>) = runs
            .iter()
            .cloned()
            .partition(|r| r.features.model == model);
        let law = fit(form, &Gpu::unmeasured(), &rest);
        judged.extend(out.iter().map(|run| judge(&law, run)));
    }
    summarise(runs, judged)
}

fn models(runs: &[Observation]) -> BTreeSet<String> {
    runs.iter().map(|run| run.features.model.clone()).collect()
}

fn judge(law: &Law, run: &Observation) -> (f64, bool) {
    let prediction = law.predict(&run.features);
    (
        (prediction.median.0 / run.energy.0 - 1.0).abs(),
        prediction.covers(run.energy, 0.9),
    )
}

fn summarise(runs: &[Observation], judged: Vec<(f64, bool)>) -> Score {
    let n = judged.len().max(1) as f64;
    Score {
        runs: judged.len(),
        models: models(runs).len(),
        mape: judged.iter().map(|j| j.0).sum::<f64>() / n,
        worst: judged.iter().map(|j| j.0).fold(0.0, f64::max),
        coverage_90: judged.iter().filter(|j| j.1).count() as f64 / n,
    }
}
