//! Measured runs from files, for the subcommands that fit and score.

use super::arguments::{read, wrong};
use crate::law::dataset::{Dataset, read_csv, read_json_lines};
use crate::law::{Catalogue, Observation, RowError};
use std::path::{Path, PathBuf};

const HINT: &str = "give a CSV file with one run a line, or JSON lines";

/// Reads one file: JSON lines by its ending, else CSV.
pub(super) fn runs(path: &PathBuf, catalogue: &Catalogue) -> anyhow::Result<Dataset> {
    let text = read(path, "fit:", HINT).map_err(|error| {
        let said = error.to_string();
        wrong(said.strip_prefix("fit: ").unwrap_or(&said).to_owned())
    })?;
    let ending = path.extension().and_then(|ending| ending.to_str());
    if matches!(ending, Some("jsonl" | "ndjson")) {
        return Ok(read_json_lines(&text, catalogue));
    }
    read_csv(&text, catalogue).map_err(|error| wrong(format!("{}: {error}", path.display())))
}

/// Rows that are named where none can be used.
const NAMED: usize = 5;

/// A file without a single run that can be used is an error, with the reasons.
pub(super) fn or_why(path: &Path, dataset: &Dataset) -> anyhow::Result<()> {
    if !dataset.runs.is_empty() {
        return Ok(());
    }
    let mut why: Vec<String> = dataset.left_out.iter().map(RowError::to_string).collect();
    if why.is_empty() {
        why.push("it has no rows".to_owned());
    }
    let more = why.len().saturating_sub(NAMED);
    why.truncate(NAMED);
    if more > 0 {
        why.push(format!("and {more} more"));
    }
    Err(wrong(format!(
        "{} has no row that can be used; {}",
        path.display(),
        why.join("; ")
    )))
}

/// Tells of rows whose batch was not said.
pub(super) fn tell_of_batches(rows: usize) {
    if rows > 0 {
        eprintln!(
            "jouleward: {rows} rows do not say their batch_size: each image is taken to have been made alone"
        );
    }
}

/// True where a run made a video.
pub(super) fn is_video(run: &Observation, catalogue: &Catalogue) -> bool {
    let model = catalogue.get(&run.features.model);
    model.is_some_and(|model| model.frames.is_some())
}
