//! The meter's state: counters, windows that wait for their holders, and every pod's
//! account. Pure: readings and time come in, totals come out.

use super::allocations::Allocations;
use super::attribution::{Holder, Quality, Unattributed, split};
use super::gpu::{Gpu, Pending, Watch};
pub use super::gpu::{GpuTotals, Look};
use super::nvml::GpuInfo;
use super::pairs;
use super::replay::Replay;
use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One pod's account on one GPU, by container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub active: Microjoules,
    pub idle: Microjoules,
}

/// One pod's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAccount {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// (container, GPU) → energy.
    #[serde(with = "pairs")]
    pub shares: BTreeMap<(String, String), Share>,
    /// µs, monotonic: when it was first seen to hold.
    pub since: u64,
    /// µs, monotonic: since when it is shown; the kubelet tells of a holder a while after it
    /// began to hold.
    #[serde(default)]
    pub opened: u64,
    /// µs, monotonic: when it was seen to hold no more and its last window was settled.
    pub ended: Option<u64>,
    /// The same: until when it held, where it ended.
    #[serde(default)]
    pub left: Option<u64>,
    /// True where some of its energy is a share of a shared GPU.
    pub shared: bool,
    /// True where some of what its GPUs burned cannot be said to be its or not.
    #[serde(default)]
    pub incomplete: bool,
    /// True where it was taken up after the machine had started anew.
    #[serde(default)]
    pub from_other_boot: bool,
}

impl PodAccount {
    /// µs that it held its GPUs until `now`, from when it was seen to come until it was seen to
    /// leave.
    pub fn held(&self, now: u64) -> u64 {
        let until = self.left.or(self.ended).unwrap_or(now);
        until.saturating_sub(self.since)
    }

    /// All its energy.
    pub fn energy(&self) -> Microjoules {
        self.shares
            .values()
            .map(|share| share.active + share.idle)
            .sum()
    }
}

/// The whole meter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meter {
    gpus: BTreeMap<String, Gpu>,
    pods: BTreeMap<String, PodAccount>,
    namespaces: BTreeMap<String, Microjoules>,
    /// Energy of accounts that were dropped.
    retired: Microjoules,
}

/// A window waits this long for the kubelet; then its holder is unknown.
const PATIENCE_US: u64 = 60_000_000;
/// After a longer outage others may have come and gone, or another run without a checkpoint
/// have billed it.
const LONGEST_OUTAGE_US: u64 = 600_000_000;

impl Meter {
    /// Adds or renews a GPU; its first reading is a baseline.
    pub fn add_gpu(&mut self, info: GpuInfo, idle_milliwatts: Option<u64>) {
        self.gpus
            .entry(info.uuid.clone())
            .or_insert_with(|| Gpu::new(info.clone()))
            .renew(info, idle_milliwatts);
    }

    /// Takes in one look at one GPU at `now` (µs, monotonic).
    pub fn look(&mut self, uuid: &str, look: Look, now: u64) {
        if let Some(gpu) = self.gpus.get_mut(uuid) {
            gpu.look(look, now);
        }
    }

    /// Bills every window whose holders are known by now.
    pub fn settle(&mut self, allocations: &Allocations, now: u64) {
        let until = allocations.settled_until();
        let stale = allocations.age(now) > PATIENCE_US;
        let uuids: Vec<String> = self.gpus.keys().cloned().collect();
        for uuid in uuids {
            while let Some(window) = self.due(&uuid, allocations, stale, now) {
                self.bill(&uuid, window, allocations, stale, now);
            }
        }
        self.open_accounts(allocations, now);
        self.close_accounts(allocations, until, now);
    }

    fn due(
        &mut self,
        uuid: &str,
        allocations: &Allocations,
        stale: bool,
        now: u64,
    ) -> Option<Pending> {
        let gpu = self.gpus.get_mut(uuid)?;
        let front = gpu.pending.front()?;
        let waits_since = front.to.max(allocations.started_at());
        let late = stale || now.saturating_sub(waits_since) > PATIENCE_US;
        if front.to <= allocations.settled_until() || late {
            gpu.pending.pop_front()
        } else {
            None
        }
    }

