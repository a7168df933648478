//! What a diffusion job costs in energy: its FLOPs, the law that turns FLOPs into
//! joules, and how the law learns from what was measured.
//!
//! Pure: no clock, no I/O, no Kubernetes. Every figure carries its unit in its
//! type and every prediction its uncertainty.

mod catalogue;
pub mod dataset;
mod features;
mod fit;
mod flops;
mod form;
mod gpu;
mod linalg;
mod predict;
mod score;
mod state;
mod statistics;
mod stream;
#[cfg(test)]
mod tests;
mod units;
pub mod workload;

pub use catalogue::{Catalogue, Cfg, Denoiser, Model, Polynomial};
pub use features::{Features, Observation};
pub use fit::fit;
pub use flops::{FlopCount, count};
pub use form::Form;
pub use gpu::{EXAMPLES as GPU_EXAMPLES, Gpu, Prior};
pub use predict::Prediction;
pub use score::{Score, leave_one_model_out, score};
pub use state::{Law, StateError};
pub use stream::{Outcome, Update};
pub use units::{Flops, Joules, Microjoules};
pub use workload::{Annotation, ParameterError, Precision, Workload};
