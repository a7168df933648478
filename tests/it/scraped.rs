//! What a real Prometheus makes of what Jouleward publishes: the ledger's figures, by pod and
//! by namespace, at two scrape intervals; the dashboard; other exporters' names.

use crate::support::{Shared, on_plane};
use anyhow::{Context, ensure};
use harness::chart::Chart;
use harness::eventually;
use harness::jobs::{self, Generate};
use harness::prometheus::{Prometheus, check_metrics};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// The stack's exporters show 0 for two seconds before a new series' value; scrapes every
/// 0.25 and every second stand for 15 and 60.
const SCRAPES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
const NAMESPACE: &str = "scraped";
const SOON: Duration = Duration::from_secs(30);

#[test]
fn two_prometheus_servers_say_of_a_namespace_what_the_ledger_says() {
    on_plane(|shared| async move {
        let targets = targets(shared);
        let servers = start(shared, &targets).await?;
        let joules = spend(shared).await?;
        for (server, interval) in servers.iter().zip(SCRAPES) {
            let scraped = || format!("scraped every {interval:?}, {joules} J by the ledger");
            agree(server, joules).await.with_context(scraped)?;
        }
        kepler(&servers[0], joules).await?;
        for query in dashboard()? {
            let shown =
                || async { Ok((!servers[0].query(&query).await?.is_empty()).then_some(())) };
            eventually(&query, SOON, shown)
                .await
                .context("the dashboard shows nothing")?;
        }
        for target in targets {
            let (_, text) = harness::stack::get(&target, "/metrics", "text/plain").await?;
            check_metrics(&text).with_context(|| format!("promtool on {target}"))?;
        }
        Ok(())
    });
}

/// Every part of the stack.
fn targets(shared: &Shared) -> Vec<String> {
    let stack = &shared.stack;
    let nodes = stack.nodes.iter().map(|node| format!("{}:9402", node.ip));
    let others =
        [(10, 9403), (20, 9404)].map(|(host, port)| format!("{}:{port}", stack.address(host)));
    nodes.chain(others).collect()
}

async fn start(shared: &Shared, targets: &[String]) -> anyhow::Result<Vec<Prometheus>> {
    let stack = &shared.stack;
    let folder = &stack.plane.folder;
    let rules = rules(&stack.plane)?;
    let mut servers = Vec::new();
    for (number, interval) in SCRAPES.into_iter().enumerate() {
        let address = format!("{}:9090", stack.address(40 + u8::try_from(number)?));
        let name = format!("prometheus-{number}");
        let server = Prometheus::start(folder, &name, &address, interval, targets, &rules)?;
        let up = || async {
            let up = server.number("sum(up)").await.unwrap_or_default();
            Ok((up == Some(targets.len() as f64)).then_some(()))
        };
        eventually("every part is scraped", SOON, up).await?;
        servers.push(server);
    }
    Ok(servers)
}

/// The groups of the chart's rules, all asked for.
fn rules(plane: &harness::plane::Plane) -> anyhow::Result<Value> {
    let wanted = json!({ "alerts": true, "keplerNames": true, "podMonitor": true });
    let chart = Chart::render(plane, &json!({ "monitoring": wanted }))?;
    let of_kind = |kind: &str| {
        let objects = chart.objects.iter().filter(|object| object["kind"] == kind);
        objects.cloned().collect::<Vec<Value>>()
    };
    ensure!(of_kind("PodMonitor")[0]["spec"]["podMetricsEndpoints"][0]["honorLabels"] == true);
    let rules = of_kind("PrometheusRule");
    ensure!(rules.len() == 2, "alerts, and Kepler's names");
    let groups = rules
        .iter()
        .filter_map(|rule| rule["spec"]["groups"].as_array().cloned());
    Ok(json!({ "groups": groups.flatten().collect::<Vec<Value>>() }))
}

/// Runs jobs, short and longer, and gives the joules that their reservations say.
async fn spend(shared: &Shared) -> anyhow::Result<f64> {
    let client = &shared.stack.client;
    jobs::namespace(client, NAMESPACE).await?;
    jobs::budget(client, NAMESPACE, "images", json!({ "limit": "1kg" })).await?;
    let mut uids = Vec::new();
    for (number, images) in [1, 2, 6].into_iter().enumerate() {
        let work = Generate {
            images,
            ..Generate::SMALL
        };
        let job = work.job(&format!("run-{number}"));
        uids.push(
            jobs::create_job(client, NAMESPACE, &job)
                .await?
                .uid()
                .unwrap_or_default(),
        );
    }
    let mut millijoules = 0;
    for uid in &uids {
        let record = jobs::settled(client, NAMESPACE, uid).await?;
        millijoules += record.data["status"]["measuredMillijoules"]
            .as_i64()
            .context("measured")?;
    }
    ensure!(millijoules > 0);
    Ok(millijoules as f64 / 1000.0)
}

/// A series shows whole millijoules, and a record is rounded up.
fn same(said: Option<f64>, joules: f64) -> bool {
    said.is_some_and(|said| (said - joules).abs() < 0.01)
}

async fn agree(server: &Prometheus, joules: f64) -> anyhow::Result<()> {
    let over = |what: &str| format!("jouleward_{what}{{namespace=\"{NAMESPACE}\"}}[10m]");
    for series in [
        "pod_gpu_energy_joules_total",
        "namespace_gpu_energy_joules_total",
    ] {
        let query = format!("sum(max_over_time({}))", over(series));
        let said = || async { Ok(same(server.number(&query).await?, joules).then_some(())) };
        eventually(&query, SOON, said).await?;
    }
    let pods = over("pod_gpu_energy_joules_total");
    let late = server.query(&format!("min_over_time({pods}) > 0")).await?;
    ensure!(
        late.is_empty(),
        "every series was scraped at zero first: {late:?}"
    );
    Ok(())
}

/// Under Kepler's names the same, where the chart is asked for them.
async fn kepler(server: &Prometheus, joules: f64) -> anyhow::Result<()> {
    let labels =
        format!("pod_namespace=\"{NAMESPACE}\",state=\"running\",pod_id!=\"\",node_name!=\"\"");
    let pods = format!("sum(max_over_time(kepler_pod_gpu_joules_total{{{labels}}}[10m]))");
    let said = || async { Ok(same(server.number(&pods).await?, joules).then_some(())) };
    eventually(&pods, SOON, said).await?;
    let labels = "gpu_name=~\"NVIDIA.*\",vendor=\"nvidia\",gpu_uuid!=\"\",node_name!=\"\"";
    let named = server
        .number(&format!("count(kepler_node_gpu_joules_total{{{labels}}})"))
        .await?;
    let gpus = server
        .number("count(count by (gpu_uuid) (jouleward_gpu_info))")
        .await?;
    ensure!(
        named.is_some() && named == gpus,
        "every GPU has its name: {named:?} of {gpus:?}"
    );
    Ok(())
}

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
