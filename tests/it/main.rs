//! Everything that needs more than one module: the direction of imports, the command line,
//! the exporter against a simulated node, and the loop on a real control plane.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests fail by panicking, on small numbers"
)]

mod abi;
mod budgets;
mod claims;
mod cli;
mod cli_law;
mod direction;
mod exporter;
mod faults;
mod gpu_check;
mod guard;
mod kubelet;
mod learning;
mod lifecycle;
mod queue;
mod races;
mod records;
mod report;
mod rights;
mod scale;
mod scraped;
mod sharing;
mod shown;
mod soak;
mod storms;
mod support;
mod terms;
mod the_loop;
mod trouble;
mod trust;
mod waiting;
