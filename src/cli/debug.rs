//! `jouleward debug`: how an exporter came to its figures.

use super::WrongInput;
use super::output::{Format, columns, print};
use crate::contract::EXPORTER_PORT;
use crate::node::{Part, Replay};
use crate::serve::fetch;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Shows how an exporter came to its figures.
#[derive(Debug, Args)]
pub(super) struct Debug {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Attribution(Attribution),
}

/// Replays the last windows of a GPU: counter, holders, weights, parts, quality.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl -n jouleward-system port-forward pod/EXPORTER 9402 &
  jouleward debug attribution --pod team-a/images-x7k2p
  jouleward debug attribution --gpu GPU-8f3a -o json")]
struct Attribution {
    /// Only windows that this pod held or was billed for, as NAMESPACE/NAME.
    #[arg(long)]
    pod: Option<String>,
    /// Only this GPU, by the beginning of its UUID.
    #[arg(long)]
    gpu: Option<String>,
    /// The last so many windows.
    #[arg(long, default_value_t = 20)]
    last: usize,
    /// Address of the exporter.
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), EXPORTER_PORT))]
    address: SocketAddr,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

const DEADLINE: Duration = Duration::from_secs(5);
const LARGEST: usize = 64 << 20;

impl Debug {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let What::Attribution(attribution) = self.what;
        attribution.run().await
    }
}

impl Attribution {
    async fn run(self) -> anyhow::Result<()> {
        if let Some(pod) = &self.pod
            && pod.split('/').filter(|part| !part.is_empty()).count() != 2
        {
            let why = format!("--pod {pod:?} is not NAMESPACE/NAME, for example team-a/images");
            return Err(WrongInput(why).into());
        }
        let body = tokio::time::timeout(DEADLINE, fetch::get(self.address, "/v1/windows", LARGEST))
            .await
            .with_context(|| format!("the exporter at {} did not answer in 5 s", self.address))?
            .context("no exporter answers; forward its port, or give --address")?;
        let mut windows: Vec<Replay> = serde_json::from_slice(&body)
            .with_context(|| format!("{} is no exporter of this version", self.address))?;
        windows.retain(|window| {
            let gpu = self
                .gpu
                .as_ref()
                .is_none_or(|gpu| window.gpu.starts_with(gpu));
            gpu && self.pod.as_ref().is_none_or(|pod| window.concerns(pod))
        });
        windows.sort_by_key(|window| window.to_micros);
        let first = windows.len().saturating_sub(self.last);
        windows.drain(..first);
        print(self.output, &windows, |windows| table(windows))
    }
}

fn table(windows: &[Replay]) -> String {
    let Some(latest) = windows.last() else {
        return "no such window in the last minutes\n".to_owned();
    };
    let head = [
        "ENDED", "SECONDS", "GPU", "JOULES", "IDLE W", "QUALITY", "HELD BY", "ACTIVITY", "PARTS",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(windows.iter().map(|window| row(window, latest.to_micros)));
    columns(&rows)
}

fn row(window: &Replay, latest: u64) -> Vec<String> {
    let seconds = |micros: u64| format!("{:.3}", micros as f64 / 1e6);
    let joules = |microjoules: u64| format!("{:.6}", microjoules as f64 / 1e6);
    let list = |items: Vec<String>| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(", ")
        }
    };
    let span = window.to_micros.saturating_sub(window.from_micros);
    let percent = |weight: &u64| *weight as f64 / (span.max(1) as f64);
    let part = |part: &Part| {
        format!(
            "{} {} + {} idle",
            part.to,
            joules(part.active_microjoules),
            joules(part.idle_microjoules)
        )
    };
    vec![
        format!("-{}", seconds(latest.saturating_sub(window.to_micros))),
        seconds(span),
        window.gpu.chars().take(12).collect(),
        joules(window.microjoules),
        format!("{:.1}", window.idle_milliwatts as f64 / 1000.0),
        list(
            vec![window.quality.clone()]
                .into_iter()
                .filter(|q| !q.is_empty())
                .collect(),
        ),
        list(
            window
                .holders
                .iter()
                .map(|(name, weight)| format!("{name} x{weight}"))
                .collect(),
        ),
        list(
            window
                .activity
                .iter()
                .map(|(name, weight)| format!("{name} {:.0} %", percent(weight)))
                .collect(),
        ),
        list(window.parts.iter().map(part).collect()),
    ]
}
