//! The ledger endpoint: each pod's exact energy, and whether it is final. For the
//! controller; text metrics are for people and Prometheus.

use super::meter::{GpuTotals, Meter, PodAccount};
use super::nvml::GpuInfo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One exporter's answer to `GET /v1/pods`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerPage {
    pub node: String,
    /// Names this run of the exporter: sums restart with it.
    pub epoch: String,
    /// False until the GPUs and the kubelet have both answered.
    pub ready: bool,
    /// Version of the NVIDIA driver; empty where it is not known.
    #[serde(default)]
    pub driver: String,
    /// For how long it has been ready: pods that ended before are not listed.
    #[serde(default)]
    pub watched_milliseconds: u64,
    pub pods: Vec<PodEnergy>,
    /// Every GPU's account: their energies are the sum of the pods', of what is nobody's,
    /// and of `forgottenMicrojoules`, to the microjoule.
    #[serde(default)]
    pub gpus: Vec<GpuEnergy>,
    /// Energy of ended pods that are no longer listed.
    #[serde(default)]
    pub forgotten_microjoules: u64,
}

/// One GPU's energy since the exporter started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuEnergy {
    pub uuid: String,
    /// As far as it is split by now, in whole microjoules.
    pub microjoules: u64,
    /// What is nobody's, by reason.
    pub unattributed: BTreeMap<String, u64>,
}

/// One pod's energy on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEnergy {
    pub uid: String,
    pub namespace: String,
    pub pod: String,
    /// Active and idle together, in whole microjoules.
    pub microjoules: u64,
    /// Products of the GPUs it held, as NVML names them.
    pub models: Vec<String>,
    /// True once the pod holds nothing any more and its last window is billed.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// True where some of it is a modelled share of a shared GPU.
    pub shared: bool,
    /// True where some of what its GPUs burned cannot be said to be its or not.
    #[serde(default)]
    pub incomplete: bool,
    /// Enforced power limit of its GPUs in thousandths of the boards' default, the mean where
    /// they differ; absent where NVML does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_permille: Option<u64>,
    /// For how long it has held a GPU.
    pub held_milliseconds: u64,
    /// How long ago it began to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came_milliseconds_ago: Option<u64>,
    /// How long ago it was seen to hold nothing any more; absent while it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_milliseconds_ago: Option<u64>,
}

/// The driver of the boards that are there: an account may be of one that was taken out.
fn driver(meter: &Meter) -> String {
    let mut known = meter.gpus().filter(|(info, _)| info.driver != "unknown");
    let answers = |(_, totals): &(&GpuInfo, &GpuTotals)| totals.power_milliwatts.is_some();
    let found = known.find(answers);
    found.map_or_else(String::new, |(info, _)| info.driver.clone())
}

/// The page as of now (µs, monotonic).
pub(super) fn page(
    meter: &Meter,
    node: &str,
    epoch: &str,
    ready_since: Option<u64>,
    now: u64,
) -> LedgerPage {
    let model = |gpu: &str| {
        meter
            .gpus()
            .find(|(info, _)| info.uuid == gpu)
            .map(|(info, _)| info.model.clone())
    };
    let limit = |gpu: &str| {
        let (info, totals) = meter.gpus().find(|(info, _)| info.uuid == gpu)?;
        let default = info.default_limit_milliwatts.filter(|mw| *mw > 0)?;
        Some(totals.limit_milliwatts?.saturating_mul(1000) / default)
    };
    let pod = |account: &PodAccount| {
        let limits = account.shares.keys().filter_map(|(_, gpu)| limit(gpu));
        let (sum, known) = limits.fold((0_u64, 0), |(sum, n), limit| {
            (sum.saturating_add(limit), n + 1)
        });
        let mut models: Vec<String> = account
            .shares
            .keys()
            .filter_map(|(_, gpu)| model(gpu))
            .collect();
        models.sort();
        models.dedup();
        PodEnergy {
            uid: account.uid.clone(),
            namespace: account.namespace.clone(),
            pod: account.pod.clone(),
            microjoules: account.energy().0,
            models,
            is_final: account.ended.is_some(),
            shared: account.shared,
            incomplete: account.incomplete,
            power_limit_permille: (known > 0).then(|| sum / known),
            held_milliseconds: account.held(now) / 1000,
            came_milliseconds_ago: Some(now.saturating_sub(account.since) / 1000),
            ended_milliseconds_ago: account.ended.map(|ended| now.saturating_sub(ended) / 1000),
        }
    };
    let gpu = |(info, totals): (&GpuInfo, &GpuTotals)| GpuEnergy {
        uuid: info.uuid.clone(),
        microjoules: totals.energy.0,
        unattributed: totals
            .unattributed
            .iter()
            .map(|(reason, energy)| (reason.as_str().to_owned(), energy.0))
            .collect(),
    };
    LedgerPage {
        node: node.to_owned(),
        epoch: epoch.to_owned(),
        ready: ready_since.is_some(),
        driver: driver(meter),
        watched_milliseconds: ready_since.map_or(0, |since| now.saturating_sub(since) / 1000),
        pods: meter.pods().map(pod).collect(),
        gpus: meter.gpus().map(gpu).collect(),
        forgotten_microjoules: meter.retired().0,
    }
}
