//! How each board is cut from look to look, and so what the kubelet's device names mean.

use super::devices::{Devices, Part};
use super::instances::{Activity, Cut, InstanceReading};
use super::mig::Mig;
use super::procfs::Processes;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Default)]
pub(super) struct Cuts {
    pub(super) devices: Devices,
    /// By GPU, at the last look.
    last: HashMap<String, Mig>,
}

impl Cuts {
    /// How a board is cut now, and whether it was cut anew; what a failed call leaves open is
    /// as it was.
    pub(super) fn look(
        &mut self,
        uuid: &str,
        cut: &Cut,
        processes: &mut Processes,
        visible: bool,
        now: u64,
    ) -> (Option<Mig>, bool) {
        let (slots, found) = match cut {
            Cut::Unknown => return (self.last.get(uuid).cloned(), false),
            Cut::Whole => {
                self.last.remove(uuid);
                return (None, self.rename(uuid, &[]));
            }
            Cut::Into(slots, found) => (*slots, found),
        };
        let before = self.last.remove(uuid).unwrap_or_default();
        let mut instances = BTreeMap::new();
        for reading in found {
            let known = before.instances.get(&reading.uuid);
            let mut instance = known.cloned().unwrap_or_default();
            if let Some(slices) = reading.slices {
                instance.slices = u64::from(slices);
            }
            if let Some(pids) = &reading.processes {
                let seen = pids.iter().filter(|_| visible);
                let contexts = seen.filter_map(|pid| processes.owner(*pid, now));
                instance.contexts = contexts.collect();
                // The server of MPS is nobody's tenant: its clients are.
                instance.busy = pids.iter().any(|pid| !processes.serves_mps(*pid));
            }
            match reading.activity {
                Activity::Untold => instance.activity = None,
                Activity::TooSoon => {}
                Activity::Permille(activity) => instance.activity = Some(u64::from(activity)),
            }
            instances.insert(reading.uuid.clone(), instance);
        }
        let mig = Mig {
            slices: u64::from(slots),
            instances,
        };
        self.last.insert(uuid.to_owned(), mig.clone());
        (Some(mig), self.rename(uuid, found))
    }

    /// Takes note of a board's instances; true where they are others than before.
    fn rename(&mut self, uuid: &str, found: &[InstanceReading]) -> bool {
        let instances = &self.devices.instances;
        let part = |i: &InstanceReading| {
            // What a failed call leaves open is as it was.
            let known = instances.get(&i.uuid);
            Part {
                gpu: uuid.to_owned(),
                number: i.number.or(known.and_then(|known| known.number)),
                slices: i.slices.or(known.and_then(|known| known.slices)),
            }
        };
        let after: BTreeMap<String, Part> =
            found.iter().map(|i| (i.uuid.clone(), part(i))).collect();
        let instances = &mut self.devices.instances;
        let before = instances.iter().filter(|(_, part)| part.gpu == uuid);
        if before.eq(&after) {
            return false;
        }
        tracing::info!(gpu = uuid, instances = after.len(), "is cut by MIG anew");
        instances.retain(|_, part| part.gpu != uuid);
        instances.extend(after);
        true
    }

    /// The GPU instance's number, and its share of the board, of a MIG instance.
    pub(super) fn part(&self, gpu: &str, instance: &str) -> (Option<u32>, Option<f64>) {
        let number = self.devices.instances.get(instance).and_then(|p| p.number);
        let share = self.last.get(gpu).and_then(|mig| {
            let slices = mig.instances.get(instance)?.slices;
            (mig.slices > 0).then(|| slices as f64 / mig.slices as f64)
        });
        (number, share)
    }
}
