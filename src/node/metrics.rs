//! The exporter's series, from a snapshot of the meter: nothing here calls NVML, the
//! kubelet or a lock that the sampler holds.

use super::compat::Compat;
use super::dra::DraState;
use super::exporter::Settings;
use super::held::Held;
use super::meter::{GpuTotals, Meter, PodAccount};
use super::nvml::{CallError, GpuInfo, OpenError};
use crate::contract::{self as c};
use crate::law::Microjoules;
use crate::serve::exposition::{
    Family, Histogram, LATENCY, Labels, OPENMETRICS, TEXT, Value, content_type, openmetrics, text,
};
use hyper::body::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// How the exporter itself is doing.
#[derive(Debug, Clone)]
pub(super) struct Health {
    nvml: Result<(), OpenError>,
    nvml_errors: BTreeMap<CallError, u64>,
    /// Calls that failed in the look before, and in this one.
    failing: (BTreeSet<CallError>, BTreeSet<CallError>),
    /// Reads of /proc that failed, by file and error.
    proc_errors: BTreeMap<(&'static str, String), u64>,
    kubelet_errors: BTreeMap<String, u64>,
    kubelet: Kubelet,
    claims: DraState,
    /// Devices in the kubelet's last answer that are none NVML shows.
    unknown_devices: usize,
    pub(super) dropped: u64,
    ticks: Histogram,
    last_tick: Timestamp,
    /// True where the sums go on from an earlier run.
    pub(super) restored: bool,
    pub(super) checkpoint_errors: u64,
    pub(super) checkpoint_fails: bool,
}

/// Who says which pod holds which GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kubelet {
    Silent,
    Answers,
    /// In a sidecar, whose pod holds what it uses.
    NotAsked,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            nvml: Err(OpenError::Library("not tried yet".to_owned())),
            nvml_errors: BTreeMap::new(),
            failing: Default::default(),
            proc_errors: BTreeMap::new(),
            kubelet_errors: BTreeMap::new(),
            kubelet: Kubelet::Silent,
            claims: DraState::default(),
            unknown_devices: 0,
            dropped: 0,
            ticks: Histogram::new(LATENCY),
            last_tick: Timestamp::UNIX_EPOCH,
            restored: false,
            checkpoint_errors: 0,
            checkpoint_fails: false,
        }
    }
}

impl Health {
    /// Of a sidecar, which asks no kubelet.
    pub(super) fn of_own() -> Self {
        Self {
            kubelet: Kubelet::NotAsked,
            ..Self::default()
        }
    }

    /// Logs once per change of state.
    pub(super) fn nvml(&mut self, state: Result<(), OpenError>) {
        if state != self.nvml {
            match &state {
                Ok(()) => tracing::info!("NVML answers"),
                Err(error) => tracing::warn!(%error, "no GPU is metered; trying again every 10 s"),
            }
        }
        self.nvml = state;
    }

    pub(super) fn count(&mut self, error: &CallError) {
        *self.nvml_errors.entry(error.clone()).or_default() += 1;
        let (before, now) = &mut self.failing;
        if now.insert(error.clone()) && !before.contains(error) {
            tracing::warn!(
                call = error.call,
                code = error.code,
                "an NVML call fails; further ones are counted"
            );
        }
    }

    /// A look is over: what failed before and does no more is told once.
    fn looked(&mut self) {
        let (before, now) = &mut self.failing;
        for error in before.difference(now) {
            tracing::info!(
                call = error.call,
                code = error.code,
                "an NVML call no longer fails so"
            );
        }
        *before = std::mem::take(now);
    }

    /// Counts a read of /proc that failed; logged once a file and error.
    pub(super) fn proc(&mut self, file: &'static str, error: std::io::ErrorKind) {
        let count = self.proc_errors.entry((file, format!("{error:?}")));
        let count = count.or_default();
        if *count == 0 {
            tracing::warn!(
                file,
                ?error,
                "a process cannot be read; its energy is an unknown process's"
            );
        }
        *count += 1;
    }

    pub(super) fn kubelet(&mut self, errors: &BTreeMap<String, u64>, healthy: bool) {
        let state = match self.kubelet {
            Kubelet::NotAsked => Kubelet::NotAsked,
            _ if healthy => Kubelet::Answers,
            _ => Kubelet::Silent,
        };
        if state != self.kubelet {
            tracing::info!(healthy, "the kubelet's pod-resources socket");
        }
        self.kubelet = state;
        if *errors != self.kubelet_errors {
            self.kubelet_errors.clone_from(errors);
        }
    }

