//! `jouleward predict`: what a job will cost, with no cluster needed: one workload, the jobs
//! of a manifest, or a table of workloads.

use super::arguments::{
    GridArguments, KnowledgeArguments, NodeArguments, WorkloadArguments, check_quantile, gpu,
    objects, oracle, origin, parameter, read, unpredictable, workload, wrong,
};
use super::output::{Format, columns, print};
use crate::budget::{Estimate, Oracle, Placement, Request};
use crate::carbon::Milligrams;
use crate::cluster::{Kind, Lite, Work};
use crate::law::{Basis, Gpu, Joules};
use clap::Args;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Predicts a job's energy and carbon from its parameters.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward predict --model flux.1-dev --gpu NVIDIA-A100-SXM4-40GB --num-inference-steps 28 \\
      --width 1024 --height 1024 --num-images 100 --country DEU
  jouleward predict --model sdxl --gpu NVIDIA-H100-80GB-HBM3 --cloud-region aws/eu-north-1 -o json
  jouleward predict -f job.yaml --gpu NVIDIA-L40S
  jouleward predict --table workloads.csv -o csv
A table has a column for each parameter (model, width, steps, …), and gpu, gpus, pods.")]
pub(super) struct Predict {
    #[command(flatten)]
    workload: WorkloadArguments,
    /// GPU product, as nvidia-smi or the node label nvidia.com/gpu.product writes it.
    #[arg(long)]
    gpu: Option<String>,
    /// Pods that each generate the images.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pods: u32,
    /// GPUs of each pod.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: u32,
    /// Manifest with Jobs or Pods, YAML or JSON.
    #[arg(short, long, conflicts_with = "table")]
    filename: Option<PathBuf>,
    /// CSV table with one workload a line.
    #[arg(long)]
    table: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArguments,
    #[command(flatten)]
    grid: GridArguments,
    #[command(flatten)]
    knowledge: KnowledgeArguments,
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
    /// Of a manifest or a table: which of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
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
    /// Whether idle power is in the energies.
    basis: &'static str,
    /// Dimensions in which the workload lies outside of what the law has learnt from.
    outside: Vec<&'static str>,
    assumed: Vec<Cow<'static, str>>,
}

/// Kinds that run GPU work by way of pods of their own.
const COUNTED_BY_ITS_PODS: [&str; 6] = [
    "CronJob",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "JobSet",
];

/// Columns of a table that are no parameters.
const COLUMNS: [&str; 4] = ["gpu", "gpus", "num_gpus", "pods"];

/// A request and what it is called.
struct Asked {
    name: Option<String>,
    request: Request,
}

impl Predict {
    pub(super) fn run(self) -> anyhow::Result<()> {
        check_quantile(self.quantile)?;
        let oracle = oracle(&self.knowledge, &self.grid)?;
        if (self.filename.is_some() || self.table.is_some()) && !self.workload.is_empty() {
            return Err(wrong(
                "--model and its parameters come from the file: leave them out, or leave out --filename and --table"
                    .to_owned(),
            ));
        }
        let asked = match (&self.filename, &self.table) {
            (Some(path), _) => self.of_manifest(path, &oracle)?,
            (_, Some(path)) => self.of_table(path, &oracle)?,
            _ => vec![self.of_flags(&oracle)?],
        };
        let single = asked.len() == 1 && asked[0].name.is_none();
        let mut made = Vec::with_capacity(asked.len());
        for asked in asked {
            made.push(self.estimate(&oracle, asked)?);
        }
        if single && let Some((report, estimate)) = made.pop() {
            return print(self.output, &report, |report| table(report, &estimate));
        }
        let reports: Vec<Report> = made.into_iter().map(|(report, _)| report).collect();
        print(self.output, &reports, |reports| list(reports))
    }

    fn estimate(&self, oracle: &Oracle, asked: Asked) -> anyhow::Result<(Report, Estimate)> {
        let named = |text: String| match &asked.name {
            Some(name) => wrong(format!("{name}: {text}")),
            None => wrong(text),
        };
        let first = asked.request.eligible.first().cloned();
        let estimate = oracle
            .estimate(&asked.request, self.quantile)
            .map_err(|error| named(unpredictable(error, self.gpu.as_deref())))?;
        let own = first.is_some_and(|gpu| oracle.laws.contains_key(&gpu));
        let source = if own {
            "file".to_owned()
        } else {
            origin(&oracle.law(&estimate.gpu))
        };
        let report = self.report(&asked, &estimate, &source);
        Ok((report, estimate))
    }

