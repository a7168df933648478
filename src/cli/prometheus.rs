//! Measured runs from a Prometheus-compatible server: what pods burned, by the exporter's
//! counters, joined with what their authors annotated, by kube-state-metrics.

use super::arguments::{workload, wrong};
use crate::law::dataset::Dataset;
use crate::law::workload::{ALL, IMAGES_DONE, WARM_UP};
use crate::law::{Basis, Catalogue, Gpu, Joules, Observation, RowError, driver_branch};
use crate::serve::fetch;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::ToSocketAddrs;
use std::time::Duration;

/// Longest a query may take, and largest answer.
const PATIENCE: Duration = Duration::from_mins(1);
const LARGEST: usize = 64 << 20;

/// A server's answer to an instant query.
#[derive(Debug, Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Debug, Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// A server, and how far back to look.
pub(super) struct Server {
    url: String,
    range: String,
}

/// A pod that ended well: joules by product, and its annotations.
#[derive(Debug, Default)]
struct Pod {
    name: String,
    joules: f64,
    gpus: Vec<String>,
    products: Vec<Gpu>,
    /// Branches of the driver of its GPUs.
    drivers: BTreeSet<String>,
    /// Power limits of its GPUs, as fractions of their boards' defaults; `None` where one is not
    /// known, or was changed in the range.
    limits: Vec<Option<f64>>,
    /// True where one of its GPUs was shared at some time.
    shared: bool,
    /// From its start to its end, where kube-state-metrics says.
    seconds: Option<f64>,
    annotations: BTreeMap<String, String>,
}

impl Server {
    /// A server at `url`, `http://HOST:PORT[/prefix]`; `range` is a duration as PromQL has it.
    pub(super) fn new(url: &str, range: &str) -> anyhow::Result<Self> {
        let plain = range.len() > 1
            && range
                .chars()
                .all(|c| c.is_ascii_digit() || "smhdwy".contains(c))
            && range.starts_with(|c: char| c.is_ascii_digit());
        if !plain {
            return Err(wrong(format!(
                "--range {range:?} is no duration, for example 7d"
            )));
        }
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            range: range.to_owned(),
        })
    }

    /// Runs of all pods that succeeded and were annotated; start-up is in their energy.
    pub(super) async fn runs(&self, catalogue: &Catalogue) -> anyhow::Result<Dataset> {
        let range = &self.range;
        let energy = format!(
            "sum by (namespace, pod, uid, gpu_uuid) (max_over_time(jouleward_pod_gpu_energy_joules_total[{range}]))"
        );
        let products =
            format!("max by (gpu_uuid, model) (max_over_time(jouleward_gpu_info[{range}]))");
        let shared = format!(
            "max by (gpu_uuid) (max_over_time(jouleward_gpu_info{{sharing=~\"time-slicing|mps|mig\"}}[{range}]))"
        );
        let drivers = format!(
            "max by (gpu_uuid, driver_version) (max_over_time(jouleward_gpu_info[{range}]))"
        );
        let limits = format!(
            "(max by (gpu_uuid) (max_over_time(jouleward_gpu_power_limit_watts[{range}])) == min by (gpu_uuid) (min_over_time(jouleward_gpu_power_limit_watts[{range}]))) / max by (gpu_uuid) (max_over_time(jouleward_gpu_power_limit_default_watts[{range}]))"
        );
        let lasted = format!(
            "max by (uid) (max_over_time(kube_pod_completion_time[{range}])) - max by (uid) (max_over_time(kube_pod_start_time[{range}]))"
        );
        let annotated = format!("max_over_time(kube_pod_annotations[{range}])");
        let ended =
            format!("max_over_time(kube_pod_status_phase{{phase=\"Succeeded\"}}[{range}]) == 1");
        let models = by(self.query(&products).await?, "gpu_uuid", "model");
        let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
        for series in self.query(&ended).await? {
            if let Some(uid) = series.metric.get("uid") {
                pods.entry(uid.clone()).or_default();
            }
        }
        for series in self.query(&annotated).await? {
            let pod = series.metric.get("uid").and_then(|uid| pods.get_mut(uid));
            if let Some(pod) = pod {
                pod.annotations.extend(annotations(&series.metric));
            }
        }
        let shared = by(self.query(&shared).await?, "gpu_uuid", "gpu_uuid");
        let drivers = self.query(&drivers).await?;
        let limits = numbers(self.query(&limits).await?, "gpu_uuid");
        for series in self.query(&lasted).await? {
            let pod = series.metric.get("uid").and_then(|uid| pods.get_mut(uid));
            if let Some(pod) = pod {
                pod.seconds = series.value.1.parse().ok();
            }
        }
        for series in self.query(&energy).await? {
            let uid = series.metric.get("uid");
            let Some(pod) = uid.and_then(|uid| pods.get_mut(uid)) else {
                continue;
            };
            let text = |name: &str| series.metric.get(name).cloned().unwrap_or_default();
            pod.name = format!("{}/{}", text("namespace"), text("pod"));
            pod.joules += series.value.1.parse::<f64>().unwrap_or(0.0);
            let uuid = text("gpu_uuid");
            pod.products
                .extend(models.get(&uuid).and_then(|name| Gpu::parse(name)));
            pod.shared |= shared.contains_key(&uuid);
            let of = drivers
                .iter()
                .filter(|series| series.metric.get("gpu_uuid") == Some(&uuid));
            let versions = of.filter_map(|series| series.metric.get("driver_version"));
            pod.drivers
                .extend(versions.map(|version| driver_branch(version)));
            pod.limits.push(limits.get(&uuid).copied());
            pod.gpus.push(uuid);
        }
        let mut dataset = Dataset::default();
        for (number, pod) in pods.values().filter(|pod| pod.joules > 0.0).enumerate() {
            match observe(pod, catalogue) {
                Ok((gpu, run)) => dataset.runs.entry(gpu).or_default().push(run),
                Err(why) => dataset.left_out.push(RowError {
                    line: number as u64 + 1,
                    why: format!("{}: {why}", pod.name),
                }),
            }
        }
        Ok(dataset)
    }

    async fn query(&self, expression: &str) -> anyhow::Result<Vec<Series>> {
        let rest = self.url.strip_prefix("http://").ok_or_else(|| {
            wrong(format!(
                "--prometheus {:?} is not http://HOST:PORT; where it asks for TLS or a token, forward its port",
                self.url
            ))
        })?;
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let named = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let address = named.to_socket_addrs().ok().and_then(|mut all| all.next());
        let address = address.ok_or_else(|| {
            wrong(format!(
                "--prometheus: {named:?} is no address, for example http://127.0.0.1:9090"
            ))
        })?;
        let mut path = String::new();
        if !prefix.is_empty() {
            let _ = write!(path, "/{prefix}");
        }
        path += "/api/v1/query?query=";
        for byte in expression.bytes() {
            let _ = write!(path, "%{byte:02X}");
        }
        let asked = tokio::time::timeout(PATIENCE, fetch::get(address, &path, LARGEST)).await;
        let body = asked.map_err(|_| {
            anyhow::anyhow!("{address} did not answer in {} s", PATIENCE.as_secs())
        })??;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| anyhow::anyhow!("{address} is no Prometheus server: {error}"))?;
        Ok(answer.data.result)
    }
}

