//! The node: reads the GPUs, asks the kubelet who holds them, splits every joule, and
//! shows it.

pub mod allocations;
pub mod attribution;
pub mod cgroup;
mod checkpoint;
pub mod compat;
mod cuts;
pub mod devices;
mod dra;
pub mod exporter;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gpu;
mod health;
mod held;
mod idle;
mod instances;
mod ledger;
mod lost;
mod made;
pub mod meter;
mod metrics;
pub mod mig;
mod names;
pub mod nvml;
mod own;
mod pairs;
pub mod podresources;
mod procfs;
mod raw;
mod replay;
mod sampler;
mod shared;
mod source;

pub use ledger::{LedgerPage, PodEnergy};
pub use replay::{Part, Replay};
