//! Learning from one run at a time: an iterated extended Kalman filter on ln E.
//!
//! - Constant memory and time; the state is [`Law`] itself.
//! - Robust: a run far off its prediction counts less (Huber), so one wrong annotation
//!   does not spoil the law.
//! - Forgetting is directional: only what a run speaks about grows less certain again, so
//!   nothing blows up however long one configuration repeats.
//! - CUSUM: where errors keep one sign, the law's level opens up and follows.

use super::features::Observation;
use super::form::{LEAST_LIMIT, MOST_LIMIT, Own};
use super::linalg::dot;
use super::predict::Prediction;
use super::state::Law;

/// Forgetting per run.
const LAMBDA: f64 = 0.98;
/// Standard deviations beyond which a run counts less.
const HUBER: f64 = 2.0;
/// CUSUM of standardised errors: slack and alarm.
const SLACK: f64 = 0.75;
const ALARM: f64 = 6.0;
/// Standard deviation of a shift of the whole law, in ln E, once the alarm has gone off.
const SHIFT: f64 = 0.25;
/// Misses, in ln, that are rather a mistake than news: a factor of three.
const WILD: f64 = 1.1;
/// By how much one such run moves its prediction at most, in ln.
const BELIEVED: f64 = 0.04;
/// The CUSUM after one such run is at least 1.25.
const FIRST: f64 = 1.2;
/// Standard deviations of a gross outlier.
const GROSS: f64 = 6.0;
/// Joules a step that a GPU can use: below and above, a unit or an annotation is wrong.
const LEAST_JOULES: f64 = 0.02;
const MOST_JOULES: f64 = 1e7;
/// Weight of the newest run in the power limit that is usual.
const USUAL: f64 = 0.3;
/// Weight of the newest run in the running mean error.
const RECENT: f64 = 0.2;

/// What became of one observation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Learnt(Update),
    /// Not learnt from, and why.
    Refused(&'static str),
}

/// A law's step.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// What was predicted before the run was seen.
    pub before: Prediction,
    /// |predicted − measured| / measured.
    pub error: f64,
    /// True where the run was so far off that it counted less.
    pub outlier: bool,
    /// True where errors had kept one sign for so long that the law opened up.
    pub reset: bool,
}

impl Law {
    /// Learns from one run.
    pub fn learn(&mut self, run: &Observation) -> Outcome {
        let f = &run.features;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(run.energy.0) {
            return Outcome::Refused("the energy is not a positive number");
        }
        if !(positive(f.images) && positive(f.calls) && positive(f.flops.0) && positive(f.tokens)) {
            return Outcome::Refused("the workload has no work in it");
        }
        if self.basis.is_some_and(|basis| basis != run.basis) {
            return Outcome::Refused(
                "it is net of idle power and the law is gross, or the other way",
            );
        }
        let per_step = run.energy.0 / (f.starts + f.images * f.calls);
        if !(LEAST_JOULES..=MOST_JOULES).contains(&per_step) {
            return Outcome::Refused("so little or so much energy a step no GPU uses");
        }
        let own = self.own(f);
        if run.impossible().is_some() {
            return Outcome::Refused("so little or so much energy for such arithmetic no GPU uses");
        }
        let before = self.predict_with(f, &own);
        let seen = before.runs_of_model > 0;
        self.admit(&own);
        self.range.cover(f);
        self.basis = Some(run.basis);
        if let Some(power) = f.stack.power {
            let power = power.clamp(LEAST_LIMIT, MOST_LIMIT).ln();
            self.usual_power += USUAL * (power - self.usual_power);
        }
        let y = run.energy.0.ln();
        let (z, sample) = self.filter(run, &own, y);
        let reset = self.watch(z);
        if seen {
            self.score_noise(sample);
        }
        let error = (before.median.0 / run.energy.0 - 1.0).abs();
        let weight = RECENT.max(1.0 / (self.observations as f64 + 1.0));
        self.error += weight * (error.min(10.0) - self.error);
        self.observations += 1;
        let observations = self.observations;
        self.touch(&own, observations);
        self.settle();
        Outcome::Learnt(Update {
            before,
            error,
            outlier: z.abs() > HUBER,
            reset,
        })
    }

