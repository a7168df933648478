//! What a diffusion job costs in energy: its FLOPs, the law that turns FLOPs into
//! joules, and how the law learns from what was measured.
//!
//! Pure: no clock, no I/O, no Kubernetes. Every figure carries its unit in its
//! type and every prediction its uncertainty.

#[cfg(test)]
#[path = "accuracy/tests.rs"]
mod accuracy;
mod catalogue;
mod count;
pub mod dataset;
mod explain;
mod features;
mod fit;
mod form;
mod gpu;
mod inherit;
mod linalg;
pub mod network;
mod predict;
mod range;
pub mod score;
mod standing;
mod state;
mod statistics;
mod stream;
#[cfg(test)]
mod tests;
mod throughput;
mod units;
pub mod workload;

pub use catalogue::{
    Binning, Catalogue, CatalogueError, CatalogueFile, Component, DefaultsEntry, Entry, Frames,
    Guidance, Model, Negative, Runs, Scale, TextEntry,
};
pub use count::{Count, count};
pub use dataset::RowError;
pub use explain::{Breakdown, Factor, Part};
pub use features::{Basis, Features, Observation, Stack, driver_branch};
pub use fit::{FitError, fit, fit_from};
pub use form::Form;
pub use gpu::{EXAMPLES as GPU_EXAMPLES, Generation, Gpu, Prior, Sheet, object_name};
pub use predict::{Outside, Prediction};
pub use score::{Judged, Score, score};
pub use standing::{Standing, Standings};
pub use state::{LEVELS, Law, StateError};
pub use stream::{Outcome, Update};
pub use units::{Flops, Joules, Microjoules};
pub use workload::{Annotation, ParameterError, Precision, Scheduler, Workload};