    fn bill(
        &mut self,
        uuid: &str,
        pending: Pending,
        allocations: &Allocations,
        stale: bool,
        now: u64,
    ) {
        let Some(gpu) = self.gpus.get_mut(uuid) else {
            return;
        };
        let (from, to) = (pending.from, pending.to);
        gpu.totals.energy += pending.energy;
        // What was burned while nobody watched is whose it was before and after.
        let long = to - from > LONGEST_OUTAGE_US;
        let gap = match pending.watch {
            Watch::Watched => false,
            Watch::Unwatched => true,
            Watch::Outage => long || allocations.changed_unseen(uuid),
        };
        if gap || stale {
            let reason = if gap {
                Unattributed::Gap
            } else {
                Unattributed::UnknownHolder
            };
            gpu.totals.gap_micros += if gap { to - from } else { 0 };
            *gpu.totals.unattributed.entry(reason).or_default() += pending.energy;
            gpu.remember(Replay::nobodys(uuid, from, to, pending.energy, reason));
            for tenure in allocations.anyone(uuid, from, to) {
                account(&mut self.pods, &tenure.holder, tenure.since, now).incomplete = true;
            }
            return;
        }
        let window = gpu.window(pending, allocations.holders(uuid, from, to));
        let split = split(&window);
        debug_assert_eq!(
            split.total(),
            window.energy,
            "parts must sum to the counter's difference"
        );
        gpu.remember(Replay::of(uuid, from, to, &window, &split));
        *gpu.totals.quality.entry(split.quality).or_default() += window.energy;
        for (reason, energy) in split.unattributed {
            *gpu.totals.unattributed.entry(reason).or_default() += energy;
        }
        // An instance is a share of its board, also where nobody else holds one.
        let shared =
            window.holders.len() > 1 || window.mig.is_some() || split.quality == Quality::Sampled;
        for (holder, (active, idle)) in split.pods {
            *self.namespaces.entry(holder.namespace.clone()).or_default() += active + idle;
            let account = account(&mut self.pods, &holder, from, now);
            account.shared |= shared;
            let share = account
                .shares
                .entry((holder.container, uuid.to_owned()))
                .or_default();
            share.active += active;
            share.idle += idle;
        }
    }

    /// An account opens at zero the moment an allocation is known.
    fn open_accounts(&mut self, allocations: &Allocations, now: u64) {
        for (gpu, tenure) in allocations.current() {
            let holder = &tenure.holder;
            let account = account(&mut self.pods, holder, tenure.since, now);
            account
                .shares
                .entry((holder.container.clone(), gpu.to_owned()))
                .or_default();
            self.namespaces.entry(holder.namespace.clone()).or_default();
        }
    }

    fn close_accounts(&mut self, allocations: &Allocations, until: u64, now: u64) {
        if until != u64::MAX {
            return;
        }
        let open: std::collections::HashSet<&str> = allocations
            .current()
            .map(|(_, tenure)| tenure.holder.uid.as_str())
            .collect();
        for account in self.pods.values_mut() {
            let holds = open.contains(account.uid.as_str());
            if holds {
                (account.ended, account.left) = (None, None);
            } else if account.ended.is_none() {
                account.ended = Some(now);
                account.left = allocations.left(&account.uid);
            }
        }
    }

    /// Drops accounts that ended before `before`, and the oldest beyond `most`; returns
    /// how many went.
    pub fn retire(&mut self, before: u64, most: usize) -> u64 {
        let had = self.pods.len();
        let retired = &mut self.retired;
        self.pods.retain(|_, account| {
            let keep = account.ended.is_none_or(|ended| ended >= before);
            *retired += if keep {
                Microjoules(0)
            } else {
                account.energy()
            };
            keep
        });
        let excess = self.pods.len().saturating_sub(most);
        if excess > 0 {
            let mut ended: Vec<(u64, String)> = self
                .pods
                .values()
                .filter_map(|a| Some((a.ended?, a.uid.clone())))
                .collect();
            ended.sort();
            for (_, uid) in ended.into_iter().take(excess) {
                if let Some(account) = self.pods.remove(&uid) {
                    self.retired += account.energy();
                }
            }
        }
        (had - self.pods.len()) as u64
    }

