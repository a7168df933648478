//! Everything that needs more than one module: the direction of imports, the command line,
//! the exporter against a simulated node, and the loop on a real control plane.

mod budgets;
mod cli;
mod direction;
mod guard;
mod races;
mod support;
mod the_loop;
mod trouble;
