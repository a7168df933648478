//! What a budget says: its policy and period, the arithmetic of its ledger, the verdict on
//! a job, what would fit instead, and the leader's plan.
//!
//! Pure: the webhook, the controller and the command line call the same functions, so
//! they cannot disagree.

mod account;
mod alternatives;
mod estimate;
mod outlook;
mod period;
mod placement;
mod plan;
mod policy;
mod statement;
mod verdict;
mod what_if;

pub use account::{Book, Charge, Entry, Granting, Totals, totals};
pub use alternatives::{Alternative, alternatives};
pub use estimate::{Estimate, EstimateError, Oracle, Request, Site};
pub use outlook::{Place, Prospect, Standing, outlook, promise};
pub use period::{Fiscal, Period, Span};
pub use placement::{Fleet, Labels, NODE_NAME, Operator, Placement, Requirement};
pub use plan::{Budget, Candidate, Grant, Plan, Refusal, plan};
pub use policy::{AtDeadline, Mode, OnExceed, OnOverrun, OnUnknown, Policy, WhenUnavailable};
pub use statement::{DaySum, by_day};
pub use verdict::{Decision, Need, Reason, Verdict, decide};
pub use what_if::{Fate, Past, what_if};
