//! The GPUs as NVML shows them. Blocking calls: lives on the sampler's own thread.
//!
//! This is the one narrow interface behind which another vendor's counters would fit:
//! [`Reader::open`] and [`Reader::read`].

use super::instances::Instances;
pub use super::instances::{Cut, InstanceReading};
use super::raw;
use crate::clock;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Where drivers and operators put the library.
pub const LIBRARY_PATHS: [&str; 4] = [
    "libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
];

/// What does not change of a GPU while its driver is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInfo {
    pub uuid: String,
    pub index: u32,
    /// Number of its device file: 0 of /dev/nvidia0.
    #[serde(default)]
    pub minor: u32,
    pub model: String,
    pub pci_bus_id: String,
    pub driver: String,
    /// mW; `None` where the driver does not say.
    pub limit_milliwatts: Option<u64>,
    /// What the board's limit is where nobody set one, mW.
    #[serde(default)]
    pub default_limit_milliwatts: Option<u64>,
    pub source: EnergySource,
}

/// People change power limits by the day, not by the second.
const LIMIT_EVERY_US: u64 = 10_000_000;

/// Where a GPU's energy comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnergySource {
    /// Its own energy counter.
    #[default]
    Counter,
    /// Its power, added up: older than Volta, or a board that does not count.
    Power,
}

impl EnergySource {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Power => "power",
        }
    }
}

impl GpuInfo {
    /// What the counter counts: on GH200 the whole module, CPU included.
    pub fn scope(&self) -> &'static str {
        if self.model.contains("GH200") {
            "module"
        } else {
            "gpu"
        }
    }
}

/// A failed call: which, and NVML's word for why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallError {
    pub call: &'static str,
    pub code: &'static str,
}

/// One look at one GPU.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// µs, monotonic: when the counter was read.
    pub read_at: Option<u64>,
    pub energy_millijoules: Option<u64>,
    pub power_milliwatts: Option<u64>,
    pub limit_milliwatts: Option<u64>,
    /// PIDs with a context, in this process's PID namespace.
    pub processes: Vec<u32>,
    /// (PID, SM percent, microseconds since the Unix epoch), newer than asked.
    pub utilisation: Vec<(u32, u32, u64)>,
    /// True where the driver says that nothing ran.
    pub at_rest: bool,
    /// True where a list of processes was asked for in vain.
    pub unseen: bool,
    /// PIDs of clients of MPS; they are among `processes` too.
    pub mps_clients: Vec<u32>,
    pub cut: Cut,
    pub errors: Vec<CallError>,
}

/// An initialised NVML and its devices.
pub struct Reader {
    devices: BTreeMap<String, (GpuInfo, Device<'static>)>,
    instances: Instances,
    /// µs, monotonic: when each device's power limit was asked for last.
    limits: BTreeMap<String, u64>,
    nvml: &'static Nvml,
    /// Indices of devices that could not be taken stock of.
    missing: Vec<u32>,
    pub errors: Vec<CallError>,
}

/// Why there is no reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error(
        "no NVML library found ({0}): no NVIDIA driver on this node, or --nvml-library is wrong"
    )]
    Library(String),
    #[error("nvmlInit answered {0}")]
    Init(&'static str),
    /// The call, and what it answered.
    #[error("NVML lists no device: {0} answered {1}")]
    Devices(&'static str, &'static str),
    #[error("every device fails")]
    Failing,
}

impl Reader {
    /// Loads the first library that answers and takes stock of its devices; `activity` says
    /// whether GPU performance monitoring is read of MIG instances.
    pub fn open(libraries: &[PathBuf], activity: bool) -> Result<Self, OpenError> {
        let mut last = OpenError::Library("no path given".to_owned());
        for path in libraries {
            if let Some(nvml) = loaded(path) {
                // Its state is from before: only a new start gives it the driver's of now.
                match raw::restart(nvml) {
                    Ok(()) => return Self::stock(nvml, activity),
                    Err(error) => last = OpenError::Init(code(&error)),
                }
                continue;
            }
            let name = OsString::from(path);
            match Nvml::builder().lib_path(&name).init() {
                Ok(nvml) => {
                    let nvml: &'static Nvml = Box::leak(Box::new(nvml));
                    keep_loaded(path, nvml);
                    return Self::stock(nvml, activity);
                }
                // A refusal of one that is there says more than that others are not.
                Err(NvmlError::LibloadingError(_)) if matches!(last, OpenError::Init(_)) => {}
                Err(NvmlError::LibloadingError(error)) => {
                    last = OpenError::Library(format!("{}: {error}", path.display()));
                }
                Err(error) => last = OpenError::Init(code(&error)),
            }
        }
        Err(last)
    }

