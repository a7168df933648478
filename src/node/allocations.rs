//! Who held which GPU when: the kubelet's lists, and the moments at which pods were seen
//! to come and go between them. Pure.

use super::attribution::Holder;
use super::devices::{Hold, Holders};
use super::pairs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One holder's time on a GPU, in µs on the monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    pub holder: Holder,
    pub weight: u64,
    /// True where the GPU is one pod's at a time.
    #[serde(default)]
    pub whole: bool,
    pub since: u64,
    pub until: Option<u64>,
}

/// What is known of the allocations, and whether something has happened since the kubelet
/// was last asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Allocations {
    tenures: BTreeMap<String, Vec<Tenure>>,
    appeared: HashMap<String, u64>,
    vanished: HashMap<String, u64>,
    /// Pods that were listed before their UID could be told: (namespace, name) → when.
    #[serde(with = "pairs")]
    unnamed: HashMap<(String, String), u64>,
    /// When something happened that the last list does not tell of yet.
    dirty_since: Option<u64>,
    /// When something happened last.
    last_event: u64,
    /// When the last list began; `None` before the first.
    listed_at: Option<u64>,
    /// µs, monotonic: when this run began.
    #[serde(skip)]
    started_at: u64,
    /// µs, monotonic: when an earlier run's knowledge was taken up.
    #[serde(skip)]
    resumed_at: Option<u64>,
    /// GPUs whose holders were others when the first list after a restart came.
    changed_unseen: HashSet<String>,
}

/// Ended tenures are kept this long for windows that are still to be settled.
const KEPT_US: u64 = 120_000_000;
/// A pod's UID is waited for this long.
const UNNAMED_US: u64 = 10_000_000;

impl Allocations {
    /// Nothing is known yet, at `now`.
    pub fn new(now: u64) -> Self {
        Self {
            started_at: now,
            ..Self::default()
        }
    }

    /// Takes up an earlier run's knowledge: everything waits for the kubelet's next list. On
    /// another boot nobody that held then holds now.
    pub fn resume(&mut self, same_boot: bool, now: u64) {
        if !same_boot {
            *self = Self::default();
        }
        self.listed_at = None;
        self.started_at = now;
        self.resumed_at = Some(now);
    }

    /// µs, monotonic: when this run began.
    pub fn started_at(&self) -> u64 {
        self.started_at
    }

    /// Everyone who held a GPU at some time between `from` and `to`.
    pub fn anyone(&self, gpu: &str, from: u64, to: u64) -> impl Iterator<Item = &Tenure> {
        let tenures = self.tenures.get(gpu).into_iter().flatten();
        tenures.filter(move |t| t.since <= to && t.until.is_none_or(|until| until > from))
    }

    /// True where the holders of a GPU changed while no exporter ran.
    pub fn changed_unseen(&self, gpu: &str) -> bool {
        self.changed_unseen.contains(gpu)
    }

    /// A pod was set up, at `at`.
    pub fn pod_appeared(&mut self, uid: &str, at: u64) {
        self.appeared.entry(uid.to_owned()).or_insert(at);
        self.something_happened(at);
    }

    /// A pod's last process ended, or its folder went.
    pub fn pod_vanished(&mut self, uid: &str, at: u64) {
        self.vanished.entry(uid.to_owned()).or_insert(at);
        self.something_happened(at);
    }

    /// A pod has a process again: a container was restarted.
    pub fn pod_alive(&mut self, uid: &str) {
        self.vanished.remove(uid);
    }

    /// Something changed on the node that the kubelet must be asked about.
    pub fn something_happened(&mut self, at: u64) {
        self.dirty_since.get_or_insert(at);
        self.last_event = self.last_event.max(at);
    }

    /// True where windows that end after this moment wait for the next list.
    pub fn settled_until(&self) -> u64 {
        match (self.listed_at, self.dirty_since) {
            (None, _) => 0,
            (Some(_), Some(dirty)) => dirty,
            (Some(_), None) => u64::MAX,
        }
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty_since.is_some() || self.listed_at.is_none()
    }