    pub fn pods(&self) -> impl Iterator<Item = &PodAccount> {
        self.pods.values()
    }

    /// Takes up the work of an earlier run. On another boot the counters began anew: totals
    /// stay, and the first look is a baseline.
    pub fn resume(&mut self, same_boot: bool) {
        for gpu in self.gpus.values_mut() {
            gpu.resumed = same_boot;
            if !same_boot {
                gpu.last = None;
                gpu.pending.clear();
                gpu.totals.resets += 1;
            }
        }
        if !same_boot {
            for account in self.pods.values_mut() {
                // Its time stamps are of another clock; one that runs again opens again.
                (account.since, account.opened) = (0, 0);
                (account.ended, account.left) = (Some(0), None);
                account.from_other_boot = true;
            }
        }
    }

    /// The identity that must hold at every moment: parts sum to what the GPUs counted.
    pub fn is_sound(&self) -> bool {
        let gpus: Microjoules = self.gpus.values().map(|gpu| gpu.totals.energy).sum();
        let nobodys: Microjoules = self
            .gpus
            .values()
            .flat_map(|gpu| gpu.totals.unattributed.values().copied())
            .sum();
        let pods: Microjoules = self.pods.values().map(PodAccount::energy).sum();
        gpus == nobodys + pods + self.retired
    }

    /// The last windows of every GPU, oldest first.
    pub fn replays(&self) -> Vec<Arc<Replay>> {
        let gpus = self.gpus.values();
        gpus.flat_map(|gpu| gpu.replays.iter().cloned()).collect()
    }

    /// Energy of the pods whose accounts were dropped.
    pub fn retired(&self) -> Microjoules {
        self.retired
    }

    pub fn namespaces(&self) -> &BTreeMap<String, Microjoules> {
        &self.namespaces
    }

    pub fn gpus(&self) -> impl Iterator<Item = (&GpuInfo, &GpuTotals)> {
        self.gpus.values().map(|gpu| (&gpu.info, &gpu.totals))
    }
}

fn account<'a>(
    pods: &'a mut BTreeMap<String, PodAccount>,
    holder: &Holder,
    since: u64,
    now: u64,
) -> &'a mut PodAccount {
    pods.entry(holder.uid.clone())
        .or_insert_with(|| PodAccount {
            namespace: holder.namespace.clone(),
            pod: holder.pod.clone(),
            uid: holder.uid.clone(),
            shares: BTreeMap::new(),
            since,
            opened: now,
            ended: None,
            left: None,
            shared: false,
            incomplete: false,
            from_other_boot: false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(number: u64, at: Option<u64>) -> (String, PodAccount) {
        let holder = Holder {
            uid: format!("pod-{number}"),
            ..Holder::default()
        };
        let mut pods = BTreeMap::new();
        let account = account(&mut pods, &holder, 0, 0);
        account.ended = at;
        let share = Share {
            active: Microjoules(10 + number),
            idle: Microjoules(0),
        };
        account.shares.insert((String::new(), String::new()), share);
        (holder.uid, account.clone())
    }

    #[test]
    fn accounts_beyond_the_most_go_oldest_first_and_what_they_burned_is_kept() {
        let mut meter = Meter {
            // The third holds still; of the others the second ended first.
            pods: [(0, Some(30)), (1, Some(10)), (2, None), (3, Some(20))]
                .map(|(number, at)| ended(number, at))
                .into(),
            ..Meter::default()
        };
        assert_eq!(meter.retire(0, 2), 2);
        let left: Vec<&str> = meter.pods().map(|pod| pod.uid.as_str()).collect();
        assert_eq!(left, ["pod-0", "pod-2"]);
        assert_eq!(meter.retired(), Microjoules(11 + 13));
        assert_eq!(meter.retire(31, 2), 1, "it ended before");
        assert_eq!(meter.retired(), Microjoules(11 + 13 + 10));
    }
}
