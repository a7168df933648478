//! The forms of the energy law, as one family with named parameters.
//!
//! All say `E_job = starts·E_start + images·E_image`, and differ in an image:
//!
//! - **Roofline** (default):
//!   `e^(u_model + d_precision) · (c·(linear + κ·convolution + α·attention) + m·elements + s·launches) · n^(g + g'/batch)`.
//!   A GPU at work draws what it may draw, so that energy follows time, and time is spent in
//!   three ways: on arithmetic, slower in convolutions (κ) and attention (α) than in plain
//!   products; on moving the elements of memory-bound kernels; and on launching kernels, however
//!   small the picture.
//! - **Additive**: `e^(u_model + d_precision) · (s·calls + c·TFLOP) · n^(g + g'/batch)`.
//! - **Paper** (arXiv 2511.17031): `e^(a + u_model + d_precision) · TFLOP^α · tokens^β_res`, and
//!   beyond it `batch^β · n^(g + g'/batch)`: the paper ran one picture at a time on one GPU.
//!
//! Parameters live in logarithms, so that every energy is positive whatever is learnt,
//! and the derivative of ln E by ln of a part is that part's share of the energy.

use super::features::Features;
use super::gpu::{Generation, Prior};
use super::workload::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which law.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default, JsonSchema,
)]
pub enum Form {
    /// Arithmetic by kind, memory traffic and launches.
    #[default]
    Roofline,
    /// A step has a cost of its own beside that of its FLOPs.
    Additive,
    /// The log-linear law of arXiv 2511.17031.
    Paper,
}

impl Form {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Roofline => "Roofline",
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

impl Form {
    pub const ALL: [Self; 3] = [Self::Roofline, Self::Additive, Self::Paper];

    /// Spread of models about the common law, in ln E, before any was seen.
    pub(super) fn model_sd(self) -> f64 {
        match self {
            Self::Roofline => 0.06,
            Self::Additive | Self::Paper => 0.175,
        }
    }
}

/// Attention and convolutions take longer for a FLOP than plain products: attention kernels
/// reach a half to two thirds of the rate of matrix products (FlashAttention-2 reports
/// 50–73 % of an A100's peak, FlashAttention-3 reports its forerunner at 35 % of an H100's
/// where products reach 70 %), convolutions of diffusion models somewhat less than products.
const ATTENTION: (f64, f64) = (1.7, 0.3);
const CONVOLUTION: (f64, f64) = (1.25, 0.15);

/// Joules to load the model and warm up, before a pod of one's own was ever measured:
/// no public data set holds it, so the prior is wide.
const START_JOULES: f64 = 200.0;
const START_SD: f64 = 1.0;

pub(super) const START: &str = "start";

/// Spread of software stacks about one another: compiled graphs, attention back ends and
/// versions of frameworks differ by tens of percent in time.
const SOFTWARE_SD: f64 = 0.15;
/// Of driver branches: they differ by a few percent.
const DRIVER_SD: f64 = 0.05;
pub(super) const SOFTWARE: &str = "software/";
pub(super) const DRIVER: &str = "driver/";
pub(super) const POWER: &str = "power/limit";
/// Exponent of the power limit: where a limit binds, a board takes longer at fewer watts, so
/// that energy falls by less than power does; where it does not bind, nothing changes.
const POWER_EXPONENT: Belief = Belief {
    mean: 0.3,
    sd: 0.25,
};
/// No board is limited below and above, whatever is told.
pub(super) const LEAST_LIMIT: f64 = 0.05;
pub(super) const MOST_LIMIT: f64 = 2.0;
/// ln of a limit beside the default that is no limit at all.
const UNLIMITED: f64 = 0.02;

/// A parameter that comes with a run: ln E changes by `by` times its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) belief: Belief,
    pub(super) by: f64,
    /// False where the run did not tell, and the usual is taken.
    pub(super) told: bool,
}

impl Own {
    pub(super) fn level(name: String, belief: Belief) -> Self {
        Self {
            name,
            belief,
            by: 1.0,
            told: true,
        }
    }

