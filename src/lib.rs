//! Jouleward keeps the carbon of image and video generation inside a budget, on
//! Kubernetes: it measures what pods really cost, learns from that what the next job
//! will cost, and decides before the job starts.
//!
//! Imports point one way: `cli → {node, cluster} → serve → api → {budget → carbon → law}`.

pub mod api;
pub mod budget;
pub mod carbon;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod contract;
pub mod law;
pub mod node;
pub mod serve;
