//! One law's whole state: parameters, covariance, what it has seen. Bounded, and small
//! enough to live in a status field, so that a new leader goes on where the old stopped.

use super::features::{Basis, Features};
use super::form::{Belief, DRIVER, Form, Own, SOFTWARE, Slope, level_name};
use super::gpu::{Generation, Gpu, Prior};
use super::linalg::Symmetric;
use super::predict::{Outside, Prediction};
use super::range::{Range, WIDENING};
use super::statistics::t_quantile;
use super::units::Joules;
use serde::{Deserialize, Serialize};

/// Levels kept at most; beyond that the one unseen longest goes.
pub const LEVELS: usize = 20;
/// Of these, stacks and drivers: their names are free, and must not crowd the models out.
const QUOTAS: [(&str, usize); 2] = [(SOFTWARE, 4), (DRIVER, 3)];

/// ln-noise of one run before any was seen.
const NOISE: f64 = 0.045;
/// Models that the prior spread of models counts as.
const SPREAD_WEIGHT: f64 = 2.0;

/// In the saved state: `[name, mean, seen, runs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedParameter", into = "SavedParameter")]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) mean: f64,
    /// Observation number at which it was last touched.
    pub(super) seen: u64,
    pub(super) runs: u64,
}

#[derive(Serialize, Deserialize)]
struct SavedParameter(String, f32, u64, u64);

impl From<SavedParameter> for Parameter {
    fn from(saved: SavedParameter) -> Self {
        Self {
            name: saved.0,
            mean: f64::from(saved.1),
            seen: saved.2,
            runs: saved.3,
        }
    }
}

impl From<Parameter> for SavedParameter {
    fn from(p: Parameter) -> Self {
        Self(p.name, single(p.mean), p.seen, p.runs)
    }
}

/// The state is kept at single precision, so that what is saved is what goes on.
#[expect(clippy::cast_possible_truncation, reason = "meant")]
fn single(x: f64) -> f32 {
    x as f32
}

/// The energy law of one GPU product.
#[derive(Debug, Clone, PartialEq)]
pub struct Law {
    pub form: Form,
    pub gpu: Gpu,
    /// Of the product, looked up once.
    pub(super) generation: Option<Generation>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) covariance: Symmetric,
    /// Variance of ln E about the law, one run.
    pub(super) noise: f64,
    pub(super) cusum: (f64, f64),
    pub(super) error: f64,
    /// What the runs learnt from cover.
    pub(super) range: Range,
    /// Whether idle power is part of the energies learnt from; of none yet, of any.
    pub(super) basis: Option<Basis>,
    /// ln of the boards' power limit beside their default, of the newest runs.
    pub(super) usual_power: f64,
    /// Alarms so far that the level of the whole law had moved.
    pub shifts: u64,
    /// Number of the observation at the last of them.
    pub shifted_at: u64,
    /// Runs learnt from.
    pub observations: u64,
}

/// A saved state that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the saved law is not JSON of this shape")]
    Syntax(#[source] serde_json::Error),
    #[error("the saved law has version {0}; this program reads version {STATE_VERSION}")]
    Version(u32),
    #[error(
        "the saved law has version {0}, of a newer program; this one reads version {STATE_VERSION}: upgrade it"
    )]
    Newer(u32),
    #[error("the saved law is broken: {0}")]
    Broken(&'static str),
}

/// Parameters are logarithms and exponents: none is so far from nought.
const MOST_MEAN: f64 = 25.0;
pub(super) const STATE_VERSION: u32 = 2;

/// Parameters that states of this version may lack.
const NEWER: [(Form, &str); 3] = [
    (Form::Paper, "batch"),
    (Form::Paper, "gpus"),
    (Form::Paper, "gpus-batch"),
];

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    form: Form,
    gpu: Gpu,
    parameters: Vec<Parameter>,
    /// Lower triangle, single precision, little-endian, base64.
    covariance: String,
    noise: f32,
    cusum: (f32, f32),
    error: f32,
    range: Range,
    basis: Option<Basis>,
    #[serde(default, skip_serializing_if = "is_zero")]
    usual_power: f32,
    shifts: u64,
    shifted_at: u64,
    observations: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(x: &f32) -> bool {
    *x == 0.0
}

impl Law {
    /// The law before anything was measured on this product.
    pub fn prior(form: Form, gpu: &Gpu) -> Self {
        Self::believed(form, gpu, &gpu.prior())
    }