    pub(super) fn claims(&mut self, state: &DraState) {
        if *state != self.claims {
            self.claims.clone_from(state);
        }
    }

    pub(super) fn unknown_devices(&mut self, number: usize) {
        if number > self.unknown_devices {
            tracing::warn!(
                number,
                "the kubelet tells of devices that NVML does not show"
            );
        }
        self.unknown_devices = number;
    }

    pub(super) fn ticked(&mut self, micros: u64, at: Timestamp) {
        self.looked();
        self.ticks.observe(micros as f64 / 1e6);
        self.last_tick = at;
    }

    /// Ready where nothing is wrong: no driver at all is a node without GPUs.
    pub(super) fn is_ready(&self) -> bool {
        match &self.nvml {
            Ok(()) => self.kubelet != Kubelet::Silent,
            Err(OpenError::Library(_)) => self.last_tick > Timestamp::UNIX_EPOCH,
            Err(_) => false,
        }
    }

    /// One line a part, for /readyz?verbose.
    pub(super) fn report(&self) -> String {
        let nvml = self
            .nvml
            .as_ref()
            .map_or_else(ToString::to_string, |()| "ok".to_owned());
        let kubelet = match self.kubelet {
            Kubelet::NotAsked => "not asked, this pod holds what it uses",
            Kubelet::Answers => "ok",
            Kubelet::Silent => "does not answer",
        };
        let mut text = format!("nvml: {nvml}\nkubelet pod-resources: {kubelet}\n");
        if self.unknown_devices > 0 {
            text += &format!(
                "devices that NVML does not show: {}\n",
                self.unknown_devices
            );
        }
        if let Some(trouble) = &self.claims.trouble {
            text +=
                &format!("resource claims: {trouble}; those for administration count as holders\n");
        }
        for (error, count) in &self.nvml_errors {
            text += &format!("nvml errors: {} {} {count}\n", error.call, error.code);
        }
        for (code, count) in &self.kubelet_errors {
            text += &format!("kubelet errors: {code} {count}\n");
        }
        for ((file, error), count) in &self.proc_errors {
            text += &format!("process errors: {file} {error} {count}\n");
        }
        if self.checkpoint_errors > 0 {
            let now = if self.checkpoint_fails {
                "fails"
            } else {
                "works again"
            };
            text += &format!("checkpoint errors: {}, it {now}\n", self.checkpoint_errors);
        }
        text
    }
}

/// One pod's series as they are shown: zero first, then the value, then gone.
#[derive(Debug, Clone)]
struct PodSeries {
    account: PodAccount,
    zero: bool,
}

/// All that a scrape shows.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeSnapshot {
    node: String,
    gpus: Vec<(GpuInfo, GpuTotals)>,
    pods: Vec<PodSeries>,
    held: Vec<Held>,
    namespaces: BTreeMap<String, Microjoules>,
    pub(super) health: Health,
    pages: Pages,
}

/// What was rendered already: however many scrape, a look is rendered once a format.
#[derive(Debug, Clone, Default)]
struct Pages {
    text: OnceLock<Bytes>,
    openmetrics: OnceLock<Bytes>,
}

impl NodeSnapshot {
    pub(super) fn of(
        meter: &Meter,
        held: Vec<Held>,
        settings: &Settings,
        health: &Health,
        now: u64,
    ) -> Self {
        let micros =
            |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let (delay, hold) = (
            micros(settings.publish_delay),
            micros(settings.hold_after_end),
        );
        let pods = meter
            .pods()
            .filter(|account| {
                let shown_since = account.opened.saturating_add(delay);
                account
                    .ended
                    .is_none_or(|ended| now < ended.max(shown_since).saturating_add(hold))
            })
            .map(|account| PodSeries {
                // What an earlier run has shown is not taken back.
                zero: !account.from_other_boot && now < account.opened.saturating_add(delay),
                account: account.clone(),
            })
            .collect();
        Self {
            node: settings.node.clone(),
            gpus: meter
                .gpus()
                .map(|(info, totals)| (info.clone(), totals.clone()))
                .collect(),
            pods,
            held,
            namespaces: meter.namespaces().clone(),
            health: health.clone(),
            pages: Pages::default(),
        }
    }

    /// What a scrape shows: body and content type. dcgm-exporter knows the text format alone,
    /// so with its names nothing else is spoken.
    pub(super) fn shown(
        &self,
        compat: Option<Compat>,
        accept: Option<&str>,
    ) -> (Bytes, &'static str) {
        let (page, kind) = match content_type(accept) {
            OPENMETRICS if compat.is_none() => (&self.pages.openmetrics, OPENMETRICS),
            _ => (&self.pages.text, TEXT),
        };
        let page = page.get_or_init(|| match kind {
            OPENMETRICS => openmetrics(self.families()).into(),
            _ => self.text(compat).into(),
        });
        (page.clone(), kind)
    }

