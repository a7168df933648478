//! How the exporter itself is doing: what answers, what fails, how long its work takes.

use super::dra::DraState;
use super::metrics::labels;
use super::nvml::{CallError, OpenError};
use crate::contract::{self as c};
use crate::serve::exposition::{Family, Histogram, LATENCY, Value};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

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
    renders: Histogram,
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
            renders: Histogram::new(LATENCY),
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

    /// A page was rendered.
    pub(super) fn rendered(&mut self, micros: u64) {
        self.renders.observe(micros as f64 / 1e6);
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

    /// Its series; `gpus` are metered.
    pub(super) fn families(&self, node: &str, gpus: usize) -> Vec<Family> {
        let labels = |more: &[(&'static str, &str)]| labels(node, more);
        let mut nvml = Family::new(c::NVML_ERRORS);
        for (error, count) in &self.nvml_errors {
            nvml.add(
                labels(&[("call", error.call), ("code", error.code)]),
                *count as f64,
            );
        }
        let mut kubelet = Family::new(c::PODRESOURCES_ERRORS);
        for (code, count) in &self.kubelet_errors {
            kubelet.add(labels(&[("code", code)]), *count as f64);
        }
        let mut procs = Family::new(c::PROC_ERRORS);
        for ((file, error), count) in &self.proc_errors {
            procs.add(labels(&[("call", file), ("code", error)]), *count as f64);
        }
        let mut claims = Family::new(c::CLAIM_ERRORS);
        for (code, count) in &self.claims.errors {
            claims.add(labels(&[("code", code)]), *count as f64);
        }
        let one = |metric, value: f64| {
            let mut family = Family::new(metric);
            family.add(labels(&[]), value);
            family
        };
        let histogram = |metric, of: &Histogram| {
            let mut family = Family::new(metric);
            let value = Value::Histogram(of.clone());
            family.series.push((labels(&[]), value));
            family
        };
        let mut build = Family::new(c::BUILD_INFO);
        build.add(labels(&[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
        let at = self.last_tick.as_millisecond() as f64 / 1000.0;
        vec![
            nvml,
            kubelet,
            procs,
            claims,
            one(c::SERIES_DROPPED, self.dropped as f64),
            histogram(c::TICK_SECONDS, &self.ticks),
            histogram(c::RENDER_SECONDS, &self.renders),
            one(c::LAST_TICK, at),
            one(c::RESTORED, f64::from(u8::from(self.restored))),
            one(c::CHECKPOINT_ERRORS, self.checkpoint_errors as f64),
            build,
            one(c::GPUS, gpus as f64),
        ]
    }
}
