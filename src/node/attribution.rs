//! Splitting one GPU's energy over one window among its holders: pure integer
//! arithmetic, in microjoules, parts that sum to the whole exactly.

use super::mig::Mig;
use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who may be billed for a GPU: a container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    pub uid: String,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    /// UUID of the MIG instance that is held, where it is not the whole GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The ResourceClaim that brought it, `namespace/name`, where no device plugin did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.pod, self.container)?;
        match &self.instance {
            Some(instance) => write!(f, "@{instance}"),
            None => Ok(()),
        }
    }
}

/// Energy that is no pod's, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unattributed {
    /// Idle power of a GPU that nobody holds.
    Unallocated,
    /// A process outside any pod.
    HostProcess,
    /// Someone worked, and it cannot be said who.
    UnknownHolder,
    /// Time that was not watched.
    Gap,
}

impl Unattributed {
    pub const ALL: [Self; 4] = [
        Self::Unallocated,
        Self::HostProcess,
        Self::UnknownHolder,
        Self::Gap,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unallocated => "unallocated",
            Self::HostProcess => "host_process",
            Self::UnknownHolder => "unknown_holder",
            Self::Gap => "gap",
        }
    }
}

/// How well a window's split is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Quality {
    /// One holder, nobody else: no model.
    Exact,
    /// Several, weighted by utilisation samples.
    Sampled,
    /// MIG, which tells nobody's utilisation: by slices of the instances that work.
    Slices,
    /// Several that cannot be told apart, in equal parts: clients of MPS, or of one instance.
    Equal,
    /// The GPU has no energy counter: its power was added up.
    FallbackPower,
}

impl Quality {
    pub const ALL: [Self; 5] = [
        Self::Exact,
        Self::Sampled,
        Self::Slices,
        Self::Equal,
        Self::FallbackPower,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Sampled => "sampled",
            Self::Slices => "slices",
            Self::Equal => "equal",
            Self::FallbackPower => "fallback_power",
        }
    }
}

/// One window of one GPU.
#[derive(Debug, Clone, Default)]
pub struct Window {
    pub energy: Microjoules,
    pub micros: u64,
    /// Idle power of this GPU, mW.
    pub idle_milliwatts: u64,
    /// Idle energy of the windows before that the counter shows in this one.
    pub idle_owed: Microjoules,
    /// Its power with a context on it and nothing running, mW; 0 while not known.
    pub context_milliwatts: u64,
    /// Device replicas held.
    pub holders: BTreeMap<Holder, u64>,
    /// Activity by owner: SM percent × µs; `Owner::Pod` names a pod UID.
    pub activity: BTreeMap<Owner, u64>,
    /// Whose processes have a context on it.
    pub contexts: BTreeSet<Owner>,
    /// How the GPU is cut, where it is.
    pub mig: Option<Mig>,
    /// True where clients of MPS run on it.
    pub mps: bool,
    /// True where the energy is power added up.
    pub from_power: bool,
    /// True where nobody watched, and the holders before and after are the same.
    pub unwatched: bool,
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    Pod(String),
    Host,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(uid) => f.write_str(uid),
            Self::Host => f.write_str("host"),
        }
    }
}

/// A window's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// (active, idle) by holder.
    pub pods: BTreeMap<Holder, (Microjoules, Microjoules)>,
    pub unattributed: BTreeMap<Unattributed, Microjoules>,
    pub quality: Quality,
}

