//! The cluster: the webhook that predicts and holds, and the controller that keeps the
//! ledger, releases, and learns.

mod admission;
mod archive;
mod budget_status;
mod caches;
mod certificates;
mod context;
pub mod controller;
mod cycle;
mod energy;
mod follow;
mod gauges;
mod grants;
#[cfg(test)]
mod histories;
mod lawbook;
mod learning;
pub mod lease;
mod ledger;
mod ledger_tls;
mod lift;
mod memory;
mod missing;
mod objects;
mod overrun;
mod pki;
mod put_away;
mod queue;
mod records;
mod refusals;
mod review;
mod reviewer;
mod secrets;
#[cfg(test)]
mod sim;
mod statements;
mod stores;
mod tracking;
mod upkeep;
mod verdicts;
pub mod webhook;
mod wire;
mod works;
mod world;

pub use archive::Archive;
pub use lift::{Lifted, release, uninstall};
pub use objects::{Kind, Work};
pub use review::{Outcome, Snapshot, Step, answer};
pub use reviewer::Reviewer;
pub use wire::Lite;
