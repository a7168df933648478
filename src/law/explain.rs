//! A prediction taken apart: what each kind of work costs, and by which constant.

use super::features::Features;
use super::form::{Form, level_name};
use super::state::Law;
use super::units::Joules;
use serde::Serialize;

/// One line of the arithmetic of an image: `amount · constant = joules`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub name: &'static str,
    pub amount: f64,
    pub unit: &'static str,
    /// Joules of one unit.
    pub constant: f64,
    pub joules: f64,
    /// Where the constant is from: prior, carried over from another product, or so many runs.
    pub origin: String,
}

/// A factor on all parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Factor {
    pub name: String,
    pub value: f64,
    /// Where it is from, in words.
    pub origin: String,
}

/// The arithmetic of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Breakdown {
    /// Of one image, before factors.
    pub parts: Vec<Part>,
    pub factors: Vec<Factor>,
    pub joules_per_image: Joules,
    pub images: f64,
    pub starts: f64,
    pub joules_per_start: Joules,
    pub start_origin: String,
    pub total: Joules,
}

impl Law {
    /// Takes a prediction apart; its total is [`Law::predict`]'s median.
    pub fn explain(&self, f: &Features) -> Breakdown {
        let parts = self.parts(f);
        let factors = self.factors(f);
        let sum: f64 = parts.iter().map(|part| part.joules).sum();
        let factor: f64 = factors.iter().map(|factor| factor.value).product();
        let image = sum * factor;
        let start = self.parameter("start").unwrap_or(0.0);
        Breakdown {
            parts,
            factors,
            joules_per_image: Joules(image),
            images: f.images,
            starts: f.starts,
            joules_per_start: Joules(start),
            start_origin: self.origin(&["start"]),
            total: Joules(f.images * image + f.starts * start),
        }
    }

    fn parts(&self, f: &Features) -> Vec<Part> {
        let constant = |name: &str| self.parameter(name).unwrap_or(0.0);
        let part = |name, amount: f64, unit, constant: f64, of: &[&str]| Part {
            name,
            amount,
            unit,
            constant,
            joules: amount * constant,
            origin: self.origin(of),
        };
        let w = &f.work;
        match self.form {
            Form::Roofline => {
                let product = constant("teraflop");
                let (kappa, alpha) = (constant("convolution").exp(), constant("attention").exp());
                vec![
                    part(
                        "matrix products",
                        w.linear / 1e12,
                        "TFLOP",
                        product,
                        &["teraflop"],
                    ),
                    part(
                        "convolutions",
                        w.convolution / 1e12,
                        "TFLOP",
                        product * kappa,
                        &["teraflop", "convolution"],
                    ),
                    part(
                        "attention, padded heads included",
                        (w.attention + w.padding) / 1e12,
                        "TFLOP",
                        product * alpha,
                        &["teraflop", "attention"],
                    ),
                    part(
                        "memory-bound kernels",
                        w.elements / 1e9,
                        "10^9 elements",
                        constant("gigaelement"),
                        &["gigaelement"],
                    ),
                    part(
                        "launches",
                        w.launches / 1e3,
                        "1,000 launches",
                        constant("launch"),
                        &["launch"],
                    ),
                ]
            }
            Form::Additive => vec![
                part("steps", f.calls, "calls", constant("step"), &["step"]),
                part(
                    "arithmetic",
                    f.flops.tera(),
                    "TFLOP",
                    constant("teraflop"),
                    &["teraflop"],
                ),
            ],
            Form::Paper => {
                let value = |name: &str| self.parameter(name).unwrap_or(0.0);
                let ln = value("intercept")
                    + value("alpha") * f.flops.tera().ln()
                    + value("resolution") * f.tokens.ln()
                    + value("batch") * f.batch.ln();
                let joules = ln.exp();
                let tera = f.flops.tera();
                let of = ["intercept", "alpha", "resolution", "batch"];
                vec![part("arithmetic", tera, "TFLOP", joules / tera, &of)]
            }
        }
    }

    /// Where parameters are from. Runs speak of one where they have made it surer than it was at
    /// first by a tenth of its variance.
    fn origin(&self, names: &[&str]) -> String {
        let prior = Self::prior(self.form, &self.gpu);
        let of = |name: &&str| Some((self.index(name)?, prior.index(name)?));
        let pairs: Vec<(usize, usize)> = names.iter().filter_map(of).collect();
        let surer = |(own, first): &(usize, usize)| {
            let before = prior.covariance.get(*first, *first);
            self.covariance.get(*own, *own) < 0.9 * before
        };
        let moved = |(own, first): &(usize, usize)| {
            let (now, then) = (&self.parameters[*own], &prior.parameters[*first]);
            (now.mean - then.mean).abs() > 1e-9
        };
        if self.observations > 0 && pairs.iter().any(surer) {
            match self.observations {
                1 => "1 run".to_owned(),
                runs => format!("{runs} runs"),
            }
        } else if self.observations == 0 && pairs.iter().any(moved) {
            "carried over from another product".to_owned()
        } else {
            "prior".to_owned()
        }
    }

    fn factors(&self, f: &Features) -> Vec<Factor> {
        let mut factors = Vec::new();
        for own in self.own(f) {
            let (name, belief) = (own.name, own.belief);
            let known = self.index(&name);
            let mean = known.map_or(belief.mean, |i| self.parameters[i].mean);
            let runs = known.map_or(0, |i| self.parameters[i].runs);
            let origin = match runs {
                0 if mean == 0.0 => "never run: as the others".to_owned(),
                0 => "prior".to_owned(),
                1 => "1 run".to_owned(),
                runs => format!("{runs} runs"),
            };
            let class = level_name("class/", &f.architecture);
            if name != class || mean.abs() > 5e-4 {
                factors.push(Factor {
                    name: name.replacen('/', " ", 1),
                    value: (mean * own.by).exp(),
                    origin,
                });
            }
        }
        if f.gpus > 1.0 {
            let value = |name: &str| self.parameter(name).unwrap_or(0.0);
            let (g, batch) = (value("gpus"), value("gpus-batch"));
            let factor = (g + batch / f.batch) * f.gpus.ln();
            factors.push(Factor {
                name: format!("{} GPUs on one image", f.gpus),
                value: factor.exp(),
                origin: format!("n^({g:.2} + {batch:.2}/batch)"),
            });
        }
        factors
    }
}
