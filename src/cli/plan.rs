//! `jouleward plan`: which GPU, how many, which steps, size, precision and batch make so many
//! images an hour at the least joules and grams.

use super::arguments::{
    GridArguments, KnowledgeArguments, WorkloadArguments, gpu, oracle, origin, wrong,
};
use super::output::{Format, columns, print};
use crate::budget::Oracle;
use crate::carbon::{Footprint, Milligrams};
use crate::law::{Basis, Features, Form, Gpu, Joules, Law, Precision, Workload};
use clap::Args;
use serde::Serialize;

/// Plans a deployment: compares GPUs, steps, sizes, precisions and batches.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward plan --model flux.1-dev --images-per-hour 500 --country FRA
  jouleward plan --model sdxl --images-per-hour 2000 --batches 1,4 --steps 20,30 \\
      --gpus NVIDIA-A100-SXM4-80GB,NVIDIA-L40S --max-grams 0.5 -o json
An option is marked * where no other is better or equal in joules, GPUs, steps and size at
once. Times are estimated from energy and board power.")]
pub(super) struct Plan {
    #[command(flatten)]
    workload: WorkloadArguments,
    /// Images, or videos, that are wanted an hour.
    #[arg(long)]
    images_per_hour: f64,
    /// GPU products to compare.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "NVIDIA-A100-SXM4-80GB,NVIDIA-H100-80GB-HBM3,NVIDIA-H200,NVIDIA-B200,NVIDIA-L40S,NVIDIA-L4"
    )]
    gpus: Vec<String>,
    /// Numbers of steps to compare; else the workload's own.
    #[arg(long, value_delimiter = ',')]
    steps: Vec<u32>,
    /// Sizes to compare, WIDTHxHEIGHT; else the workload's own.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<String>,
    /// Precisions to compare; else the workload's own.
    #[arg(long, value_delimiter = ',')]
    precisions: Vec<String>,
    /// Batch sizes to compare; else the workload's own.
    #[arg(long, value_delimiter = ',')]
    batches: Vec<u32>,
    /// Leave out what costs more joules an image.
    #[arg(long)]
    max_joules: Option<f64>,
    /// Leave out what costs more grams of CO2e an image.
    #[arg(long)]
    max_grams: Option<f64>,
    #[command(flatten)]
    grid: GridArguments,
    #[command(flatten)]
    knowledge: KnowledgeArguments,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// One way to do it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Choice {
    pareto: bool,
    gpu: String,
    /// GPUs that make the wanted images.
    gpus: u64,
    steps: u32,
    width: u32,
    height: u32,
    precision: &'static str,
    batch: u32,
    joules_per_image: f64,
    joules_low: f64,
    joules_high: f64,
    milligrams_per_image: i64,
    images_per_gpu_hour: f64,
    kilowatt_hours_per_day: f64,
    law: String,
}