impl Split {
    /// The sum of all parts: the window's energy.
    pub fn total(&self) -> Microjoules {
        let pods: Microjoules = self
            .pods
            .values()
            .map(|(active, idle)| *active + *idle)
            .sum();
        pods + self.unattributed.values().copied().sum()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Payer {
    Holder(Holder),
    Reason(Unattributed),
}

/// Splits a window: idle power to the holders by replicas, the rest to those who worked
/// by activity. See docs/attribution.md for the rules and their reasons.
pub fn split(window: &Window) -> Split {
    let bound = |milliwatts: u64| {
        let micro = u128::from(milliwatts) * u128::from(window.micros) / 1000;
        u64::try_from(micro).unwrap_or(u64::MAX)
    };
    let due = bound(window.idle_milliwatts).saturating_add(window.idle_owed.0);
    let idle = Microjoules(due.min(window.energy.0));
    let mut split = Split {
        pods: BTreeMap::new(),
        unattributed: BTreeMap::new(),
        quality: Quality::Exact,
    };
    let idle_parts = match &window.mig {
        Some(mig) => mig.idle(window, idle.0),
        None => apportion(idle.0, &holding(window.holders.iter())),
    };
    for (payer, part) in idle_parts {
        split.pay(payer, part, false);
    }
    // A context costs the same whether anything runs in it.
    let surcharge = window
        .context_milliwatts
        .saturating_sub(window.idle_milliwatts);
    let kept = if window.contexts.is_empty() {
        0
    } else {
        bound(surcharge).min(window.energy.0 - idle.0)
    };
    let mut equally: BTreeMap<Payer, u64> = BTreeMap::new();
    for owner in &window.contexts {
        *equally.entry(window.payer(owner)).or_default() += 1;
    }
    for (payer, part) in apportion(kept, &equally) {
        split.pay(payer, part, false);
    }
    let active = window.energy.0 - idle.0 - kept;
    let (parts, quality) = if let Some(mig) = &window.mig {
        mig.active(window, active)
    } else {
        let (payers, quality) = active_payers(window);
        (apportion(active, &payers), quality)
    };
    split.quality = if window.from_power {
        Quality::FallbackPower
    } else {
        quality
    };
    for (payer, part) in parts {
        split.pay(payer, part, true);
    }
    split
}

impl Split {
    fn pay(&mut self, payer: Payer, part: u64, active: bool) {
        match payer {
            Payer::Holder(holder) => {
                let slot = self.pods.entry(holder).or_default();
                *(if active { &mut slot.0 } else { &mut slot.1 }) += Microjoules(part);
            }
            Payer::Reason(reason) => {
                *self.unattributed.entry(reason).or_default() += Microjoules(part);
            }
        }
    }
}

impl Window {
    /// Who is billed for what an owner's process does.
    fn payer(&self, owner: &Owner) -> Payer {
        Payer::of(owner, self.holders.keys())
    }
}

impl Payer {
    /// An owner as the one of these holders that it is, or the reason why it is none.
    pub(super) fn of<'a>(owner: &Owner, mut holders: impl Iterator<Item = &'a Holder>) -> Self {
        let Owner::Pod(uid) = owner else {
            return Self::Reason(Unattributed::HostProcess);
        };
        let holder = holders.find(|holder| holder.uid == *uid);
        holder.map_or(Self::Reason(Unattributed::UnknownHolder), |holder| {
            Self::Holder(holder.clone())
        })
    }
}

fn active_payers(window: &Window) -> (BTreeMap<Payer, u64>, Quality) {
    let mut payers: BTreeMap<Payer, u64> = BTreeMap::new();
    for (owner, weight) in window.activity.iter().filter(|(_, weight)| **weight > 0) {
        *payers.entry(window.payer(owner)).or_default() += *weight;
    }
    let pods: BTreeSet<&str> = window.holders.keys().map(|h| h.uid.as_str()).collect();
    let quality = if pods.len() <= 1 && payers.len() <= 1 {
        Quality::Exact
    } else if window.mps && payers.len() < 2 && !window.contexts.is_empty() {
        // Clients of MPS run together, and a sample names one of them: credit would go to
        // whoever happens to be named.
        payers = BTreeMap::new();
        let worked = window.activity.iter().filter(|(_, weight)| **weight > 0);
        // One that was named and has gone since worked too.
        let clients: BTreeSet<&Owner> = window
            .contexts
            .iter()
            .chain(worked.map(|(owner, _)| owner))
            .collect();
        for owner in clients {
            *payers.entry(window.payer(owner)).or_default() += 1;
        }
        Quality::Equal
    } else {
        Quality::Sampled
    };
    if payers.is_empty() {
        payers = match window.holders.keys().collect::<Vec<_>>()[..] {
            // Someone may have come and gone.
            [] if window.unwatched => BTreeMap::from([(Payer::Reason(Unattributed::Gap), 1)]),
            [] => BTreeMap::from([(Payer::Reason(Unattributed::Unallocated), 1)]),
            // Containers of one pod that share its claim work for that pod.
            [..] if pods.len() == 1 => holding(window.holders.iter()),
            _ => BTreeMap::from([(Payer::Reason(Unattributed::UnknownHolder), 1)]),
        };
    }
    (payers, quality)
}

/// Holders by their replicas; nobody's where there is none.
pub(super) fn holding<'a>(
    holders: impl Iterator<Item = (&'a Holder, &'a u64)>,
) -> BTreeMap<Payer, u64> {
    let held = holders.filter(|(_, weight)| **weight > 0);
    let mut payers: BTreeMap<Payer, u64> = held
        .map(|(holder, weight)| (Payer::Holder(holder.clone()), *weight))
        .collect();
    if payers.is_empty() {
        payers.insert(Payer::Reason(Unattributed::Unallocated), 1);
    }
    payers
}

