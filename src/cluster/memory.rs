//! What the leader remembers between cycles. All of it can be lost, and none of it grows
//! beyond what is there to be remembered.

use super::lawbook::LawBook;
use super::missing::Missed;
use super::objects::{Owner, Work};
use super::stores::Removed;
use crate::api::{CarbonReservation, CarbonStatement, ReservationStatus};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Pods that were seen: they go before their last joule is told.
    pods: HashMap<String, SeenPod>,
    /// µs, monotonic: when a workload was first seen to have ended.
    ended: HashMap<String, u64>,
    /// µs, monotonic: when a reservation's status was last written.
    pub(super) written: HashMap<String, u64>,
    /// What was drawn down and is not written yet, by workload.
    pub(super) drawn: HashMap<String, Drawn>,
    /// What workloads were told, by reason.
    told: HashSet<(String, &'static str)>,
    /// µs, monotonic: since when a pod is nobody's.
    nobodys: HashMap<String, u64>,
    /// The laws in hand.
    pub(super) laws: LawBook,
    /// Records that went, and of which it is not settled why.
    pub(super) missed: Vec<Missed>,
    /// The namespace that making good goes on with.
    pub(super) missed_from: Option<String>,
    /// Statements that went.
    pub(super) gone: Vec<Removed<CarbonStatement>>,
    /// µs, monotonic: when a round of putting records away was begun last.
    pub(super) put_away_at: u64,
    /// The namespace that the round at hand goes on with.
    pub(super) put_away_from: Option<String>,
    /// µs, monotonic: when this leader's first cycle began.
    pub(super) leads_since: Option<u64>,
}

/// Whose a pod is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenPod {
    pub(super) namespace: String,
    pub(super) job: Option<String>,
    pub(super) node: Option<String>,
    /// Images that it says it made.
    pub(super) images: Option<i64>,
}

/// What a record would say, had it been written.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) status: ReservationStatus,
    /// The version of the record that it follows from.
    version: Option<String>,
}

impl Drawn {
    pub(super) fn of(record: &CarbonReservation, status: ReservationStatus) -> Self {
        Self {
            status,
            version: record.metadata.resource_version.clone(),
        }
    }

    /// True where the record is still the one that it follows from.
    pub(super) fn is_of(&self, record: &CarbonReservation) -> bool {
        self.version == record.metadata.resource_version
    }
}

/// A pod that is nobody's for this long is charged by itself: its job may come later than
/// the pod, by another watch.
const NOBODYS_US: u64 = 5_000_000;

impl Memory {
    /// All but what is gone: who leads again after a moment has it still to make good.
    pub(super) fn forget(&mut self) {
        *self = Self {
            missed: std::mem::take(&mut self.missed),
            gone: std::mem::take(&mut self.gone),
            ..Self::default()
        };
    }

    /// Takes in whose the pods are, and where.
    pub(super) fn see(&mut self, pods: &[Arc<Work>]) {
        for pod in pods {
            let job = match &pod.owner {
                Owner::Job(job) if !pod.held => Some(job.clone()),
                _ => None,
            };
            let before = self.pods.get(&pod.uid);
            let seen = SeenPod {
                namespace: pod.namespace.clone(),
                // A job that was deleted alone leaves its pods without an owner.
                job: job.or_else(|| before.and_then(|seen| seen.job.clone())),
                node: pod.node.clone(),
                images: pod.images_told.or(before.and_then(|seen| seen.images)),
            };
            self.pods.insert(pod.uid.clone(), seen);
        }
    }

    pub(super) fn pods(&self) -> &HashMap<String, SeenPod> {
        &self.pods
    }

    pub(super) fn job_of(&self, pod: &str) -> Option<&str> {
        self.pods.get(pod)?.job.as_deref()
    }

    /// When the workload was first seen to have ended, now at the latest.
    pub(super) fn ended_at(&mut self, uid: &str, now: u64) -> u64 {
        *self.ended.entry(uid.to_owned()).or_insert(now)
    }

    /// It was not the end: the workload is there again.
    pub(super) fn goes_on(&mut self, uid: &str) {
        self.ended.remove(uid);
    }

    /// True where the workload was not told this yet.
    pub(super) fn tell(&mut self, uid: &str, reason: &'static str) -> bool {
        self.told.insert((uid.to_owned(), reason))
    }

    pub(super) fn has_told(&self, uid: &str, reason: &'static str) -> bool {
        self.told.contains(&(uid.to_owned(), reason))
    }

    /// True while it is not settled why a record of a namespace, or its statement, is gone.
    pub(super) fn misses_a_record_of(&self, namespace: &str) -> bool {
        let missed = self.missed.iter().any(|missed| missed.is_of(namespace));
        missed
            || self
                .gone
                .iter()
                .any(|gone| gone.value.spec.namespace == namespace)
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
        self.pods.retain(|pod, _| pods.contains(pod.as_str()));
        self.nobodys.retain(|pod, _| pods.contains(pod.as_str()));
        self.ended.retain(|uid, _| open.contains(uid.as_str()));
        self.written.retain(|uid, _| open.contains(uid.as_str()));
        self.drawn.retain(|uid, _| open.contains(uid.as_str()));
        self.told.retain(|(uid, _)| works.contains(uid.as_str()));
    }
}