impl Plan {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if !(self.images_per_hour > 0.0 && self.images_per_hour <= 1e9) {
            return Err(wrong(format!(
                "--images-per-hour {} is not positive, for example 500",
                self.images_per_hour
            )));
        }
        let oracle = oracle(&self.knowledge, &self.grid)?;
        let limits = [
            ("max-joules", self.max_joules),
            ("max-grams", self.max_grams),
        ];
        for (flag, limit) in limits {
            if limit.is_some_and(|limit| !(limit > 0.0 && limit.is_finite())) {
                return Err(wrong(format!(
                    "--{flag} is not positive, for example --{flag} 500"
                )));
            }
        }
        let base = self.workload.workload(&oracle.catalogue)?;
        let products = self
            .gpus
            .iter()
            .map(|name| gpu(name))
            .collect::<anyhow::Result<Vec<Gpu>>>()?;
        let mut choices = Vec::new();
        let mut too_big = Vec::new();
        let mut bases: Vec<(String, Basis)> = Vec::new();
        for product in products {
            if product.sheet().is_none() {
                return Err(wrong(format!(
                    "--gpus {product:?}: there is no data sheet of it; for example {}",
                    crate::law::GPU_EXAMPLES,
                    product = product.to_string()
                )));
            }
            let law = oracle.law(&product);
            bases.push((product.to_string(), law.basis().unwrap_or_default()));
            if law.form != Form::Roofline {
                return Err(wrong(format!(
                    "--law: the law of {product} is {}, which tells no time; fit one of the form {}",
                    law.form.as_str(),
                    Form::Roofline.as_str()
                )));
            }
            for workload in self.variants(&base)? {
                if !fits(&oracle, &workload, &product) {
                    too_big.push(format!("{product} at {}", workload.precision.as_str()));
                    continue;
                }
                choices.extend(self.choice(&oracle, &law, &workload));
            }
        }
        let of = |wanted: Basis| bases.iter().find(|(_, basis)| *basis == wanted);
        if let (Some((gross, _)), Some((net, _))) = (of(Basis::Gross), of(Basis::Net)) {
            return Err(wrong(format!(
                "--law: the law of {net} is net of idle power and that of {gross} gross: they cannot stand in one table; give laws of one basis for every GPU, or plan each by itself"
            )));
        }
        too_big.sort();
        too_big.dedup();
        let most = |limit: Option<f64>, value: f64| limit.is_none_or(|limit| value <= limit);
        choices.retain(|choice| {
            let grams = choice.milligrams_per_image as f64 / 1e3;
            most(self.max_joules, choice.joules_per_image) && most(self.max_grams, grams)
        });
        if choices.is_empty() {
            let limited = self.max_joules.is_some() || self.max_grams.is_some();
            let why = match (too_big.is_empty(), limited) {
                (_, true) => "raise --max-joules or --max-grams".to_owned(),
                (false, false) => format!("the weights do not fit {}", too_big.join(", ")),
                (true, false) => "name other --gpus".to_owned(),
            };
            return Err(wrong(format!("nothing meets what is asked: {why}")));
        }
        mark(&mut choices);
        choices.sort_by(|a, b| a.joules_per_image.total_cmp(&b.joules_per_image));
        print(self.output, &choices, |choices| table(choices, &too_big))
    }

    /// The workload with each of what is to be compared.
    fn variants(&self, base: &Workload) -> anyhow::Result<Vec<Workload>> {
        let or = |given: &[u32], own: u32, most: u32, flag: &str| {
            if let Some(wrong_one) = given.iter().find(|n| !(1..=most).contains(*n)) {
                return Err(wrong(format!(
                    "--{flag} {wrong_one} is not from 1 to {most}"
                )));
            }
            Ok(if given.is_empty() {
                vec![own]
            } else {
                given.to_vec()
            })
        };
        let steps = or(&self.steps, base.steps, 1000, "steps")?;
        let batches = or(&self.batches, base.batch, 1024, "batches")?;
        let sizes = if self.sizes.is_empty() {
            vec![(base.width, base.height)]
        } else {
            self.sizes
                .iter()
                .map(|text| size(text))
                .collect::<anyhow::Result<_>>()?
        };
        let precisions = if self.precisions.is_empty() {
            vec![base.precision]
        } else {
            let parse = |text: &String| {
                Precision::parse(text).ok_or_else(|| {
                    wrong(format!(
                        "--precisions {text:?} is not known, for example fp16,fp8"
                    ))
                })
            };
            self.precisions
                .iter()
                .map(parse)
                .collect::<anyhow::Result<_>>()?
        };
        let mut all = Vec::new();
        for steps in steps {
            for (width, height) in &sizes {
                for precision in &precisions {
                    for batch in &batches {
                        all.push(Workload {
                            steps,
                            width: *width,
                            height: *height,
                            precision: *precision,
                            batch: *batch,
                            images: u64::from(*batch),
                            ..base.clone()
                        });
                    }
                }
            }
        }
        Ok(all)
    }

    fn choice(&self, oracle: &Oracle, law: &Law, workload: &Workload) -> Option<Choice> {
        let (_, features) = oracle.catalogue.job(workload, 1, 1)?;
        // A server loads its model once: what counts is an image.
        let features = Features {
            starts: 0.0,
            images: 1.0,
            ..features
        };
        let prediction = law.predict(&features);
        let seconds = law.seconds_per_image(&features)?;
        let (intensity, pue) = &oracle.fallback;
        let footprint = Footprint::of(&prediction, 0.9, intensity, pue);
        let hourly = 3600.0 / seconds;
        let joules = prediction.median.0;
        let round = |x: f64| (x * 100.0).round() / 100.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of GPUs"
        )]
        let gpus = (self.images_per_hour / hourly).ceil().max(1.0) as u64;
        Some(Choice {
            pareto: false,
            gpu: law.gpu.to_string(),
            gpus,
            steps: workload.steps,
            width: workload.width,
            height: workload.height,
            precision: workload.precision.as_str(),
            batch: workload.batch,
            joules_per_image: round(joules),
            joules_low: round(prediction.quantile(0.05).0),
            joules_high: round(prediction.quantile(0.95).0),
            milligrams_per_image: footprint.median.0,
            images_per_gpu_hour: round(hourly),
            kilowatt_hours_per_day: round(joules * self.images_per_hour * 24.0 / 3.6e6),
            law: origin(law),
        })
    }
}

