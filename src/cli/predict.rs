//! `jouleward predict`: what a job will cost, with no cluster needed.

use super::WrongInput;
use super::output::{Format, columns, print};
use crate::budget::{Estimate, EstimateError, Oracle, Request};
use crate::carbon::{Intensity, Milligrams, Place, Pue, embedded};
use crate::law::workload::{
    BATCH, GUIDANCE, HEIGHT, IMAGES, MODEL, PRECISION, STEPS, TRUE_CFG, WIDTH,
};
use crate::law::{Catalogue, Gpu, Joules, Law, Workload};
use clap::Args;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Predicts a job's energy and carbon from its parameters.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward predict --model flux.1-dev --gpu NVIDIA-A100-SXM4-40GB --num-inference-steps 28 \\
      --width 1024 --height 1024 --num-images 100 --country DEU
  jouleward predict --model sdxl --gpu NVIDIA-H100-80GB-HBM3 --cloud-region aws/eu-north-1 -o json")]
pub(super) struct Predict {
    /// Model: a name of the catalogue or a Hugging Face repository.
    #[arg(long)]
    model: String,
    /// GPU product, as nvidia-smi or the node label nvidia.com/gpu.product writes it.
    #[arg(long)]
    gpu: String,
    /// Pixels.
    #[arg(long)]
    width: Option<String>,
    /// Pixels.
    #[arg(long)]
    height: Option<String>,
    #[arg(long)]
    num_inference_steps: Option<String>,
    #[arg(long)]
    guidance_scale: Option<String>,
    #[arg(long)]
    true_cfg_scale: Option<String>,
    /// fp32, tf32, fp16, bf16, fp8, int8 or fp4.
    #[arg(long)]
    precision: Option<String>,
    /// Images of one pod.
    #[arg(long)]
    num_images: Option<String>,
    #[arg(long)]
    batch_size: Option<String>,
    /// Pods that each generate the images.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pods: u32,
    /// GPUs of each pod.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: u32,
    /// Country of the grid, ISO 3166-1 alpha-3.
    #[arg(long, conflicts_with_all = ["cloud_region", "intensity"])]
    country: Option<String>,
    /// Cloud region, for example aws/eu-central-1.
    #[arg(long, conflicts_with = "intensity")]
    cloud_region: Option<String>,
    /// Carbon intensity of the grid in g/kWh.
    #[arg(long)]
    intensity: Option<f64>,
    /// Power usage effectiveness of the site.
    #[arg(long)]
    pue: Option<f64>,
    /// A law fitted with `jouleward fit --save`; else the built-in prior.
    #[arg(long)]
    law: Option<PathBuf>,
    /// Quantile that a budget would charge.
    #[arg(long, default_value_t = 0.9)]
    quantile: f64,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    model: String,
    gpu: String,
    teraflops_text: f64,
    teraflops_denoising: f64,
    teraflops_decoding: f64,
    images: u64,
    joules_median: f64,
    joules_p05: f64,
    joules_p95: f64,
    joules_charged: f64,
    joules_per_image: f64,
    milligrams_median: i64,
    milligrams_charged: i64,
    quantile: f64,
    intensity: String,
    pue: f64,
    pue_source: String,
    law: String,
    assumed: Vec<Cow<'static, str>>,
}

