//! Ways to part runs into those a law learns from and those it is judged by.

use super::Judged;
use crate::law::features::{Features, Observation};
use crate::law::fit::{FitError, fit, fit_from};
use crate::law::form::Form;
use crate::law::gpu::Gpu;
use crate::law::state::Law;
use std::collections::BTreeSet;

/// The runs that the law itself was fitted to.
pub fn in_sample(law: &Law, runs: &[Observation]) -> Vec<Judged> {
    runs.iter().map(|run| Judged::of(law, run)).collect()
}

/// Each model judged by a law that never saw it. The prior is that of a product never
/// measured, since a known family's prior has seen the model that is left out.
pub fn leave_one_model_out(form: Form, runs: &[Observation]) -> Result<Vec<Judged>, FitError> {
    leave_out(form, runs, |f| f.model.clone())
}

/// The same by the denoiser's shape: SDXL and SDXL-turbo are one, SD 1.5 and SD 2 are one.
pub fn leave_architecture_out(form: Form, runs: &[Observation]) -> Result<Vec<Judged>, FitError> {
    leave_out(form, runs, shape)
}

/// Models of one shape do the same work in a call of the same size.
fn shape(features: &Features) -> String {
    const ALIKE: [(&str, &str); 13] = [
        ("flux.1-schnell", "flux.1-dev"),
        ("flux.1-fill-dev", "flux.1-dev"),
        ("sd3.5-large-turbo", "sd3.5-large"),
        ("z-image-turbo", "z-image"),
        ("pixart-alpha", "pixart-sigma"),
        ("pixart-sigma-512", "pixart-sigma"),
        ("sdxl-turbo", "sdxl"),
        ("sdxl-lightning", "sdxl"),
        ("lcm-sdxl", "sdxl"),
        ("sd-turbo", "sd"),
        ("sd1.5", "sd"),
        ("sd2", "sd"),
        ("stable-video-diffusion-xt", "stable-video-diffusion"),
    ];
    let model = features.model.as_str();
    let alike = ALIKE.iter().find(|(name, _)| *name == model);
    alike.map_or(model, |(_, shape)| shape).to_owned()
}

fn leave_out(
    form: Form,
    runs: &[Observation],
    key: impl Fn(&Features) -> String,
) -> Result<Vec<Judged>, FitError> {
    let keys: BTreeSet<String> = runs.iter().map(|run| key(&run.features)).collect();
    let mut judged = Vec::with_capacity(runs.len());
    for left in keys {
        let (out, rest): (Vec<_>, Vec<_>) = runs
            .iter()
            .cloned()
            .partition(|run| key(&run.features) == left);
        let law = fit(form, &Gpu::unmeasured(), &rest)?;
        judged.extend(out.iter().map(|run| Judged::of(&law, run)));
    }
    Ok(judged)
}

/// Runs on one product judged by the law of another, carried over by data sheets alone:
/// no run on the product itself, nor a prior that has seen any.
pub fn transfer(
    form: Form,
    from: (&Gpu, &[Observation]),
    to: (&Gpu, &[Observation]),
) -> Result<Vec<Judged>, FitError> {
    let law = fit_from(Law::prior_of_sheet(form, from.0), from.1)?.inherit(to.0);
    Ok(to.1.iter().map(|run| Judged::of(&law, run)).collect())
}

/// Each model judged after `k` of its own runs, on top of all other models': spread over its
/// runs by a fixed rule, as many different ones as there are up to five.
pub fn own_runs(form: Form, runs: &[Observation], k: usize) -> Result<Vec<Judged>, FitError> {
    let models: BTreeSet<&str> = runs.iter().map(|r| r.features.model.as_str()).collect();
    let mut judged = Vec::new();
    for model in models {
        let (own, rest): (Vec<_>, Vec<_>) = runs
            .iter()
            .cloned()
            .partition(|run| run.features.model == model);
        let base = fit(form, &Gpu::unmeasured(), &rest)?;
        if own.len() <= k {
            continue;
        }
        for start in 0..own.len().min(5) {
            let mut law = base.clone();
            let taken: BTreeSet<usize> = (0..k).map(|n| (start + n * 3) % own.len()).collect();
            for n in &taken {
                law.learn(&own[*n]);
            }
            let left = own.iter().enumerate().filter(|(n, _)| !taken.contains(n));
            judged.extend(left.map(|(_, run)| Judged::of(&law, run)));
        }
    }
    Ok(judged)
}

/// Each run judged before it is learnt from, in an order that a fixed rule shuffles.
pub fn one_step_ahead(form: Form, runs: &[Observation]) -> Vec<Judged> {
    let mut law = Law::prior(form, &Gpu::unmeasured());
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|n| (*n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
    let step = |n: usize| {
        let judged = Judged::of(&law, &runs[n]);
        law.learn(&runs[n]);
        judged
    };
    order.into_iter().map(step).collect()
}
