//! Fitting a whole table at once: the most probable law given all runs, by Gauss–Newton
//! on ln E with the same priors that the stream starts from.

use super::features::{Basis, Observation};
use super::form::{Form, LEAST_LIMIT, MOST_LIMIT};
use super::gpu::Gpu;
use super::linalg::Symmetric;
use super::state::Law;

/// Degrees of freedom of the spread of models about the common law: few stand far off.
const LEVEL_DF: f64 = 4.0;
const ITERATIONS: usize = 30;
/// Runs that the iterations look at; of more, every n-th, and all at the end.
const MOST: usize = 4_000;
/// Standard deviations beyond which a run counts less.
const HUBER: f64 = 2.5;
/// Scatter of one run about its model's level: never believed to be less.
const LEAST_NOISE: f64 = 0.02;

/// Runs that cannot be fitted together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    #[error(
        "{gross} runs are gross and {net} are net of idle power: fit them apart, or leave one kind out"
    )]
    Mixed { gross: usize, net: usize },
    #[error(
        "the law has learnt from runs that are {law}, and these are {runs}: start from another law, or from none"
    )]
    Basis {
        law: &'static str,
        runs: &'static str,
    },
}

/// The most probable law given these runs, all on one GPU product.
///
/// # Errors
/// Runs of which some are gross and some net of idle power.
pub fn fit(form: Form, gpu: &Gpu, runs: &[Observation]) -> Result<Law, FitError> {
    fit_from(Law::prior(form, gpu), runs)
}

/// The same from another belief than the product's own prior.
///
/// # Errors
/// As [`fit`], and runs on another basis than the law's.
pub fn fit_from(mut law: Law, runs: &[Observation]) -> Result<Law, FitError> {
    let net = runs.iter().filter(|run| run.basis == Basis::Net).count();
    let gross = runs.len() - net;
    if net > 0 && gross > 0 {
        return Err(FitError::Mixed { gross, net });
    }
    if let (Some(own), Some(first)) = (law.basis, runs.first())
        && own != first.basis
    {
        return Err(FitError::Basis {
            law: own.as_str(),
            runs: first.basis.as_str(),
        });
    }
    for run in runs {
        law.admit(&law.own(&run.features));
        law.range.cover(&run.features);
    }
    law.usual_power = usual_power(runs).unwrap_or(law.usual_power);
    law.basis = runs.first().map(|run| run.basis).or(law.basis);
    let prior = law.clone();
    let some: Vec<&Observation> = runs.iter().step_by(runs.len() / MOST + 1).collect();
    iterate(&mut law, &prior, &some, ITERATIONS);
    let all: Vec<&Observation> = runs.iter().collect();
    if all.len() > some.len() {
        iterate(&mut law, &prior, &all, 2);
    }
    Ok(finish(law, &prior, &all))
}

/// ln of the power limit in the middle of those told; `None` where none is.
fn usual_power(runs: &[Observation]) -> Option<f64> {
    let told = runs.iter().filter_map(|run| run.features.stack.power);
    let mut told: Vec<f64> = told.collect();
    told.sort_by(f64::total_cmp);
    let middle = told.get(told.len() / 2)?;
    Some(middle.clamp(LEAST_LIMIT, MOST_LIMIT).ln())
}

fn iterate(law: &mut Law, prior: &Law, runs: &[&Observation], times: usize) {
    for _ in 0..times {
        law.noise = scatter(law, runs);
        let (information, push) = normal_equations(law, prior, runs);
        let Some(step) = information.solve(&push) else {
            break;
        };
        let length = step.iter().map(|s| s * s).sum::<f64>().sqrt();
        let damp = (0.5 / length).min(1.0);
        for (parameter, s) in law.parameters.iter_mut().zip(step) {
            parameter.mean += damp * s;
        }
        if length < 1e-7 {
            break;
        }
    }
}

/// Variance of runs about the law: of the median deviation, so that outliers do not count,
/// with the prior's weight of a few runs.
fn scatter(law: &Law, runs: &[&Observation]) -> f64 {
    const WEIGHT: f64 = 6.0;
    let prior = 0.045_f64;
    let mut errors: Vec<f64> = runs
        .iter()
        .map(|run| {
            (run.energy.0.ln() - law.linearise(&run.features, &law.own(&run.features)).0).abs()
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    let middle = errors.get(errors.len() / 2).copied().unwrap_or(prior);
    let n = errors.len() as f64;
    let sd = 1.4826 * middle;
    ((WEIGHT * prior * prior + n * sd * sd) / (WEIGHT + n)).max(LEAST_NOISE.powi(2))
}

/// Information matrix and gradient at the law's present parameters.
fn normal_equations(law: &Law, prior: &Law, runs: &[&Observation]) -> (Symmetric, Vec<f64>) {
    let spread = law.form.model_sd();
    let weights: Vec<f64> = law
        .parameters
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let prior_variance = prior.covariance.get(i, i);
            if p.name.starts_with("model/") {
                let t = p.mean / spread;
                (LEVEL_DF + 1.0) / (LEVEL_DF + t * t) / prior_variance
            } else {
                1.0 / prior_variance
            }
        })
        .collect();
    let mut information = Symmetric::diagonal(&weights);
    let mut push: Vec<f64> = law
        .parameters
        .iter()
        .zip(&prior.parameters)
        .zip(&weights)
        .map(|((now, then), weight)| weight * (then.mean - now.mean))
        .collect();
    for run in runs {
        let own = law.own(&run.features);
        let (ln, slopes) = law.linearise(&run.features, &own);
        let (x, _) = law.dense(&slopes);
        let residual = run.energy.0.ln() - ln;
        let z = residual.abs() / law.noise.sqrt();
        let weight = (HUBER / z).min(1.0) / law.noise;
        information.add_outer(&x, weight);
        for (p, x) in push.iter_mut().zip(&x) {
            *p += weight * x * residual;
        }
    }
    (information, push)
}

fn finish(mut law: Law, prior: &Law, runs: &[&Observation]) -> Law {
    law.noise = scatter(&law, runs);
    let (information, _) = normal_equations(&law, prior, runs);
    if let Some(covariance) = information.inverse() {
        law.covariance = covariance;
    }
    let mut errors = 0.0;
    // A law that is fitted on has learnt of the runs before, too.
    let begun = prior.observations;
    for (number, run) in runs.iter().enumerate() {
        let (ln, _) = law.linearise(&run.features, &law.own(&run.features));
        errors += (ln.exp() / run.energy.0 - 1.0).abs();
        law.touch(&law.own(&run.features), begun + number as u64);
    }
    if !runs.is_empty() {
        law.error = errors / runs.len() as f64;
        law.observations = begun + runs.len() as u64;
    }
    law.settle();
    law
}
