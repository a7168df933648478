//! How MIG has cut the boards, as NVML shows it: its instances, who has a process in them,
//! and, where it is asked for, how busy they were.

use super::nvml::{CallError, again, failed, is_absent, keep, processes};
use super::raw::gpu_instance_id;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use std::collections::HashMap;

/// Two samples must lie this far apart, by NVIDIA's word.
const SAMPLED_US: u64 = 100_000;

/// A sample this old is of an instance that is no more.
const FORGOTTEN_US: u64 = 60_000_000;

/// How MIG has cut a board.
#[derive(Debug, Clone, Default)]
pub enum Cut {
    /// MIG is off, or the board cannot be cut.
    #[default]
    Whole,
    /// Into as many slices at most, with these instances.
    Into(u32, Vec<InstanceReading>),
    /// A call failed: what was seen last still stands.
    Unknown,
}

/// One MIG instance at one look. Its handle dies when the GPU is cut anew, and may then be
/// another's, so nothing of it is kept.
#[derive(Debug, Clone, Default)]
pub struct InstanceReading {
    pub uuid: String,
    /// Number of its GPU instance; `None` where the call failed.
    pub number: Option<u32>,
    /// Compute slices; `None` where the call failed.
    pub slices: Option<u32>,
    /// `None` where the call failed.
    pub processes: Option<Vec<u32>>,
    pub activity: Activity,
}

/// How busy an instance was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activity {
    /// It is not asked for, or the board cannot tell.
    #[default]
    Untold,
    /// The last sample is too young: what was told last still stands.
    TooSoon,
    /// Share of its multiprocessors that were at work, in thousandths.
    Permille(u32),
}

/// Reads instances, and keeps the last sample of each.
pub(super) struct Instances {
    nvml: &'static Nvml,
    /// By UUID, with its moment; `None` where nobody asks for activity.
    samples: Option<HashMap<String, (u64, GpmSample<'static>)>>,
}

impl Instances {
    pub(super) fn new(nvml: &'static Nvml, activity: bool) -> Self {
        // The wrapper's samples free themselves, and panic where they cannot.
        let can_free = nvml.lib().nvmlGpmSampleFree.is_ok();
        Self {
            nvml,
            samples: (activity && can_free).then(HashMap::new),
        }
    }

    /// How a board is cut: found anew at each look.
    pub(super) fn look(
        &mut self,
        device: &Device<'static>,
        now: u64,
        errors: &mut Vec<CallError>,
    ) -> Cut {
        match device.mig_mode() {
            Ok(mode) if mode.current == 1 => self
                .all(device, now, errors)
                .map_or(Cut::Unknown, |(slots, found)| Cut::Into(slots, found)),
            Ok(_) => Cut::Whole,
            Err(error) if is_absent(&error) => Cut::Whole,
            Err(error) => {
                errors.push(failed("nvmlDeviceGetMigMode")(error));
                Cut::Unknown
            }
        }
    }

    /// `None` where it cannot be told which instances there are.
    fn all(
        &mut self,
        device: &Device<'static>,
        now: u64,
        errors: &mut Vec<CallError>,
    ) -> Option<(u32, Vec<InstanceReading>)> {
        let slots = keep(
            device.mig_device_count(),
            "nvmlDeviceGetMaxMigDeviceCount",
            errors,
        )?;
        let mut found = Vec::new();
        for slot in 0..slots {
            let handle = match device.mig_device_by_index(slot) {
                // A hole.
                Err(NvmlError::NotFound) => continue,
                other => keep(other, "nvmlDeviceGetMigDeviceHandleByIndex", errors)?,
            };
            // One GPU instance may hold several compute instances: each has its own slices.
            let attributes = keep(handle.attributes(), "nvmlDeviceGetAttributes", errors);
            let uuid = keep(handle.uuid(), "nvmlDeviceGetUUID", errors)?;
            let number = match gpu_instance_id(self.nvml, &handle) {
                Err(error) if is_absent(&error) => None,
                other => keep(other, "nvmlDeviceGetGpuInstanceId", errors),
            };
            found.push(InstanceReading {
                activity: self.activity(device, &uuid, number, now, errors),
                uuid,
                number,
                slices: attributes.map(|a| a.compute_instance_slice_count),
                processes: processes(&handle, errors).0,
            });
        }
        if let Some(samples) = &mut self.samples {
            // Of instances that are no more: no look at one of these is longer ago.
            samples.retain(|_, (at, _)| now.saturating_sub(*at) < FORGOTTEN_US);
        }
        Some((slots, found))
    }

    /// Work of an instance since its last sample.
    fn activity(
        &mut self,
        device: &Device<'static>,
        uuid: &str,
        number: Option<u32>,
        now: u64,
        errors: &mut Vec<CallError>,
    ) -> Activity {
        let (Some(samples), Some(number)) = (&mut self.samples, number) else {
            return Activity::Untold;
        };
        let last = samples.get(uuid);
        if last.is_some_and(|(at, _)| now.saturating_sub(*at) < SAMPLED_US) {
            return Activity::TooSoon;
        }
        let sample = match again(|| device.gpm_mig_sample(number)) {
            Ok(sample) => sample,
            Err(error) => {
                // Before Hopper nothing is missing.
                if !is_absent(&error) {
                    errors.push(failed("nvmlGpmMigSampleGet")(error));
                }
                samples.remove(uuid);
                return Activity::Untold;
            }
        };
        let Some((_, before)) = samples.insert(uuid.to_owned(), (now, sample)) else {
            return Activity::TooSoon;
        };
        let sample = &samples[uuid].1;
        let metrics = gpm_metrics_get(self.nvml, &before, sample, &[GpmMetricId::SmUtil]);
        let told = metrics.and_then(|mut metrics| metrics.pop().unwrap_or(Err(NvmlError::NoData)));
        keep(told, "nvmlGpmMetricsGet", errors)
            .map_or(Activity::Untold, |metric| permille(metric.value))
    }
}

/// A percentage as the driver tells it; nonsense is not told at all.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to 1000 by the match"
)]
fn permille(percent: f64) -> Activity {
    match percent {
        0.0..=100.0 => Activity::Permille((percent * 10.0).round() as u32),
        _ => Activity::Untold,
    }
}

#[cfg(test)]
mod tests {
    use super::{Activity, permille};

    #[test]
    fn only_a_percentage_is_an_activity() {
        assert_eq!(permille(33.33), Activity::Permille(333));
        for nonsense in [f64::NAN, f64::INFINITY, -1.0, 100.1, 2_147_483_632.0] {
            assert_eq!(permille(nonsense), Activity::Untold, "{nonsense}");
        }
    }
}
