//! One law's whole state: parameters, covariance, what it has seen. Bounded, and small
//! enough to live in a status field, so that a new leader goes on where the old stopped.

use super::features::Features;
use super::form::{Belief, Form, Slope};
use super::gpu::Gpu;
use super::linalg::{Symmetric, dot};
use super::predict::Prediction;
use super::statistics::t_quantile;
use super::units::Joules;
use serde::{Deserialize, Serialize};

/// Model and precision levels kept at most; beyond that the one unseen longest goes.
pub(super) const LEVELS: usize = 32;

/// ln-noise of one run before any was seen: 10 %.
const NOISE: f64 = 0.1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) mean: f64,
    /// Observation number at which it was last touched.
    pub(super) seen: u64,
    pub(super) runs: u64,
}

/// The energy law of one GPU product.
#[derive(Debug, Clone, PartialEq)]
pub struct Law {
    pub form: Form,
    pub gpu: Gpu,
    pub(super) parameters: Vec<Parameter>,
    pub(super) covariance: Symmetric,
    /// Variance of ln E about the law, one run.
    pub(super) noise: f64,
    pub(super) cusum: (f64, f64),
    pub(super) error: f64,
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
    #[error("the saved law is broken: {0}")]
    Broken(&'static str),
}

pub(super) const STATE_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    form: Form,
    gpu: Gpu,
    parameters: Vec<Parameter>,
    covariance: Vec<f64>,
    noise: f64,
    cusum: (f64, f64),
    error: f64,
    observations: u64,
}

impl Law {
    /// The law before anything was measured on this product.
    pub fn prior(form: Form, gpu: &Gpu) -> Self {
        let fixed = form.fixed(&gpu.prior());
        let variances: Vec<f64> = fixed.iter().map(|(_, belief)| belief.sd.powi(2)).collect();
        Self {
            form,
            gpu: gpu.clone(),
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
            observations: 0,
        }
    }

    /// Runs learnt from, of one model.
    pub fn runs_of(&self, model: &str) -> u64 {
        self.parameters
            .iter()
            .find(|p| p.name.strip_prefix("model/") == Some(model))
            .map_or(0, |p| p.runs)
    }

    /// Running mean of the absolute error of predictions made before each run, as a
    /// fraction; recent runs weigh more. `None` before the first.
    pub fn recent_error(&self) -> Option<f64> {
        (self.observations > 0).then_some(self.error)
    }

    /// A parameter for people: joules a start, joules a step, joules a TFLOP, or the
    /// exponent itself.
    pub fn parameter(&self, name: &str) -> Option<f64> {
        let mean = self.parameters[self.index(name)?].mean;
        Some(if matches!(name, "start" | "step" | "teraflop") {
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
        let (ln, variance) = self.ln_energy(features);
        let models = self
            .parameters
            .iter()
            .filter(|p| p.name.starts_with("model/"))
            .count();
        let runs = self.runs_of(&features.model);
        // A model never run is a draw from the models seen; one with runs of its own is
        // known as well as its runs are many.
        let df = if runs == 0 {
            models as f64 - 2.0
        } else {
            runs as f64 + 3.0
        }
        .max(4.0);
        Prediction {
            median: Joules(ln.exp()),
            ln_sd: variance.sqrt(),
            df,
            runs_of_model: runs,
        }
    }

    /// ln E and its variance, noise of one run included.
    pub(super) fn ln_energy(&self, features: &Features) -> (f64, f64) {
        let (ln, slopes) = self.linearise(features);
        let (x, absent) = self.dense(&slopes);
        (
            ln,
            dot(&x, &self.covariance.times(&x)) + absent + self.noise,
        )
    }

    pub(super) fn linearise(&self, features: &Features) -> (f64, Vec<Slope>) {
        self.form.linearise(features, |name, absent| {
            self.index(name).map_or(absent, |i| self.parameters[i].mean)
        })
    }

    /// The slopes as a vector over the parameters, and the variance of those that this
    /// law does not have yet.
    pub(super) fn dense(&self, slopes: &[Slope]) -> (Vec<f64>, f64) {
        let mut x = vec![0.0; self.parameters.len()];
        let mut absent = 0.0;
        for slope in slopes {
            if let Some(i) = self.index(&slope.name) {
                x[i] = slope.by;
            } else {
                absent += (slope.by * slope.sd).powi(2);
            }
        }
        (x, absent)
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.name == name)
    }

    /// Makes room for a run's own levels, forgetting the one unseen longest where full.
    pub(super) fn admit(&mut self, features: &Features) {
        for (name, belief) in Form::own(features) {
            if self.index(&name).is_none() {
                self.add(name, belief);
            }
        }
        while self
            .parameters
            .iter()
            .filter(|p| p.name.contains('/'))
            .count()
            > LEVELS
        {
            let oldest = (0..self.parameters.len())
                .filter(|i| self.parameters[*i].name.contains('/'))
                .min_by_key(|i| self.parameters[*i].seen);
            let Some(oldest) = oldest else { return };
            self.parameters.remove(oldest);
            self.covariance.shrink(oldest);
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
            covariance: self.covariance.lower(),
            noise: self.noise,
            cusum: self.cusum,
            error: self.error,
            observations: self.observations,
        };
        serde_json::to_string(&saved).unwrap_or_default()
    }

    /// Reads what [`Law::save`] wrote.
    ///
    /// # Errors
    /// Text that is not such a state, is of another version, or does not hang together.
    pub fn load(text: &str) -> Result<Self, StateError> {
        let saved: Saved = serde_json::from_str(text).map_err(StateError::Syntax)?;
        if saved.version != STATE_VERSION {
            return Err(StateError::Version(saved.version));
        }
        let n = saved.parameters.len();
        let covariance = Symmetric::from_lower(n, &saved.covariance).ok_or(StateError::Broken(
            "the covariance does not fit the parameters",
        ))?;
        if saved.parameters.iter().any(|p| !p.mean.is_finite()) || !saved.noise.is_finite() {
            return Err(StateError::Broken("a parameter is not a number"));
        }
        let fixed = saved.form.fixed(&saved.gpu.prior());
        if fixed
            .iter()
            .any(|(name, _)| !saved.parameters.iter().any(|p| p.name == *name))
        {
            return Err(StateError::Broken("a parameter of this form is missing"));
        }
        Ok(Self {
            form: saved.form,
            gpu: saved.gpu,
            parameters: saved.parameters,
            covariance,
            noise: saved.noise,
            cusum: saved.cusum,
            error: saved.error,
            observations: saved.observations,
        })
    }
}

impl Prediction {
    /// The energy that a run stays below with probability `p` (0 < p < 1).
    pub fn quantile(&self, p: f64) -> Joules {
        Joules(self.median.0 * (t_quantile(p, self.df) * self.ln_sd).exp())
    }
}
