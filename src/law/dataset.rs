//! Measured runs from CSV text, one a line.
//!
//! Columns, in any order: `model, gpu, width, height, steps, energy_joules_per_image`;
//! optional `num_gpus` (1), `precision` (fp16), `frames` (1), `cfg` (false), `batch_size`
//! (1). Others are ignored.

use super::catalogue::{Catalogue, Cfg};
use super::features::{Features, Observation};
use super::flops::count;
use super::gpu::Gpu;
use super::units::Joules;
use super::workload::{Precision, Workload};
use std::collections::BTreeMap;

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct RowError {
    pub line: u64,
    pub why: String,
}

/// The table as a whole cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("the first line is not a CSV header")]
    Header(#[source] csv::Error),
    #[error("line {0}: a quote is opened and not closed on the line: close it, or take it out")]
    Quote(u64),
    #[error(
        "column {0} is missing; needed are model, gpu, width, height, steps, energy_joules_per_image"
    )]
    Column(&'static str),
}

/// Runs by GPU product, and the rows that were left out.
#[derive(Debug, Default)]
pub struct Dataset {
    pub runs: BTreeMap<Gpu, Vec<Observation>>,
    pub left_out: Vec<RowError>,
}

const NEEDED: [&str; 6] = [
    "model",
    "gpu",
    "width",
    "height",
    "steps",
    "energy_joules_per_image",
];

/// Reads a CSV table; rows that cannot be used are listed, never guessed at.
pub fn read_csv(text: &str, catalogue: &Catalogue) -> Result<Dataset, DatasetError> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(DatasetError::Header)?.clone();
    for name in NEEDED {
        if !header.iter().any(|h| h.trim() == name) {
            return Err(DatasetError::Column(name));
        }
    }
    let mut dataset = Dataset::default();
    for (index, record) in reader.records().enumerate() {
        let mut at = None;
        if let Ok(record) = &record
            && record.iter().any(|field| field.contains('\n'))
        {
            // A quote that is not closed would swallow the rows after it unseen.
            let byte = record.position().map_or(0, csv::Position::byte);
            return Err(DatasetError::Quote(line_of(text, byte)));
        }
        let row = record
            .map_err(|error| error.to_string())
            .and_then(|record| {
                at = record.position().map(csv::Position::byte);
                let fields = header
                    .iter()
                    .map(str::trim)
                    .zip(record.iter().map(str::trim))
                    .collect();
                observe(&fields, catalogue)
            });
        match row {
            Ok((gpu, run)) => dataset.runs.entry(gpu).or_default().push(run),
            Err(why) => {
                let line = at.map_or(index as u64 + 2, |byte| line_of(text, byte));
                dataset.left_out.push(RowError { line, why });
            }
        }
    }
    Ok(dataset)
}

/// The line that a record begins on; its position may still be on the end of the line
/// before.
fn line_of(text: &str, byte: u64) -> u64 {
    let bytes = text.as_bytes();
    let byte = usize::try_from(byte).unwrap_or(0).min(bytes.len());
    let ends = bytes[byte..]
        .iter()
        .take_while(|b| matches!(b, b'\r' | b'\n'))
        .count();
    text.get(..byte + ends)
        .map_or(0, |before| before.matches('\n').count() as u64)
        + 1
}