    fn of_flags(&self, oracle: &Oracle) -> anyhow::Result<Asked> {
        let Some(name) = &self.gpu else {
            return Err(wrong(format!(
                "--gpu is missing: name a product, for example {}",
                crate::law::GPU_EXAMPLES
            )));
        };
        Ok(Asked {
            name: None,
            request: Request {
                namespace: String::new(),
                workload: self.workload.workload(&oracle.catalogue)?,
                pods: self.pods,
                gpus: self.gpus,
                eligible: vec![self::gpu(name)?],
                placement: Placement::default(),
                stack: self.node.stack()?,
            },
        })
    }

    /// Jobs and pods that ask for a GPU, as admission would read them.
    fn of_manifest(&self, path: &PathBuf, oracle: &Oracle) -> anyhow::Result<Vec<Asked>> {
        let text = read(path, "--filename:", "give a manifest with a Job or a Pod")?;
        let file = path.display();
        let stack = self.node.stack()?;
        let mut asked = Vec::new();
        let objects =
            objects(&text).map_err(|error| wrong(format!("{file} is no manifest: {error}")))?;
        for object in objects {
            let kind = match object.get("kind").and_then(serde_json::Value::as_str) {
                Some("Job") => Kind::Job,
                Some("Pod") => Kind::Pod,
                Some(other) if COUNTED_BY_ITS_PODS.contains(&other) => {
                    eprintln!(
                        "jouleward: {other} is left out: predict the Job or Pod that it makes"
                    );
                    continue;
                }
                _ => continue,
            };
            let lite: Lite = serde_json::from_value(object)
                .map_err(|error| wrong(format!("{file} is no {}: {error}", kind.as_str())))?;
            let Some(work) = Work::of(kind, lite) else {
                continue;
            };
            let name = format!("{}/{}", kind.as_str().to_lowercase(), work.name);
            let workload = workload(
                &work.annotations,
                &oracle.catalogue,
                "annotation jouleward.dev/",
            )
            .map_err(|why| wrong(format!("{name}: {why}")))?;
            let mut eligible = work.eligible;
            if let Some(name) = &self.gpu {
                eligible = vec![gpu(name)?];
            }
            asked.push(Asked {
                name: Some(name),
                request: Request {
                    namespace: String::new(),
                    workload,
                    pods: work.pods,
                    gpus: work.gpus,
                    eligible,
                    placement: Placement::default(),
                    stack: stack.clone(),
                },
            });
        }
        if asked.is_empty() {
            return Err(wrong(format!(
                "{file} has no Job or Pod that asks for nvidia.com/gpu"
            )));
        }
        Ok(asked)
    }

    fn of_table(&self, path: &PathBuf, oracle: &Oracle) -> anyhow::Result<Vec<Asked>> {
        let text = read(path, "--table:", "give a CSV file with one workload a line")?;
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers()?.clone();
        check_columns(path, &header)?;
        let stack = self.node.stack()?;
        let mut asked = Vec::new();
        for (index, record) in reader.records().enumerate() {
            let line = format!("line {}", index + 2);
            let record = record.map_err(|error| wrong(format!("{line}: {error}")))?;
            let cells = || {
                header
                    .iter()
                    .map(str::trim)
                    .zip(record.iter().map(str::trim))
            };
            let annotations: BTreeMap<String, String> = cells()
                .filter(|(_, cell)| !cell.is_empty())
                .filter_map(|(column, cell)| Some((parameter(column)?.to_owned(), cell.to_owned())))
                .collect();
            let workload = workload(&annotations, &oracle.catalogue, "")
                .map_err(|why| wrong(format!("{line}: {why}")))?;
            let cell = |name: &str| cells().find(|(column, _)| *column == name).map(|c| c.1);
            let number = |name: &str, default: u32, most: u32| match cell(name) {
                None | Some("") => Ok(default),
                Some(text) => text
                    .parse::<u32>()
                    .ok()
                    .filter(|n| (1..=most).contains(n))
                    .ok_or_else(|| {
                        wrong(format!("{line}: {name} {text:?} is not from 1 to {most}"))
                    }),
            };
            let product = cell("gpu")
                .filter(|text| !text.is_empty())
                .or(self.gpu.as_deref());
            let eligible: Vec<Gpu> = product.map(gpu).transpose()?.into_iter().collect();
            asked.push(Asked {
                name: Some(line.clone()),
                request: Request {
                    namespace: String::new(),
                    workload,
                    pods: number("pods", self.pods, 100_000)?,
                    gpus: number("num_gpus", number("gpus", self.gpus, 64)?, 64)?,
                    eligible,
                    placement: Placement::default(),
                    stack: stack.clone(),
                },
            });
        }
        if asked.is_empty() {
            return Err(wrong(format!(
                "{} has no line below its header",
                path.display()
            )));
        }
        Ok(asked)
    }

