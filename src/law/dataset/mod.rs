//! Measured runs from a table: CSV, one run a line, or JSON lines with the same names.
//!
//! Columns, in any order: `model, gpu, width, height, steps`, and the energy with its unit in
//! its name: `energy_joules_per_image`, `energy_wh_per_image`, or of the whole run
//! `energy_joules`, `energy_wh`, `energy_kwh` with `images`. Optional: `num_gpus` (1),
//! `precision` (fp16), `frames` (1), `cfg` (false) or `guidance_scale` and `true_cfg_scale`,
//! `batch_size` (1), `strength`, `scheduler`, `use_resolution_binning` (true), `basis` (gross), `software`, `driver`,
//! `power_limit` (as a fraction of the board's default). `warm_up` (false) and `seconds` of the run set
//! rows aside. Others are ignored, but one that is nearly one of these.

mod row;

use super::catalogue::Catalogue;
use super::features::Observation;
use super::gpu::Gpu;
use super::network::is_near;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

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
    #[error("the column {0} is there twice: leave one of them")]
    Twice(String),
    #[error("the column {0} is not known, and {1} is missing: is it meant?")]
    Misspelt(String, &'static str),
    #[error(
        "the first line is parted by semicolons: part columns by commas, and write 1234.5 for a decimal comma"
    )]
    Semicolons,
    #[error(
        "the column energy names no unit: call it energy_joules_per_image, energy_wh_per_image, or of a whole run energy_joules, energy_wh or energy_kwh"
    )]
    Unit,
}

/// Runs by GPU product, and the rows that were left out.
#[derive(Debug, Default)]
pub struct Dataset {
    pub runs: BTreeMap<Gpu, Vec<Observation>>,
    pub left_out: Vec<RowError>,
    /// Rows that do not say how many images were made together: each is taken to have been made
    /// alone.
    pub batch_open: usize,
}

impl Dataset {
    fn observe(
        &mut self,
        row: &row::Row<'_>,
        catalogue: &Catalogue,
    ) -> Result<(Gpu, Observation), String> {
        let run = row::observe(row, catalogue)?;
        self.batch_open += usize::from(row::leaves_batch_open(row));
        Ok(run)
    }

    fn push(&mut self, line: u64, row: Result<(Gpu, Observation), String>) {
        match row {
            Ok((gpu, run)) => self.runs.entry(gpu).or_default().push(run),
            Err(why) => self.left_out.push(RowError { line, why }),
        }
    }
}

const NEEDED: [&str; 5] = ["model", "gpu", "width", "height", "steps"];

/// Reads a CSV table; rows that cannot be used are listed, never guessed at.
pub fn read_csv(text: &str, catalogue: &Catalogue) -> Result<Dataset, DatasetError> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(DatasetError::Header)?.clone();
    let has = |name: &str| header.iter().any(|h| h.trim() == name);
    let mut seen = BTreeSet::new();
    for name in header.iter().map(str::trim).filter(|name| !name.is_empty()) {
        if !seen.insert(name) {
            return Err(DatasetError::Twice(name.to_owned()));
        }
    }
    if header.len() == 1 && header.iter().any(|name| name.contains(';')) {
        return Err(DatasetError::Semicolons);
    }
    if let Some((given, meant)) = misspelt(&seen) {
        return Err(DatasetError::Misspelt(given, meant));
    }
    if let Some(name) = NEEDED.into_iter().find(|name| !has(name)) {
        return Err(DatasetError::Column(name));
    }
    if !row::ENERGIES.iter().any(|(name, ..)| has(name)) {
        return Err(if has("energy") {
            DatasetError::Unit
        } else {
            DatasetError::Column("energy_joules_per_image")
        });
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
                if record.len() > header.len() {
                    return Err(format!(
                        "it has {} fields and the header {}: is there a decimal comma?",
                        record.len(),
                        header.len()
                    ));
                }
                let fields = header.iter().map(str::trim);
                let fields = fields.zip(record.iter().map(|field| field.trim().to_owned()));
                dataset.observe(&fields.collect(), catalogue)
            });
        let line = at.map_or(index as u64 + 2, |byte| line_of(text, byte));
        dataset.push(line, row);
    }
    Ok(dataset)
}

