//! The meter's state: counters, windows that wait for their holders, and every pod's
//! account. Pure: readings and time come in, totals come out.

use super::allocations::Allocations;
use super::attribution::{Holder, Owner, Quality, Unattributed, Window, split};
use super::idle::IdlePower;
use super::nvml::GpuInfo;
use super::pairs;
use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// One GPU's sums since the exporter started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuTotals {
    pub energy: Microjoules,
    pub unattributed: BTreeMap<Unattributed, Microjoules>,
    pub quality: BTreeMap<Quality, Microjoules>,
    pub resets: u64,
    pub lost: u64,
    pub gap_micros: u64,
    pub power_milliwatts: Option<u64>,
    pub idle_milliwatts: Option<u64>,
    pub limit_milliwatts: Option<u64>,
}

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
    /// µs, monotonic: when it was seen to hold no more and its last window was settled.
    pub ended: Option<u64>,
    /// True where some of its energy is a share of a shared GPU.
    pub shared: bool,
}

impl PodAccount {
    /// All its energy.
    pub fn energy(&self) -> Microjoules {
        self.shares
            .values()
            .map(|share| share.active + share.idle)
            .sum()
    }
}

/// One look at one GPU, as the meter takes it.
#[derive(Debug, Clone, Default)]
pub struct Look {
    pub energy_millijoules: Option<u64>,
    pub power_milliwatts: Option<u64>,
    pub busy: bool,
    /// SM percent by owner since the last look.
    pub activity: BTreeMap<Owner, u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    from: u64,
    to: u64,
    energy: Microjoules,
    #[serde(with = "pairs")]
    activity: BTreeMap<Owner, u64>,
    busy: bool,
    gap: bool,
    /// The time between two runs of the exporter.
    outage: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Gpu {
    info: GpuInfo,
    last: Option<(u64, u64)>,
    failing: bool,
    /// True until the first look after a restart.
    #[serde(skip)]
    resumed: bool,
    pending: VecDeque<Pending>,
    idle: IdlePower,
    totals: GpuTotals,
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

/// A window longer than this was not watched: its holders cannot be known.
const WATCHED_US: u64 = 10_000_000;
/// A window waits this long for the kubelet; then its holder is unknown.
const PATIENCE_US: u64 = 60_000_000;
/// The counter may show two of its steps at once.
const STEP_SLACK_US: u64 = 200_000;

impl Meter {
    /// Adds or renews a GPU; its first reading is a baseline.
    pub fn add_gpu(&mut self, info: GpuInfo, idle_milliwatts: Option<u64>) {
        let limit = info.limit_milliwatts;
        let gpu = self.gpus.entry(info.uuid.clone()).or_insert_with(|| Gpu {
            info: info.clone(),
            last: None,
            failing: false,
            resumed: false,
            pending: VecDeque::new(),
            idle: IdlePower::new(idle_milliwatts),
            totals: GpuTotals::default(),
        });
        gpu.info = info;
        gpu.idle.configure(idle_milliwatts);
        gpu.totals.limit_milliwatts = limit;
    }

    /// Takes in one look at one GPU at `now` (µs, monotonic).
    pub fn look(&mut self, uuid: &str, look: Look, now: u64) {
        let Some(gpu) = self.gpus.get_mut(uuid) else {
            return;
        };
        gpu.totals.power_milliwatts = look.power_milliwatts;
        let Some(energy) = look.energy_millijoules else {
            gpu.totals.lost += u64::from(!gpu.failing);
            gpu.failing = true;
            return;
        };
        gpu.failing = false;
        if let Some((before, at)) = gpu.last
            && now > at
        {
            let micros = now - at;
            match energy
                .checked_sub(before)
                .filter(|delta| gpu.plausible(*delta, micros))
            {
                None => {
                    gpu.totals.resets += 1;
                    gpu.totals.gap_micros += micros;
                }
                Some(delta) => gpu.pending.push_back(Pending {
                    from: at,
                    to: now,
                    energy: Microjoules(delta.saturating_mul(1000)),
                    activity: look
                        .activity
                        .into_iter()
                        .map(|(o, sm)| (o, sm * micros))
                        .collect(),
                    busy: look.busy,
                    gap: micros > WATCHED_US && !gpu.resumed,
                    outage: gpu.resumed,
                }),
            }
        }
        gpu.last = Some((energy, now));
        gpu.resumed = false;
    }

    /// Bills every window whose holders are known by now.
    pub fn settle(&mut self, allocations: &Allocations, now: u64) {
        let until = allocations.settled_until();
        let stale = allocations.age(now) > PATIENCE_US;
        let uuids: Vec<String> = self.gpus.keys().cloned().collect();
        for uuid in uuids {
            while let Some(window) = self.due(&uuid, until, stale, now) {
                self.bill(&uuid, window, allocations, stale);
            }
        }
        self.open_accounts(allocations);
        self.close_accounts(allocations, until, now);
    }

    fn due(&mut self, uuid: &str, until: u64, stale: bool, now: u64) -> Option<Pending> {
        let gpu = self.gpus.get_mut(uuid)?;
        let front = gpu.pending.front()?;
        let late = stale || now.saturating_sub(front.to) > PATIENCE_US;
        if front.to <= until || late {
            gpu.pending.pop_front()
        } else {
            None
        }
    }

    fn bill(&mut self, uuid: &str, pending: Pending, allocations: &Allocations, stale: bool) {
        let Some(gpu) = self.gpus.get_mut(uuid) else {
            return;
        };
        let micros = pending.to - pending.from;
        gpu.totals.energy += pending.energy;
        // What was burned while nobody watched is whose it was before and after.
        let gap = pending.gap || (pending.outage && allocations.changed_unseen(uuid));
        if gap || stale {
            let reason = if gap {
                Unattributed::Gap
            } else {
                Unattributed::UnknownHolder
            };
            gpu.totals.gap_micros += if gap { micros } else { 0 };
            *gpu.totals.unattributed.entry(reason).or_default() += pending.energy;
            return;
        }
        let holders = allocations.holders(uuid, pending.from, pending.to);
        if holders.is_empty() && !pending.busy && !pending.outage {
            gpu.idle.learn(pending.energy, micros);
        }
        gpu.totals.idle_milliwatts = gpu.idle.milliwatts();
        let split = split(&Window {
            energy: pending.energy,
            micros,
            idle_milliwatts: gpu.idle.milliwatts().unwrap_or(0),
            holders,
            activity: pending.activity,
            unwatched: pending.outage,
        });
        debug_assert_eq!(
            split.total(),
            pending.energy,
            "parts must sum to the counter's difference"
        );
        *gpu.totals.quality.entry(split.quality).or_default() += pending.energy;
        for (reason, energy) in split.unattributed {
            *gpu.totals.unattributed.entry(reason).or_default() += energy;
        }
        for (holder, (active, idle)) in split.pods {
            *self.namespaces.entry(holder.namespace.clone()).or_default() += active + idle;
            let account = account(&mut self.pods, &holder, pending.from);
            account.shared |= split.quality == Quality::Sampled;
            let share = account
                .shares
                .entry((holder.container, uuid.to_owned()))
                .or_default();
            share.active += active;
            share.idle += idle;
        }
    }

    /// An account opens at zero the moment an allocation is known.
    fn open_accounts(&mut self, allocations: &Allocations) {
        for (gpu, tenure) in allocations.current() {
            let holder = &tenure.holder;
            let account = account(&mut self.pods, holder, tenure.since);
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
            account.ended = if holds {
                None
            } else {
                account.ended.or(Some(now))
            };
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
                // No pod outlives its node's boot; its time stamps are of another clock.
                account.since = 0;
                account.ended = Some(0);
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

impl Gpu {
    /// 1.5 times the power limit for the time passed is the most a board can burn; without
    /// a limit, 2 kW.
    fn plausible(&self, millijoules: u64, micros: u64) -> bool {
        let limit = self
            .totals
            .limit_milliwatts
            .filter(|mw| *mw > 0)
            .unwrap_or(1_300_000);
        let most = u128::from(limit) * 3 / 2 * u128::from(micros + STEP_SLACK_US) / 1_000_000;
        u128::from(millijoules) <= most
    }
}

fn account<'a>(
    pods: &'a mut BTreeMap<String, PodAccount>,
    holder: &Holder,
    since: u64,
) -> &'a mut PodAccount {
    pods.entry(holder.uid.clone())
        .or_insert_with(|| PodAccount {
            namespace: holder.namespace.clone(),
            pod: holder.pod.clone(),
            uid: holder.uid.clone(),
            shares: BTreeMap::new(),
            since,
            ended: None,
            shared: false,
        })
}