fn observe(
    row: &BTreeMap<&str, &str>,
    catalogue: &Catalogue,
) -> Result<(Gpu, Observation), String> {
    let text = |name: &str| row.get(name).copied().unwrap_or_default();
    let model = catalogue
        .get(text("model"))
        .ok_or_else(|| format!("model {:?} is not in the catalogue", text("model")))?;
    let gpu = Gpu::parse(text("gpu")).ok_or("gpu is empty")?;
    if number(text("frames"), "frames", Some(1), 1, 1_000_000)? != 1 {
        return Err("frames is not 1: the catalogue's models make images".to_owned());
    }
    let cfg = match text("cfg").to_lowercase().as_str() {
        "true" | "1" | "yes" => true,
        "" | "false" | "0" | "no" => false,
        other => return Err(format!("cfg {other:?} is not true or false")),
    };
    let precision = match text("precision") {
        "" => Precision::Fp16,
        other => {
            Precision::parse(other).ok_or_else(|| format!("precision {other:?} is not known"))?
        }
    };
    let energy: f64 = text("energy_joules_per_image")
        .parse()
        .ok()
        .filter(|joules: &f64| joules.is_finite() && *joules > 0.0)
        .ok_or_else(|| {
            format!(
                "energy_joules_per_image {:?} is not a positive number",
                text("energy_joules_per_image")
            )
        })?;
    let scale = if cfg { 7.5 } else { 0.0 };
    let batch = number(text("batch_size"), "batch_size", Some(1), 1, 1024)?;
    let workload = Workload {
        // The level goes by the catalogue's name: a fine-tune shares that of its base.
        model: model.name.clone(),
        width: number(text("width"), "width", None, 64, 8192)?,
        height: number(text("height"), "height", None, 64, 8192)?,
        steps: number(text("steps"), "steps", None, 1, 1000)?,
        guidance_scale: if model.cfg == Cfg::Batched {
            scale
        } else {
            0.0
        },
        true_cfg_scale: if model.cfg == Cfg::Sequential {
            scale
        } else {
            0.0
        },
        precision,
        images: u64::from(batch),
        batch,
        assumed: Vec::new(),
    };
    let gpus = number(text("num_gpus"), "num_gpus", Some(1), 1, 1024)?;
    let features = Features::of_image(&workload, &count(model, &workload), gpus);
    Ok((
        gpu,
        Observation {
            features,
            energy: Joules(energy),
        },
    ))
}

fn number(
    text: &str,
    name: &str,
    default: Option<u32>,
    least: u32,
    most: u32,
) -> Result<u32, String> {
    match (text, default) {
        ("", Some(default)) => Ok(default),
        ("", None) => Err(format!("{name} is empty")),
        _ => text
            .parse::<u32>()
            .ok()
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| format!("{name} {text:?} is not a whole number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "model,gpu,width,height,steps,energy_joules_per_image,frames,cfg,precision";

    fn read(rows: &str) -> Dataset {
        read_csv(&format!("{HEADER}\n{rows}"), &Catalogue::built_in()).unwrap()
    }

    #[test]
    fn rows_that_cannot_be_used_are_named_by_line_and_reason() {
        let dataset = read(
            "sdxl,A100,1024,1024,25,900,1,true,fp16\n\
             nosuch,A100,1024,1024,25,900,1,true,fp16\n\
             sdxl,A100,1024,1024,25,-1,1,true,fp16\n\
             sdxl,A100,1024,1024,25,900,16,true,fp16\n\
             sdxl,A100,1024\n",
        );
        assert_eq!(dataset.runs.values().map(Vec::len).sum::<usize>(), 1);
        let lines: Vec<String> = dataset.left_out.iter().map(ToString::to_string).collect();
        assert!(
            lines[0].starts_with("line 3: model \"nosuch\""),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("line 4: energy"), "{lines:?}");
        assert!(lines[2].starts_with("line 5: frames"), "{lines:?}");
        assert!(
            lines[3].starts_with("line 6: energy_joules_per_image \"\""),
            "{lines:?}"
        );
    }

    #[test]
    fn a_quote_that_is_not_closed_is_an_error_and_swallows_no_row() {
        let rows = format!(
            "{HEADER}\n\
             sdxl,A100,1024,1024,25,900,1,true,fp16\n\
             \"sdxl,A100,1024,1024,25,900,1,true,fp16\n\
             sdxl,A100,1024,1024,25,900,1,true,fp16\n"
        );
        let error = read_csv(&rows, &Catalogue::built_in()).unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = read_csv("model,gpu\n", &Catalogue::built_in()).unwrap_err();
        assert!(error.to_string().contains("width"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_whatever_makes_it_panic(text in "\\PC{0,200}") {
            let _ = read_csv(&text, &Catalogue::built_in());
            let _ = read_csv(&format!("{HEADER}\n{text}"), &Catalogue::built_in());
        }
    }
}