    fn stock(nvml: &'static Nvml, activity: bool) -> Result<Self, OpenError> {
        let count = nvml
            .device_count()
            .map_err(|e| OpenError::Devices("nvmlDeviceGetCount", code(&e)))?;
        let mut reader = Self {
            devices: BTreeMap::new(),
            limits: BTreeMap::new(),
            instances: Instances::new(nvml, activity),
            nvml,
            missing: (0..count).collect(),
            errors: Vec::new(),
        };
        reader.find_missing();
        match reader.errors.first() {
            Some(error) if reader.devices.is_empty() => {
                Err(OpenError::Devices(error.call, error.code))
            }
            _ => Ok(reader),
        }
    }

    /// Tries devices that could not be taken stock of; gives those that now can.
    pub fn find_missing(&mut self) -> Vec<GpuInfo> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let driver = self.nvml.sys_driver_version();
        let driver = driver.unwrap_or_else(|_| "unknown".to_owned());
        let mut found = Vec::new();
        for index in std::mem::take(&mut self.missing) {
            match Self::device(self.nvml, index, &driver) {
                Ok((info, device)) => {
                    found.push(info.clone());
                    self.devices.insert(info.uuid.clone(), (info, device));
                }
                Err(error) => {
                    self.missing.push(index);
                    self.errors.push(error);
                }
            }
        }
        found
    }

    fn device(
        nvml: &'static Nvml,
        index: u32,
        driver: &str,
    ) -> Result<(GpuInfo, Device<'static>), CallError> {
        let device = nvml
            .device_by_index(index)
            .map_err(failed("nvmlDeviceGetHandleByIndex"))?;
        let info = GpuInfo {
            uuid: device.uuid().map_err(failed("nvmlDeviceGetUUID"))?,
            index,
            // A driver that does not say numbers them as it lists them.
            minor: device.minor_number().unwrap_or(index),
            model: device.name().unwrap_or_else(|_| "unknown".to_owned()),
            pci_bus_id: device.pci_info().map(|pci| pci.bus_id).unwrap_or_default(),
            driver: driver.to_owned(),
            limit_milliwatts: device.enforced_power_limit().ok().map(u64::from),
            default_limit_milliwatts: device.power_management_limit_default().ok().map(u64::from),
            source: match device.total_energy_consumption() {
                Err(NvmlError::NotSupported) => EnergySource::Power,
                _ => EnergySource::Counter,
            },
        };
        Ok((info, device))
    }

    pub fn gpus(&self) -> impl Iterator<Item = &GpuInfo> {
        self.devices.values().map(|(info, _)| info)
    }

    /// One look at one GPU at `now` (µs, monotonic); utilisation that is newer than the
    /// first of `stamps` and not than the last (µs since the Unix epoch). A call that fails leaves
    /// its part empty and is listed.
    pub fn read(&mut self, uuid: &str, stamps: RangeInclusive<u64>, now: u64) -> Reading {
        let mut reading = Reading::default();
        let Some((info, device)) = self.devices.get(uuid) else {
            return reading;
        };
        let errors = &mut reading.errors;
        if info.source == EnergySource::Counter {
            reading.energy_millijoules = keep(
                device.total_energy_consumption(),
                "nvmlDeviceGetTotalEnergyConsumption",
                errors,
            );
            reading.read_at = Some(clock::monotonic_micros());
        }
        let asked = self.limits.entry(uuid.to_owned()).or_insert(now);
        if now.saturating_sub(*asked) >= LIMIT_EVERY_US {
            *asked = now;
            // A board without one says so; all else is an error.
            reading.limit_milliwatts = match device.enforced_power_limit() {
                Err(NvmlError::NotSupported) => None,
                other => keep(other, "nvmlDeviceGetEnforcedPowerLimit", errors).map(u64::from),
            };
        }
        reading.power_milliwatts =
            keep(device.power_usage(), "nvmlDeviceGetPowerUsage", errors).map(u64::from);
        reading.cut = self.instances.look(device, now, errors);
        if let Cut::Into(_, instances) = &reading.cut {
            // The board's own list wants more rights than its instances' do.
            reading.unseen = instances.iter().any(|i| i.processes.is_none());
            let pids = instances.iter().flat_map(|i| i.processes.iter().flatten());
            reading.processes = pids.copied().collect();
            // NVML tells no process's utilisation on a board that is cut.
            return reading;
        }
        let lists = processes(device, errors);
        reading.unseen = lists.0.is_none();
        reading.processes = lists.0.unwrap_or_default();
        reading.mps_clients = lists.1;
        // An idle GPU answers NotFound: nobody was seen, which is no error.
        let samples = match again(|| device.process_utilization_stats(*stamps.start())) {
            Err(NvmlError::NotFound) => Some(Vec::new()),
            other => keep(other, "nvmlDeviceGetProcessUtilization", errors),
        };
        reading.at_rest = samples
            .as_ref()
            .is_some_and(|samples| samples.iter().all(|s| s.sm_util == 0));
        let samples = samples.unwrap_or_default();
        reading.utilisation = samples
            .into_iter()
            .filter(|s| s.sm_util <= 100)
            .filter(|s| s.timestamp != *stamps.start() && stamps.contains(&s.timestamp))
            .map(|s| (s.pid, s.sm_util, s.timestamp))
            .collect();
        reading
    }
}