/// Shares a total by weight: floors, then one each to the largest remainders, ties to the
/// smallest key. The parts sum to the total exactly.
pub(super) fn apportion<K: Ord + Clone>(total: u64, weights: &BTreeMap<K, u64>) -> Vec<(K, u64)> {
    let sum: u128 = weights.values().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return Vec::new();
    }
    let mut parts: Vec<(K, u64, u128)> = weights
        .iter()
        .map(|(key, weight)| {
            let product = u128::from(total) * u128::from(*weight);
            (
                key.clone(),
                u64::try_from(product / sum).unwrap_or(u64::MAX),
                product % sum,
            )
        })
        .collect();
    let given: u64 = parts.iter().map(|part| part.1).sum();
    let mut order: Vec<usize> = (0..parts.len()).filter(|i| parts[*i].2 > 0).collect();
    // The parts are in key order and the sort is stable: ties go to the smallest key.
    order.sort_by_key(|i| std::cmp::Reverse(parts[*i].2));
    let left = usize::try_from(total - given).unwrap_or(usize::MAX);
    for i in order.into_iter().take(left) {
        parts[i].1 += 1;
    }
    parts
        .into_iter()
        .map(|(key, part, _)| (key, part))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holder(name: &str) -> Holder {
        Holder {
            uid: name.into(),
            namespace: "ns".into(),
            pod: name.into(),
            container: "main".into(),
            ..Holder::default()
        }
    }

    fn window(joules: u64, holders: &[(&str, u64)], activity: &[(Option<&str>, u64)]) -> Window {
        Window {
            energy: Microjoules(joules),
            micros: 1_000_000,
            idle_milliwatts: 72_000,
            holders: holders
                .iter()
                .map(|(name, weight)| (holder(name), *weight))
                .collect(),
            activity: activity
                .iter()
                .map(|(pod, weight)| {
                    (
                        pod.map_or(Owner::Host, |uid| Owner::Pod(uid.into())),
                        *weight,
                    )
                })
                .collect(),
            ..Window::default()
        }
    }

    fn of(split: &Split, name: &str) -> (u64, u64) {
        split
            .pods
            .get(&holder(name))
            .map_or((0, 0), |(active, idle)| (active.0, idle.0))
    }

    #[test]
    fn containers_of_one_pod_that_share_its_claim_are_one_pod() {
        let of = |container: &str| Holder {
            container: container.into(),
            ..holder("a")
        };
        let window = Window {
            energy: Microjoules(300_000_000),
            micros: 1_000_000,
            idle_milliwatts: 100_000,
            holders: BTreeMap::from([(of("main"), 1), (of("sidecar"), 1)]),
            ..Window::default()
        };
        let split = split(&window);
        assert!(split.unattributed.is_empty(), "{split:?}");
        assert_eq!(split.quality, Quality::Exact);
        for container in ["main", "sidecar"] {
            let (active, idle) = split.pods[&of(container)];
            assert_eq!((active.0, idle.0), (100_000_000, 50_000_000));
        }
    }

    #[test]
    fn two_holders_share_idle_by_replicas_and_work_by_activity() {
        let split = split(&window(
            300_000_000,
            &[("a", 1), ("b", 1)],
            &[(Some("a"), 60), (Some("b"), 20)],
        ));
        assert_eq!(of(&split, "a"), (171_000_000, 36_000_000));
        assert_eq!(of(&split, "b"), (57_000_000, 36_000_000));
        assert_eq!(split.quality, Quality::Sampled);
    }

    #[test]
    fn work_that_no_sample_explains_is_nobodys_when_several_hold() {
        let split = split(&window(300_000_000, &[("a", 1), ("b", 1)], &[]));
        assert_eq!(of(&split, "a"), (0, 36_000_000));
        assert_eq!(
            split.unattributed[&Unattributed::UnknownHolder].0,
            228_000_000
        );
    }

    #[test]
    fn one_holder_alone_takes_all_without_a_model() {
        let split = split(&window(300_000_000, &[("a", 1)], &[]));
        assert_eq!(
            (of(&split, "a"), split.quality),
            ((228_000_000, 72_000_000), Quality::Exact)
        );
    }

    #[test]
    fn without_a_holder_idle_is_unallocated_and_work_the_hosts() {
        let split = split(&window(300_000_000, &[], &[(None, 1)]));
        assert_eq!(split.unattributed[&Unattributed::Unallocated].0, 72_000_000);
        assert_eq!(
            split.unattributed[&Unattributed::HostProcess].0,
            228_000_000
        );
    }

    #[test]
    fn leftovers_go_to_the_largest_remainders_then_the_smallest_key() {
        let mut w = window(
            10,
            &[("a", 1), ("b", 1), ("c", 1)],
            &[(Some("a"), 1), (Some("b"), 1), (Some("c"), 1)],
        );
        w.idle_milliwatts = 0;
        let split = split(&w);
        assert_eq!(
            [of(&split, "a").0, of(&split, "b").0, of(&split, "c").0],
            [4, 3, 3]
        );
    }

    #[test]
    fn a_context_is_paid_by_those_who_have_one_and_the_rest_by_who_works() {
        let mut w = window(300_000_000, &[("a", 1), ("b", 1)], &[(Some("a"), 1)]);
        w.context_milliwatts = 112_000;
        w.contexts = [Owner::Pod("a".into()), Owner::Pod("b".into())].into();
        let split = split(&w);
        // 72 J bare idle and 40 J of surcharge in halves, 188 J of work.
        assert_eq!(of(&split, "a"), (188_000_000, 56_000_000));
        assert_eq!(of(&split, "b"), (0, 56_000_000));
    }

    fn any_window() -> impl Strategy<Value = Window> {
        let energy = prop_oneof![Just(0), Just(1), Just(7), 0_u64..700_000_000];
        let holders = proptest::collection::btree_map(0_u8..5, 1_u64..9, 0..5);
        let activity =
            proptest::collection::vec((proptest::option::of(0_u8..6), 0_u64..500_000_000), 0..7);
        (
            energy,
            0_u64..5_000_000,
            prop_oneof![Just(0_u64), Just(70_000)],
            holders,
            activity,
            prop_oneof![Just(0_u64), Just(110_000)],
            proptest::collection::btree_set(proptest::option::of(0_u8..6), 0..4),
        )
            .prop_map(
                |(
                    energy,
                    micros,
                    idle_milliwatts,
                    holders,
                    activity,
                    context_milliwatts,
                    contexts,
                )| Window {
                    energy: Microjoules(energy),
                    micros,
                    idle_milliwatts,
                    holders: holders
                        .into_iter()
                        .map(|(n, w)| (holder(&n.to_string()), w))
                        .collect(),
                    activity: activity
                        .into_iter()
                        .map(|(pod, w)| (pod.map_or(Owner::Host, |n| Owner::Pod(n.to_string())), w))
                        .collect(),
                    context_milliwatts,
                    contexts: contexts
                        .into_iter()
                        .map(|pod| pod.map_or(Owner::Host, |n| Owner::Pod(n.to_string())))
                        .collect(),
                    mps: micros % 3 == 0,
                    idle_owed: Microjoules(micros % 7 * 1_000_000),
                    ..Window::default()
                },
            )
    }

    #[test]
    fn clients_of_mps_that_samples_do_not_tell_apart_share_equally() {
        let mut window = window(300_000_000, &[("a", 1), ("b", 1)], &[(Some("a"), 80)]);
        window.mps = true;
        window.contexts = ["a", "b"].map(|uid| Owner::Pod(uid.into())).into();
        let parts = split(&window);
        assert_eq!(of(&parts, "a"), (114_000_000, 36_000_000));
        assert_eq!(of(&parts, "b"), (114_000_000, 36_000_000));
        assert_eq!(parts.quality, Quality::Equal);
        window.activity.insert(Owner::Pod("b".into()), 20);
        assert_eq!(split(&window).quality, Quality::Sampled, "both are named");
        // The one that was named has ended since.
        window.activity.remove(&Owner::Pod("b".into()));
        window.contexts = [Owner::Pod("b".into())].into();
        assert_eq!(of(&split(&window), "a").0, 114_000_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn over_20000_random_windows_parts_sum_to_the_whole_exactly(window in any_window()) {
            let split = split(&window);
            prop_assert_eq!(split.total(), window.energy);
            for (owner, (active, _)) in &split.pods {
                let worked = window.activity.get(&Owner::Pod(owner.uid.clone())).is_some_and(|w| *w > 0);
                let alone = window.holders.len() == 1 && window.activity.values().all(|w| *w == 0);
                let client = window.mps && window.contexts.contains(&Owner::Pod(owner.uid.clone()));
                prop_assert!(active.0 == 0 || worked || alone || client, "{owner:?} was billed for work it did not do");
            }
        }
    }
}
