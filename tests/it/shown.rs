//! What people look at: every metric that the dashboard and the alert ask for is one that
//! Jouleward publishes, and a real Prometheus says of a namespace what the ledger says.

use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use harness::prometheus::{Prometheus, check_metrics};
use jouleward::contract::{
    CONTROLLER_METRICS, EXPORTER_METRICS, Metric, MetricKind, WEBHOOK_METRICS,
};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// The names that a query may use for a metric.
fn names(metric: &Metric) -> Vec<String> {
    let name = metric.full_name();
    if metric.kind == MetricKind::Histogram {
        return ["bucket", "sum", "count"]
            .map(|part| format!("{name}_{part}"))
            .to_vec();
    }
    vec![name]
}

/// Words of a text that begin with our prefix.
fn asked(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("jouleward_"))
        .collect()
}

#[test]
fn dashboard_and_alert_ask_only_for_metrics_that_are_published() {
    let published: BTreeSet<String> = [EXPORTER_METRICS, CONTROLLER_METRICS, WEBHOOK_METRICS]
        .into_iter()
        .flatten()
        .flat_map(names)
        .collect();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/jouleward");
    for (file, least) in [
        ("files/dashboards/jouleward.json", 8),
        ("templates/monitoring.yaml", 2),
    ] {
        let text = std::fs::read_to_string(chart.join(file)).unwrap();
        let asked = asked(&text);
        assert!(asked.len() >= least, "{file} asks for {asked:?}");
        for name in asked {
            assert!(published.contains(name), "{file} asks for {name}");
        }
    }
}

/// The stack's exporters show 0 for two seconds before a new series' value; scrapes every
/// 0.25 and every second stand for 15 and 60.
const SCRAPES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
const NAMESPACE: &str = "scraped";

/// Queries of the dashboard, for every namespace.
fn dashboard() -> anyhow::Result<Vec<String>> {
    let file = "charts/jouleward/files/dashboards/jouleward.json";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
    let board: Value = serde_json::from_str(&text)?;
    let panels = board["panels"].as_array().cloned().unwrap_or_default();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let queries = targets.filter_map(|target| target["expr"].as_str().map(str::to_owned));
    let plain = |query: String| {
        query
            .replace("$namespace", ".*")
            .replace("$__rate_interval", "1m")
    };
    Ok(queries.map(plain).collect())
}

#[test]
fn two_prometheus_servers_say_of_a_namespace_what_the_ledger_says() {
    on_plane(|shared| async move {
        let stack = &shared.stack;
        let client = &stack.client;
        let mut targets: Vec<String> = stack
            .nodes
            .iter()
            .map(|node| format!("{}:9402", node.ip))
            .collect();
        targets.push(format!("{}:9403", stack.address(10)));
        targets.push(format!("{}:9404", stack.address(20)));
        let folder = &stack.plane.folder;
        let mut servers = Vec::new();
        for (number, interval) in SCRAPES.into_iter().enumerate() {
            let address = format!("{}:9090", stack.address(40 + u8::try_from(number)?));
            let name = format!("prometheus-{number}");
            servers.push(Prometheus::start(
                folder, &name, &address, interval, &targets,
            )?);
        }
        for server in &servers {
            let up = || async {
                let up = server.number("sum(up)").await.unwrap_or_default();
                Ok((up == Some(targets.len() as f64)).then_some(()))
            };
            eventually("every part is scraped", Duration::from_secs(30), up).await?;
        }

        jobs::namespace(client, NAMESPACE).await?;
        jobs::budget(client, NAMESPACE, "images", json!({ "limit": "1kg" })).await?;
        let mut uids = Vec::new();
        for (number, images) in [1, 2, 6].into_iter().enumerate() {
            let work = Generate {
                images,
                ..Generate::SMALL
            };
            let job =
                jobs::create_job(client, NAMESPACE, &work.job(&format!("run-{number}"))).await?;
            uids.push(job.uid().unwrap_or_default());
        }
        for uid in &uids {
            jobs::settled(client, NAMESPACE, uid).await?;
        }
        let mut millijoules = 0;
        for uid in &uids {
            let record = jobs::reservation_of(client, NAMESPACE, uid)
                .await?
                .context("a record")?;
            millijoules += record.data["status"]["measuredMillijoules"]
                .as_i64()
                .unwrap_or(0);
        }
        let ledger = millijoules as f64 / 1000.0;
        ensure!(ledger > 0.0);
        let by_pod = format!(
            "sum(max_over_time(jouleward_pod_gpu_energy_joules_total{{namespace=\"{NAMESPACE}\"}}[10m]))"
        );
        let by_namespace = format!(
            "sum(max_over_time(jouleward_namespace_gpu_energy_joules_total{{namespace=\"{NAMESPACE}\"}}[10m]))"
        );
        let late = format!(
            "count(min_over_time(jouleward_pod_gpu_energy_joules_total{{namespace=\"{NAMESPACE}\"}}[10m]) > 0)"
        );
        for (server, interval) in servers.iter().zip(SCRAPES) {
            for query in [&by_pod, &by_namespace] {
                let said = || async {
                    let joules = server.number(query).await?.unwrap_or(0.0);
                    // A series shows whole millijoules, the record's is rounded up.
                    let same = (joules - ledger).abs() < 0.001 * 8.0;
                    ensure!(joules < ledger + 0.01, "{query}: {joules} J of {ledger} J");
                    Ok(same.then_some(joules))
                };
                let joules = eventually("Prometheus says the same", Duration::from_secs(20), said)
                    .await
                    .with_context(|| {
                        format!("scraped every {interval:?}: {query}, ledger {ledger} J")
                    })?;
                println!(
                    "every {interval:?}: {joules:.3} J by {query}, {ledger:.3} J by the ledger"
                );
            }
            ensure!(
                server.number(&late).await?.is_none(),
                "every series was scraped at zero first"
            );
        }
        for query in dashboard()? {
            let shown =
                || async { Ok((!servers[0].query(&query).await?.is_empty()).then_some(())) };
            eventually(&query, Duration::from_secs(10), shown)
                .await
                .with_context(|| format!("the dashboard shows nothing for {query}"))?;
        }
        for target in targets {
            let (_, text) = harness::stack::get(&target, "/metrics", "text/plain").await?;
            check_metrics(&text).with_context(|| format!("promtool on {target}"))?;
        }
        Ok(())
    });
}