/// One label of each series by another.
fn by(series: Vec<Series>, key: &str, value: &str) -> BTreeMap<String, String> {
    let pair = |s: &Series| Some((s.metric.get(key)?.clone(), s.metric.get(value)?.clone()));
    series.iter().filter_map(pair).collect()
}

/// The value of each series by one label.
fn numbers(series: Vec<Series>, key: &str) -> BTreeMap<String, f64> {
    let pair = |s: &Series| Some((s.metric.get(key)?.clone(), s.value.1.parse().ok()?));
    series.iter().filter_map(pair).collect()
}

/// The middle of all where all are known.
fn mean(of: &[Option<f64>]) -> Option<f64> {
    let known: Option<Vec<f64>> = of.iter().copied().collect();
    let sum: f64 = known.as_ref()?.iter().sum();
    Some(sum / of.len() as f64).filter(|mean| mean.is_finite())
}

/// Parameters out of kube-state-metrics' labels: `annotation_jouleward_dev_num_images`.
fn annotations(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let label = |name: &str| {
        let plain: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        format!("annotation_{plain}")
    };
    ALL.iter()
        .filter_map(|annotation| {
            let value = labels
                .get(&label(annotation.name))
                .filter(|v| !v.is_empty())?;
            Some((annotation.name.to_owned(), value.clone()))
        })
        .collect()
}

fn observe(pod: &Pod, catalogue: &Catalogue) -> Result<(Gpu, Observation), String> {
    if pod.annotations.is_empty() {
        return Err(
            "no annotation of it is known: start kube-state-metrics with --metric-annotations-allowlist=pods=[jouleward.dev/model,…]"
                .to_owned(),
        );
    }
    let mut products = pod.products.clone();
    products.sort();
    products.dedup();
    let [gpu] = products.as_slice() else {
        return Err("it ran on no GPU product that is known, or on several".to_owned());
    };
    if pod.shared {
        return Err(
            "one of its GPUs was shared: what it burned alone is a modelled share".to_owned(),
        );
    }
    if let Some(seconds) = pod.seconds.filter(|seconds| *seconds < 1.0) {
        return Err(format!(
            "it ran {seconds} s: an energy counter says little of a run under 1 s"
        ));
    }
    let mut workload = workload(&pod.annotations, catalogue, "")?;
    if let Some(done) = pod.annotations.get(IMAGES_DONE.name) {
        let done = done.trim().parse().unwrap_or(0);
        if done == 0 || done > workload.images {
            return Err(format!(
                "it says that it made {done} of {} images",
                workload.images
            ));
        }
        workload.images = done;
    }
    if workload.is_batch_unknown() {
        return Err("it made several images, and nobody says how many together: annotate jouleward.dev/batch-size".to_owned());
    }
    let said = pod.annotations.get(WARM_UP.name);
    if said.is_some_and(|said| said.trim() == "true") {
        return Err("it only warmed up".to_owned());
    }
    let gpus = u32::try_from(pod.gpus.len()).unwrap_or(1);
    let (_, mut features) = catalogue
        .job(&workload, 1, gpus)
        .ok_or("its model is not in the catalogue")?;
    let mut drivers = pod.drivers.iter().filter(|branch| !branch.is_empty());
    features.stack.driver = drivers.next().cloned().filter(|_| drivers.next().is_none());
    features.stack.power = mean(&pod.limits);
    Ok((
        gpu.clone(),
        Observation {
            features,
            energy: Joules(pod.joules),
            basis: Basis::Gross,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_kube_state_metrics_are_annotations_again() {
        let labels = [
            ("annotation_jouleward_dev_model", "sdxl"),
            ("annotation_jouleward_dev_num_inference_steps", "20"),
            ("annotation_jouleward_dev_width", ""),
            ("annotation_example_com_owner", "us"),
        ];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let found = annotations(&labels);
        assert_eq!(found.len(), 2);
        assert_eq!(found["jouleward.dev/num-inference-steps"], "20");
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        for range in ["", "d", "7 days", "7d])", "-1d"] {
            assert!(Server::new("http://x", range).is_err(), "{range}");
        }
        assert!(Server::new("http://x", "1d12h").is_ok());
    }
}
