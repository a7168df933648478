//! Every name that others depend on: API group, annotations, labels, metrics, ports.
//! A change here is a change of contract; docs/reference.md is checked against it.

pub const GROUP: &str = "jouleward.dev";
pub const VERSION: &str = "v1alpha1";

/// Stamps: written by Jouleward alone. The webhook overwrites them at create, a
/// ValidatingAdmissionPolicy guards them afterwards.
pub const PREDICTION: &str = "jouleward.dev/prediction";
pub const HOLD: &str = "jouleward.dev/hold";
pub const GRANTED: &str = "jouleward.dev/granted";
pub const VERDICT: &str = "jouleward.dev/verdict";

/// All stamps.
pub const STAMPS: &[&str] = &[PREDICTION, HOLD, GRANTED, VERDICT];
