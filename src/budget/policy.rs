//! What a budget's owner decided.

use super::period::Period;
use crate::carbon::Milligrams;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a verdict does to a job. Only Enforce ever delays or refuses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
pub enum Mode {
    /// Compute, record and show; touch nothing.
    #[default]
    Audit,
    /// The same, with a warning to who creates the job.
    Warn,
    /// Hold or refuse what does not fit.
    Enforce,
}

/// What becomes of a job that does not fit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnExceed {
    /// Refuse it at create.
    Reject,
    /// Hold it until the budget has room or the longest delay is over.
    #[default]
    Defer,
}

/// What becomes of a deferred job when its longest delay is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum AtDeadline {
    /// Refuse it: it stays suspended.
    #[default]
    Reject,
    /// Run it all the same; it is charged.
    Run,
}

/// What becomes of a running job that has burned more than was set aside for it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
pub enum OnOverrun {
    /// It runs on and is charged; the budget grants the less.
    #[default]
    Allow,
    /// A Job is suspended, which ends its pods; a bare Pod is only told of.
    Suspend,
    /// It is deleted.
    Delete,
}

/// What becomes of a GPU job whose parameters are missing or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnUnknown {
    /// Let it run; charge what it burns.
    Allow,
    /// The same, with a warning that names each annotation.
    #[default]
    Warn,
    /// Refuse it, naming each annotation.
    Reject,
}

/// What the webhook does while no leader is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnavailable {
    /// Let jobs run; they are charged afterwards.
    #[default]
    Admit,
    /// Go on holding jobs.
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
    /// What one job may be predicted to emit at most.
    pub per_job: Option<Milligrams>,
    /// Beyond the limit, what a job may take that begins while there is room left.
    pub grace: Milligrams,
    /// Whether what the period before left is added to the limit.
    pub carry_over: bool,
    /// Percent of the limit from which on it is said to be near.
    pub warn_at: u8,
    pub on_overrun: OnOverrun,
    /// Percent beyond what was set aside that a job may burn before that is done.
    pub overrun_tolerance: u16,
    pub on_unknown: OnUnknown,
    pub when_unavailable: WhenUnavailable,
}

impl Policy {
    /// A monthly limit with the defaults of everything else.
    pub fn monthly(limit: Milligrams) -> Self {
        Self {
            limit,
            period: Period::Month(jiff::tz::TimeZone::UTC),
            mode: Mode::default(),
            on_exceed: OnExceed::default(),
            longest_delay: SignedDuration::from_hours(24),
            at_deadline: AtDeadline::default(),
            quantile: 0.9,
            per_job: None,
            grace: Milligrams(0),
            carry_over: false,
            warn_at: 90,
            on_overrun: OnOverrun::default(),
            overrun_tolerance: 20,
            on_unknown: OnUnknown::default(),
            when_unavailable: WhenUnavailable::default(),
        }
    }
}