/// Libraries that were started once. Leaked on purpose: devices borrow them for as long as the
/// process lives, and their Drop panics where nvmlShutdown is not exported.
static LOADED: Mutex<Vec<(PathBuf, &'static Nvml)>> = Mutex::new(Vec::new());

fn loaded(path: &Path) -> Option<&'static Nvml> {
    let all = LOADED.lock().ok()?;
    all.iter().find(|(at, _)| at == path).map(|(_, nvml)| *nvml)
}

fn keep_loaded(path: &Path, nvml: &'static Nvml) {
    if let Ok(mut all) = LOADED.lock() {
        all.push((path.to_owned(), nvml));
    }
}

/// The wrapper asks for a list's length, then for the list: where one came in between, it is
/// asked again.
pub(super) fn again<T>(call: impl Fn() -> Result<T, NvmlError>) -> Result<T, NvmlError> {
    match call() {
        Err(NvmlError::InsufficientSize(_)) => call(),
        other => other,
    }
}

/// PIDs with a context, `None` where the call failed, and those among them that are clients
/// of MPS.
pub(super) fn processes(
    device: &Device<'_>,
    errors: &mut Vec<CallError>,
) -> (Option<Vec<u32>>, Vec<u32>) {
    let pids = |list: Vec<ProcessInfo>| list.into_iter().map(|process| process.pid).collect();
    let compute = keep(
        again(|| device.running_compute_processes()),
        "nvmlDeviceGetComputeRunningProcesses",
        errors,
    );
    let clients = match again(|| device.mps_running_compute_processes()) {
        // An old driver, or a board without MPS: nothing is missing.
        Err(error) if is_absent(&error) => None,
        other => keep(other, "nvmlDeviceGetMPSComputeRunningProcesses", errors),
    };
    let clients: Vec<u32> = clients.map(pids).unwrap_or_default();
    let all = compute.map(|list| {
        let mut all: Vec<u32> = pids(list);
        all.extend(&clients);
        all
    });
    (all, clients)
}

/// True where the driver or the board does not have the call at all.
pub(super) fn is_absent(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound | NvmlError::NotSupported
    )
}

pub(super) fn failed(call: &'static str) -> impl Fn(NvmlError) -> CallError {
    move |error| CallError {
        call,
        code: code(&error),
    }
}

pub(super) fn keep<T>(
    result: Result<T, NvmlError>,
    call: &'static str,
    errors: &mut Vec<CallError>,
) -> Option<T> {
    result
        .map_err(|error| errors.push(failed(call)(error)))
        .ok()
}

/// NVML's error as a label value.
fn code(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::FailedToLoadSymbol(_) => "symbol_missing",
        NvmlError::FunctionNotFound => "function_not_found",
        NvmlError::NotSupported => "not_supported",
        NvmlError::NoPermission => "no_permission",
        NvmlError::DriverNotLoaded => "driver_not_loaded",
        NvmlError::LibRmVersionMismatch => "driver_library_mismatch",
        NvmlError::GpuLost => "gpu_is_lost",
        NvmlError::ResetRequired => "reset_required",
        NvmlError::Timeout => "timeout",
        NvmlError::Uninitialized => "uninitialized",
        NvmlError::InvalidArg => "invalid_argument",
        NvmlError::NotFound => "not_found",
        NvmlError::InsufficientSize(_) => "insufficient_size",
        NvmlError::InsufficientMemory => "insufficient_memory",
        NvmlError::UnexpectedVariant(_) => "unexpected_variant",
        NvmlError::Unknown => "unknown",
        _ => "other",
    }
}