    fn report(&self, asked: &Asked, estimate: &Estimate, source: &str) -> Report {
        let images = estimate.workload.images * u64::from(asked.request.pods);
        let joules = |energy: Joules| (energy.0 * 10.0).round() / 10.0;
        let count = &estimate.count;
        Report {
            name: asked.name.clone(),
            model: estimate.workload.model.clone(),
            gpu: estimate.gpu.to_string(),
            teraflops_text: (count.text + count.prior).flops().tera(),
            teraflops_denoising: (count.encoding + count.denoising).flops().tera(),
            teraflops_decoding: count.decoding.flops().tera(),
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
                "{}, {} runs, {source}{}",
                estimate.form.as_str(),
                estimate.observations,
                match estimate.basis {
                    Basis::Gross => "",
                    Basis::Net => "; net of idle power, and a budget charges gross",
                }
            ),
            basis: estimate.basis.as_str(),
            outside: estimate.prediction.outside.names().collect(),
            assumed: estimate.workload.assumed.clone(),
        }
    }
}

/// Refuses a column that would be ignored, or that stands there twice.
fn check_columns(path: &Path, header: &csv::StringRecord) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for column in header.iter().map(str::trim) {
        let own = COLUMNS.iter().find(|own| **own == column).copied();
        let Some(known) = parameter(column).or(own) else {
            return Err(wrong(format!(
                "{}: column {column:?} is neither a parameter nor gpu, gpus or pods; for example model,gpu,width,height,num_inference_steps",
                path.display()
            )));
        };
        if !seen.insert(known) {
            return Err(wrong(format!(
                "{}: column {column:?} is there twice",
                path.display()
            )));
        }
    }
    Ok(())
}

fn table(report: &Report, estimate: &Estimate) -> String {
    let tera = |x: f64| format!("{x:.2} TFLOP");
    let w = &estimate.workload;
    let what = if w.frames > 1 {
        format!("videos of {} frames", w.frames)
    } else {
        "images".to_owned()
    };
    let row = |name: &str, text: String| vec![name.to_owned(), text];
    let mut rows = vec![
        row(
            "job",
            format!(
                "{} {what}, {} {}x{}, {} steps",
                report.images, w.model, w.width, w.height, w.steps
            ),
        ),
        row("GPU", report.gpu.clone()),
        row(
            "work",
            format!(
                "{} each: text {}, denoising {}, decoding {}",
                tera(estimate.features.flops.tera()),
                tera(report.teraflops_text),
                tera(report.teraflops_denoising),
                tera(report.teraflops_decoding)
            ),
        ),
        row(
            "energy",
            format!(
                "{}, 90 % between {} and {}",
                Joules(report.joules_median),
                Joules(report.joules_p05),
                Joules(report.joules_p95)
            ),
        ),
        row(
            "carbon",
            format!(
                "{} CO2e; a budget would set aside {} (p{:.0})",
                Milligrams(report.milligrams_median),
                Milligrams(report.milligrams_charged),
                report.quantile * 100.0
            ),
        ),
        row("grid", report.intensity.clone()),
        row("PUE", format!("{:.2}, {}", report.pue, report.pue_source)),
        row("law", report.law.clone()),
    ];
    if !report.outside.is_empty() {
        let outside = report.outside.join(", ");
        rows.push(row(
            "outside",
            format!("nothing like it was learnt from in {outside}"),
        ));
    }
    if !report.assumed.is_empty() {
        let names: Vec<String> = report
            .assumed
            .iter()
            .map(|name| name.replace("jouleward.dev/", "--"))
            .collect();
        rows.push(row(
            "assumed",
            format!("pipeline defaults for {}", names.join(", ")),
        ));
    }
    columns(&rows)
}

fn list(reports: &[Report]) -> String {
    let header = [
        "JOB", "MODEL", "GPU", "IMAGES", "ENERGY", "90 %", "CO2E", "CHARGED",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for r in reports {
        rows.push(vec![
            r.name.clone().unwrap_or_default(),
            r.model.clone(),
            r.gpu.clone(),
            r.images.to_string(),
            Joules(r.joules_median).to_string(),
            format!("{} to {}", Joules(r.joules_p05), Joules(r.joules_p95)),
            Milligrams(r.milligrams_median).to_string(),
            Milligrams(r.milligrams_charged).to_string(),
        ]);
    }
    columns(&rows)
}