impl Predict {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if !(self.quantile > 0.0 && self.quantile < 1.0) {
            return Err(wrong(format!(
                "--quantile {} is not between 0 and 1, for example 0.9",
                self.quantile
            )));
        }
        let catalogue = Catalogue::built_in();
        let workload =
            Workload::from_annotations(&self.annotations(), &catalogue).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                wrong(lines.join("; ").replace("annotation jouleward.dev/", "--"))
            })?;
        let gpu = Gpu::parse(&self.gpu).ok_or_else(|| {
            wrong(format!(
                "--gpu is empty; for example {}",
                crate::law::GPU_EXAMPLES
            ))
        })?;
        let fallback = self.grid()?;
        let laws = self.laws(&gpu)?;
        let source = if laws.is_empty() {
            gpu.prior().source.to_owned()
        } else {
            "file".to_owned()
        };
        let oracle = Oracle {
            catalogue,
            laws,
            sites: Vec::new(),
            fallback,
        };
        let request = Request {
            workload,
            pods: self.pods,
            gpus: self.gpus,
            eligible: vec![gpu],
        };
        let estimate = oracle
            .estimate(&request, self.quantile)
            .map_err(|error| match error {
                EstimateError::UnknownGpu { allowed, .. } => wrong(format!(
                    "--gpu {:?} is no GPU product that is known; {allowed}",
                    self.gpu
                )),
                other => other.into(),
            })?;
        print(self.output, &self.report(&estimate, &source), |report| {
            table(report, &estimate)
        })
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let given = [
            (MODEL, Some(&self.model)),
            (WIDTH, self.width.as_ref()),
            (HEIGHT, self.height.as_ref()),
            (STEPS, self.num_inference_steps.as_ref()),
            (GUIDANCE, self.guidance_scale.as_ref()),
            (TRUE_CFG, self.true_cfg_scale.as_ref()),
            (PRECISION, self.precision.as_ref()),
            (IMAGES, self.num_images.as_ref()),
            (BATCH, self.batch_size.as_ref()),
        ];
        given
            .into_iter()
            .filter_map(|(a, value)| Some((a.name.to_owned(), value?.clone())))
            .collect()
    }

    fn grid(&self) -> anyhow::Result<(Intensity, Pue)> {
        let place = match (&self.country, &self.cloud_region) {
            (Some(code), _) => Place::Country(code.clone()),
            (_, Some(region)) => {
                let (provider, region) = region.split_once('/').ok_or_else(|| {
                    wrong(format!("--cloud-region {region:?} is not PROVIDER/REGION, for example aws/eu-central-1"))
                })?;
                Place::Region {
                    provider: provider.to_owned(),
                    region: region.to_owned(),
                }
            }
            _ => Place::World,
        };
        let (mut intensity, mut pue) =
            embedded(&place).map_err(|error| wrong(error.to_string()))?;
        if let Some(grams_per_kwh) = self.intensity {
            intensity = Intensity {
                grams_per_kwh,
                zone: "given".into(),
                source: "--intensity".into(),
                ..intensity
            };
            intensity = intensity
                .check()
                .map_err(|error| wrong(format!("--intensity: {error}")))?;
        }
        if let Some(value) = self.pue {
            if !(1.0..=5.0).contains(&value) {
                return Err(wrong(format!(
                    "--pue {value} is not from 1 to 5, for example 1.2"
                )));
            }
            pue = Pue {
                value,
                source: "--pue".to_owned(),
            };
        }
        Ok((intensity, pue))
    }

    fn laws(&self, gpu: &Gpu) -> anyhow::Result<BTreeMap<Gpu, Law>> {
        let Some(path) = &self.law else {
            return Ok(BTreeMap::new());
        };
        let file = path.display();
        let hint = "`jouleward fit FILE --save FOLDER` writes such a file";
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong(format!("--law: cannot read {file}: {error}; {hint}")))?;
        let law = Law::load(&text)
            .map_err(|error| wrong(format!("--law: {file} is no law: {error}; {hint}")))?;
        if law.gpu != *gpu {
            return Err(wrong(format!(
                "{} is the law of {}, not of {gpu}",
                path.display(),
                law.gpu
            )));
        }
        Ok(BTreeMap::from([(gpu.clone(), law)]))
    }

    fn report(&self, estimate: &Estimate, source: &str) -> Report {
        let images = estimate.workload.images * u64::from(self.pods);
        let joules = |energy: Joules| (energy.0 * 10.0).round() / 10.0;
        Report {
            model: estimate.workload.model.clone(),
            gpu: estimate.gpu.to_string(),
            teraflops_text: estimate.flops.text.tera(),
            teraflops_denoising: estimate.flops.denoising.tera(),
            teraflops_decoding: estimate.flops.decoding.tera(),
            images,
            joules_median: joules(estimate.prediction.median),
            joules_p05: joules(estimate.prediction.quantile(0.05)),
            joules_p95: joules(estimate.prediction.quantile(0.95)),
            joules_charged: joules(estimate.prediction.quantile(self.quantile)),
            joules_per_image: joules(Joules(estimate.prediction.median.0 / images as f64)),
            milligrams_median: estimate.footprint.median.0,
            milligrams_charged: estimate.footprint.charged.0,
            quantile: self.quantile,
            intensity: estimate.intensity.to_string(),
            pue: estimate.pue.value,
            pue_source: estimate.pue.source.clone(),
            law: format!(
                "{}, {} runs, {source}",
                estimate.form.as_str(),
                estimate.observations
            ),
            assumed: estimate.workload.assumed.clone(),
        }
    }
}

fn wrong(text: String) -> anyhow::Error {
    WrongInput(text).into()
}

fn table(report: &Report, estimate: &Estimate) -> String {
    let tera = |x: f64| format!("{x:.2} TFLOP");
    let w = &estimate.workload;
    let mut rows = vec![
        vec![
            "job".into(),
            format!(
                "{} images, {} {}x{}, {} steps",
                report.images, w.model, w.width, w.height, w.steps
            ),
        ],
        vec!["GPU".into(), report.gpu.clone()],
        vec![
            "work".into(),
            format!(
                "{} an image: text {}, denoising {}, decoding {}",
                tera(estimate.flops.total().tera()),
                tera(report.teraflops_text),
                tera(report.teraflops_denoising),
                tera(report.teraflops_decoding)
            ),
        ],
        vec![
            "energy".into(),
            format!(
                "{}, 90 % between {} and {}",
                Joules(report.joules_median),
                Joules(report.joules_p05),
                Joules(report.joules_p95)
            ),
        ],
        vec![
            "carbon".into(),
            format!(
                "{} CO2e; a budget would set aside {} (p{:.0})",
                Milligrams(report.milligrams_median),
                Milligrams(report.milligrams_charged),
                report.quantile * 100.0
            ),
        ],
        vec!["grid".into(), report.intensity.clone()],
        vec![
            "PUE".into(),
            format!("{:.2}, {}", report.pue, report.pue_source),
        ],
        vec!["law".into(), report.law.clone()],
    ];
    if !report.assumed.is_empty() {
        let names: Vec<String> = report
            .assumed
            .iter()
            .map(|name| name.replace("jouleward.dev/", "--"))
            .collect();
        rows.push(vec![
            "assumed".into(),
            format!("pipeline defaults for {}", names.join(", ")),
        ]);
    }
    columns(&rows)
}
