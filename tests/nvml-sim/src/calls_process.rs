//! Calls about the processes on one GPU.

use crate::abi::{
    Device, NOT_FOUND, NOT_SUPPORTED, ProcessInfo, ProcessUtilizationSample, put_list, slot, with,
};
use crate::model::{RING, SAMPLE_US};
use std::collections::BTreeMap;

/// Which of a GPU's processes a list shows.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Compute,
    Graphics,
    Mps,
}

unsafe fn processes(
    device: Device,
    call: &str,
    count: *mut u32,
    out: *mut ProcessInfo,
    kind: Kind,
) -> u32 {
    with(device, call, |gpu, now| {
        let at = slot(device).and_then(|slot| gpu.instance(slot, now));
        let instance_of = |uuid: &str| gpu.instances.iter().find(|i| i.uuid == uuid);
        let list = gpu
            .processes
            .iter()
            .filter(|p| p.runs_at(now) && kind == if p.mps { Kind::Mps } else { Kind::Compute })
            .filter(|p| at.is_none_or(|at| p.instance.as_deref() == Some(&at.uuid)))
            .map(|p| {
                let instance = p.instance.as_deref().and_then(instance_of);
                ProcessInfo {
                    pid: p.pid,
                    used_memory: 1 << 30,
                    gpu_instance: instance.map_or(u32::MAX, |i| i.slot),
                    compute_instance: instance.map_or(u32::MAX, |_| 0),
                }
            })
            .collect();
        unsafe { put_list(count, out, list) }
    })
}

macro_rules! process_list {
    ($name:ident, $kind:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            device: Device,
            count: *mut u32,
            out: *mut ProcessInfo,
        ) -> u32 {
            unsafe { processes(device, stringify!($name), count, out, $kind) }
        }
    };
}

process_list!(nvmlDeviceGetComputeRunningProcesses_v3, Kind::Compute);
process_list!(nvmlDeviceGetGraphicsRunningProcesses_v3, Kind::Graphics);
process_list!(nvmlDeviceGetMPSComputeRunningProcesses_v3, Kind::Mps);

/// One entry a PID, averaged over the ring's samples newer than `last`; none is NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: Device,
    out: *mut ProcessUtilizationSample,
    count: *mut u32,
    last: u64,
) -> u32 {
    with(device, "nvmlDeviceGetProcessUtilization", |gpu, now| {
        if !gpu.instances.is_empty() {
            return NOT_SUPPORTED;
        }
        let stepped = crate::clock::stepped();
        let last = last.saturating_add_signed(-stepped);
        let newest = now / SAMPLE_US;
        let oldest = (last / SAMPLE_US + 1).max(newest.saturating_sub(RING - 1));
        let samples = (newest + 1).saturating_sub(oldest);
        let mut seen: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for k in oldest..=newest {
            if let Some(process) = gpu.sampled(k) {
                let entry = seen.entry(process.pid).or_default();
                let stamp = (k * SAMPLE_US).saturating_add_signed(stepped);
                *entry = (stamp, entry.1 + 100);
            }
        }
        if seen.is_empty() {
            return NOT_FOUND;
        }
        let list = seen
            .into_iter()
            .map(|(pid, (time_stamp, percent))| ProcessUtilizationSample {
                pid,
                time_stamp,
                sm: u32::try_from(percent / samples.max(1)).unwrap_or(100),
                memory: 0,
                encoder: 0,
                decoder: 0,
            })
            .collect();
        unsafe { put_list(count, out, list) }
    })
}
