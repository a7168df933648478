//! The scenario file: what GPUs there are, what runs on them when, what goes wrong.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Times are microseconds since the Unix epoch, as NVML's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    #[serde(default = "driver")]
    pub driver_version: String,
    /// NVML functions that answer FUNCTION_NOT_FOUND, as an older driver's would.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Code that nvmlInit answers with, if not success.
    #[serde(default)]
    pub init_code: Option<u32>,
    pub gpus: Vec<Gpu>,
}

fn driver() -> String {
    "580.95.05".to_owned()
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    /// Power with no process.
    pub idle_watts: f64,
    pub limit_watts: f64,
    /// What the limit is where nobody set one; `limit_watts` where absent.
    #[serde(default)]
    pub default_limit_watts: Option<f64>,
    /// The counter is stepped: it shows the energy up to the last multiple of this.
    pub step_us: u64,
    /// When the counter started, and at what.
    pub origin_us: u64,
    #[serde(default)]
    pub origin_mj: u64,
    /// Pre-Volta: the counter is not supported.
    #[serde(default)]
    pub no_energy: bool,
    #[serde(default)]
    pub processes: Vec<Process>,
    /// MIG instances; any at all means that MIG is on.
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// GPU performance monitoring: Hopper and newer have it.
    #[serde(default)]
    pub gpm: bool,
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The counter jumps to a value: driver reload, GPU reset.
    #[serde(default)]
    pub resets: Vec<Reset>,
}

/// A process that burns on top of idle power while it lives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub start_us: u64,
    /// `None` = still running.
    pub end_us: Option<u64>,
    pub watts: f64,
    /// Share of time with a kernel resident, percent.
    pub sm_percent: u32,
    /// The UUID of the MIG instance that it runs in.
    #[serde(default)]
    pub instance: Option<String>,
    /// A client of MPS: samples name one client at a time, always the same.
    #[serde(default)]
    pub mps: bool,
}

/// A MIG instance: one GPU instance with one compute instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// `MIG-…`
    pub uuid: String,
    /// Its slot: what is made there later is reached by the same handle.
    pub slot: u32,
    /// Of seven.
    pub slices: u32,
    pub from_us: u64,
    /// `None` = still there.
    pub until_us: Option<u64>,
}

/// A fault's code from here on: the call hangs for so many milliseconds more, then answers that it
/// timed out.
pub const HANGS: u32 = 1_000_000;

/// One call answers with a code for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The function's name, or `*` for all that take this GPU's handle.
    pub call: String,
    pub code: u32,
    pub from_us: u64,
    pub until_us: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reset {
    pub at_us: u64,
    pub to_mj: u64,
}

impl Scenario {
    /// Writes the scenario so that a reader sees the old one or the new one, never half.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let part = path.with_extension("part");
        std::fs::write(&part, serde_json::to_vec(self)?)?;
        std::fs::rename(part, path)
    }
}
