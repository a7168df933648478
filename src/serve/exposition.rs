//! Metric families as plain data, rendered as OpenMetrics by prometheus-client and as the
//! older text format here.

use crate::contract::{Metric, MetricKind};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Mutex;

/// Label names and values, in the order they are shown.
pub type Labels = Vec<(&'static str, String)>;

/// What one series shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Histogram(Histogram),
}

/// Cumulative sums over fixed bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    pub bounds: &'static [f64],
    pub counts: Vec<u64>,
    pub sum: f64,
    pub count: u64,
}

/// Bounds for what takes microseconds to seconds.
pub const LATENCY: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0,
];

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
            count: 0,
        }
    }

    pub fn observe(&mut self, value: f64) {
        let bucket = self
            .bounds
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(self.bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
        self.count += 1;
    }
}

/// One family and its series.
#[derive(Debug, Clone)]
pub struct Family {
    pub metric: Metric,
    pub series: Vec<(Labels, Value)>,
}

impl Family {
    pub fn new(metric: Metric) -> Self {
        Self {
            metric,
            series: Vec::new(),
        }
    }

    pub fn add(&mut self, labels: Labels, value: f64) {
        self.series.push((labels, Value::Number(value)));
    }
}

/// Counters and histograms that live as long as the process, by labels.
#[derive(Debug, Default)]
pub struct Tallies {
    families: Mutex<BTreeMap<&'static str, BTreeMap<Labels, Value>>>,
}

impl Tallies {
    pub fn count(&self, metric: &Metric, labels: Labels) {
        self.add(metric, labels, 1.0);
    }

    pub fn add(&self, metric: &Metric, labels: Labels, amount: f64) {
        self.with(
            metric,
            labels,
            || Value::Number(0.0),
            |value| {
                if let Value::Number(number) = value {
                    *number += amount;
                }
            },
        );
    }

    pub fn observe(&self, metric: &Metric, labels: Labels, seconds: f64) {
        self.with(
            metric,
            labels,
            || Value::Histogram(Histogram::new(LATENCY)),
            |value| {
                if let Value::Histogram(histogram) = value {
                    histogram.observe(seconds);
                }
            },
        );
    }

    fn with(
        &self,
        metric: &Metric,
        labels: Labels,
        fresh: impl Fn() -> Value,
        act: impl Fn(&mut Value),
    ) {
        if let Ok(mut families) = self.families.lock() {
            act(families
                .entry(metric.name)
                .or_default()
                .entry(labels)
                .or_insert_with(fresh));
        }
    }

    /// The families of `metrics` that were counted here.
    pub fn families(&self, metrics: &[Metric]) -> Vec<Family> {
        let Ok(families) = self.families.lock() else {
            return Vec::new();
        };
        metrics
            .iter()
            .filter_map(|metric| {
                let series = families.get(metric.name)?;
                let series = series
                    .iter()
                    .map(|(labels, value)| (labels.clone(), value.clone()))
                    .collect();
                Some(Family {
                    metric: *metric,
                    series,
                })
            })
            .collect()
    }
}

/// Content types, and which one an Accept header asks for.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn content_type(accept: Option<&str>) -> &'static str {
    match accept {
        Some(accept) if accept.contains("application/openmetrics-text") => OPENMETRICS,
        _ => TEXT,
    }
}

/// Renders families for an Accept header: body and content type.
pub fn render(families: Vec<Family>, accept: Option<&str>) -> (String, &'static str) {
    let kind = content_type(accept);
    let body = match kind {
        OPENMETRICS => openmetrics(families),
        _ => text(&families),
    };
    (body, kind)
}

#[derive(Debug)]
struct Families(Vec<Family>);

