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

/// A file without a single run that can be used is an error, with the first reason.
pub(super) fn or_why(path: &Path, dataset: &Dataset) -> anyhow::Result<()> {
    if !dataset.runs.is_empty() {
        return Ok(());
    }
    let why = dataset
        .left_out
        .first()
        .map_or("it has no rows".to_owned(), RowError::to_string);
    Err(wrong(format!(
        "{} has no row that can be used; {why}",
        path.display()
    )))
}

/// True where a run made a video.
pub(super) fn is_video(run: &Observation, catalogue: &Catalogue) -> bool {
    let model = catalogue.get(&run.features.model);
    model.is_some_and(|model| model.frames.is_some())
}
