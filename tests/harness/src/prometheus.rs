//! A real Prometheus that scrapes the parts of a stack, and what its queries say.

use crate::{Process, stack::get, target};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A server of its own, until it is dropped.
pub struct Prometheus {
    address: String,
    _process: Process,
}

/// Series by their labels, with their value.
pub type Answer = Vec<(serde_json::Map<String, Value>, f64)>;

/// Debian's prometheus or promtool: unpacked by `make test-tools`, or installed.
fn tool(name: &str) -> PathBuf {
    let unpacked = target().join("tools/usr/bin").join(name);
    if unpacked.exists() {
        unpacked
    } else {
        PathBuf::from(name)
    }
}

impl Prometheus {
    /// Scrapes `targets` and evaluates `rules`, a rule file's content, every `interval`.
    pub fn start(
        folder: &Path,
        name: &str,
        address: &str,
        interval: Duration,
        targets: &[String],
        rules: &Value,
    ) -> anyhow::Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("rules.yml"), rules.to_string())?;
        let pause = format!("{}ms", interval.as_millis());
        let config = serde_json::json!({
            "global": { "scrape_interval": pause, "scrape_timeout": pause,
                        "evaluation_interval": pause },
            "rule_files": ["rules.yml"],
            "scrape_configs": [{ "job_name": "jouleward", "honor_labels": true,
                                 "static_configs": [{ "targets": targets }] }],
        });
        // JSON is YAML.
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let mut command = Command::new(tool("prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        Ok(Self {
            address: address.to_owned(),
            _process: Process::start(name, &folder, &mut command)?,
        })
    }

    /// What a query says now.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Answer> {
        let mut path = String::from("/api/v1/query?query=");
        for byte in expression.bytes() {
            let _ = write!(path, "%{byte:02X}");
        }
        let (status, body) = get(&self.address, &path, "application/json").await?;
        ensure!(status == 200, "{expression}: {status} {body}");
        let body: Value = serde_json::from_str(&body)?;
        let series = body["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let read = |one: &Value| {
            let value = one["value"][1].as_str()?.parse().ok()?;
            Some((one["metric"].as_object()?.clone(), value))
        };
        Ok(series.iter().filter_map(read).collect())
    }

    /// The one number that a query says, if it says one.
    pub async fn number(&self, expression: &str) -> anyhow::Result<Option<f64>> {
        Ok(self
            .query(expression)
            .await?
            .first()
            .map(|(_, value)| *value))
    }
}

/// `promtool check metrics` on what a part shows.
pub fn check_metrics(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(tool("promtool"))
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .context("promtool does not start: run `make test-tools`")?;
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
