//! A GPU that MIG has cut into instances: the counter is still the board's, and NVML tells
//! no process's utilisation and no instance's power. Idle power goes by slices, whoever holds
//! them; the rest by slices of the instances with processes, and by how busy those were
//! where that is told. Pure.

use super::attribution::{Holder, Owner, Payer, Quality, Unattributed, Window, apportion, holding};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How a GPU is cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mig {
    /// Slices of the whole board: seven on A100 and H100.
    pub slices: u64,
    /// By UUID.
    pub instances: BTreeMap<String, Instance>,
}

/// One instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub slices: u64,
    /// True where a process has a context in it.
    pub busy: bool,
    /// Whose those processes are, as far as they can be told.
    pub contexts: BTreeSet<Owner>,
    /// Share of its multiprocessors that were at work, in thousandths, where it is told.
    #[serde(default)]
    pub activity: Option<u64>,
}

impl Mig {
    /// Idle energy: each instance's by its holders' replicas; what no instance has, and what
    /// nobody holds, is unallocated.
    pub(super) fn idle(&self, window: &Window, idle: u64) -> Vec<(Payer, u64)> {
        let mut slices: BTreeMap<Option<&str>, u64> = BTreeMap::new();
        for (uuid, instance) in &self.instances {
            slices.insert(Some(uuid), instance.slices);
        }
        let used: u64 = slices.values().sum();
        slices.insert(None, self.slices.saturating_sub(used));
        if slices.values().all(|slices| *slices == 0) {
            return vec![(Payer::Reason(Unattributed::Unallocated), idle)];
        }
        let by_instance = apportion(idle, &slices).into_iter();
        by_instance
            .flat_map(|(uuid, part)| apportion(part, &holding(held(window, uuid))))
            .collect()
    }

    /// Energy above idle, and how well its split is known.
    pub(super) fn active(&self, window: &Window, active: u64) -> (Vec<(Payer, u64)>, Quality) {
        let any_busy = self.instances.values().any(|instance| instance.busy);
        let works = |uuid: &str, instance: &Instance| {
            // Without a sight of processes, every holder may have worked.
            instance.busy || !any_busy && held(window, Some(uuid)).next().is_some()
        };
        let working: BTreeMap<&str, &Instance> = self
            .instances
            .iter()
            .filter(|(uuid, instance)| instance.slices > 0 && works(uuid, instance))
            .map(|(uuid, instance)| (uuid.as_str(), instance))
            .collect();
        if working.is_empty() {
            let reason = if window.unwatched {
                Unattributed::Gap
            } else {
                Unattributed::Unallocated
            };
            return (vec![(Payer::Reason(reason), active)], Quality::Exact);
        }
        let (weights, told) = weights(&working);
        let several = weights.len() > 1;
        let mut equal = false;
        let mut parts = Vec::new();
        for (uuid, part) in apportion(active, &weights) {
            let payers = self.payers(window, uuid);
            equal |= payers.len() > 1;
            parts.extend(apportion(part, &payers));
        }
        let quality = match (equal, several) {
            (true, _) => Quality::Equal,
            (false, true) if told => Quality::Sampled,
            (false, true) => Quality::Slices,
            (false, false) => Quality::Exact,
        };
        (parts, quality)
    }

    /// Who works in an instance: the owners of its processes, else its holders, in equal
    /// parts.
    fn payers(&self, window: &Window, uuid: &str) -> BTreeMap<Payer, u64> {
        let contexts = self.instances.get(uuid).map(|i| &i.contexts);
        let mut payers = BTreeMap::new();
        for owner in contexts.into_iter().flatten() {
            let payer = Payer::of(owner, held(window, Some(uuid)).map(|(holder, _)| holder));
            *payers.entry(payer).or_default() += 1;
        }
        if payers.is_empty() {
            payers = held(window, Some(uuid))
                .map(|(holder, _)| (Payer::Holder(holder.clone()), 1))
                .collect();
        }
        if payers.is_empty() {
            payers.insert(Payer::Reason(Unattributed::UnknownHolder), 1);
        }
        payers
    }
}

/// What instances have worked, relative to each other: slices, by their activity where that
/// is told of all of them; and whether it is.
fn weights<'a>(working: &BTreeMap<&'a str, &Instance>) -> (BTreeMap<&'a str, u64>, bool) {
    let slices = working.iter().map(|(uuid, i)| (*uuid, i.slices));
    let work = working
        .iter()
        .map(|(uuid, i)| Some((*uuid, i.slices * i.activity?)));
    let work: Option<BTreeMap<&str, u64>> = work.collect();
    let work = work.filter(|work| work.values().any(|work| *work > 0));
    match work {
        Some(work) => (work, true),
        None => (slices.collect(), false),
    }
}

/// Who holds an instance all through the window: those who were given it, and those who were
/// given the whole board.
fn held<'a>(window: &'a Window, uuid: Option<&str>) -> impl Iterator<Item = (&'a Holder, &'a u64)> {
    let uuid = uuid.map(str::to_owned);
    window
        .holders
        .iter()
        .filter(move |(holder, _)| holder.instance.is_none() || holder.instance == uuid)
}

#[cfg(test)]
mod tests {
    use super::super::attribution::{Split, split};
    use super::*;
    use crate::law::Microjoules;
    use proptest::prelude::*;

    fn holder(pod: &str, instance: &str) -> Holder {
        Holder {
            uid: pod.into(),
            namespace: "ns".into(),
            pod: pod.into(),
            container: "main".into(),
            instance: Some(instance.into()),
            claim: None,
        }
    }

