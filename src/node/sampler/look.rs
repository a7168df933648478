//! NVML: its start, what it lists, and one look at one GPU.

use super::super::attribution::Owner;
use super::super::devices::Devices;
use super::super::meter::Look;
use super::super::nvml::{CallError, GpuInfo, OpenError, Reader};
use super::Sampler;
use crate::clock;
use std::collections::{BTreeMap, BTreeSet};

/// Samples may be stamped so far ahead of us.
const AHEAD_US: u64 = 1_000_000;

/// From when on samples are news; µs since the Unix epoch. Where the clock was stepped back
/// the last one lies ahead, and waiting for it would leave pods that share a GPU untold apart.
fn samples_since(last: Option<u64>, wall: u64) -> u64 {
    last.filter(|last| *last <= wall + AHEAD_US).unwrap_or(wall)
}

impl Sampler {
    pub(super) fn open(&mut self) {
        match Reader::open(&self.settings.libraries, self.settings.mig_activity) {
            Ok(reader) => {
                self.cuts.devices = Devices::default();
                let gpus: Vec<GpuInfo> = reader.gpus().cloned().collect();
                self.reader = Some(reader);
                self.add(&gpus);
                self.opened = Some(clock::monotonic_micros());
                self.health.nvml(Ok(()));
            }
            Err(error) => {
                let refused = match error {
                    OpenError::Init(code) => Some(("nvmlInit", code)),
                    OpenError::Devices(call, code) => Some((call, code)),
                    OpenError::Library(_) | OpenError::Failing => None,
                };
                if let Some((call, code)) = refused {
                    self.lost.look(false, &BTreeSet::from([code]));
                    self.health.count(&CallError { call, code });
                }
                self.health.nvml(Err(error));
            }
        }
    }

    /// Meters these GPUs from now on.
    pub(super) fn add(&mut self, gpus: &[GpuInfo]) {
        for error in self.reader.iter_mut().flat_map(|r| r.errors.drain(..)) {
            self.health.count(&error);
        }
        for gpu in gpus {
            tracing::info!(uuid = gpu.uuid, model = gpu.model, "metering");
            let by_minor = &mut self.cuts.devices.by_minor;
            by_minor.insert(gpu.minor, gpu.uuid.clone());
            self.meter
                .add_gpu(gpu.clone(), self.settings.idle_milliwatts);
            self.devices_changed = true;
        }
    }

    /// A look, whether the GPU answered, and whether processes are on it as far as is known.
    pub(super) fn look(
        &mut self,
        uuid: &str,
        visible: bool,
        now: u64,
        codes: &mut BTreeSet<&'static str>,
    ) -> (Look, bool, bool) {
        let Some(reader) = &mut self.reader else {
            return (Look::default(), false, false);
        };
        let wall = clock::wall_micros();
        let since = samples_since(self.since.get(uuid).copied(), wall);
        let reading = reader.read(uuid, since..=wall + AHEAD_US, now);
        for error in &reading.errors {
            self.health.count(error);
            codes.insert(error.code);
        }
        let newest = reading.utilisation.iter().map(|(_, _, at)| *at).max();
        self.since
            .insert(uuid.to_owned(), newest.unwrap_or(since).max(since));
        let mut activity: BTreeMap<Owner, u64> = BTreeMap::new();
        let mut contexts = BTreeSet::new();
        if visible {
            for pid in &reading.processes {
                if let Some(owner) = self.processes.owner(*pid, now) {
                    if let Owner::Pod(uid) = &owner {
                        self.allocations.pod_alive(uid);
                    }
                    contexts.insert(owner.clone());
                    self.pids.insert(*pid, owner);
                }
            }
            for (pid, percent, _) in &reading.utilisation {
                if let Some(owner) = self.processes.owner(*pid, now) {
                    *activity.entry(owner).or_default() += u64::from(*percent);
                }
            }
        }
        let (mig, anew) = self
            .cuts
            .look(uuid, &reading.cut, &mut self.processes, visible, now);
        if anew {
            // A GPU that is cut anew is a change of holders.
            self.devices_changed = true;
            self.allocations.something_happened(now);
        }
        let ok = reading.energy_millijoules.is_some() || reading.power_milliwatts.is_some();
        let look = Look {
            read_at: reading.read_at,
            energy_millijoules: reading.energy_millijoules,
            power_milliwatts: reading.power_milliwatts,
            // What was not seen teaches nothing of idle power.
            busy: reading.unseen || !reading.processes.is_empty(),
            at_rest: reading.at_rest && !reading.unseen,
            limit_milliwatts: reading.limit_milliwatts,
            contexts,
            activity,
            mig,
            mps: !reading.mps_clients.is_empty(),
        };
        let was = reading.unseen && self.shared.used.load().contains(uuid);
        (look, ok, was || !reading.processes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::samples_since;

    #[test]
    fn a_clock_that_was_stepped_back_makes_no_sample_wait() {
        let second = 1_000_000;
        assert_eq!(samples_since(None, 100 * second), 100 * second);
        assert_eq!(samples_since(Some(99 * second), 100 * second), 99 * second);
        assert_eq!(
            samples_since(Some(101 * second), 100 * second),
            101 * second
        );
        assert_eq!(
            samples_since(Some(700 * second), 100 * second),
            100 * second
        );
    }
}
