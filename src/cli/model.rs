//! `jouleward model`: what the catalogue knows, and how a model of one's own gets into it.

mod import;

use super::arguments::{KnowledgeArguments, wrong};
use super::output::{Format, columns, print};
use crate::law::network::Extent;
use crate::law::{Model as Known, Workload};
use clap::{Args, Subcommand};
use serde::Serialize;

/// Lists the models of the catalogue, or derives an entry from a model's own configuration.
#[derive(Debug, Args)]
pub(super) struct Model {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Import(import::Import),
}

impl Model {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::List(list) => list.run(),
            Command::Import(import) => import.run(),
        }
    }
}

/// Lists the models with the work of one pass at the pipeline's own size.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward model list
  jouleward model list --catalogue ours.yaml -o json")]
struct List {
    #[command(flatten)]
    knowledge: KnowledgeArguments,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    network: String,
    width: u32,
    height: u32,
    frames: u32,
    steps: u32,
    teraflops_per_pass: f64,
    teraflops_per_image: f64,
    weights_billions: f64,
    /// False where the published configuration was recalled.
    certain: bool,
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let catalogue = self.knowledge.catalogue()?;
        let mut rows = Vec::new();
        for name in catalogue.names() {
            let model = catalogue
                .get(name)
                .ok_or_else(|| wrong(format!("model {name} is gone")))?;
            let workload = Workload::of(model);
            let Some((count, _)) = catalogue.job(&workload, 1, 1) else {
                continue;
            };
            rows.push(Row {
                name: name.to_owned(),
                network: model.architecture.clone(),
                width: workload.width,
                height: workload.height,
                frames: workload.frames,
                steps: workload.steps,
                teraflops_per_pass: round(pass(model, &workload)),
                teraflops_per_image: round(count.flops().tera()),
                weights_billions: round(model.denoiser.weights / 1e9),
                certain: model.certain,
            });
        }
        print(self.output, &rows, |rows| table(rows))
    }
}

fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// TFLOPs of one pass at a workload's size.
fn pass(model: &Known, workload: &Workload) -> f64 {
    let frames = model.frames.map_or(1, |f| f.latent(workload.frames));
    let extent = Extent {
        tokens: f64::from(workload.width) * f64::from(workload.height) / 256.0,
        frames: f64::from(frames),
    };
    model.denoiser.flops(extent).tera()
}

fn table(rows: &[Row]) -> String {
    let header = [
        "MODEL",
        "SIZE",
        "STEPS",
        "TFLOP/PASS",
        "TFLOP/IMAGE",
        "WEIGHTS",
        "NETWORK",
    ];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    for r in rows {
        let frames = if r.frames > 1 {
            format!("x{}", r.frames)
        } else {
            String::new()
        };
        cells.push(vec![
            format!("{}{}", r.name, if r.certain { "" } else { " (recalled)" }),
            format!("{}x{}{frames}", r.width, r.height),
            r.steps.to_string(),
            format!("{:.3}", r.teraflops_per_pass),
            format!("{:.1}", r.teraflops_per_image),
            format!("{:.2}e9", r.weights_billions),
            r.network.clone(),
        ]);
    }
    columns(&cells)
}