    /// What a power limit does; nothing where it is the board's default.
    pub(super) fn power_limit(fraction: f64) -> Option<Self> {
        let by = fraction.clamp(LEAST_LIMIT, MOST_LIMIT).ln();
        (by.abs() > UNLIMITED).then(|| Self {
            name: POWER.to_owned(),
            belief: POWER_EXPONENT,
            by,
            told: true,
        })
    }
}

impl Form {
    /// Parameters that every law of this form has.
    pub(super) fn fixed(self, prior: &Prior) -> Vec<(&'static str, Belief)> {
        let belief = |mean, sd| Belief { mean, sd };
        let start = (START, belief(START_JOULES.ln(), START_SD));
        let several = [
            ("gpus", belief(0.26, 0.1)),
            ("gpus-batch", belief(0.26, 0.1)),
        ];
        match self {
            // n^(.26·(1 + 1/batch)) on H100.
            Self::Roofline => [
                start,
                ("launch", belief(prior.launch_joules.ln(), prior.launch_sd)),
                (
                    "teraflop",
                    belief(prior.product_joules.ln(), prior.product_sd),
                ),
                (
                    "gigaelement",
                    belief(prior.element_joules.ln(), prior.element_sd),
                ),
                ("attention", belief(ATTENTION.0.ln(), ATTENTION.1)),
                ("convolution", belief(CONVOLUTION.0.ln(), CONVOLUTION.1)),
            ]
            .into_iter()
            .chain(several)
            .collect(),
            Self::Additive => vec![
                start,
                ("step", belief(prior.step_joules.ln(), prior.step_sd)),
                (
                    "teraflop",
                    belief(prior.tera_flop_joules.ln(), prior.tera_flop_sd),
                ),
                several[0],
                several[1],
            ],
            Self::Paper => vec![
                start,
                ("intercept", belief(prior.tera_flop_joules.ln() + 0.9, 1.0)),
                ("alpha", belief(0.95, 0.1)),
                ("resolution", belief(0.0, 0.2)),
                ("batch", belief(0.0, 0.1)),
                several[0],
                several[1],
            ],
        }
    }

    /// Parameters that come with a run: its model's level, that of its architecture, its
    /// precision's where it is not the 16-bit baseline, and those of what it ran on.
    pub(super) fn own(self, f: &Features, generation: Option<Generation>) -> Vec<Own> {
        let level = |name, sd| Own::level(name, Belief { mean: 0.0, sd });
        let mut own = vec![
            level(level_name("model/", &f.model), self.model_sd()),
            level(level_name("class/", &f.architecture), 0.5 * self.model_sd()),
        ];
        if let Some(belief) = precision_prior(f.precision, generation) {
            let name = format!("precision/{}", f.precision.as_str());
            own.push(Own::level(name, belief));
        }
        if let Some(software) = &f.stack.software {
            own.push(level(level_name(SOFTWARE, software), SOFTWARE_SD));
        }
        if let Some(driver) = &f.stack.driver {
            own.push(level(level_name(DRIVER, driver), DRIVER_SD));
        }
        own.extend(f.stack.power.and_then(Own::power_limit));
        own
    }