/// A column that nobody reads, and one that it nearly is and that is missing: what it says would
/// be left out in silence.
fn misspelt(given: &BTreeSet<&str>) -> Option<(String, &'static str)> {
    let known = || {
        let energies = row::ENERGIES.iter().map(|(name, ..)| *name);
        row::COLUMNS.into_iter().chain(energies)
    };
    let plain = |name: &str| name.replace(['_', '-', ' '], "").to_lowercase();
    let unknown = given
        .iter()
        .filter(|name| known().all(|known| known != **name));
    for name in unknown.filter(|name| name.len() > 3) {
        let near = |known: &&str| plain(known) == plain(name) || is_near(known, name);
        let mut missing = known().filter(|known| !given.contains(known));
        if let Some(meant) = missing.find(near) {
            return Some(((*name).to_owned(), meant));
        }
    }
    None
}

/// Reads JSON lines: an object a line, numbers and texts alike.
pub fn read_json_lines(text: &str, catalogue: &Catalogue) -> Dataset {
    let mut dataset = Dataset::default();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let object = serde_json::from_str::<Fields>(line);
        let row = object
            .map_err(|error| format!("it is no JSON object of a run: {error}"))
            .and_then(|Fields(fields)| {
                let plain = fields.iter().map(|(name, value)| {
                    let text = match value {
                        serde_json::Value::String(text) => text.clone(),
                        serde_json::Value::Null => String::new(),
                        other => other.to_string(),
                    };
                    (name.as_str(), text)
                });
                dataset.observe(&plain.collect(), catalogue)
            });
        dataset.push(index as u64 + 1, row);
    }
    dataset
}

