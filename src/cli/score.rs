//! `jouleward score`: the scoreboard of the laws' forms on measured runs.

use super::arguments::CatalogueArguments;
use super::measured;
use super::output::{Format, columns, print};
use crate::law::score::{
    in_sample, leave_architecture_out, leave_one_model_out, one_step_ahead, own_runs, shares,
    transfer,
};
use crate::law::{Catalogue, FitError, Form, Gpu, Judged, Observation, fit};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Scores the forms of the energy law side by side: in sample, with models and architectures
/// left out, as a stream, after a few own runs, and carried over to another GPU.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward score runs.csv
  jouleward score mine.csv theirs.csv --markdown > accuracy.md
Files are as for `jouleward fit`. Splits never let a law see what it is judged by.")]
pub(super) struct Score {
    /// Files with measured runs.
    #[arg(required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    catalogue: CatalogueArguments,
    /// Print a page in Markdown, with the misses named.
    #[arg(long)]
    markdown: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// One line of the scoreboard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    data: String,
    split: String,
    form: Form,
    #[serde(flatten)]
    score: crate::law::Score,
}

/// Runs of one kind on one product.
struct Set {
    name: String,
    gpu: Gpu,
    runs: Vec<Observation>,
}

const MODEL_OUT: &str = "leave one model out";

type Split = fn(Form, &[Observation]) -> Result<Vec<Judged>, FitError>;

/// The splits of one set of runs, beside those in sample.
const SPLITS: [(&str, Split); 7] = [
    (MODEL_OUT, leave_one_model_out),
    ("leave architecture out", leave_architecture_out),
    ("as a stream, one step ahead", |form, runs| {
        Ok(one_step_ahead(form, runs))
    }),
    ("after 0 own runs", |form, runs| own_runs(form, runs, 0)),
    ("after 1 own runs", |form, runs| own_runs(form, runs, 1)),
    ("after 3 own runs", |form, runs| own_runs(form, runs, 3)),
    ("after 10 own runs", |form, runs| own_runs(form, runs, 10)),
];

/// What was judged, by split and form, over all sets.
type Pool = BTreeMap<(String, Form), Vec<Judged>>;

impl Score {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let catalogue = self.catalogue.read()?;
        let mut sets = Vec::new();
        let (mut left_out, mut batch_open) = (Vec::new(), 0);
        for path in &self.data {
            let data = measured::runs(path, &catalogue)?;
            measured::or_why(path, &data)?;
            let file = path
                .file_stem()
                .map(|name| name.to_string_lossy().into_owned());
            let file = file.unwrap_or_default();
            left_out.extend(data.left_out.iter().map(|row| format!("{file}, {row}")));
            batch_open += data.batch_open;
            sets.extend(parts(&file, data.runs, &catalogue));
        }
        let mut pool = Pool::new();
        let mut lines = Vec::new();
        for form in Form::ALL {
            for set in &sets {
                let splits = splits(form, set)
                    .map_err(|error| super::arguments::wrong(format!("{}: {error}", set.name)))?;
                for (split, judged) in splits.into_iter().filter(|(_, judged)| !judged.is_empty()) {
                    lines.push(line(&set.name, &split, form, &judged));
                    pool.entry((split, form)).or_default().extend(judged);
                }
            }
            carry(form, &sets, &mut lines, &mut pool)?;
        }
        measured::tell_of_batches(batch_open);
        let pooled = pool
            .iter()
            .filter(|((split, _), judged)| split != "in sample" && judged.len() >= 100);
        let pooled: Vec<Line> = pooled
            .map(|((split, form), judged)| line("all, pooled", split, *form, judged))
            .collect();
        lines.extend(pooled);
        if self.markdown {
            let page = markdown(&lines, &sets, &pool, &left_out);
            return print(Format::Table, &lines, |_| page);
        }
        if self.output != Format::Table {
            for row in &left_out {
                eprintln!("jouleward: left out: {row}");
            }
        }
        print(self.output, &lines, |lines| table(lines, &left_out))
    }
}

