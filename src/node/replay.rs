//! How the last windows were split, so that a person can follow every joule of them.

use super::attribution::{Split, Unattributed, Window};
use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One window of one GPU, as it was split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    pub gpu: String,
    /// µs on the machine's boot-time clock.
    pub from_micros: u64,
    pub to_micros: u64,
    /// The counter's difference.
    pub microjoules: u64,
    /// Idle power without and with a context that the split rests on, mW.
    pub idle_milliwatts: u64,
    pub context_milliwatts: u64,
    /// Idle energy of the windows before that the counter shows in this one.
    #[serde(default)]
    pub idle_owed_microjoules: u64,
    /// exact, sampled, fallback_power; empty where it was not split.
    pub quality: String,
    /// Replicas held, by `namespace/pod/container`.
    pub holders: BTreeMap<String, u64>,
    /// SM percent × µs, by pod UID or `host`.
    pub activity: BTreeMap<String, u64>,
    /// Pod UIDs, or `host`, with a context.
    pub contexts: Vec<String>,
    /// What each was billed.
    pub parts: Vec<Part>,
}

/// One part of a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// `namespace/pod/container`, or the reason why it is nobody's.
    pub to: String,
    pub active_microjoules: u64,
    pub idle_microjoules: u64,
}

impl Replay {
    pub(super) fn of(gpu: &str, from: u64, to: u64, window: &Window, split: &Split) -> Self {
        let pods = split.pods.iter().map(|(holder, (active, idle))| Part {
            to: holder.to_string(),
            active_microjoules: active.0,
            idle_microjoules: idle.0,
        });
        let nobodys = split.unattributed.iter().map(|(reason, energy)| Part {
            to: reason.as_str().to_owned(),
            active_microjoules: energy.0,
            idle_microjoules: 0,
        });
        Self {
            gpu: gpu.to_owned(),
            from_micros: from,
            to_micros: to,
            microjoules: window.energy.0,
            idle_milliwatts: window.idle_milliwatts,
            context_milliwatts: window.context_milliwatts,
            idle_owed_microjoules: window.idle_owed.0,
            quality: split.quality.as_str().to_owned(),
            holders: window
                .holders
                .iter()
                .map(|(holder, weight)| (holder.to_string(), *weight))
                .collect(),
            activity: window
                .activity
                .iter()
                .map(|(owner, weight)| (owner.to_string(), *weight))
                .collect(),
            contexts: window.contexts.iter().map(ToString::to_string).collect(),
            parts: pods.chain(nobodys).collect(),
        }
    }

    /// A window of which it is not known whose it is.
    pub(super) fn nobodys(
        gpu: &str,
        from: u64,
        to: u64,
        energy: Microjoules,
        reason: Unattributed,
    ) -> Self {
        Self {
            gpu: gpu.to_owned(),
            from_micros: from,
            to_micros: to,
            microjoules: energy.0,
            idle_milliwatts: 0,
            context_milliwatts: 0,
            idle_owed_microjoules: 0,
            quality: String::new(),
            holders: BTreeMap::new(),
            activity: BTreeMap::new(),
            contexts: Vec::new(),
            parts: vec![Part {
                to: reason.as_str().to_owned(),
                active_microjoules: energy.0,
                idle_microjoules: 0,
            }],
        }
    }

    /// True where a pod, by `namespace/name`, held it or was billed.
    pub fn concerns(&self, pod: &str) -> bool {
        let of_pod = |name: &str| {
            name.strip_prefix(pod)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        self.holders.keys().any(|name| of_pod(name))
            || self.parts.iter().any(|part| of_pod(&part.to))
    }
}