/// The fields of an object, each of which is there once: of two, nobody knows which is meant.
struct Fields(BTreeMap<String, serde_json::Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
                    if fields.insert(name.clone(), value).is_some() {
                        let why = format!("the field {name} is there twice: leave one of them");
                        return Err(A::Error::custom(why));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Once)
    }
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
            lines[3].starts_with("line 6: it has fewer fields"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_column_that_is_nearly_another_is_a_typing_error() {
        let table = |column: &str| {
            let text = format!("model,gpu,width,height,steps,energy_joules_per_image,{column}\n");
            read_csv(&text, &Catalogue::built_in()).map(|_| ())
        };
        for (given, meant) in [
            ("batchsize", "batch_size"),
            ("Batch-Size", "batch_size"),
            ("precison", "precision"),
            ("num_gpu", "num_gpus"),
        ] {
            let error = table(given).unwrap_err().to_string();
            assert!(error.contains(given) && error.contains(meant), "{error}");
        }
        for other in ["comment", "id", "task", "images_per_second"] {
            assert!(table(other).is_ok(), "{other}");
        }
    }

    #[test]
    fn a_run_whose_batch_is_left_out_or_larger_than_what_it_made_is_set_aside() {
        let table = |row: &str| {
            let text = format!(
                "model,gpu,width,height,steps,energy_joules_per_image,energy_joules,batch_size,images\n{row}\n"
            );
            read_csv(&text, &Catalogue::built_in()).unwrap().left_out
        };
        let why = |row: &str| table(row).pop().map(|left| left.why).unwrap_or_default();
        assert!(why("sdxl,A100,1024,1024,25,,90000,,100").contains("batch_size is empty"));
        assert!(why("sdxl,A100,1024,1024,25,,90000,64,1").contains("batch_size 64"));
        assert!(table("sdxl,A100,1024,1024,25,900,,4,100").is_empty());
        // Energies of an image are published without one where each was made alone: taken, and told.
        assert!(table("sdxl,A100,1024,1024,25,900,,,100").is_empty());
        let told = |row: &str| {
            let header = "model,gpu,width,height,steps,energy_joules_per_image,batch_size,images";
            let text = format!("{header}\n{row}\n");
            read_csv(&text, &Catalogue::built_in()).unwrap().batch_open
        };
        assert_eq!(told("sdxl,A100,1024,1024,25,900,,100"), 1);
        assert_eq!(told("sdxl,A100,1024,1024,25,900,4,100"), 0);
        assert_eq!(told("sdxl,A100,1024,1024,25,900,,1"), 0);
    }

    #[test]
    fn json_lines_say_the_same_as_the_table() {
        let table = read("sdxl,A100,1024,1024,25,900,1,true,fp16\n");
        let line = r#"{"model":"sdxl","gpu":"A100","width":1024,"height":1024,"steps":25,"energy_joules_per_image":900,"cfg":true}"#;
        let lines = read_json_lines(&format!("{line}\n\nnonsense\n"), &Catalogue::built_in());
        assert_eq!(lines.runs, table.runs);
        assert_eq!(lines.left_out[0].line, 3);
        let twice = line.replace("true}", "true,\"steps\":30}");
        let lines = read_json_lines(&twice, &Catalogue::built_in());
        assert!(lines.runs.is_empty());
        assert!(lines.left_out[0].why.contains("steps is there twice"));
    }

    #[test]
    fn warm_ups_short_runs_and_stacks_that_are_no_names_are_set_aside_with_the_reason() {
        let one = |header: &str, value: &str| {
            let head = "model,gpu,width,height,steps,energy_joules_per_image";
            let text = format!("{head},{header}\nsdxl,A100,1024,1024,25,900,{value}\n");
            let data = read_csv(&text, &Catalogue::built_in()).unwrap();
            data.left_out
                .first()
                .map_or_else(String::new, ToString::to_string)
        };
        assert!(one("warm_up", "true").contains("warm_up"));
        let whole =
            "model,gpu,width,height,steps,energy_kwh,images\nsdxl,A100,1024,1024,25,0.002,10\n";
        let data = read_csv(whole, &Catalogue::built_in()).unwrap();
        let said = data.left_out[0].to_string();
        assert!(said.contains("batch_size is empty and 10 images"), "{said}");
        let little =
            "model,gpu,width,height,steps,energy_joules_per_image\nsdxl,A100,1024,1024,50,3\n";
        let data = read_csv(little, &Catalogue::built_in()).unwrap();
        let said = data.left_out[0].to_string();
        assert!(said.contains("less than any GPU needs"), "{said}");
        assert!(one("seconds", "0.4").contains("under 1 s"));
        assert!(one("power_limit", "300").contains("power_limit \"300\""));
        assert!(one("software", "two words").contains("software \"two words\""));
        for (header, value) in [
            ("warm_up", "false"),
            ("seconds", "12.5"),
            ("power_limit", "0.75"),
            ("software", "compile"),
            ("driver", "550.54.15"),
        ] {
            assert_eq!(one(header, value), "", "{header}");
        }
    }

    #[test]
    fn energies_of_whole_runs_in_other_units_are_the_same_energies() {
        let one = |header: &str, row: &str| {
            let text =
                format!("model,gpu,width,height,steps,{header}\nsdxl,A100,1024,1024,25,{row}\n");
            let data = read_csv(&text, &Catalogue::built_in()).unwrap();
            assert!(data.left_out.is_empty(), "{:?}", data.left_out);
            data.runs.values().next().unwrap()[0].energy.0
        };
        assert!((one("energy_joules_per_image", "720") - 720.0).abs() < 1e-9);
        assert!((one("energy_wh_per_image", "0.2") - 720.0).abs() < 1e-9);
        assert!((one("energy_kwh,images,batch_size", "0.002,10,1") - 720.0).abs() < 1e-9);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let said = |header: &str, row: &str| {
            let text =
                format!("model,gpu,width,height,steps,{header}\nsdxl,A100,1024,1024,50,{row}\n");
            match read_csv(&text, &Catalogue::built_in()) {
                Ok(data) => data.left_out[0].to_string(),
                Err(error) => error.to_string(),
            }
        };
        for (header, row, needle) in [
            ("energy", "900", "names no unit"),
            (
                "energy_joules_per_image",
                "900,5",
                "line 2: it has 7 fields",
            ),
            ("energy_joules_per_image", "\"900,5\"", "decimal comma"),
            ("energy_joules_per_image", "1", "50 steps"),
            ("energy_joules_per_image", "NaN", "positive"),
            ("energy_joules_per_image,basis", "900,net of it", "basis"),
            ("energy_joules", "900", "images"),
        ] {
            let said = said(header, row);
            assert!(said.contains(needle), "{header} {row}: {said}");
        }
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
