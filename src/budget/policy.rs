//! What a budget's owner decided.

use super::period::Period;
use crate::carbon::Milligrams;
use jiff::SignedDuration;

/// What a verdict does to a job. Only Enforce ever delays or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Mode {
    #[default]
    Audit,
    Warn,
    Enforce,
}

/// What becomes of a job that does not fit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExceed {
    Reject,
    #[default]
    Defer,
}

/// What becomes of a deferred job when its longest delay is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtDeadline {
    #[default]
    Reject,
    Run,
}

/// What becomes of a GPU job whose parameters are missing or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnknown {
    Allow,
    #[default]
    Warn,
    Reject,
}

/// What the webhook does while no leader is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenUnavailable {
    #[default]
    Admit,
    Hold,
}

/// A budget's terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub limit: Milligrams,
    pub period: Period,
    pub mode: Mode,
    pub on_exceed: OnExceed,
    pub longest_delay: SignedDuration,
    pub at_deadline: AtDeadline,
    /// The quantile of the prediction that is reserved, 0 < p < 1.
    pub quantile: f64,
    pub on_unknown: OnUnknown,
    pub when_unavailable: WhenUnavailable,
}