    fn instance(slices: u64, owners: &[&str]) -> Instance {
        Instance {
            slices,
            busy: !owners.is_empty(),
            contexts: owners.iter().map(|uid| Owner::Pod((*uid).into())).collect(),
            activity: None,
        }
    }

    /// 300 J in a second, 70 W of them idle.
    fn window(holders: &[(&str, &str)], instances: &[(&str, Instance)]) -> Window {
        Window {
            energy: Microjoules(300_000_000),
            micros: 1_000_000,
            idle_milliwatts: 70_000,
            holders: holders
                .iter()
                .map(|(pod, at)| (holder(pod, at), 1))
                .collect(),
            mig: Some(Mig {
                slices: 7,
                instances: instances
                    .iter()
                    .map(|(uuid, instance)| ((*uuid).to_owned(), instance.clone()))
                    .collect(),
            }),
            ..Window::default()
        }
    }

    fn of(split: &Split, pod: &str, at: &str) -> (u64, u64) {
        let (active, idle) = split
            .pods
            .get(&holder(pod, at))
            .copied()
            .unwrap_or_default();
        (active.0 / 1_000_000, idle.0 / 1_000_000)
    }

    #[test]
    fn idle_goes_by_slices_and_work_by_slices_of_those_who_work() {
        let split = split(&window(
            &[("a", "MIG-1"), ("b", "MIG-2"), ("c", "MIG-3")],
            &[
                ("MIG-1", instance(3, &["a"])),
                ("MIG-2", instance(2, &["b"])),
                ("MIG-3", instance(1, &[])),
            ],
        ));
        assert_eq!(of(&split, "a", "MIG-1"), (138, 30));
        assert_eq!(of(&split, "b", "MIG-2"), (92, 20));
        assert_eq!(of(&split, "c", "MIG-3"), (0, 10));
        assert_eq!(split.unattributed[&Unattributed::Unallocated].0, 10_000_000);
        assert_eq!(split.quality, Quality::Slices);
    }

    #[test]
    fn work_goes_by_slices_and_activity_where_all_tell_it() {
        let busy = |slices, pod, activity| Instance {
            activity,
            ..instance(slices, &[pod])
        };
        let split_of = |second| {
            split(&window(
                &[("a", "MIG-1"), ("b", "MIG-2")],
                &[
                    ("MIG-1", busy(3, "a", Some(200))),
                    ("MIG-2", busy(2, "b", second)),
                ],
            ))
        };
        let told = split_of(Some(850));
        assert_eq!(of(&told, "a", "MIG-1"), (60, 30), "600 of 2,300");
        assert_eq!(of(&told, "b", "MIG-2"), (170, 20));
        assert_eq!(told.quality, Quality::Sampled);
        let untold = split_of(None);
        assert_eq!(of(&untold, "a", "MIG-1"), (138, 30));
        assert_eq!(untold.quality, Quality::Slices);
    }

    #[test]
    fn one_that_works_alone_takes_all_that_is_not_idle() {
        let split = split(&window(
            &[("a", "MIG-1"), ("b", "MIG-2")],
            &[("MIG-1", instance(3, &["a"])), ("MIG-2", instance(4, &[]))],
        ));
        assert_eq!(of(&split, "a", "MIG-1"), (230, 30));
        assert_eq!(of(&split, "b", "MIG-2"), (0, 40));
        assert_eq!(split.quality, Quality::Exact);
    }

    #[test]
    fn pods_that_take_turns_in_one_instance_share_it_equally() {
        let split = split(&window(
            &[("a", "MIG-1"), ("b", "MIG-1")],
            &[("MIG-1", instance(7, &["a", "b"]))],
        ));
        assert_eq!(of(&split, "a", "MIG-1"), (115, 35));
        assert_eq!(of(&split, "b", "MIG-1"), (115, 35));
        assert_eq!(split.quality, Quality::Equal);
    }

    #[test]
    fn work_in_an_instance_that_nobody_holds_is_an_unknown_holders() {
        let split = split(&window(&[], &[("MIG-1", instance(7, &["a"]))]));
        assert_eq!(
            split.unattributed[&Unattributed::UnknownHolder].0,
            230_000_000
        );
    }

    #[test]
    fn who_holds_the_whole_board_holds_every_part_of_it() {
        let mut world = window(
            &[],
            &[("MIG-1", instance(3, &["a"])), ("MIG-2", instance(2, &[]))],
        );
        let whole = Holder {
            instance: None,
            ..holder("a", "")
        };
        world.holders.insert(whole.clone(), 1);
        let split = split(&world);
        let (active, idle) = split.pods[&whole];
        assert_eq!((active.0, idle.0), (230_000_000, 70_000_000));
    }

    proptest! {
        #[test]
        fn whatever_the_cut_the_parts_are_the_counters_difference(
            energy in 0_u64..700_000_000,
            idle in 0_u64..100_000,
            slices in 0_u64..8,
            instances in proptest::collection::vec(
                (0_u64..8, 0_usize..3, 0_usize..3, proptest::option::of(0_u64..=1000)), 0..8),
        ) {
            let mut world = window(&[], &[]);
            (world.energy, world.idle_milliwatts) = (Microjoules(energy), idle);
            let mut mig = Mig { slices, ..Mig::default() };
            for (number, (slices, holders, owners, activity)) in instances.into_iter().enumerate() {
                let uuid = format!("MIG-{number}");
                for n in 0..holders {
                    world.holders.insert(holder(&format!("p{n}"), &uuid), n as u64);
                }
                let names: Vec<String> = (0..owners).map(|n| format!("p{n}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let instance = Instance { activity, ..instance(slices, &names) };
                mig.instances.insert(uuid, instance);
            }
            world.mig = Some(mig);
            prop_assert_eq!(split(&world).total(), Microjoules(energy));
        }
    }
}
