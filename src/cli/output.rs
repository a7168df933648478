//! Printing: a table for people, JSON or YAML for programs.

use clap::ValueEnum;
use serde::Serialize;
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

/// A list of flat objects as CSV; of one object, one line. What is nested is written as JSON.
fn csv_of<T: Serialize>(value: &T) -> anyhow::Result<String> {
    // YAML's mappings keep the order of the fields.
    let rows = match serde_yaml::to_value(value)? {
        serde_yaml::Value::Sequence(rows) => rows,
        one => vec![one],
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (number, row) in rows.iter().enumerate() {
        let fields = row.as_mapping().into_iter().flatten();
        let (names, cells): (Vec<String>, Vec<String>) = fields
            .map(|(name, value)| {
                let cell = match value {
                    serde_yaml::Value::String(text) => text.clone(),
                    serde_yaml::Value::Null => String::new(),
                    other => serde_json::to_string(other).unwrap_or_default(),
                };
                (name.as_str().unwrap_or_default().to_owned(), cell)
            })
            .unzip();
        if number == 0 {
            writer.write_record(&names)?;
        }
        writer.write_record(&cells)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
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
