//! `jouleward fit`: the laws fitted to a table of runs, and how good they are.

use super::arguments::{KnowledgeArguments, laws_of, read, wrong};
use super::measured;
use super::output::{Format, columns, print};
use super::prometheus;
use crate::law::score::leave_one_model_out;
use crate::law::{Form, Gpu, Law, Observation, Score, fit, fit_from, score};
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Fits the energy laws to measured runs and scores them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward fit runs.csv
  jouleward fit runs.csv --save laws/ -o json
  jouleward fit --prometheus http://127.0.0.1:9090 --range 30d --save laws/
  kubectl get energylaws -o yaml > laws.yaml; jouleward fit laws.yaml
  jouleward fit new-runs.jsonl --law laws.yaml
Columns: model, gpu, width, height, steps, energy_joules_per_image (or energy_wh_per_image, or
of the whole run energy_joules, energy_wh, energy_kwh with images); optional num_gpus,
precision, frames, cfg, guidance_scale, batch_size, strength, scheduler, basis (gross or net of
idle). JSON lines (.jsonl) have the same names. Rows that cannot be used are listed with their
line. Of EnergyLaw objects (.yaml, .json) what the cluster has learnt is shown as it stands.")]
pub(super) struct Fit {
    /// CSV file, or JSON lines, with one run a line; or EnergyLaw objects in YAML or JSON.
    #[arg(required_unless_present = "prometheus", conflicts_with = "prometheus")]
    data: Option<PathBuf>,
    /// Prometheus-compatible server with the exporter's and kube-state-metrics' series, for
    /// example http://127.0.0.1:9090: every pod that succeeded is a run.
    #[arg(long)]
    prometheus: Option<String>,
    /// How far back to look there.
    #[arg(long, default_value = "7d")]
    range: String,
    /// Folder to write each GPU's law into, for `--law` of other subcommands.
    #[arg(long)]
    save: Option<PathBuf>,
    #[command(flatten)]
    knowledge: KnowledgeArguments,
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
    /// Whether idle power is in the energies.
    basis: &'static str,
    runs: u64,
    models: usize,
    parameters: BTreeMap<String, f64>,
    /// Power limit beside the boards' default, taken where a job's is not known.
    usual_power_limit: f64,
    /// Absent where the runs are not at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_sample: Option<Score>,
    /// Of a cluster's law: mean error of what it said before each run, newer ones weighing more.
    #[serde(skip_serializing_if = "Option::is_none")]
    recent_error: Option<f64>,
    /// Absent with fewer than three models.
    leave_one_model_out: Option<Score>,
    /// What to know before trusting it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    line: u64,
    why: String,
}