    /// The same of the data sheet alone: nothing measured of its family is in it.
    pub fn prior_of_sheet(form: Form, gpu: &Gpu) -> Self {
        Self::believed(form, gpu, &gpu.prior_of_sheet())
    }

    fn believed(form: Form, gpu: &Gpu, prior: &Prior) -> Self {
        let fixed = form.fixed(prior);
        let variances: Vec<f64> = fixed.iter().map(|(_, belief)| belief.sd.powi(2)).collect();
        Self {
            form,
            gpu: gpu.clone(),
            generation: gpu.sheet().map(|sheet| sheet.generation),
            parameters: fixed
                .into_iter()
                .map(|(name, belief)| Parameter {
                    name: name.to_owned(),
                    mean: belief.mean,
                    seen: 0,
                    runs: 0,
                })
                .collect(),
            covariance: Symmetric::diagonal(&variances),
            noise: NOISE * NOISE,
            cusum: (0.0, 0.0),
            error: 0.0,
            range: Range::default(),
            basis: None,
            usual_power: 0.0,
            shifts: 0,
            shifted_at: 0,
            observations: 0,
        }
    }

    /// Whether idle power is part of its energies; `None` before it has learnt of any.
    pub fn basis(&self) -> Option<Basis> {
        self.basis
    }

    /// Power limit beside the boards' default that the newest runs were on: taken where a run's
    /// is not told. 1 before any told.
    pub fn usual_power_limit(&self) -> f64 {
        self.usual_power.exp()
    }

    /// Runs learnt from, of one model.
    pub fn runs_of(&self, model: &str) -> u64 {
        let level = level_name("model/", model);
        self.index(&level).map_or(0, |i| self.parameters[i].runs)
    }

    /// Running mean of the absolute error of predictions made before each run, as a
    /// fraction; recent runs weigh more. `None` before the first.
    pub fn recent_error(&self) -> Option<f64> {
        (self.observations > 0).then_some(self.error)
    }

    /// A parameter for people: joules of a start, a step, a TFLOP, 10⁹ elements, 1,000
    /// launches; else its logarithm or exponent itself.
    pub fn parameter(&self, name: &str) -> Option<f64> {
        let mean = self.parameters[self.index(name)?].mean;
        let joules = ["start", "step", "teraflop", "gigaelement", "launch"];
        Some(if joules.contains(&name) {
            mean.exp()
        } else {
            mean
        })
    }

