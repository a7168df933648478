//! The cluster: the webhook that predicts and holds, and the controller that keeps the
//! ledger, releases, and learns.

mod certificates;
pub mod controller;
mod crash;
mod cycle;
mod energy;
mod gauges;
mod grants;
mod learning;
pub mod lease;
mod lift;
mod objects;
mod refusals;
mod review;
mod stores;
mod tracking;
mod upkeep;
mod verdicts;
pub mod webhook;
mod world;

#[cfg(debug_assertions)]
pub use crash::arm as arm_crash_point;
pub use lift::{Lifted, release, uninstall};
pub use objects::{Kind, Lite, Work};
pub use review::{Outcome, Snapshot, Step, answer};
