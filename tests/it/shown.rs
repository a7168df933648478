//! What people look at: every metric that the dashboard and the alert ask for is one that
//! Jouleward publishes.

use jouleward::contract::{
    CONTROLLER_METRICS, EXPORTER_METRICS, Metric, MetricKind, WEBHOOK_METRICS,
};
use std::collections::BTreeSet;
use std::path::Path;

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
