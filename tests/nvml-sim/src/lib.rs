//! A simulated NVML: a shared library that answers as libnvidia-ml.so.1 does, for GPUs
//! described in a scenario file.
//!
//! Everything derives lazily from the scenario and one clock: no thread, no state but a
//! cache of the file. `NVML_SIM_SCENARIO` names the scenario; `NVML_SIM_CLOCK` a file
//! that holds the time in microseconds since the Unix epoch, so that a test can step it;
//! without it the wall clock runs.

#![allow(unsafe_code, reason = "the C ABI of NVML is what this library is for")]
#![allow(unreachable_pub, reason = "exported to C, not to Rust")]
#![allow(clippy::missing_safety_doc, reason = "the contract is NVML's own")]
#![allow(
    clippy::disallowed_methods,
    reason = "a library that is loaded has only the environment"
)]
#![allow(clippy::wildcard_imports, reason = "the calls use the whole ABI")]
#![allow(clippy::struct_field_names, reason = "the names are NVML's")]
#![allow(non_snake_case, reason = "the names are NVML's")]

mod abi;
mod calls_device;
mod calls_gpm;
mod calls_mig;
mod calls_process;
mod calls_system;
mod clock;
pub mod layout;
mod model;
pub mod scenario;

pub use calls_device::*;
pub use calls_gpm::*;
pub use calls_mig::*;
pub use calls_process::*;
pub use calls_system::*;
