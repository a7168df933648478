//! Fitting a whole table at once: the most probable law given all runs, by Gauss–Newton
//! on ln E with the same priors that the stream starts from.

use super::features::Observation;
use super::form::Form;
use super::gpu::Gpu;
use super::linalg::Symmetric;
use super::state::Law;

/// Spread of model levels about the common law and degrees of freedom of that spread:
/// few models stand far off, most stand close. Chosen by leave-one-model-out on public
/// measurements.
const LEVEL_SD: f64 = 0.02;
const LEVEL_DF: f64 = 3.0;
const ITERATIONS: usize = 40;

/// The most probable law given these runs, all on one GPU product.
pub fn fit(form: Form, gpu: &Gpu, runs: &[Observation]) -> Law {
    let mut law = Law::prior(form, gpu);
    for run in runs {
        law.admit(&run.features);
    }
    let prior = law.clone();
    for _ in 0..ITERATIONS {
        let (information, push) = normal_equations(&law, &prior, runs);
        let Some(step) = information.solve(&push) else {
            break;
        };
        let length = step.iter().map(|s| s * s).sum::<f64>().sqrt();
        let damp = (0.5 / length).min(1.0);
        for (parameter, s) in law.parameters.iter_mut().zip(step) {
            parameter.mean += damp * s;
        }
        if length < 1e-9 {
            break;
        }
    }
    finish(law, &prior, runs)
}

/// Information matrix and gradient at the law's present parameters.
fn normal_equations(law: &Law, prior: &Law, runs: &[Observation]) -> (Symmetric, Vec<f64>) {
    let weights: Vec<f64> = law
        .parameters
        .iter()
        .enumerate()
        .map(|(i, p)| {
            if p.name.starts_with("model/") {
                let t = p.mean / LEVEL_SD;
                (LEVEL_DF + 1.0) / (LEVEL_DF + t * t) / LEVEL_SD.powi(2)
            } else {
                1.0 / prior.covariance.get(i, i)
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
        let (ln, slopes) = law.linearise(&run.features);
        let (x, _) = law.dense(&slopes);
        let weight = 1.0 / prior.noise;
        information.add_outer(&x, weight);
        let residual = run.energy.0.ln() - ln;
        for (p, x) in push.iter_mut().zip(&x) {
            *p += weight * x * residual;
        }
    }
    (information, push)
}

fn finish(mut law: Law, prior: &Law, runs: &[Observation]) -> Law {
    let (information, _) = normal_equations(&law, prior, runs);
    if let Some(covariance) = information.inverse() {
        law.covariance = covariance;
    }
    let (mut squares, mut errors) = (0.0, 0.0);
    for (number, run) in runs.iter().enumerate() {
        let (ln, _) = law.linearise(&run.features);
        squares += (run.energy.0.ln() - ln).powi(2);
        errors += (ln.exp() / run.energy.0 - 1.0).abs();
        for (name, _) in Form::own(&run.features) {
            if let Some(i) = law.index(&name) {
                law.parameters[i].runs += 1;
                law.parameters[i].seen = number as u64;
            }
        }
    }
    if !runs.is_empty() {
        let n = runs.len() as f64;
        law.noise = (squares / n).max(0.03_f64.powi(2));
        law.error = errors / n;
        law.observations = runs.len() as u64;
    }
    law
}
