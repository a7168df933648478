//! A law for a product never run, out of another product's: the models' levels stay, what a
//! FLOP, an element and a launch cost follows the data sheets.

use super::form::Form;
use super::gpu::{Gpu, Prior};
use super::state::Law;

/// How far data sheets may be off from one product to another, in ln of a cost: peaks
/// overstate what products do, and power limits differ. Within a generation, and across.
const TRANSFER_SD: (f64, f64) = (0.05, 0.07);
/// Of a model's level from one product to another.
const LEVEL_SD: f64 = 0.05;

impl Law {
    /// What this law says of another product: believed less, and widened at once by a run.
    pub fn inherit(&self, gpu: &Gpu) -> Self {
        let (here, there) = (self.gpu.prior_of_sheet(), gpu.prior_of_sheet());
        let generation = |gpu: &Gpu| gpu.sheet().map(|sheet| sheet.generation);
        let transfer_sd = if generation(gpu) == generation(&self.gpu) {
            TRANSFER_SD.0
        } else {
            TRANSFER_SD.1
        };
        let mut law = self.clone();
        law.gpu = gpu.clone();
        law.generation = generation(gpu);
        // Its boards' power limits are their own.
        law.usual_power = 0.0;
        law.cusum = (0.0, 0.0);
        law.error = 0.0;
        law.shifts = 0;
        law.shifted_at = 0;
        law.observations = 0;
        let whole: Vec<f64> = law
            .parameters
            .iter()
            .map(|p| f64::from(u8::from(cost(&here, &p.name).is_some())))
            .collect();
        for (i, parameter) in law.parameters.iter_mut().enumerate() {
            parameter.runs = 0;
            parameter.seen = 0;
            let own = if let (Some(from), Some(to)) =
                (cost(&here, &parameter.name), cost(&there, &parameter.name))
            {
                parameter.mean += (to / from).ln();
                transfer_sd
            } else if parameter.name.contains('/') {
                LEVEL_SD
            } else {
                0.0
            };
            let variance = law.covariance.get(i, i) + own * own;
            law.covariance.set(i, i, variance);
        }
        // Both products' costs may be off together.
        law.covariance.add_outer(&whole, transfer_sd * transfer_sd);
        law.settle();
        law
    }

    /// The law to believe of a product that has none: inherited from the one that has learnt
    /// most, of the same form; the prior where none has learnt.
    pub fn for_product<'a>(form: Form, gpu: &Gpu, laws: impl IntoIterator<Item = &'a Law>) -> Law {
        let prior = Law::prior(form, gpu);
        let relative = |law: &&Law| {
            let same = law.gpu.sheet().map(|s| s.generation) == gpu.sheet().map(|s| s.generation);
            (same, law.observations)
        };
        // Of a few models nothing general is known: what is published of a family says more.
        let general = |law: &&Law| law.models() >= MODELS_TO_INHERIT;
        let learnt = laws
            .into_iter()
            .filter(|law| law.form == form && law.observations > 0 && law.gpu != *gpu)
            .filter(general);
        match learnt.max_by_key(relative) {
            Some(law) if gpu.sheet().is_some() && law.gpu.sheet().is_some() => law.inherit(gpu),
            _ => prior,
        }
    }
}

/// Models that a law must have seen for its levels to say something of others.
const MODELS_TO_INHERIT: usize = 3;

/// What a product's prior says of a cost.
fn cost(prior: &Prior, name: &str) -> Option<f64> {
    Some(match name {
        "launch" => prior.launch_joules,
        "teraflop" => prior.product_joules,
        "gigaelement" => prior.element_joules,
        "step" => prior.step_joules,
        "intercept" => prior.tera_flop_joules,
        _ => return None,
    })
}