impl Fit {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if let Some(path) = self.data.as_ref().filter(|path| holds_objects(path)) {
            return self.print(&self.learnt(path)?);
        }
        let catalogue = self.knowledge.catalogue()?;
        let begun = self.knowledge.laws()?;
        let (dataset, source) = match (&self.data, &self.prometheus) {
            (Some(path), _) => (measured::runs(path, &catalogue)?, path.clone()),
            (None, url) => {
                let url = url.clone().unwrap_or_default();
                let server = prometheus::Server::new(&url, &self.range)?;
                (server.runs(&catalogue).await?, PathBuf::from(url))
            }
        };
        measured::or_why(&source, &dataset)?;
        let mut laws = Vec::new();
        for (gpu, runs) in &dataset.runs {
            for form in Form::ALL {
                let from = begun.get(gpu).filter(|law| law.form == form);
                laws.push(self.fitted(form, gpu, runs, from)?);
            }
        }
        measured::tell_of_batches(dataset.batch_open);
        let left_out = dataset.left_out.into_iter().map(|row| LeftOut {
            line: row.line,
            why: row.why,
        });
        let report = Report {
            laws,
            left_out: left_out.collect(),
        };
        self.print(&report)
    }

    /// As CSV, a line a law.
    fn print(&self, report: &Report) -> anyhow::Result<()> {
        match self.output {
            Format::Csv => {
                for row in &report.left_out {
                    eprintln!("jouleward: left out: line {}: {}", row.line, row.why);
                }
                print(self.output, &report.laws, |_| String::new())
            }
            other => print(other, report, table),
        }
    }

    /// What a cluster has learnt, out of its EnergyLaw objects.
    fn learnt(&self, path: &PathBuf) -> anyhow::Result<Report> {
        let hint = "give EnergyLaw objects, for example of kubectl get energylaws -o yaml";
        let text = read(path, "fit:", hint)?;
        let mut laws = Vec::new();
        for law in laws_of(path, &text)? {
            self.save(&law.gpu, &law)?;
            laws.push(Fitted {
                gpu: law.gpu.to_string(),
                form: law.form,
                basis: law.basis().unwrap_or_default().as_str(),
                runs: law.observations,
                models: law.models(),
                parameters: parameters(&law),
                usual_power_limit: law.usual_power_limit(),
                in_sample: None,
                recent_error: law.recent_error(),
                leave_one_model_out: None,
                notes: Vec::new(),
            });
        }
        let left_out = Vec::new();
        Ok(Report { laws, left_out })
    }

    fn fitted(
        &self,
        form: Form,
        gpu: &Gpu,
        runs: &[Observation],
        from: Option<&Law>,
    ) -> anyhow::Result<Fitted> {
        let refused = |error: crate::law::FitError| wrong(format!("{gpu}: {error}"));
        let law = match from {
            Some(law) => fit_from(law.clone(), runs).map_err(refused)?,
            None => fit(form, gpu, runs).map_err(refused)?,
        };
        if form == Form::default() {
            self.save(gpu, &law)?;
        }
        let in_sample = score(&law, runs);
        let left_out = if in_sample.models >= 3 {
            Some(Score::of(
                &leave_one_model_out(form, runs).map_err(refused)?,
            ))
        } else {
            None
        };
        Ok(Fitted {
            gpu: gpu.to_string(),
            form,
            basis: runs.first().map_or("gross", |run| run.basis.as_str()),
            runs: law.observations,
            models: in_sample.models,
            parameters: parameters(&law),
            usual_power_limit: law.usual_power_limit(),
            in_sample: Some(in_sample),
            recent_error: None,
            leave_one_model_out: left_out,
            notes: notes(form, &law, runs, from.is_some()),
        })
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

/// True where the file's ending is that of objects.
fn holds_objects(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    matches!(ending, Some("yaml" | "yml" | "json"))
}

/// What too few runs, or too few different ones, leave untold.
fn notes(form: Form, law: &Law, runs: &[Observation], begun: bool) -> Vec<String> {
    let shared = law.parameters().filter(|(name, _)| !name.contains('/'));
    let shared = shared.count();
    let different = |run: &Observation| {
        let f = &run.features;
        let numbers = [f.calls, f.flops.0, f.images, f.gpus, f.batch];
        (f.model.clone(), numbers.map(f64::to_bits))
    };
    let different: BTreeSet<_> = runs.iter().map(different).collect();
    let energies: BTreeSet<u64> = runs.iter().map(|run| run.energy.0.to_bits()).collect();
    let mut notes = Vec::new();
    let models: BTreeSet<&str> = runs.iter().map(|r| r.features.model.as_str()).collect();
    let forgotten: Vec<&str> = models
        .into_iter()
        .filter(|model| law.runs_of(model) == 0)
        .collect();
    if form == Form::default() && !forgotten.is_empty() {
        notes.push(format!(
            "a law keeps {} levels of models, classes, precisions and stacks; those of {} were met first and are forgotten: fit fewer models, or those last that matter most",
            crate::law::LEVELS,
            forgotten.join(", ")
        ));
    }
    if different.len() < shared && !begun {
        notes.push(format!(
            "{} different runs for the {shared} parameters of the {} law: what they do not tell stays as it is believed before any run",
            different.len(),
            form.as_str()
        ));
    }
    if form == Form::default() && runs.len() > 1 && energies.len() == 1 {
        notes.push(format!(
            "all {} runs have the same energy: measured values scatter, so look where they are from",
            runs.len()
        ));
    }
    notes
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
        let left = law.leave_one_model_out.as_ref();
        let or_dash =
            |pick: fn(&Score) -> f64| left.map_or("-".to_owned(), |score| percent(pick(score)));
        rows.push(vec![
            law.gpu.clone(),
            law.form.as_str().to_owned(),
            law.runs.to_string(),
            law.models.to_string(),
            match (&law.in_sample, law.recent_error) {
                (Some(score), _) => percent(score.mape),
                (None, Some(error)) => format!("{} of late", percent(error)),
                (None, None) => "-".to_owned(),
            },
            or_dash(|score| score.mape),
            or_dash(|score| score.worst),
            or_dash(|score| score.coverage_90),
        ]);
    }
    let mut text = columns(&rows);
    for law in report.laws.iter().filter(|law| law.form == Form::default()) {
        let get = |name: &str| law.parameters.get(name).copied().unwrap_or(f64::NAN);
        text += &format!(
            "{} ({}): {:.2} J a TFLOP, {:.2} times in convolutions, {:.2} in attention; {:.2} J for 10^9 elements, {:.2} J for 1,000 launches\n",
            law.gpu,
            law.basis,
            get("teraflop"),
            get("convolution").exp(),
            get("attention").exp(),
            get("gigaelement"),
            get("launch")
        );
    }
    for law in &report.laws {
        for note in &law.notes {
            text += &format!("{}: {note}\n", law.gpu);
        }
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
