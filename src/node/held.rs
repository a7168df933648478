//! Who holds what now, and how much of it: the series that others join by.

use super::allocations::{Allocations, Tenure};
use super::cuts::Cuts;
use std::collections::BTreeMap;

/// One container's hold of one GPU, or of a part of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) gpu: String,
    pub(super) tenure: Tenure,
    /// Number of the GPU instance, where MIG has cut the board.
    pub(super) gpu_instance: Option<u32>,
    /// What the container is billed of the GPU's idle power, 0 to 1: by replicas, and under
    /// MIG by slices.
    pub(super) ratio: f64,
}

pub(super) fn held(allocations: &Allocations, cuts: &Cuts) -> Vec<Held> {
    let mut by_gpu: BTreeMap<&str, Vec<&Tenure>> = BTreeMap::new();
    for (gpu, tenure) in allocations.current() {
        by_gpu.entry(gpu).or_default().push(tenure);
    }
    let mut all = Vec::new();
    for (gpu, tenures) in by_gpu {
        for tenure in &tenures {
            let instance = tenure.holder.instance.as_deref();
            let (gpu_instance, slices) =
                instance.map_or((None, None), |instance| cuts.part(gpu, instance));
            let beside = tenures.iter().filter(|other| {
                let other = other.holder.instance.as_deref();
                other.is_none() || instance.is_none() || other == instance
            });
            let weights: u64 = beside.map(|other| other.weight).sum();
            all.push(Held {
                gpu: gpu.to_owned(),
                tenure: (*tenure).clone(),
                gpu_instance,
                ratio: slices.unwrap_or(1.0) * tenure.weight as f64 / weights.max(1) as f64,
            });
        }
    }
    // One container's hold by two claims, or of two parts of one instance, is one.
    let mut merged: Vec<Held> = Vec::new();
    for held in all {
        let same = |known: &&mut Held| {
            let (a, b) = (&known.tenure.holder, &held.tenure.holder);
            known.gpu == held.gpu
                && known.gpu_instance == held.gpu_instance
                && (&a.uid, &a.container, &a.claim) == (&b.uid, &b.container, &b.claim)
        };
        match merged.iter_mut().find(same) {
            Some(known) => known.ratio += held.ratio,
            None => merged.push(held),
        }
    }
    merged
}
