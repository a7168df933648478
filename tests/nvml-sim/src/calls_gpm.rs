//! GPU performance monitoring: samples of a MIG instance, and what lies between two of them.

use crate::abi::{
    Device, GpmMetricsGet, GpmSample, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, checked, index,
    put, with,
};

/// `NVML_GPM_METRIC_SM_UTIL`
pub const METRIC_SM_UTIL: u32 = 2;
/// `NVML_GPM_METRICS_GET_VERSION`
pub const METRICS_GET_VERSION: u32 = 1;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`
pub const VERSION_MISMATCH: u32 = 25;

/// What a sample holds: whose it is, and when it was taken.
#[derive(Default)]
pub struct Sampled {
    taken: Option<(usize, String, u64)>,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(out: *mut GpmSample) -> u32 {
    checked("nvmlGpmSampleAlloc", |_| unsafe {
        put(out, Box::into_raw(Box::default()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleFree(sample: GpmSample) -> u32 {
    if sample.is_null() {
        return INVALID_ARGUMENT;
    }
    drop(unsafe { Box::from_raw(sample) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMigSampleGet(
    device: Device,
    instance: u32,
    sample: GpmSample,
) -> u32 {
    with(device, "nvmlGpmMigSampleGet", |gpu, now| {
        if !gpu.gpm {
            return NOT_SUPPORTED;
        }
        // An instance's number is its slot here.
        let Some(found) = gpu.instance(instance, now) else {
            return INVALID_ARGUMENT;
        };
        let Some(sample) = (unsafe { sample.as_mut() }) else {
            return INVALID_ARGUMENT;
        };
        sample.taken = Some((index(device), found.uuid.clone(), now));
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut GpmMetricsGet) -> u32 {
    checked("nvmlGpmMetricsGet", |scenario| {
        let Some(head) = (unsafe { request.as_ref() }) else {
            return INVALID_ARGUMENT;
        };
        if head.version != METRICS_GET_VERSION {
            return VERSION_MISMATCH;
        }
        let samples = [head.first, head.second].map(|sample| unsafe { sample.as_ref() });
        let [Some(first), Some(second)] = samples else {
            return INVALID_ARGUMENT;
        };
        let (Some((gpu, uuid, from)), Some((other, same, to))) = (&first.taken, &second.taken)
        else {
            return INVALID_ARGUMENT;
        };
        if gpu != other || uuid != same || from >= to {
            return INVALID_ARGUMENT;
        }
        let busy = scenario.gpus.get(*gpu);
        let busy = busy.map_or(0.0, |gpu| gpu.busy_percent(uuid, *from, *to));
        let metrics = unsafe { (&raw mut (*request).metrics).cast::<crate::abi::GpmMetric>() };
        for number in 0..head.count as usize {
            let metric = unsafe { &mut *metrics.add(number) };
            metric.code = if metric.id == METRIC_SM_UTIL {
                SUCCESS
            } else {
                NOT_SUPPORTED
            };
            metric.value = busy;
        }
        SUCCESS
    })
}
