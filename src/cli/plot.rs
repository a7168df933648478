//! `jouleward plot`: measured against predicted, residuals by model, energy against steps and
//! size, as SVG or PNG.

mod draw;

use super::arguments::{KnowledgeArguments, WorkloadArguments, gpu, wrong};
use super::measured;
use crate::law::score::{in_sample, leave_one_model_out};
use crate::law::{Catalogue, Features, Form, Gpu, Judged, Law, Workload, fit};
use clap::{Args, ValueEnum};
use draw::{Band, Picture, Point};
use std::path::PathBuf;

/// Draws a picture of how good a law is, or of what it says; SVG or PNG by the file's ending.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward plot runs.csv --out fit.svg
  jouleward plot runs.csv --kind residuals --gpu A100-SXM4-40GB --out residuals.png
  jouleward plot --kind steps --model sdxl --gpu NVIDIA-L40S --out steps.svg
  jouleward plot --kind size --model flux.1-dev --gpu NVIDIA-H100-80GB-HBM3 --out size.svg")]
pub(super) struct Plot {
    /// File with measured runs, for fit and residuals.
    data: Option<PathBuf>,
    /// File to write, ending in .svg or .png.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, value_enum, default_value = "fit")]
    kind: Kind,
    /// GPU product; of measured runs, the one to look at where there are several.
    #[arg(long)]
    gpu: Option<String>,
    #[command(flatten)]
    workload: WorkloadArguments,
    #[command(flatten)]
    knowledge: KnowledgeArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Measured against predicted with each model left out, and its 90 % interval.
    Fit,
    /// Errors of each model, left out and in sample.
    Residuals,
    /// Energy of an image against its steps.
    Steps,
    /// Energy of an image against its side.
    Size,
}

impl Plot {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let catalogue = self.knowledge.catalogue()?;
        let picture = match self.kind {
            Kind::Fit | Kind::Residuals => self.of_runs(&catalogue)?,
            Kind::Steps | Kind::Size => self.of_law(&catalogue)?,
        };
        draw::write(&self.out, &picture)
    }

    fn of_runs(&self, catalogue: &Catalogue) -> anyhow::Result<Picture> {
        let Some(path) = &self.data else {
            return Err(wrong(
                "a file with measured runs is missing, for example jouleward plot runs.csv --out fit.svg"
                    .to_owned(),
            ));
        };
        let data = measured::runs(path, catalogue)?;
        measured::or_why(path, &data)?;
        for row in &data.left_out {
            eprintln!("left out: {row}");
        }
        let wanted = self.gpu.as_deref().map(gpu).transpose()?;
        let known: Vec<String> = data.runs.keys().map(Gpu::to_string).collect();
        let known = known.join(", ");
        let chosen = match &wanted {
            Some(gpu) => data.runs.get_key_value(gpu),
            None => data.runs.iter().next(),
        };
        let Some((gpu, runs)) = chosen else {
            return Err(wrong(format!(
                "--gpu: there are no runs of it; there are {known}"
            )));
        };
        let refused = |error: crate::law::FitError| wrong(format!("{gpu}: {error}"));
        let form = Form::default();
        // Of runs that cannot be fitted together nothing is drawn.
        let law = fit(form, gpu, runs).map_err(refused)?;
        let left = leave_one_model_out(form, runs).map_err(refused)?;
        if self.kind == Kind::Fit {
            return Ok(Picture::Fit {
                title: format!("{gpu}: each model predicted by a law that never saw it"),
                points: left.iter().map(point).collect(),
            });
        }
        let own = in_sample(&law, runs);
        Ok(Picture::Residuals {
            title: format!("{gpu}: predicted / measured − 1, left out and in sample"),
            left: left.iter().map(point).collect(),
            own: own.iter().map(point).collect(),
        })
    }

    fn of_law(&self, catalogue: &Catalogue) -> anyhow::Result<Picture> {
        let Some(name) = &self.gpu else {
            return Err(wrong(
                "--gpu is missing, for example --gpu NVIDIA-L40S".to_owned(),
            ));
        };
        let product = gpu(name)?;
        let base = self.workload.workload(catalogue)?;
        let laws = self.knowledge.laws()?;
        if !product.is_product() && !laws.contains_key(&product) {
            return Err(wrong(format!(
                "--gpu {name:?} is no product that is known; for example {}",
                crate::law::GPU_EXAMPLES
            )));
        }
        let law = match laws.get(&product) {
            Some(law) => law.clone(),
            None => Law::for_product(Form::default(), &product, laws.values()),
        };
        let (x, values): (&str, Vec<u32>) = match self.kind {
            Kind::Steps => (
                "steps",
                (1..=50).map(|n| n * base.steps.max(25) / 25).collect(),
            ),
            _ => ("side in px", (4..=32).map(|n| n * 64).collect()),
        };
        let at = |value: u32| -> Option<Band> {
            let mut workload = Workload {
                images: u64::from(base.batch),
                ..base.clone()
            };
            if self.kind == Kind::Steps {
                workload.steps = value.max(1);
            } else {
                (workload.width, workload.height) = (value, value);
            }
            let (_, features) = catalogue.job(&workload, 1, 1)?;
            let features = Features {
                starts: 0.0,
                images: 1.0,
                ..features
            };
            let prediction = law.predict(&features);
            Some(Band {
                x: f64::from(value),
                y: prediction.median.0,
                low: prediction.quantile(0.05).0,
                high: prediction.quantile(0.95).0,
            })
        };
        let mut bands: Vec<Band> = values.into_iter().filter_map(at).collect();
        bands.dedup_by(|a, b| a.x <= b.x);
        Ok(Picture::Curve {
            title: format!(
                "{} on {product}: energy of an image, 90 % interval",
                base.model
            ),
            x: x.to_owned(),
            bands,
        })
    }
}

fn point(judged: &Judged) -> Point {
    Point {
        group: judged.model.clone(),
        measured: judged.measured,
        predicted: judged.predicted,
        low: judged.low,
        high: judged.high,
    }
}