    /// Names and means of all parameters, as they are kept.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, f64)> {
        self.parameters.iter().map(|p| (p.name.as_str(), p.mean))
    }

    /// What a run will cost.
    pub fn predict(&self, features: &Features) -> Prediction {
        self.predict_with(features, &self.own(features))
    }

    /// The same with [`Law::own`] of the run.
    pub(super) fn predict_with(&self, features: &Features, own: &[Own]) -> Prediction {
        let (ln, mut variance) = self.ln_energy(features, own);
        let outside = self.range.outside(features);
        variance += outside
            .iter()
            .map(|by| (WIDENING * by).powi(2))
            .sum::<f64>();
        let runs = self.runs_of(&features.model);
        // A model never run is a draw from the models seen; one with runs of its own is
        // known as well as its runs are many.
        let df = if runs == 0 {
            (self.models() as f64).max(6.0)
        } else {
            runs as f64 + 5.0
        };
        Prediction {
            median: Joules(ln.exp()),
            ln_sd: variance.sqrt(),
            df,
            runs_of_model: runs,
            outside: Outside::of(&outside),
        }
    }

    /// Models with a level of their own.
    pub fn models(&self) -> usize {
        let models = self.parameters.iter();
        models.filter(|p| p.name.starts_with("model/")).count()
    }

    /// Spread of models about the law, from the levels of those seen and the prior.
    pub(super) fn model_variance(&self) -> f64 {
        let seen = self.parameters.iter().enumerate();
        let seen = seen.filter(|(_, p)| p.name.starts_with("model/") && p.runs > 0);
        let (mut sum, mut weight) = (SPREAD_WEIGHT * self.form.model_sd().powi(2), SPREAD_WEIGHT);
        for (i, p) in seen {
            sum += p.mean.powi(2) + self.covariance.get(i, i).min(0.01);
            weight += 1.0;
        }
        sum / weight
    }

    /// ln E and its variance, noise of one run included.
    fn ln_energy(&self, features: &Features, own: &[Own]) -> (f64, f64) {
        let (ln, slopes) = self.linearise(features, own);
        (ln, self.doubt(&slopes) + self.noise)
    }

    /// Variance of ln E for the doubt about the parameters: of the many that a law has, a run
    /// depends on a few.
    fn doubt(&self, slopes: &[Slope<'_>]) -> f64 {
        let mut known: Vec<(usize, f64)> = Vec::with_capacity(slopes.len());
        let mut variance = 0.0;
        for slope in slopes {
            match self.index(slope.name) {
                Some(i) => known.push((i, slope.by)),
                None => variance += self.absent(slope),
            }
        }
        for (n, (i, by)) in known.iter().enumerate() {
            let others = known[..n].iter();
            let others: f64 = others.map(|(j, by)| by * self.covariance.get(*i, *j)).sum();
            variance += by * (2.0 * others + by * self.covariance.get(*i, *i));
        }
        variance
    }

    /// The same of a parameter that this law does not have yet.
    fn absent(&self, slope: &Slope<'_>) -> f64 {
        if slope.name.starts_with("model/") {
            slope.by.powi(2) * self.model_variance()
        } else {
            (slope.by * slope.sd).powi(2)
        }
    }

    /// The run's own parameters; of what is not told of its stack, those that are usual.
    pub(super) fn own(&self, f: &Features) -> Vec<Own> {
        let mut own = self.form.own(f, self.generation);
        let told = own.len();
        if f.stack.driver.is_none() {
            own.extend(self.usual_driver());
        }
        if f.stack.power.is_none() {
            own.extend(Own::power_limit(self.usual_power.exp()));
        }
        for usual in &mut own[told..] {
            usual.told = false;
        }
        own
    }

    /// The level of the driver that the newest runs were on.
    fn usual_driver(&self) -> Option<Own> {
        let drivers = self.parameters.iter().filter(|p| p.runs > 0);
        let newest = drivers
            .filter(|p| p.name.starts_with(DRIVER))
            .max_by_key(|p| p.seen)?;
        let (mean, sd) = (0.0, 0.0);
        Some(Own::level(newest.name.clone(), Belief { mean, sd }))
    }

    /// ln of what a run costs, and its derivatives, with [`Law::own`] of the run.
    pub(super) fn linearise<'own>(
        &self,
        features: &Features,
        own: &'own [Own],
    ) -> (f64, Vec<Slope<'own>>) {
        self.form.linearise(features, own, |name, absent| {
            self.index(name).map_or(absent, |i| self.parameters[i].mean)
        })
    }

    /// The slopes as a vector over the parameters, and the variance of those that this
    /// law does not have yet.
    pub(super) fn dense(&self, slopes: &[Slope<'_>]) -> (Vec<f64>, f64) {
        let mut x = vec![0.0; self.parameters.len()];
        let mut absent = 0.0;
        for slope in slopes {
            match self.index(slope.name) {
                Some(i) => x[i] = slope.by,
                None => absent += self.absent(slope),
            }
        }
        (x, absent)
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.name == name)
    }

    /// Makes room for a run's own levels, forgetting the one unseen longest where full.
    pub(super) fn admit(&mut self, own: &[Own]) {
        for own in own.iter().filter(|own| own.told) {
            if self.index(&own.name).is_none() {
                self.add(own.name.clone(), own.belief);
            }
        }
        for (kind, most) in QUOTAS {
            self.keep_newest(most, |name| name.starts_with(kind));
        }
        self.keep_newest(LEVELS, |name| name.contains('/'));
    }

    /// Forgets levels of a kind, the one unseen longest first, until no more than `most` are
    /// left.
    fn keep_newest(&mut self, most: usize, of: impl Fn(&str) -> bool) {
        loop {
            let own = (0..self.parameters.len()).filter(|i| of(&self.parameters[*i].name));
            let own: Vec<usize> = own.collect();
            let oldest = own.iter().min_by_key(|i| self.parameters[**i].seen);
            let Some(oldest) = oldest.filter(|_| own.len() > most) else {
                return;
            };
            self.parameters.remove(*oldest);
            self.covariance.shrink(*oldest);
        }
    }

    fn add(&mut self, name: String, belief: Belief) {
        self.parameters.push(Parameter {
            name,
            mean: belief.mean,
            seen: self.observations,
            runs: 0,
        });
        self.covariance.grow(belief.sd.powi(2));
    }

    /// The whole state as one line of JSON.
    pub fn save(&self) -> String {
        let saved = Saved {
            version: STATE_VERSION,
            form: self.form,
            gpu: self.gpu.clone(),
            parameters: self.parameters.clone(),
            covariance: encode(&self.covariance.lower()),
            noise: single(self.noise),
            cusum: (single(self.cusum.0), single(self.cusum.1)),
            error: single(self.error),
            range: self.range.clone(),
            basis: self.basis,
            usual_power: single(self.usual_power),
            shifts: self.shifts,
            shifted_at: self.shifted_at,
            observations: self.observations,
        };
        serde_json::to_string(&saved).unwrap_or_default()
    }

    /// Reads what [`Law::save`] wrote.
    ///
    /// # Errors
    /// Text that is not such a state, is of another version, or does not hang together.
    pub fn load(text: &str) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let of: Versioned = serde_json::from_str(text).map_err(StateError::Syntax)?;
        match of.version {
            STATE_VERSION => {}
            newer if newer > STATE_VERSION => return Err(StateError::Newer(newer)),
            older => return Err(StateError::Version(older)),
        }
        let saved: Saved = serde_json::from_str(text).map_err(StateError::Syntax)?;
        let n = saved.parameters.len();
        let covariance = decode(&saved.covariance)
            .and_then(|lower| Symmetric::from_lower(n, &lower))
            .filter(Symmetric::is_plausible)
            .ok_or(StateError::Broken(
                "the covariance does not fit the parameters",
            ))?;
        if saved
            .parameters
            .iter()
            .any(|p| p.mean.is_nan() || p.mean.abs() >= MOST_MEAN)
        {
            return Err(StateError::Broken("a parameter is no possible number"));
        }
        if !(1e-6..=1.0).contains(&saved.noise) || !(0.0..=100.0).contains(&saved.error) {
            return Err(StateError::Broken("its scatter is no possible number"));
        }
        if saved.usual_power.is_nan() || saved.usual_power.abs() > 4.0 {
            return Err(StateError::Broken("its power limit is no possible number"));
        }
        if !saved.range.is_possible() {
            return Err(StateError::Broken("its range is no range"));
        }
        let law = Self {
            form: saved.form,
            generation: saved.gpu.sheet().map(|sheet| sheet.generation),
            gpu: saved.gpu,
            parameters: saved.parameters,
            covariance,
            noise: f64::from(saved.noise),
            cusum: (f64::from(saved.cusum.0), f64::from(saved.cusum.1)),
            error: f64::from(saved.error),
            range: saved.range,
            basis: saved.basis,
            usual_power: f64::from(saved.usual_power),
            shifts: saved.shifts,
            shifted_at: saved.shifted_at,
            observations: saved.observations,
        };
        law.completed()
    }

    /// With the parameters that its form has since it was saved, as they are believed before any
    /// run; what a form has always had must be there.
    fn completed(mut self) -> Result<Self, StateError> {
        let fixed = self.form.fixed(&self.gpu.prior());
        for (name, belief) in fixed {
            if self.index(name).is_some() {
                continue;
            }
            if !NEWER.contains(&(self.form, name)) {
                return Err(StateError::Broken("a parameter of this form is missing"));
            }
            self.add(name.to_owned(), belief);
        }
        Ok(self)
    }

    /// Rounds everything to what is saved, so that a restart changes nothing.
    pub(super) fn settle(&mut self) {
        let round = |x: f64| f64::from(single(x));
        for p in &mut self.parameters {
            p.mean = round(p.mean);
        }
        self.covariance.map(round);
        self.noise = round(self.noise);
        self.cusum = (round(self.cusum.0), round(self.cusum.1));
        self.error = round(self.error);
        self.usual_power = round(self.usual_power);
    }
}

fn encode(values: &[f64]) -> String {
    use base64::Engine;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|x| single(*x).to_le_bytes())
        .collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<f64>> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    let singles = bytes.chunks_exact(4).map(|four| {
        let four: [u8; 4] = four.try_into().unwrap_or_default();
        f64::from(f32::from_le_bytes(four))
    });
    bytes.len().is_multiple_of(4).then(|| singles.collect())
}

impl Prediction {
    /// The energy that a run stays below with probability `p` (0 < p < 1).
    pub fn quantile(&self, p: f64) -> Joules {
        Joules(self.median.0 * (t_quantile(p, self.df) * self.ln_sd).exp())
    }
}