    /// ln of the predicted energy, and its derivatives by the parameters, given a look-up
    /// of a parameter's value; one of the run's own that is not known yet has the prior
    /// mean that the look-up is handed.
    pub(super) fn linearise<'own>(
        self,
        f: &Features,
        own: &'own [Own],
        value: impl Fn(&str, f64) -> f64,
    ) -> (f64, Vec<Slope<'own>>) {
        let mut level = 0.0;
        let mut gradient: Vec<Slope<'own>> = Vec::with_capacity(own.len() + 8);
        for Own {
            name, belief, by, ..
        } in own
        {
            level += value(name, belief.mean) * by;
            gradient.push(Slope {
                name,
                by: *by,
                sd: belief.sd,
            });
        }
        let value = |name: &str| value(name, 0.0);
        let image = match self {
            Self::Roofline => {
                let w = &f.work;
                let product = value("teraflop").exp();
                let (alpha, kappa) = (value("attention").exp(), value("convolution").exp());
                let linear = product * w.linear / 1e12;
                let convolution = product * kappa * w.convolution / 1e12;
                let attention = product * alpha * (w.attention + w.padding) / 1e12;
                let elements = value("gigaelement").exp() * w.elements / 1e9;
                let launches = value("launch").exp() * w.launches / 1e3;
                let all = linear + convolution + attention + elements + launches;
                let arithmetic = linear + convolution + attention;
                push(&mut gradient, "launch", launches / all);
                push(&mut gradient, "teraflop", arithmetic / all);
                push(&mut gradient, "gigaelement", elements / all);
                push(&mut gradient, "attention", attention / all);
                push(&mut gradient, "convolution", convolution / all);
                level += several_gpus(&mut gradient, f, &value);
                all.ln() + level
            }
            Self::Additive => {
                let steps = value("step").exp() * f.calls;
                let work = value("teraflop").exp() * f.flops.tera();
                push(&mut gradient, "step", steps / (steps + work));
                push(&mut gradient, "teraflop", work / (steps + work));
                level += several_gpus(&mut gradient, f, &value);
                (steps + work).ln() + level
            }
            Self::Paper => {
                push(&mut gradient, "intercept", 1.0);
                push(&mut gradient, "alpha", f.flops.tera().ln());
                push(&mut gradient, "resolution", f.tokens.ln());
                push(&mut gradient, "batch", f.batch.ln());
                level += several_gpus(&mut gradient, f, &value);
                level
                    + value("intercept")
                    + value("batch") * f.batch.ln()
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

/// ln of what several GPUs on one picture cost beside one.
fn several_gpus(gradient: &mut Vec<Slope<'_>>, f: &Features, value: &impl Fn(&str) -> f64) -> f64 {
    let n = f.gpus.ln();
    push(gradient, "gpus", n);
    push(gradient, "gpus-batch", n / f.batch);
    (value("gpus") + value("gpus-batch") / f.batch) * n
}

/// The name of a level: bounded, so that the law's state is, and still each its own.
pub(super) fn level_name(kind: &str, name: &str) -> String {
    const MOST: usize = 32;
    if name.len() <= MOST {
        return [kind, name].concat();
    }
    // FNV-1a, 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let short: String = name.chars().take(15).collect();
    format!("{kind}{short}~{hash:016x}")
}

/// A derivative of ln E.
#[derive(Debug)]
pub(super) struct Slope<'own> {
    /// Of the parameter.
    pub(super) name: &'own str,
    pub(super) by: f64,
    /// Standard deviation of the parameter before anything is known of it, where it comes
    /// with the run.
    pub(super) sd: f64,
}

fn push(gradient: &mut Vec<Slope<'_>>, name: &'static str, by: f64) {
    if by != 0.0 {
        gradient.push(Slope { name, by, sd: 0.0 });
    }
}

/// How much a precision is believed to cost beside fp16 and bf16: fp32 takes 5–8 times
/// the energy (A100); the others are guesses, held loosely.
fn precision_prior(precision: Precision, generation: Option<Generation>) -> Option<Belief> {
    use Generation::{Ada, Ampere, Blackwell, Hopper, Pascal, Turing, Volta};
    // Below the first generation whose tensor cores know a format, weights alone are small, and
    // are widened again in every product.
    let knows = match precision {
        Precision::Fp8 => matches!(generation, Some(Ada | Hopper | Blackwell)),
        Precision::Fp4 => matches!(generation, Some(Blackwell)),
        Precision::Int8 => matches!(generation, Some(Turing | Ampere | Ada | Hopper | Blackwell)),
        Precision::Tf32 => !matches!(generation, Some(Pascal | Volta | Turing)),
        _ => true,
    };
    let (factor, sd): (f64, f64) = match precision {
        Precision::Fp16 | Precision::Bf16 => return None,
        Precision::Fp32 => (6.5, 0.25),
        Precision::Tf32 if !knows => (6.5, 0.4),
        Precision::Fp8 | Precision::Int8 | Precision::Fp4 if !knows => (1.0, 0.3),
        Precision::Tf32 => (2.0, 0.4),
        Precision::Fp8 | Precision::Int8 => (0.65, 0.3),
        Precision::Fp4 => (0.5, 0.4),
    };
    Some(Belief {
        mean: factor.ln(),
        sd,
    })
}
