//! Calls about one GPU: names, energy, power.

use crate::abi::{
    Device, FieldValue, INVALID_ARGUMENT, Memory, NOT_FOUND, NOT_SUPPORTED, Pci, SUCCESS, Sample,
    Utilization, index, put, put_list, put_text, slot, with,
};
use std::ffi::c_char;

/// Field identifiers that GetFieldValues answers.
pub(crate) const FIELD_ENERGY: u32 = 83;
pub(crate) const FIELD_POWER_AVERAGE: u32 = 185;
pub(crate) const FIELD_POWER_INSTANT: u32 = 186;
const TYPE_UNSIGNED_LONG_LONG: u32 = 3;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "watts are small and positive"
)]
fn milliwatts(watts: f64) -> u32 {
    (watts * 1000.0) as u32
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: Device, out: *mut c_char, length: u32) -> u32 {
    with(device, "nvmlDeviceGetUUID", |gpu, now| {
        let instance = slot(device).and_then(|slot| gpu.instance(slot, now));
        let uuid = instance.map_or(&gpu.uuid, |instance| &instance.uuid);
        unsafe { put_text(out, length, uuid) }
    })
}

fn bus_id(index: usize) -> String {
    format!("{:08X}:{:02X}:00.0", 0, index + 7)
}

fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (slot, byte) in out.iter_mut().zip(text.bytes().take(N - 1)) {
        *slot = byte.cast_signed();
    }
    out
}

macro_rules! device_call {
    ($name:ident($($argument:ident: $type:ty),*) => |$gpu:ident, $now:ident| $body:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: Device, $($argument: $type),*) -> u32 {
            with(device, stringify!($name), |$gpu, $now| {
                let _ = ($gpu, $now);
                unsafe { $body }
            })
        }
    };
}

device_call!(nvmlDeviceGetName(out: *mut c_char, length: u32) => |gpu, now| put_text(out, length, &gpu.name));
device_call!(nvmlDeviceGetSerial(out: *mut c_char, length: u32) => |gpu, now| put_text(out, length, &gpu.uuid));
device_call!(nvmlDeviceGetArchitecture(out: *mut u32) => |gpu, now| put(out, 7));
device_call!(nvmlDeviceGetPersistenceMode(out: *mut u32) => |gpu, now| put(out, 1));
device_call!(nvmlDeviceGetPowerUsage(out: *mut u32) => |gpu, now| put(out, milliwatts(gpu.watts(now))));
device_call!(nvmlDeviceGetEnforcedPowerLimit(out: *mut u32) => |gpu, now| put(out, milliwatts(gpu.limit_watts)));
device_call!(nvmlDeviceGetPowerManagementLimit(out: *mut u32) => |gpu, now| put(out, milliwatts(gpu.limit_watts)));
device_call!(nvmlDeviceGetPowerManagementDefaultLimit(out: *mut u32) => |gpu, now| {
    put(out, milliwatts(gpu.default_limit_watts.unwrap_or(gpu.limit_watts)))
});
device_call!(nvmlDeviceGetTotalEnergyConsumption(out: *mut u64) => |gpu, now| {
    if gpu.no_energy { NOT_SUPPORTED } else { put(out, gpu.counter_mj(now)) }
});
device_call!(nvmlDeviceGetMemoryInfo(out: *mut Memory) => |gpu, now| {
    put(out, Memory { total: 40 << 30, free: 39 << 30, used: 1 << 30 })
});
device_call!(nvmlDeviceGetUtilizationRates(out: *mut Utilization) => |gpu, now| {
    let busy: u32 = gpu.processes.iter().filter(|p| p.runs_at(now)).map(|p| p.sm_percent).sum();
    put(out, Utilization { gpu: busy.min(100), memory: busy.min(100) / 2 })
});

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: Device, out: *mut u32) -> u32 {
    with(device, "nvmlDeviceGetIndex", |_, _| unsafe {
        put(out, u32::try_from(index(device)).unwrap_or(u32::MAX))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: Device, out: *mut u32) -> u32 {
    with(device, "nvmlDeviceGetMinorNumber", |_, _| unsafe {
        put(out, u32::try_from(index(device)).unwrap_or(u32::MAX))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: Device, out: *mut Pci) -> u32 {
    with(device, "nvmlDeviceGetPciInfo_v3", |_, _| {
        let id = bus_id(index(device));
        let bus = u32::try_from(index(device) + 7).unwrap_or(u32::MAX);
        let pci = Pci {
            bus_id_legacy: text(&id[4..]),
            domain: 0,
            bus,
            device: 0,
            pci_device_id: 0x20b0_10de,
            pci_subsystem_id: 0,
            bus_id: text(&id),
        };
        unsafe { put(out, pci) }
    })
}

/// Power samples, one a counter step over the last second.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSamples(
    device: Device,
    kind: u32,
    last: u64,
    value_type: *mut u32,
    count: *mut u32,
    out: *mut Sample,
) -> u32 {
    with(device, "nvmlDeviceGetSamples", |gpu, now| {
        if kind != 0 {
            return NOT_SUPPORTED;
        }
        let step = gpu.step_us.max(1);
        let first = (now.saturating_sub(1_000_000).max(last) / step + 1) * step;
        let list: Vec<Sample> = (first..=now)
            .step_by(usize::try_from(step).unwrap_or(1))
            .map(|t| Sample {
                time_stamp: t,
                value: u64::from(milliwatts(gpu.watts(t))),
            })
            .collect();
        if list.is_empty() {
            return NOT_FOUND;
        }
        unsafe {
            let code = put(value_type, 1);
            if code == SUCCESS {
                put_list(count, out, list)
            } else {
                code
            }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Device,
    count: i32,
    out: *mut FieldValue,
) -> u32 {
    with(device, "nvmlDeviceGetFieldValues", |gpu, now| {
        let Ok(count) = usize::try_from(count) else {
            return INVALID_ARGUMENT;
        };
        if out.is_null() {
            return INVALID_ARGUMENT;
        }
        for i in 0..count {
            let field = unsafe { &mut *out.add(i) };
            let value = match field.id {
                FIELD_ENERGY if !gpu.no_energy => Some(gpu.counter_mj(now)),
                FIELD_POWER_AVERAGE | FIELD_POWER_INSTANT => {
                    Some(u64::from(milliwatts(gpu.watts(now))))
                }
                _ => None,
            };
            field.timestamp = i64::try_from(now).unwrap_or(i64::MAX);
            field.latency = 0;
            field.value_type = TYPE_UNSIGNED_LONG_LONG;
            field.code = if value.is_some() {
                SUCCESS
            } else {
                NOT_SUPPORTED
            };
            field.value = value.unwrap_or(0);
        }
        SUCCESS
    })
}