fn size(text: &str) -> anyhow::Result<(u32, u32)> {
    let parsed = text.split_once('x').and_then(|(width, height)| {
        let side = |text: &str| {
            let side = text.parse::<u32>().ok();
            side.filter(|n| (64..=8192).contains(n) && n.is_multiple_of(8))
        };
        Some((side(width)?, side(height)?))
    });
    parsed.ok_or_else(|| {
        wrong(format!(
            "--sizes {text:?} is not WIDTHxHEIGHT of multiples of 8 from 64 to 8192, for example 1024x768"
        ))
    })
}

/// Whether the denoiser's weights, with a tenth of the memory left for activations, fit.
fn fits(oracle: &Oracle, workload: &Workload, gpu: &Gpu) -> bool {
    let (Some(model), Some(sheet)) = (oracle.catalogue.get(&workload.model), gpu.sheet()) else {
        return true;
    };
    let bytes = match workload.precision {
        Precision::Fp32 | Precision::Tf32 => 4.0,
        Precision::Fp16 | Precision::Bf16 => 2.0,
        Precision::Fp8 | Precision::Int8 => 1.0,
        Precision::Fp4 => 0.5,
    };
    // Encoders and decoder stay as they are where the denoiser's weights are made smaller.
    let beside = model.text.weights + model.decoder.work.weights;
    let all = model.denoiser.weights * bytes + beside * bytes.max(2.0);
    all <= sheet.memory * 0.9 * 1e9
}

/// Marks what no other choice beats: as good in everything, and better in something.
fn mark(choices: &mut [Choice]) {
    let pixels = |c: &Choice| u64::from(c.width) * u64::from(c.height);
    let better = |a: &Choice, b: &Choice| {
        let as_good = a.joules_per_image <= b.joules_per_image
            && a.gpus <= b.gpus
            && a.steps >= b.steps
            && pixels(a) >= pixels(b);
        let more = a.joules_per_image < b.joules_per_image
            || a.gpus < b.gpus
            || a.steps > b.steps
            || pixels(a) > pixels(b);
        as_good && more
    };
    let beaten: Vec<bool> = choices
        .iter()
        .map(|choice| choices.iter().any(|other| better(other, choice)))
        .collect();
    for (choice, beaten) in choices.iter_mut().zip(beaten) {
        choice.pareto = !beaten;
    }
}

fn table(choices: &[Choice], too_big: &[String]) -> String {
    let header = [
        "",
        "GPU",
        "GPUS",
        "STEPS",
        "SIZE",
        "PRECISION",
        "BATCH",
        "AN IMAGE",
        "90 %",
        "CO2E",
        "IMAGES/GPU/H",
        "KWH/DAY",
        "LAW",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for c in choices {
        rows.push(vec![
            if c.pareto { "*" } else { "" }.to_owned(),
            c.gpu.clone(),
            c.gpus.to_string(),
            c.steps.to_string(),
            format!("{}x{}", c.width, c.height),
            c.precision.to_owned(),
            c.batch.to_string(),
            Joules(c.joules_per_image).to_string(),
            format!("{} to {}", Joules(c.joules_low), Joules(c.joules_high)),
            Milligrams(c.milligrams_per_image).to_string(),
            format!("{:.0}", c.images_per_gpu_hour),
            format!("{:.2}", c.kilowatt_hours_per_day),
            c.law.clone(),
        ]);
    }
    let mut out = columns(&rows);
    if !too_big.is_empty() {
        out += &format!("left out, the weights do not fit: {}\n", too_big.join(", "));
    }
    out
}