    /// µs since the kubelet last answered, or since it was waited for first.
    pub fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.listed_at.unwrap_or(self.started_at))
    }

    /// The kubelet's answer to a question asked at `asked`, taken in at `now`; `uid_of`
    /// gives a pod's UID. Returns true if anyone came or went.
    pub fn observe(
        &mut self,
        list: &Holders,
        asked: u64,
        now: u64,
        uid_of: impl Fn(&str, &str) -> Option<String>,
    ) -> bool {
        let first = self.listed_at.is_none();
        self.listed_at = Some(asked);
        if self.dirty_since.is_some_and(|dirty| dirty < asked) {
            // What happened after the question was asked is not in its answer.
            self.dirty_since = (self.last_event >= asked).then_some(asked);
        }
        if !first && self.dirty_since.is_none() {
            // What was burned unseen is billed by now.
            self.changed_unseen.clear();
        }
        let mut changed = false;
        let mut waiting: Option<u64> = None;
        let mut held: HashSet<(String, Holder)> = HashSet::new();
        for (gpu, holders) in list {
            for (holder, hold) in holders {
                let name = (holder.namespace.clone(), holder.pod.clone());
                let known = uid_of(&holder.namespace, &holder.pod);
                let (uid, since) = if let Some(uid) = known {
                    (uid, self.unnamed.remove(&name).unwrap_or(now))
                } else {
                    // Devices are handed out before the pod's folder is made.
                    changed |= !self.unnamed.contains_key(&name);
                    let first = *self.unnamed.entry(name).or_insert(now);
                    if now.saturating_sub(first) < UNNAMED_US {
                        waiting = Some(waiting.map_or(first, |at: u64| at.min(first)));
                        continue;
                    }
                    // Without a UID a pod goes by its name: better billed than lost.
                    (format!("{}/{}", holder.namespace, holder.pod), first)
                };
                let holder = Holder {
                    uid,
                    ..holder.clone()
                };
                held.insert((gpu.clone(), holder.clone()));
                let since = match (first, self.resumed_at) {
                    (true, None) => self.started_at,
                    (true, Some(resumed)) => resumed,
                    (false, _) => since,
                };
                let came = self.hold(gpu, holder, *hold, since);
                if came && first && self.resumed_at.is_some() {
                    self.changed_unseen.insert(gpu.clone());
                }
                changed |= came;
            }
        }
        if let Some(at) = waiting {
            self.dirty_since = Some(self.dirty_since.map_or(at, |dirty| dirty.min(at)));
        }
        for (gpu, tenures) in &mut self.tenures {
            let next = tenures.iter().filter(|t| t.whole && t.until.is_none());
            let next = next
                .filter(|t| held.contains(&(gpu.clone(), t.holder.clone())))
                .map(|t| t.since)
                .min();
            for tenure in tenures.iter_mut().filter(|t| t.until.is_none()) {
                if !held.contains(&(gpu.clone(), tenure.holder.clone())) {
                    if first && self.resumed_at.is_some() {
                        self.changed_unseen.insert(gpu.clone());
                    }
                    let seen = self.vanished.get(&tenure.holder.uid).copied();
                    let mut until = seen.unwrap_or(now);
                    if tenure.whole {
                        // Its end may be seen late; the next pod was let in after it.
                        until = until.min(next.unwrap_or(until));
                    }
                    tenure.until = Some(until.max(tenure.since));
                    changed = true;
                }
            }
            tenures.retain(|t| {
                t.until
                    .is_none_or(|until| now.saturating_sub(until) < KEPT_US)
            });
        }
        self.forget(now);
        changed
    }

    fn hold(&mut self, gpu: &str, holder: Holder, hold: Hold, now: u64) -> bool {
        let tenures = self.tenures.entry(gpu.to_owned()).or_default();
        if let Some(tenure) = tenures
            .iter_mut()
            .find(|t| t.holder == holder && t.until.is_none())
        {
            (tenure.weight, tenure.whole) = (hold.replicas, hold.whole);
            return false;
        }
        let since = self
            .appeared
            .get(&holder.uid)
            .copied()
            .unwrap_or(now)
            .min(now);
        tenures.push(Tenure {
            holder,
            weight: hold.replicas,
            whole: hold.whole,
            since,
            until: None,
        });
        true
    }

    fn forget(&mut self, now: u64) {
        let recent = |at: &mut u64| now.saturating_sub(*at) < KEPT_US;
        self.appeared.retain(|_, at| recent(at));
        self.vanished.retain(|_, at| recent(at));
        self.unnamed.retain(|_, at| recent(at));
    }

    /// Holders of a GPU all through [from, to], with their weights.
    pub fn holders(&self, gpu: &str, from: u64, to: u64) -> BTreeMap<Holder, u64> {
        self.tenures
            .get(gpu)
            .into_iter()
            .flatten()
            .filter(|t| t.since <= from && t.until.is_none_or(|until| until >= to))
            .map(|t| (t.holder.clone(), t.weight))
            .collect()
    }

    /// Until when a pod held, that holds nothing any more.
    pub fn left(&self, uid: &str) -> Option<u64> {
        let all = self.tenures.values().flatten();
        all.filter(|t| t.holder.uid == uid)
            .filter_map(|t| t.until)
            .max()
    }

    /// Everyone who holds now.
    pub fn current(&self) -> impl Iterator<Item = (&str, &Tenure)> {
        self.tenures
            .iter()
            .flat_map(|(gpu, tenures)| tenures.iter().map(move |t| (gpu.as_str(), t)))
            .filter(|(_, t)| t.until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pods: &[&str]) -> Holders {
        listed(pods, true)
    }

    fn listed(pods: &[&str], whole: bool) -> Holders {
        let hold = Hold { replicas: 1, whole };
        let holder = |pod: &str| Holder {
            uid: String::new(),
            namespace: "ns".into(),
            pod: pod.into(),
            container: "main".into(),
            ..Holder::default()
        };
        BTreeMap::from([(
            "GPU-0".to_owned(),
            pods.iter().map(|pod| (holder(pod), hold)).collect(),
        )])
    }

    fn uid(_: &str, pod: &str) -> Option<String> {
        Some(format!("uid-{pod}"))
    }

    #[test]
    fn a_pod_holds_from_the_moment_it_was_seen_to_appear() {
        let mut allocations = Allocations::default();
        allocations.observe(&list(&[]), 10, 10, uid);
        allocations.pod_appeared("uid-a", 50);
        assert_eq!(allocations.settled_until(), 50);
        assert!(allocations.observe(&list(&["a"]), 80, 90, uid));
        assert_eq!(allocations.settled_until(), u64::MAX);
        assert!(allocations.holders("GPU-0", 40, 50).is_empty());
        assert_eq!(allocations.holders("GPU-0", 50, 60).len(), 1);
    }

    #[test]
    fn it_holds_until_its_last_process_was_seen_to_end() {
        let mut allocations = Allocations::default();
        allocations.observe(&list(&["a"]), 10, 10, uid);
        allocations.pod_vanished("uid-a", 70);
        allocations.observe(&list(&[]), 90, 95, uid);
        assert_eq!(allocations.holders("GPU-0", 60, 70).len(), 1);
        assert!(allocations.holders("GPU-0", 70, 95).is_empty());
    }

    #[test]
    fn who_takes_over_a_gpu_that_is_one_pods_at_a_time_never_holds_it_beside_who_left() {
        for (whole, beside) in [(true, 1), (false, 2)] {
            let mut allocations = Allocations::default();
            allocations.observe(&listed(&["a"], whole), 10, 10, uid);
            allocations.pod_appeared("uid-b", 50);
            // The first one's end is seen after the second one's beginning, or not at all.
            for seen in [Some(70), None] {
                let mut allocations = allocations.clone();
                if let Some(at) = seen {
                    allocations.pod_vanished("uid-a", at);
                }
                allocations.observe(&listed(&["b"], whole), 80, 90, uid);
                assert_eq!(allocations.holders("GPU-0", 50, 70).len(), beside);
                assert_eq!(allocations.holders("GPU-0", 40, 50).len(), 1);
            }
        }
    }

    #[test]
    fn an_answer_does_not_settle_what_happened_after_it_was_asked_for() {
        let mut allocations = Allocations::default();
        allocations.observe(&list(&[]), 10, 10, uid);
        allocations.pod_appeared("uid-a", 50);
        allocations.pod_appeared("uid-b", 70);
        allocations.observe(&list(&["a"]), 60, 80, uid);
        assert_eq!(
            allocations.settled_until(),
            60,
            "the second pod is not told of yet"
        );
        allocations.observe(&list(&["a", "b"]), 90, 95, uid);
        assert_eq!(allocations.settled_until(), u64::MAX);
        assert_eq!(allocations.holders("GPU-0", 70, 80).len(), 2);
    }

    #[test]
    fn a_pod_that_is_listed_before_its_uid_is_known_is_billed_from_then_on_all_the_same() {
        let mut allocations = Allocations::default();
        allocations.observe(&list(&[]), 10, 10, uid);
        assert!(allocations.observe(&list(&["a"]), 40, 50, |_, _| None));
        assert_eq!(allocations.settled_until(), 50, "windows wait for its name");
        allocations.pod_appeared("uid-a", 70);
        allocations.observe(&list(&["a"]), 80, 90, uid);
        let holders = allocations.holders("GPU-0", 50, 70);
        assert_eq!(holders.keys().next().map(|h| h.uid.as_str()), Some("uid-a"));
        assert_eq!(allocations.settled_until(), u64::MAX);
    }

    #[test]
    fn a_list_that_was_asked_for_before_the_event_does_not_settle_it() {
        let mut allocations = Allocations::default();
        allocations.observe(&list(&[]), 10, 10, uid);
        allocations.something_happened(50);
        allocations.observe(&list(&[]), 45, 60, uid);
        assert!(allocations.is_dirty());
    }
}
