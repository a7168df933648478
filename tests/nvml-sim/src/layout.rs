//! What this library believes of nvml.h: sizes, offsets and numbers, by the header's own
//! names, so that a C compiler can check each against NVIDIA's header.

use crate::abi::{
    Attributes, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, FieldValue, GpmMetric, GpmMetricsGet,
    INSUFFICIENT_SIZE, INVALID_ARGUMENT, Memory, NOT_FOUND, NOT_SUPPORTED, Pci, ProcessInfo,
    ProcessUtilizationSample, SUCCESS, Sample, UNINITIALIZED, UNKNOWN, Utilization,
};
use crate::calls_device::{FIELD_ENERGY, FIELD_POWER_AVERAGE, FIELD_POWER_INSTANT};
use crate::calls_gpm::{METRIC_SM_UTIL, METRICS_GET_VERSION, VERSION_MISMATCH};
use std::mem::offset_of;

macro_rules! layout {
    ($($type:ty as $c:literal { $($field:ident as $name:literal),* $(,)? })*) => {
        vec![$(
            (concat!("sizeof(", $c, ")").to_owned(), size_of::<$type>()),
            $((concat!("offsetof(", $c, ", ", $name, ")").to_owned(), offset_of!($type, $field)),)*
        )*]
    };
}

/// C expressions over nvml.h, and the value that each has here.
pub fn layout() -> Vec<(String, usize)> {
    let mut layout = layout! {
        Pci as "nvmlPciInfo_t" {
            bus_id_legacy as "busIdLegacy", domain as "domain", bus as "bus", device as "device",
            pci_device_id as "pciDeviceId", pci_subsystem_id as "pciSubSystemId",
            bus_id as "busId",
        }
        Memory as "nvmlMemory_t" { total as "total", free as "free", used as "used" }
        Utilization as "nvmlUtilization_t" { gpu as "gpu", memory as "memory" }
        ProcessInfo as "nvmlProcessInfo_t" {
            pid as "pid", used_memory as "usedGpuMemory", gpu_instance as "gpuInstanceId",
            compute_instance as "computeInstanceId",
        }
        ProcessUtilizationSample as "nvmlProcessUtilizationSample_t" {
            pid as "pid", time_stamp as "timeStamp", sm as "smUtil", memory as "memUtil",
            encoder as "encUtil", decoder as "decUtil",
        }
        FieldValue as "nvmlFieldValue_t" {
            id as "fieldId", scope as "scopeId", timestamp as "timestamp",
            latency as "latencyUsec", value_type as "valueType", code as "nvmlReturn",
            value as "value",
        }
        Sample as "nvmlSample_t" { time_stamp as "timeStamp", value as "sampleValue" }
        Attributes as "nvmlDeviceAttributes_t" {
            multiprocessors as "multiprocessorCount", copy_engines as "sharedCopyEngineCount",
            decoders as "sharedDecoderCount", encoders as "sharedEncoderCount",
            jpegs as "sharedJpegCount", ofas as "sharedOfaCount",
            gpu_instance_slices as "gpuInstanceSliceCount",
            compute_instance_slices as "computeInstanceSliceCount",
            memory_mb as "memorySizeMB",
        }
        GpmMetric as "nvmlGpmMetric_t" {
            id as "metricId", code as "nvmlReturn", value as "value", names as "metricInfo",
        }
    };
    // How many metrics may follow differs from header to header.
    layout.extend(
        [
            ("version", offset_of!(GpmMetricsGet, version)),
            ("numMetrics", offset_of!(GpmMetricsGet, count)),
            ("sample1", offset_of!(GpmMetricsGet, first)),
            ("sample2", offset_of!(GpmMetricsGet, second)),
            ("metrics", offset_of!(GpmMetricsGet, metrics)),
        ]
        .map(|(name, at)| (format!("offsetof(nvmlGpmMetricsGet_t, {name})"), at)),
    );
    let numbers = [
        ("NVML_SUCCESS", SUCCESS),
        ("NVML_ERROR_UNINITIALIZED", UNINITIALIZED),
        ("NVML_ERROR_INVALID_ARGUMENT", INVALID_ARGUMENT),
        ("NVML_ERROR_NOT_SUPPORTED", NOT_SUPPORTED),
        ("NVML_ERROR_NOT_FOUND", NOT_FOUND),
        ("NVML_ERROR_INSUFFICIENT_SIZE", INSUFFICIENT_SIZE),
        ("NVML_ERROR_DRIVER_NOT_LOADED", DRIVER_NOT_LOADED),
        ("NVML_ERROR_FUNCTION_NOT_FOUND", FUNCTION_NOT_FOUND),
        ("NVML_ERROR_UNKNOWN", UNKNOWN),
        ("NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION", FIELD_ENERGY),
        ("NVML_FI_DEV_POWER_AVERAGE", FIELD_POWER_AVERAGE),
        ("NVML_FI_DEV_POWER_INSTANT", FIELD_POWER_INSTANT),
        ("NVML_GPM_METRIC_SM_UTIL", METRIC_SM_UTIL),
        ("NVML_GPM_METRICS_GET_VERSION", METRICS_GET_VERSION),
        ("NVML_ERROR_ARGUMENT_VERSION_MISMATCH", VERSION_MISMATCH),
    ];
    layout.extend(numbers.map(|(name, value)| (name.to_owned(), value as usize)));
    layout
}
