//! The exporter's series, from a snapshot of the meter: nothing here calls NVML, the
//! kubelet or a lock that the sampler holds.

use super::compat::Compat;
use super::exporter::Settings;
use super::health::Health;
use super::held::Held;
use super::meter::{GpuTotals, Meter, PodAccount};
use super::nvml::GpuInfo;
use crate::clock;
use crate::contract::{self as c};
use crate::law::Microjoules;
use crate::serve::exposition::{
    Family, Labels, OPENMETRICS, TEXT, content_type, openmetrics, text,
};
use hyper::body::Bytes;
use std::collections::BTreeMap;
use std::sync::OnceLock;

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
    text: OnceLock<Page>,
    openmetrics: OnceLock<Page>,
}

/// One page, and how long it took to render.
#[derive(Debug, Clone)]
struct Page {
    body: Bytes,
    micros: u64,
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
        let page = page.get_or_init(|| {
            let begun = clock::monotonic_micros();
            let body = match kind {
                OPENMETRICS => openmetrics(self.families()).into(),
                _ => self.text(compat).into(),
            };
            let micros = clock::monotonic_micros().saturating_sub(begun);
            Page { body, micros }
        });
        (page.body.clone(), kind)
    }

    /// How long each page of it that was asked for took to render, in µs.
    pub(super) fn render_micros(&self) -> impl Iterator<Item = u64> {
        let pages = [&self.pages.text, &self.pages.openmetrics];
        pages
            .into_iter()
            .filter_map(|page| Some(page.get()?.micros))
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
        families.extend(self.health.families(&self.node, self.gpus.len()));
        families
    }

    fn labels(&self, more: &[(&'static str, &str)]) -> Labels {
        labels(&self.node, more)
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
}

/// Labels of a series of a node.
pub(super) fn labels(node: &str, more: &[(&'static str, &str)]) -> Labels {
    let node = ("node", node.to_owned());
    std::iter::once(node)
        .chain(more.iter().map(|(k, v)| (*k, (*v).to_owned())))
        .collect()
}

/// Joules to three decimals, from the exact sum: no error adds up.
fn joules(energy: Microjoules) -> f64 {
    (energy.0 / 1000) as f64 / 1000.0
}