    /// In the text format, with another exporter's names where they are asked for.
    pub(super) fn text(&self, compat: Option<Compat>) -> String {
        let more = compat.map(|compat| compat.text(&self.node, &self.gpus));
        text(&self.families()) + &more.unwrap_or_default()
    }

    /// All families, in the order of the contract.
    fn families(&self) -> Vec<Family> {
        let mut families = self.gpu_families();
        families.extend(self.pod_families());
        families.extend(self.health_families());
        families
    }

    fn labels(&self, more: &[(&'static str, &str)]) -> Labels {
        let node = ("node", self.node.clone());
        std::iter::once(node)
            .chain(more.iter().map(|(k, v)| (*k, (*v).to_owned())))
            .collect()
    }

    fn gpu_families(&self) -> Vec<Family> {
        let mut energy = Family::new(c::GPU_ENERGY);
        let mut unattributed = Family::new(c::UNATTRIBUTED_ENERGY);
        let mut quality = Family::new(c::ATTRIBUTION_ENERGY);
        let mut info = Family::new(c::GPU_INFO);
        let mut power = Family::new(c::GPU_POWER);
        let mut idle = Family::new(c::GPU_IDLE_POWER);
        let mut limit = Family::new(c::GPU_POWER_LIMIT);
        let mut default_limit = Family::new(c::GPU_POWER_LIMIT_DEFAULT);
        let mut resets = Family::new(c::COUNTER_RESETS);
        let mut lost = Family::new(c::GPU_LOST);
        let mut gaps = Family::new(c::GAP_SECONDS);
        for (gpu, totals) in &self.gpus {
            let uuid = ("gpu_uuid", gpu.uuid.as_str());
            let plain = self.labels(&[uuid]);
            energy.add(plain.clone(), joules(totals.energy));
            for reason in super::attribution::Unattributed::ALL {
                let value = totals
                    .unattributed
                    .get(&reason)
                    .copied()
                    .unwrap_or_default();
                unattributed.add(
                    self.labels(&[uuid, ("reason", reason.as_str())]),
                    joules(value),
                );
            }
            for how in super::attribution::Quality::ALL {
                let value = totals.quality.get(&how).copied().unwrap_or_default();
                quality.add(
                    self.labels(&[uuid, ("quality", how.as_str())]),
                    joules(value),
                );
            }
            let watts = |family: &mut Family, labels: Labels, milliwatts: Option<u64>| {
                if let Some(milliwatts) = milliwatts {
                    family.add(labels, milliwatts as f64 / 1000.0);
                }
            };
            watts(&mut power, plain.clone(), totals.power_milliwatts);
            watts(
                &mut idle,
                self.labels(&[uuid, ("level", "bare")]),
                totals.idle_milliwatts,
            );
            watts(
                &mut idle,
                self.labels(&[uuid, ("level", "context")]),
                totals.context_milliwatts,
            );
            watts(&mut limit, plain.clone(), totals.limit_milliwatts);
            let default = gpu.default_limit_milliwatts;
            watts(&mut default_limit, plain.clone(), default);
            info.add(self.info_labels(gpu, totals), 1.0);
            resets.add(plain.clone(), totals.resets as f64);
            lost.add(plain.clone(), totals.lost as f64);
            gaps.add(plain, totals.gap_micros as f64 / 1e6);
        }
        vec![
            energy,
            unattributed,
            quality,
            power,
            idle,
            limit,
            default_limit,
            info,
            resets,
            lost,
            gaps,
        ]
    }

    fn info_labels(&self, gpu: &GpuInfo, totals: &GpuTotals) -> Labels {
        let holders = self
            .pods
            .iter()
            .filter(|p| {
                p.account.ended.is_none() && p.account.shares.keys().any(|(_, g)| *g == gpu.uuid)
            })
            .count();
        self.labels(&[
            ("gpu_uuid", &gpu.uuid),
            ("gpu", &gpu.index.to_string()),
            ("model", &gpu.model),
            ("pci_bus_id", &gpu.pci_bus_id),
            ("driver_version", &gpu.driver),
            ("energy_source", gpu.source.as_str()),
            ("scope", gpu.scope()),
            (
                "sharing",
                match (totals.mig, totals.mps) {
                    (true, _) => "mig",
                    (false, true) => "mps",
                    (false, false) if holders > 1 => "time-slicing",
                    (false, false) => "exclusive",
                },
            ),
        ])
    }

    fn pod_families(&self) -> Vec<Family> {
        let mut energy = Family::new(c::POD_ENERGY);
        let mut namespaces = Family::new(c::NAMESPACE_ENERGY);
        for PodSeries { account, zero } in &self.pods {
            for ((container, gpu), share) in &account.shares {
                let labels = self.labels(&[
                    ("namespace", &account.namespace),
                    ("pod", &account.pod),
                    ("uid", &account.uid),
                    ("container", container),
                    ("gpu_uuid", gpu),
                ]);
                for (component, value) in [("active", share.active), ("idle", share.idle)] {
                    let mut labels = labels.clone();
                    labels.push(("component", component.to_owned()));
                    energy.add(labels, if *zero { 0.0 } else { joules(value) });
                }
            }
        }
        for (namespace, value) in &self.namespaces {
            namespaces.add(self.labels(&[("namespace", namespace)]), joules(*value));
        }
        let (allocation, claims) = self.held_families();
        vec![energy, namespaces, allocation, claims]
    }

    fn held_families(&self) -> (Family, Family) {
        let mut allocation = Family::new(c::ALLOCATION);
        let mut claims = Family::new(c::CLAIM_INFO);
        // One container may hold by two claims: its ratio is their sum.
        let mut ratios: BTreeMap<Labels, f64> = BTreeMap::new();
        for held in &self.held {
            let holder = &held.tenure.holder;
            let instance = held.gpu_instance.map(|number| number.to_string());
            let labels = self.labels(&[
                ("namespace", &holder.namespace),
                ("pod", &holder.pod),
                ("uid", &holder.uid),
                ("container", &holder.container),
                ("gpu_uuid", &held.gpu),
                ("gpu_instance_id", &instance.unwrap_or_default()),
            ]);
            let mut allocated = labels.clone();
            let source = if holder.claim.is_some() {
                "dra"
            } else {
                "device-plugin"
            };
            allocated.push(("source", source.to_owned()));
            *ratios.entry(allocated).or_default() += held.ratio;
            if let Some((namespace, name)) = holder.claim.as_ref().and_then(|c| c.split_once('/')) {
                let mut labels = labels;
                labels.push(("claim_namespace", namespace.to_owned()));
                labels.push(("claim", name.to_owned()));
                claims.add(labels, 1.0);
            }
        }
        for (labels, ratio) in ratios {
            allocation.add(labels, ratio);
        }
        (allocation, claims)
    }

    fn health_families(&self) -> Vec<Family> {
        let mut nvml = Family::new(c::NVML_ERRORS);
        for (error, count) in &self.health.nvml_errors {
            nvml.add(
                self.labels(&[("call", error.call), ("code", error.code)]),
                *count as f64,
            );
        }
        let mut kubelet = Family::new(c::PODRESOURCES_ERRORS);
        for (code, count) in &self.health.kubelet_errors {
            kubelet.add(self.labels(&[("code", code)]), *count as f64);
        }
        let mut procs = Family::new(c::PROC_ERRORS);
        for ((file, error), count) in &self.health.proc_errors {
            procs.add(
                self.labels(&[("call", file), ("code", error)]),
                *count as f64,
            );
        }
        let mut claims = Family::new(c::CLAIM_ERRORS);
        for (code, count) in &self.health.claims.errors {
            claims.add(self.labels(&[("code", code)]), *count as f64);
        }
        let one = |metric, value: f64| {
            let mut family = Family::new(metric);
            family.add(self.labels(&[]), value);
            family
        };
        let mut ticks = Family::new(c::TICK_SECONDS);
        ticks.series.push((
            self.labels(&[]),
            Value::Histogram(self.health.ticks.clone()),
        ));
        let mut build = Family::new(c::BUILD_INFO);
        build.add(self.labels(&[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
        let at = self.health.last_tick.as_millisecond() as f64 / 1000.0;
        vec![
            nvml,
            kubelet,
            procs,
            claims,
            one(c::SERIES_DROPPED, self.health.dropped as f64),
            ticks,
            one(c::LAST_TICK, at),
            one(c::RESTORED, f64::from(u8::from(self.health.restored))),
            one(c::CHECKPOINT_ERRORS, self.health.checkpoint_errors as f64),
            build,
            one(c::GPUS, self.gpus.len() as f64),
        ]
    }
}

/// Joules to three decimals, from the exact sum: no error adds up.
fn joules(energy: Microjoules) -> f64 {
    (energy.0 / 1000) as f64 / 1000.0
}