/// By product, pictures and videos apart, gross and net apart; fp32 is not what splits are about.
fn parts(file: &str, runs: BTreeMap<Gpu, Vec<Observation>>, catalogue: &Catalogue) -> Vec<Set> {
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for (gpu, runs) in runs {
        for run in runs {
            let kind = if measured::is_video(&run, catalogue) {
                "videos"
            } else {
                "images"
            };
            let half = run.features.precision == crate::law::Precision::Fp16
                || run.features.precision == crate::law::Precision::Bf16;
            let precision = if half { "" } else { ", other precisions" };
            let name = format!("{file}, {gpu}, {kind}{precision}");
            let set = sets.entry(name.clone()).or_insert_with(|| Set {
                name,
                gpu: gpu.clone(),
                runs: Vec::new(),
            });
            set.runs.push(run);
        }
    }
    sets.into_values().collect()
}

fn splits(form: Form, set: &Set) -> Result<Vec<(String, Vec<Judged>)>, FitError> {
    let runs = &set.runs;
    let law = fit(form, &set.gpu, runs)?;
    let mut splits = vec![("in sample".to_owned(), in_sample(&law, runs))];
    if law.models() < 3 {
        return Ok(splits);
    }
    for (name, split) in SPLITS {
        splits.push((name.to_owned(), split(form, runs)?));
    }
    Ok(splits)
}

/// Each product's law on every other product, pictures only.
fn carry(form: Form, sets: &[Set], lines: &mut Vec<Line>, pool: &mut Pool) -> anyhow::Result<()> {
    for from in sets {
        for to in sets {
            let basis = |set: &Set| set.runs.first().map(|run| run.basis);
            let kind = |set: &Set| set.name.rsplit(", ").next().map(str::to_owned);
            let alike = basis(from) == basis(to) && kind(from) == kind(to);
            if from.gpu == to.gpu
                || !alike
                || from.gpu.sheet().is_none()
                || to.gpu.sheet().is_none()
            {
                continue;
            }
            let judged = transfer(form, (&from.gpu, &from.runs), (&to.gpu, &to.runs))
                .map_err(|error| super::arguments::wrong(error.to_string()))?;
            let name = format!("{} -> {}", from.name, to.gpu);
            lines.push(line(&name, "GPU never run", form, &judged));
            pool.entry(("GPU never run".to_owned(), form))
                .or_default()
                .extend(judged);
        }
    }
    Ok(())
}

fn line(data: &str, split: &str, form: Form, judged: &[Judged]) -> Line {
    Line {
        data: data.to_owned(),
        split: split.to_owned(),
        form,
        score: crate::law::Score::of(judged),
    }
}

const HEADER: [&str; 11] = [
    "DATA",
    "SPLIT",
    "FORM",
    "RUNS",
    "MODELS",
    "MAPE",
    "P90",
    "RANK",
    "R2 LOG",
    "90 % COVERS",
    "INTERVAL SCORE",
];

fn cells(line: &Line) -> Vec<String> {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let s = &line.score;
    vec![
        line.data.clone(),
        line.split.clone(),
        line.form.as_str().to_owned(),
        s.runs.to_string(),
        s.models.to_string(),
        percent(s.mape),
        percent(s.p90),
        format!("{:.3}", s.rank),
        // Of one configuration there is nothing to explain.
        if s.r2_log > -99.0 {
            format!("{:.3}", s.r2_log)
        } else {
            "-".to_owned()
        },
        percent(s.coverage_90),
        format!("{:.3}", s.interval_score),
    ]
}

fn table(lines: &[Line], left_out: &[String]) -> String {
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(lines.iter().map(cells));
    let mut out = columns(&rows);
    for row in left_out {
        out += &format!("left out: {row}\n");
    }
    out
}

