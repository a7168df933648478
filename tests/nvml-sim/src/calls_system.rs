//! Calls about the library, the driver, and finding devices.

use crate::abi::{
    DRIVER_NOT_LOADED, Device, INVALID_ARGUMENT, NOT_FOUND, SUCCESS, UNINITIALIZED, checked, put,
    put_text,
};
use crate::clock;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicU32, Ordering};

static REFERENCES: AtomicU32 = AtomicU32::new(0);

pub(crate) fn initialized() -> bool {
    REFERENCES.load(Ordering::Relaxed) > 0
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> u32 {
    let Some(scenario) = clock::scenario() else {
        return DRIVER_NOT_LOADED;
    };
    if let Some(code) = scenario.init_code {
        return code;
    }
    REFERENCES.fetch_add(1, Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: u32) -> u32 {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> u32 {
    let left = REFERENCES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    if left.is_ok() { SUCCESS } else { UNINITIALIZED }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: u32) -> *const c_char {
    let text: &CStr = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: u32) -> u32 {
    checked("nvmlSystemGetDriverVersion", |s| unsafe {
        put_text(out, length, &s.driver_version)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(out: *mut c_char, length: u32) -> u32 {
    checked("nvmlSystemGetNVMLVersion", |s| unsafe {
        put_text(out, length, &format!("13.{}", s.driver_version))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(out: *mut i32) -> u32 {
    checked("nvmlSystemGetCudaDriverVersion_v2", |_| unsafe {
        put(out, 13_000)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(out: *mut u32) -> u32 {
    checked("nvmlDeviceGetCount_v2", |s| unsafe {
        put(out, u32::try_from(s.gpus.len()).unwrap_or(u32::MAX))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: u32, out: *mut Device) -> u32 {
    checked("nvmlDeviceGetHandleByIndex_v2", |s| {
        if index as usize >= s.gpus.len() {
            return INVALID_ARGUMENT;
        }
        unsafe { put(out, (index as usize + 1) as Device) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut Device) -> u32 {
    checked("nvmlDeviceGetHandleByUUID", |s| {
        if uuid.is_null() {
            return INVALID_ARGUMENT;
        }
        let wanted = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
        match s.gpus.iter().position(|gpu| gpu.uuid == wanted) {
            Some(index) => unsafe { put(out, (index + 1) as Device) },
            None => NOT_FOUND,
        }
    })
}
