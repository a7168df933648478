//! Structures and codes as nvml.h lays them out on 64-bit Linux, and the helpers that
//! every call uses.

use crate::clock;
use crate::scenario::{Gpu, HANGS, Scenario};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

pub const SUCCESS: u32 = 0;
pub const UNINITIALIZED: u32 = 1;
pub const INVALID_ARGUMENT: u32 = 2;
pub const NOT_SUPPORTED: u32 = 3;
pub const NOT_FOUND: u32 = 6;
pub const INSUFFICIENT_SIZE: u32 = 7;
pub const DRIVER_NOT_LOADED: u32 = 9;
pub const FUNCTION_NOT_FOUND: u32 = 13;
pub const UNKNOWN: u32 = 999;

/// An opaque device handle, never null: index + 1, and above 16 bits the MIG slot + 1.
pub type Device = *mut c_void;

/// The GPU that a handle names, by index.
pub fn index(device: Device) -> usize {
    (device as usize & 0xffff).wrapping_sub(1)
}

/// The MIG slot that a handle names.
pub fn slot(device: Device) -> Option<u32> {
    u32::try_from(device as usize >> 16).ok()?.checked_sub(1)
}

#[repr(C)]
pub struct Pci {
    pub bus_id_legacy: [c_char; 16],
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
    pub pci_device_id: u32,
    pub pci_subsystem_id: u32,
    pub bus_id: [c_char; 32],
}

#[repr(C)]
pub struct Memory {
    pub total: u64,
    pub free: u64,
    pub used: u64,
}

#[repr(C)]
pub struct Utilization {
    pub gpu: u32,
    pub memory: u32,
}

#[repr(C)]
pub struct ProcessInfo {
    pub pid: u32,
    pub used_memory: u64,
    pub gpu_instance: u32,
    pub compute_instance: u32,
}

#[repr(C)]
pub struct ProcessUtilizationSample {
    pub pid: u32,
    pub time_stamp: u64,
    pub sm: u32,
    pub memory: u32,
    pub encoder: u32,
    pub decoder: u32,
}

#[repr(C)]
pub struct FieldValue {
    pub id: u32,
    pub scope: u32,
    pub timestamp: i64,
    pub latency: i64,
    pub value_type: u32,
    pub code: u32,
    pub value: u64,
}

#[repr(C)]
pub struct Sample {
    pub time_stamp: u64,
    pub value: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct Attributes {
    pub multiprocessors: u32,
    pub copy_engines: u32,
    pub decoders: u32,
    pub encoders: u32,
    pub jpegs: u32,
    pub ofas: u32,
    pub gpu_instance_slices: u32,
    pub compute_instance_slices: u32,
    pub memory_mb: u64,
}

#[repr(C)]
pub struct GpmMetric {
    pub id: u32,
    pub code: u32,
    pub value: f64,
    pub names: [*const c_char; 3],
}

/// The head of a request: as many metrics as it says follow.
#[repr(C)]
pub struct GpmMetricsGet {
    pub version: u32,
    pub count: u32,
    pub first: GpmSample,
    pub second: GpmSample,
    pub metrics: [GpmMetric; 0],
}

/// An opaque sample, made by the library.
pub type GpmSample = *mut crate::calls_gpm::Sampled;

const _: () = assert!(size_of::<GpmMetric>() == 40);
const _: () = assert!(size_of::<Attributes>() == 40);
const _: () = assert!(size_of::<Pci>() == 68);
const _: () = assert!(size_of::<ProcessInfo>() == 24);
const _: () = assert!(size_of::<ProcessUtilizationSample>() == 32);
const _: () = assert!(size_of::<FieldValue>() == 40);
const _: () = assert!(size_of::<Sample>() == 16);

/// What a call answers that has hung.
const TIMEOUT: u32 = 10;

/// Looks a GPU up by handle and answers with its code where the scenario says so.
pub fn with(device: Device, call: &str, answer: impl FnOnce(&Gpu, u64) -> u32) -> u32 {
    checked(call, |scenario| {
        let Some(gpu) = scenario.gpus.get(index(device)) else {
            return INVALID_ARGUMENT;
        };
        let now = clock::now();
        let fault = gpu
            .faults
            .iter()
            .find(|f| (f.call == "*" || f.call == call) && f.from_us <= now && now < f.until_us);
        // The handle of an instance that is gone, until another is made in its slot.
        if slot(device).is_some_and(|slot| gpu.instance(slot, now).is_none()) {
            return INVALID_ARGUMENT;
        }
        match fault {
            None => answer(gpu, now),
            Some(fault) if fault.code >= HANGS => {
                let milliseconds = u64::from(fault.code - HANGS);
                std::thread::sleep(std::time::Duration::from_millis(milliseconds));
                TIMEOUT
            }
            Some(fault) => fault.code,
        }
    })
}

/// Runs a call that takes no GPU.
pub fn checked(call: &str, answer: impl FnOnce(&Arc<Scenario>) -> u32) -> u32 {
    let Some(scenario) = clock::scenario() else {
        return UNKNOWN;
    };
    if !crate::calls_system::initialized() {
        return UNINITIALIZED;
    }
    if scenario.missing.iter().any(|missing| missing == call) {
        return FUNCTION_NOT_FOUND;
    }
    answer(&scenario)
}

/// Writes through an out pointer; a null one is an invalid argument.
pub unsafe fn put<T>(out: *mut T, value: T) -> u32 {
    if out.is_null() {
        return INVALID_ARGUMENT;
    }
    unsafe { out.write(value) };
    SUCCESS
}

/// Writes a C string into a buffer of `length` bytes.
pub unsafe fn put_text(out: *mut c_char, length: u32, text: &str) -> u32 {
    if out.is_null() {
        return INVALID_ARGUMENT;
    }
    if text.len() + 1 > length as usize {
        return INSUFFICIENT_SIZE;
    }
    for (i, byte) in text.bytes().chain([0]).enumerate() {
        unsafe { out.add(i).write(byte.cast_signed()) };
    }
    SUCCESS
}

/// Copies a list into a caller's array of `*count` entries, the NVML way: too short or
/// null gives the needed count and INSUFFICIENT_SIZE.
pub unsafe fn put_list<T>(count: *mut u32, out: *mut T, list: Vec<T>) -> u32 {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    let room = unsafe { count.read() } as usize;
    unsafe { count.write(u32::try_from(list.len()).unwrap_or(u32::MAX)) };
    if list.is_empty() {
        return SUCCESS;
    }
    if out.is_null() || room < list.len() {
        return INSUFFICIENT_SIZE;
    }
    for (i, item) in list.into_iter().enumerate() {
        unsafe { out.add(i).write(item) };
    }
    SUCCESS
}
