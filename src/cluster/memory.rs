//! What the leader remembers between cycles. All of it can be lost, and none of it grows
//! beyond what is there to be remembered.

use super::objects::{Owner, Work};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Job of each pod that was seen, since pods go before their last joule is told.
    owners: HashMap<String, String>,
    /// µs, monotonic: when a workload was first seen to have ended.
    ended: HashMap<String, u64>,
    /// µs, monotonic: when a reservation's status was last written.
    pub(super) written: HashMap<String, u64>,
    /// Workloads that were told why they wait.
    pub(super) told: HashSet<String>,
    /// µs, monotonic: since when a pod is nobody's.
    nobodys: HashMap<String, u64>,
}

/// A pod that is nobody's for this long is charged by itself: its job may come later than
/// the pod, by another watch.
const NOBODYS_US: u64 = 5_000_000;

impl Memory {
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in whose the pods are.
    pub(super) fn see(&mut self, pods: &[Arc<Work>]) {
        for pod in pods {
            if let Owner::Job(job) = &pod.owner
                && !pod.held
            {
                self.owners.insert(pod.uid.clone(), job.clone());
            }
        }
    }

    pub(super) fn job_of(&self, pod: &str) -> Option<&str> {
        self.owners.get(pod).map(String::as_str)
    }

    /// Pods by job.
    pub(super) fn children(&self) -> HashMap<&str, Vec<&str>> {
        let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
        for (pod, job) in &self.owners {
            children.entry(job).or_default().push(pod);
        }
        children
    }

    /// When the workload was first seen to have ended, now at the latest.
    pub(super) fn ended_at(&mut self, uid: &str, now: u64) -> u64 {
        *self.ended.entry(uid.to_owned()).or_insert(now)
    }

    /// True once a pod has been nobody's for long enough.
    pub(super) fn is_nobodys(&mut self, pod: &str, now: u64) -> bool {
        let since = *self.nobodys.entry(pod.to_owned()).or_insert(now);
        now.saturating_sub(since) >= NOBODYS_US
    }

    /// Keeps what is about these pods, the open reservations' workloads, and the work that
    /// is there.
    pub(super) fn keep_only(
        &mut self,
        pods: &HashSet<&str>,
        open: &HashSet<&str>,
        works: &HashSet<&str>,
    ) {
        self.owners.retain(|pod, _| pods.contains(pod.as_str()));
        self.nobodys.retain(|pod, _| pods.contains(pod.as_str()));
        self.ended.retain(|uid, _| open.contains(uid.as_str()));
        self.written.retain(|uid, _| open.contains(uid.as_str()));
        self.told.retain(|uid| works.contains(uid.as_str()));
    }
}