/// In the OpenMetrics format.
pub fn openmetrics(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut body, &registry);
    body
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let metric = &family.metric;
            let kind = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
            };
            let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
            let name = format!("jouleward_{}", metric.name);
            let mut out = encoder.encode_descriptor(&name, metric.help, unit.as_ref(), kind)?;
            for (labels, value) in &family.series {
                if labels.is_empty() {
                    series(metric, value, &mut out)?;
                } else {
                    series(metric, value, &mut out.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

fn series(metric: &Metric, value: &Value, out: &mut MetricEncoder) -> Result<(), fmt::Error> {
    match value {
        Value::Number(number) if metric.kind == MetricKind::Counter => {
            out.encode_counter::<Labels, f64, f64>(number, None)
        }
        Value::Number(number) => out.encode_gauge(number),
        Value::Histogram(histogram) => {
            let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts.iter().copied()).collect();
            out.encode_histogram::<Labels>(histogram.sum, histogram.count, &buckets, None)
        }
    }
}

/// In the text format of Prometheus.
pub fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        let name = family.metric.full_name();
        let kind = match family.metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let _ = writeln!(
            out,
            "# HELP {name} {}\n# TYPE {name} {kind}",
            family.metric.help
        );
        for (labels, value) in &family.series {
            let _ = match value {
                Value::Number(number) => {
                    out.push_str(&name);
                    braces(&mut out, labels, None);
                    writeln!(out, " {number}")
                }
                Value::Histogram(histogram) => text_histogram(&mut out, &name, labels, histogram),
            };
        }
    }
    out
}

fn text_histogram(
    out: &mut String,
    name: &str,
    labels: &Labels,
    histogram: &Histogram,
) -> fmt::Result {
    let mut below = 0;
    let bounds = histogram
        .bounds
        .iter()
        .map(ToString::to_string)
        .chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(&histogram.counts) {
        below += count;
        write!(out, "{name}_bucket")?;
        braces(out, labels, Some(&bound));
        writeln!(out, " {below}")?;
    }
    write!(out, "{name}_sum")?;
    braces(out, labels, None);
    write!(out, " {}\n{name}_count", histogram.sum)?;
    braces(out, labels, None);
    writeln!(out, " {}", histogram.count)
}

/// Writes labels as they stand behind a name; `le` is a histogram's bound. Straight into the page:
/// it has thousands of them.
pub(crate) fn braces(out: &mut String, labels: &Labels, le: Option<&str>) {
    let all = labels.iter().map(|(name, value)| (*name, value.as_str()));
    let mut open = '{';
    for (name, value) in all.chain(le.map(|le| ("le", le))) {
        out.push(open);
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value);
        out.push('"');
        open = ',';
    }
    if open == ',' {
        out.push('}');
    }
}

fn escape(out: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        out.push_str(value);
        return;
    }
    for letter in value.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{GPU_ENERGY, REVIEW_SECONDS};

    fn families() -> Vec<Family> {
        let mut energy = Family::new(GPU_ENERGY);
        energy.add(vec![("node", "a\"b\\c".to_owned())], 1.5);
        let mut histogram = Histogram::new(LATENCY);
        histogram.observe(0.003);
        let mut reviews = Family::new(REVIEW_SECONDS);
        reviews
            .series
            .push((vec![("webhook", "x".into())], Value::Histogram(histogram)));
        vec![energy, reviews]
    }

    #[test]
    fn both_formats_show_the_same_series_under_the_same_names() {
        let (text, _) = render(families(), Some("text/plain"));
        assert!(
            text.contains("# TYPE jouleward_gpu_energy_joules_total counter"),
            "{text}"
        );
        assert!(
            text.contains("jouleward_gpu_energy_joules_total{node=\"a\\\"b\\\\c\"} 1.5"),
            "{text}"
        );
        assert!(text.contains(
            "jouleward_admission_review_duration_seconds_bucket{webhook=\"x\",le=\"0.005\"} 1"
        ));
        let (open, kind) = render(
            families(),
            Some("application/openmetrics-text;version=1.0.0"),
        );
        assert_eq!(kind, OPENMETRICS);
        assert!(
            open.contains("# UNIT jouleward_gpu_energy_joules joules"),
            "{open}"
        );
        assert!(
            open.contains("jouleward_gpu_energy_joules_total{node=\"a\\\"b\\\\c\"} 1.5"),
            "{open}"
        );
        assert!(open.contains("le=\"+Inf\",webhook=\"x\"} 1"), "{open}");
        assert!(open.ends_with("# EOF\n"));
    }
}
