//! `jouleward fit`: both laws fitted to a table of runs, and how good they are.

use super::WrongInput;
use super::output::{Format, columns, print};
use crate::law::dataset::read_csv;
use crate::law::{Catalogue, Form, Gpu, Law, Score, fit, leave_one_model_out, score};
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Fits the energy laws to measured runs and scores them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward fit runs.csv
  jouleward fit runs.csv --save laws/ -o json
Columns: model, gpu, width, height, steps, energy_joules_per_image; optional num_gpus,
precision, frames, cfg, batch_size. Rows that cannot be used are listed with their line.")]
pub(super) struct Fit {
    /// CSV file with one run a line.
    data: PathBuf,
    /// Folder to write each GPU's additive law into, for `jouleward predict --law`.
    #[arg(long)]
    save: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    laws: Vec<Fitted>,
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fitted {
    gpu: String,
    form: Form,
    parameters: BTreeMap<String, f64>,
    in_sample: Score,
    /// Absent with fewer than three models.
    leave_one_model_out: Option<Score>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    line: u64,
    why: String,
}

impl Fit {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = self.data.display();
        let text = std::fs::read_to_string(&self.data).map_err(|error| {
            WrongInput(format!(
                "cannot read {path}: {error}; give a CSV file with one run a line"
            ))
        })?;
        let dataset = read_csv(&text, &Catalogue::built_in())
            .map_err(|error| WrongInput(format!("{path}: {error}")))?;
        let mut laws = Vec::new();
        for (gpu, runs) in &dataset.runs {
            for form in [Form::Additive, Form::Paper] {
                let law = fit(form, gpu, runs);
                if form == Form::Additive {
                    self.save(gpu, &law)?;
                }
                let in_sample = score(&law, runs);
                laws.push(Fitted {
                    gpu: gpu.to_string(),
                    form,
                    parameters: parameters(&law),
                    leave_one_model_out: (in_sample.models >= 3)
                        .then(|| leave_one_model_out(form, runs)),
                    in_sample,
                });
            }
        }
        let left_out = dataset.left_out.into_iter().map(|row| LeftOut {
            line: row.line,
            why: row.why,
        });
        let report = Report {
            laws,
            left_out: left_out.collect(),
        };
        if report.laws.is_empty() {
            let why = report
                .left_out
                .first()
                .map_or("it has no rows".to_owned(), |row| {
                    format!("line {}: {}", row.line, row.why)
                });
            return Err(WrongInput(format!("{path} has no row that can be used; {why}")).into());
        }
        print(self.output, &report, table)
    }

    fn save(&self, gpu: &Gpu, law: &Law) -> anyhow::Result<()> {
        let Some(folder) = &self.save else {
            return Ok(());
        };
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{}.json", gpu.law_name()));
        std::fs::write(&path, law.save())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn parameters(law: &Law) -> BTreeMap<String, f64> {
    let shown = |(name, mean): (&str, f64)| {
        let value = law.parameter(name).unwrap_or(mean);
        (name.to_owned(), (value * 1e4).round() / 1e4)
    };
    law.parameters().map(shown).collect()
}

fn table(report: &Report) -> String {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let header = [
        "GPU",
        "LAW",
        "RUNS",
        "MODELS",
        "MAPE",
        "LEAVE-ONE-MODEL-OUT",
        "WORST",
        "90 % COVERS",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for law in &report.laws {
        let left = law.leave_one_model_out;
        let or_dash =
            |pick: fn(Score) -> f64| left.map_or("-".to_owned(), |score| percent(pick(score)));
        rows.push(vec![
            law.gpu.clone(),
            law.form.as_str().to_owned(),
            law.in_sample.runs.to_string(),
            law.in_sample.models.to_string(),
            percent(law.in_sample.mape),
            or_dash(|score| score.mape),
            or_dash(|score| score.worst),
            or_dash(|score| score.coverage_90),
        ]);
    }
    let mut text = columns(&rows);
    for law in report.laws.iter().filter(|law| law.form == Form::Additive) {
        let get = |name: &str| law.parameters.get(name).copied().unwrap_or(f64::NAN);
        text += &format!(
            "{}: {:.2} J a step, {:.2} J a TFLOP\n",
            law.gpu,
            get("step"),
            get("teraflop")
        );
    }
    if !report.left_out.is_empty() {
        text += &format!("{} rows left out:\n", report.left_out.len());
        let mut whys: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for row in &report.left_out {
            whys.entry(&row.why).or_default().push(row.line);
        }
        for (why, lines) in whys {
            let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
            text += &format!("  {why}: line {}\n", lines.join(", "));
        }
    }
    text
}
