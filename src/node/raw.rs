//! NVML calls that the wrapper knows and does not wrap.
#![expect(unsafe_code, reason = "a C function is called by its pointer")]

use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};

/// Number of the GPU instance of a MIG device handle: what GKE names instances by, and what
/// other exporters call `GPU_I_ID`.
pub(super) fn gpu_instance_id(nvml: &'static Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref();
    let call = call.map_err(|_| NvmlError::FunctionNotFound)?;
    let mut number = 0;
    // SAFETY: the handle comes from this library, which is never unloaded, and the pointer is
    // to a u32 that outlives the call.
    nvml_try(unsafe { call(device.handle(), &raw mut number) })?;
    Ok(number)
}

/// Shuts NVML down and starts it again: it counts its users, so a second start alone would
/// change nothing.
pub(super) fn restart(nvml: &'static Nvml) -> Result<(), NvmlError> {
    if let Ok(shutdown) = nvml.lib().nvmlShutdown.as_ref() {
        // SAFETY: no handle of before is used again: whoever held one has been dropped.
        let _ = nvml_try(unsafe { shutdown() });
    }
    let init = nvml.lib().nvmlInit_v2.as_ref();
    let init = init.map_err(|_| NvmlError::FunctionNotFound)?;
    // SAFETY: a call without arguments of a library that is never unloaded.
    nvml_try(unsafe { init() })
}
