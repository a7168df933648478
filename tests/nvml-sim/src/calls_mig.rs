//! Calls about MIG: instances come and go in slots, and a slot's handle outlives them.

use crate::abi::{
    Attributes, Device, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS, index, put, slot, with,
};

/// Slots of a GPU that can be cut.
pub const SLOTS: u32 = 7;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Device,
    current: *mut u32,
    pending: *mut u32,
) -> u32 {
    with(device, "nvmlDeviceGetMigMode", |gpu, _| {
        if gpu.instances.is_empty() {
            return NOT_SUPPORTED;
        }
        match unsafe { put(current, 1) } {
            SUCCESS => unsafe { put(pending, 1) },
            code => code,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Device, out: *mut u32) -> u32 {
    with(device, "nvmlDeviceGetMaxMigDeviceCount", |gpu, _| unsafe {
        put(out, if gpu.instances.is_empty() { 0 } else { SLOTS })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Device,
    number: u32,
    out: *mut Device,
) -> u32 {
    with(device, "nvmlDeviceGetMigDeviceHandleByIndex", |gpu, now| {
        if gpu.instances.is_empty() {
            return NOT_SUPPORTED;
        }
        if number >= SLOTS {
            return INVALID_ARGUMENT;
        }
        if gpu.instance(number, now).is_none() {
            return NOT_FOUND;
        }
        let handle = (index(device) + 1) | ((number as usize + 1) << 16);
        unsafe { put(out, handle as Device) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    device: Device,
    out: *mut Device,
) -> u32 {
    with(
        device,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        |_, _| {
            if slot(device).is_none() {
                return INVALID_ARGUMENT;
            }
            unsafe { put(out, (index(device) + 1) as Device) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(device: Device, out: *mut u32) -> u32 {
    with(device, "nvmlDeviceIsMigDeviceHandle", |_, _| unsafe {
        put(out, u32::from(slot(device).is_some()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: Device, out: *mut u32) -> u32 {
    with(device, "nvmlDeviceGetGpuInstanceId", |_, _| {
        match slot(device) {
            Some(slot) => unsafe { put(out, slot) },
            None => NOT_SUPPORTED,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device: Device, out: *mut u32) -> u32 {
    with(
        device,
        "nvmlDeviceGetComputeInstanceId",
        |_, _| match slot(device) {
            Some(_) => unsafe { put(out, 0) },
            None => NOT_SUPPORTED,
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(device: Device, out: *mut Attributes) -> u32 {
    with(device, "nvmlDeviceGetAttributes_v2", |gpu, now| {
        let Some(instance) = slot(device).and_then(|slot| gpu.instance(slot, now)) else {
            return NOT_SUPPORTED;
        };
        let attributes = Attributes {
            multiprocessors: instance.slices * 14,
            gpu_instance_slices: instance.slices,
            compute_instance_slices: instance.slices,
            memory_mb: u64::from(instance.slices) * 4_864,
            ..Attributes::default()
        };
        unsafe { put(out, attributes) }
    })
}
