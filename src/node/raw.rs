//! The one NVML call that the wrapper knows and does not wrap.
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