/// The page of docs/accuracy.md.
fn markdown(lines: &[Line], sets: &[Set], pool: &Pool, left_out: &[String]) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = String::from(
        "# Accuracy of the energy law\n\nGenerated by `make score`; do not edit. What the splits and \
         columns mean is at the end.\n\n",
    );
    out += &row(&HEADER.map(str::to_lowercase));
    out += &format!("|{}\n", "---|".repeat(HEADER.len()));
    for line in lines {
        out += &row(&cells(line));
    }
    out += "\n## Misses\n\nModels that the default form predicts worst when they are left out:\n\n";
    out += "| model | runs | off by, mean | worst | unlike the others |\n|---|---|---|---|---|\n";
    let unlike = unlike(sets);
    for miss in misses(pool) {
        let mut why: Vec<&str> = unlike
            .get(&miss.model)
            .map(String::as_str)
            .into_iter()
            .collect();
        let outside = format!("beyond them in {}", miss.outside.join(", "));
        if !miss.outside.is_empty() {
            why.push(&outside);
        }
        out += &format!(
            "| {} | {} | {:+.1} % | {:.1} % | {} |\n",
            miss.model,
            miss.runs,
            miss.mean * 100.0,
            miss.worst * 100.0,
            why.join("; ")
        );
    }
    for (split, _) in SPLITS {
        if !lines.iter().any(|line| line.split == split) {
            out += &format!("\n{split}: no set of runs has enough for it.\n");
        }
    }
    for row in left_out {
        out += &format!("\nLeft out: {row}.\n");
    }
    out += &format!("\n{} sets of runs. {}\n", sets.len(), MEANING.trim());
    out
}

/// A model that was left out, and how far off its predictions were.
struct Miss {
    model: String,
    runs: usize,
    mean: f64,
    worst: f64,
    /// Dimensions in which most of its runs lie beyond those of the others.
    outside: Vec<&'static str>,
}

/// Models by how far off they are when left out, farthest first.
fn misses(pool: &Pool) -> Vec<Miss> {
    let key = (MODEL_OUT.to_owned(), Form::default());
    let mut by_model: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
    for judged in pool.get(&key).into_iter().flatten() {
        by_model.entry(&judged.model).or_default().push(judged);
    }
    let mut misses: Vec<_> = by_model
        .into_iter()
        .map(|(model, judged)| {
            let n = judged.len() as f64;
            let mean = judged
                .iter()
                .map(|j| j.predicted / j.measured - 1.0)
                .sum::<f64>()
                / n;
            let mut beyond: BTreeMap<&'static str, usize> = BTreeMap::new();
            for name in judged.iter().flat_map(|j| j.outside.names()) {
                *beyond.entry(name).or_default() += 1;
            }
            let outside = beyond.into_iter().filter(|(_, n)| *n * 2 > judged.len());
            Miss {
                model: model.to_owned(),
                runs: judged.len(),
                mean,
                worst: judged.iter().map(|j| j.error()).fold(0.0, f64::max),
                outside: outside.map(|(name, _)| name).collect(),
            }
        })
        .collect();
    misses.sort_by(|a, b| b.mean.abs().total_cmp(&a.mean.abs()));
    misses
}

/// Of each model, the part of the arithmetic whose share of its energy stands farthest off that
/// of the other models beside it.
fn unlike(sets: &[Set]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, (f64, String)> = BTreeMap::new();
    for set in sets {
        let Ok(law) = fit(Form::default(), &set.gpu, &set.runs) else {
            continue;
        };
        let models = shares(&law, &set.runs);
        let others = (models.len() as f64 - 1.0).max(1.0);
        for (model, own) in &models {
            for (part, share) in own {
                let all = models.values().filter_map(|of| of.get(part));
                let rest = (all.sum::<f64>() - share) / others;
                let off = (share - rest).abs();
                if found.get(model).is_none_or(|(most, _)| off > *most) {
                    let text = format!(
                        "{:.0} % of its energy in {part}, the others {:.0} %",
                        share * 100.0,
                        rest * 100.0
                    );
                    found.insert(model.clone(), (off, text));
                }
            }
        }
    }
    let texts = found.into_iter().filter(|(_, (off, _))| *off >= 0.02);
    texts.map(|(model, (_, text))| (model, text)).collect()
}

const MEANING: &str = "
**in sample** judges the runs that were fitted. **leave one model out** and **leave architecture out** judge
each model, or each denoiser shape, by a law that never saw it, from the wide prior of a product never
measured (its middle lies where public fits do, its spread is a third to a half).
**after k own runs** adds k runs of the judged model. **as a stream** judges each run before it is learnt
from. **GPU never run** carries one product's law to another by data sheets alone. MAPE is the mean of
|predicted − measured| / measured, p90 what nine in ten stay below, rank is Spearman's correlation, R2 log is that of ln E,
the interval score is Gneiting and Raftery's for ln E at 90 % (less is better). The paper
(arXiv 2511.17031) claims R² > 0.9 within a GPU and a rank correlation > 0.9 unseen: both are easy to meet, as every
form here shows, and say little of how far off a bill is.
";
