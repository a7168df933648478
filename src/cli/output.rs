//! Printing: a table for people, JSON or YAML for programs.

use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
    /// The table's cells, separated by commas.
    Csv,
}

/// Prints `value`, or the table that `table` draws of it.
pub(super) fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_yaml::to_string(value)?,
        Format::Csv => csv_of(value)?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A list of objects as CSV; of one object, one line. What is nested has a column for each of its
/// fields, named `outer.inner`; lists are written as JSON.
fn csv_of<T: Serialize>(value: &T) -> anyhow::Result<String> {
    // YAML's mappings keep the order of the fields.
    let rows = match serde_yaml::to_value(value)? {
        serde_yaml::Value::Sequence(rows) => rows,
        one => vec![one],
    };
    let mut names: Vec<String> = Vec::new();
    let mut lines: Vec<BTreeMap<String, String>> = Vec::new();
    for row in &rows {
        let mut line = BTreeMap::new();
        flatten("", row, &mut |name, cell| {
            if !names.contains(&name) {
                names.push(name.clone());
            }
            line.insert(name, cell);
        });
        lines.push(line);
    }
    if names.is_empty() {
        return Ok(String::new());
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(&names)?;
    for line in lines {
        let cell = |name| line.get(name).map_or("", String::as_str);
        writer.write_record(names.iter().map(cell))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn flatten(prefix: &str, value: &serde_yaml::Value, tell: &mut impl FnMut(String, String)) {
    for (name, value) in value.as_mapping().into_iter().flatten() {
        let name = [prefix, name.as_str().unwrap_or_default()].concat();
        match value {
            serde_yaml::Value::Mapping(_) => flatten(&format!("{name}."), value, tell),
            serde_yaml::Value::String(text) => tell(name, text.clone()),
            serde_yaml::Value::Null => tell(name, String::new()),
            other => tell(name, serde_json::to_string(other).unwrap_or_default()),
        }
    }
}

/// Columns padded to their widest cell; the first row is the header.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("   ").trim_end().to_owned() + "\n"
        })
        .collect()
}
