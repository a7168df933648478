//! The two forms of the energy law, as one family with named parameters.
//!
//! Both say `E_job = starts·E_start + images·E_image`, and differ in an image:
//!
//! - **Additive** (default): `e^(u_model + d_precision) · (s·calls + c·TFLOP) · n^(g + g'/batch)`.
//!   A step has a cost of its own, however small the picture: launches and memory traffic.
//! - **Paper** (arXiv 2511.17031): `e^(a + u_model + d_precision) · TFLOP^α · tokens^β_res`.
//!
//! Parameters live in logarithms, so that every energy is positive whatever is learnt,
//! and the derivative of ln E by ln of a part is that part's share of the energy.

use super::features::Features;
use super::gpu::Prior;
use super::workload::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Which law.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
pub enum Form {
    /// A step has a cost of its own beside that of its FLOPs.
    #[default]
    Additive,
    /// The log-linear law of arXiv 2511.17031.
    Paper,
}

impl Form {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Additive => "Additive",
            Self::Paper => "Paper",
        }
    }
}

/// Prior of one parameter: mean and standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Belief {
    pub(super) mean: f64,
    pub(super) sd: f64,
}

/// Spread of models about the common law, in ln E (public data: .15–.2).
pub(super) const MODEL_SD: f64 = 0.175;

/// Joules to load the model and warm up, before a pod of one's own was ever measured:
/// no public data set holds it, so the prior is wide.
const START_JOULES: f64 = 200.0;
const START_SD: f64 = 1.0;

pub(super) const START: &str = "start";

impl Form {
    /// Parameters that every law of this form has.
    pub(super) fn fixed(self, prior: &Prior) -> Vec<(&'static str, Belief)> {
        let belief = |mean, sd| Belief { mean, sd };
        let start = (START, belief(START_JOULES.ln(), START_SD));
        match self {
            Self::Additive => vec![
                start,
                ("step", belief(prior.step_joules.ln(), prior.step_sd)),
                (
                    "teraflop",
                    belief(prior.tera_flop_joules.ln(), prior.tera_flop_sd),
                ),
                // n^(.26·(1 + 1/batch)) on H100.
                ("gpus", belief(0.26, 0.1)),
                ("gpus-batch", belief(0.26, 0.1)),
            ],
            Self::Paper => vec![
                start,
                ("intercept", belief(prior.tera_flop_joules.ln() + 0.9, 1.0)),
                ("alpha", belief(0.95, 0.1)),
                ("resolution", belief(0.0, 0.2)),
            ],
        }
    }

    /// Parameters that come with a run: its model's level, and its precision's where it
    /// is not the 16-bit baseline.
    pub(super) fn own(features: &Features) -> Vec<(String, Belief)> {
        let mut own = vec![(
            format!("model/{}", features.model),
            Belief {
                mean: 0.0,
                sd: MODEL_SD,
            },
        )];
        if let Some(belief) = precision_prior(features.precision) {
            own.push((format!("precision/{}", features.precision.as_str()), belief));
        }
        own
    }

    /// ln of the predicted energy, and its derivatives by the parameters, given a look-up
    /// of a parameter's value; one of the run's own that is not known yet has the prior
    /// mean that the look-up is handed.
    pub(super) fn linearise(
        self,
        f: &Features,
        value: impl Fn(&str, f64) -> f64,
    ) -> (f64, Vec<Slope>) {
        let mut level = 0.0;
        let mut gradient: Vec<Slope> = Vec::with_capacity(8);
        for (name, belief) in Self::own(f) {
            level += value(&name, belief.mean);
            gradient.push(Slope {
                name: Cow::Owned(name),
                by: 1.0,
                sd: belief.sd,
            });
        }
        let value = |name: &str| value(name, 0.0);
        let image = match self {
            Self::Additive => {
                let steps = value("step").exp() * f.calls;
                let work = value("teraflop").exp() * f.flops.tera();
                push(&mut gradient, "step", steps / (steps + work));
                push(&mut gradient, "teraflop", work / (steps + work));
                let n = f.gpus.ln();
                push(&mut gradient, "gpus", n);
                push(&mut gradient, "gpus-batch", n / f.batch);
                level += (value("gpus") + value("gpus-batch") / f.batch) * n;
                (steps + work).ln() + level
            }
            Self::Paper => {
                push(&mut gradient, "intercept", 1.0);
                push(&mut gradient, "alpha", f.flops.tera().ln());
                push(&mut gradient, "resolution", f.tokens.ln());
                level
                    + value("intercept")
                    + value("alpha") * f.flops.tera().ln()
                    + value("resolution") * f.tokens.ln()
            }
        };
        let images = f.images * image.exp();
        let start = f.starts * value(START).exp();
        let share = images / (images + start);
        for slope in &mut gradient {
            slope.by *= share;
        }
        push(&mut gradient, START, 1.0 - share);
        ((images + start).ln(), gradient)
    }
}

/// A derivative of ln E.
#[derive(Debug)]
pub(super) struct Slope {
    /// Of the parameter.
    pub(super) name: Cow<'static, str>,
    pub(super) by: f64,
    /// Standard deviation of the parameter before anything is known of it, where it comes
    /// with the run.
    pub(super) sd: f64,
}

fn push(gradient: &mut Vec<Slope>, name: &'static str, by: f64) {
    if by != 0.0 {
        gradient.push(Slope {
            name: Cow::Borrowed(name),
            by,
            sd: 0.0,
        });
    }
}

/// How much a precision is believed to cost beside fp16 and bf16: fp32 takes 5–8 times
/// the energy (A100); the others are guesses, held loosely.
fn precision_prior(precision: Precision) -> Option<Belief> {
    let (factor, sd): (f64, f64) = match precision {
        Precision::Fp16 | Precision::Bf16 => return None,
        Precision::Fp32 => (6.5, 0.25),
        Precision::Tf32 => (2.0, 0.4),
        Precision::Fp8 | Precision::Int8 => (0.65, 0.3),
        Precision::Fp4 => (0.5, 0.4),
    };
    Some(Belief {
        mean: factor.ln(),
        sd,
    })
}