    /// The Kalman step; gives the standardised error of the prediction, and a sample of the
    /// variance of one run.
    fn filter(&mut self, run: &Observation, own: &[Own], y: f64) -> (f64, f64) {
        let start: Vec<f64> = self.parameters.iter().map(|p| p.mean).collect();
        let mut z = 0.0_f64;
        let (mut sample, mut wild) = (0.0, 1.0);
        let mut last = (Vec::new(), Vec::new(), 1.0);
        for iteration in 0..2 {
            let (ln, slopes) = self.linearise(&run.features, own);
            let (x, _) = self.dense(&slopes);
            let px = self.covariance.times(&x);
            let spread = dot(&x, &px);
            let moved: Vec<f64> = start
                .iter()
                .zip(&self.parameters)
                .map(|(a, p)| a - p.mean)
                .collect();
            let innovation = y - ln - dot(&x, &moved);
            if iteration == 0 {
                z = innovation / (spread + self.noise).sqrt();
                // Where little is known nearly all of a miss would be believed, also of one that
                // a wrong unit explains better. A second to the same side is believed.
                let before = if z > 0.0 { self.cusum.0 } else { self.cusum.1 };
                if innovation.abs() > WILD && before < FIRST {
                    wild = innovation.abs() / BELIEVED;
                }
                sample = (innovation * innovation - spread).max(0.0);
            }
            let total = (spread + self.noise * (z.abs() / HUBER).powi(2).max(1.0)) * wild;
            for (i, parameter) in self.parameters.iter_mut().enumerate() {
                parameter.mean = start[i] + px[i] * innovation / total;
            }
            last = (px, x, total);
        }
        let (px, x, total) = last;
        self.covariance.add_outer(&px, -1.0 / total);
        let px = self.covariance.times(&x);
        let spread = dot(&x, &px);
        if spread > 1e-12 {
            self.covariance
                .add_outer(&px, (1.0 / LAMBDA - 1.0) / spread);
        }
        (z, sample)
    }

    /// Two-sided CUSUM; opens the law up and starts anew at an alarm.
    fn watch(&mut self, z: f64) -> bool {
        // One gross outlier is a wrong annotation; a row of them is another world.
        let z = if z.abs() > GROSS {
            z.signum() * 2.0
        } else {
            z.clamp(-3.0, 3.0)
        };
        self.cusum = (
            (self.cusum.0 + z - SLACK).max(0.0),
            (self.cusum.1 - z - SLACK).max(0.0),
        );
        if self.cusum.0.max(self.cusum.1) < ALARM {
            return false;
        }
        self.cusum = (0.0, 0.0);
        self.shifts += 1;
        self.shifted_at = self.observations + 1;
        // A world that moves moves as a whole: another driver, another power limit.
        let whole = |name: &str| {
            let level = [
                "start",
                "step",
                "teraflop",
                "intercept",
                "launch",
                "gigaelement",
            ];
            level.contains(&name)
        };
        let level: Vec<f64> = self
            .parameters
            .iter()
            .map(|p| f64::from(u8::from(whole(&p.name))))
            .collect();
        self.covariance.add_outer(&level, SHIFT * SHIFT);
        true
    }

    /// Scatter of runs about their prediction, beyond what the law's own ignorance explains.
    fn score_noise(&mut self, sample: f64) {
        let sample = sample.min(HUBER.powi(2) * self.noise);
        let weight = 1.0 / (self.observations as f64 + 20.0).min(100.0);
        self.noise =
            (self.noise + weight * (sample - self.noise)).clamp(0.02_f64.powi(2), 0.5_f64.powi(2));
    }

    /// Marks the levels of a run as seen.
    pub(super) fn touch(&mut self, own: &[Own], number: u64) {
        for own in own.iter().filter(|own| own.told) {
            if let Some(i) = self.index(&own.name) {
                self.parameters[i].seen = number;
                self.parameters[i].runs += 1;
            }
        }
    }
}
