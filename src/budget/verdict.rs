//! The verdict on one job under one budget, and how it says so.

use super::account::Totals;
use super::alternatives::Alternative;
use super::estimate::Estimate;
use super::policy::{AtDeadline, OnExceed, OnUnknown, Policy};
use crate::carbon::Milligrams;
use jiff::{SignedDuration, Timestamp};
use std::fmt::Write;

/// What a job asks of a budget.
#[derive(Debug, Clone, PartialEq)]
pub enum Need {
    /// Predicted, at the budget's quantile.
    Known(Milligrams),
    /// Parameters are missing or wrong; the text names each.
    Unknown(String),
}

impl Need {
    /// What is asked for; nothing where that is not known.
    pub fn mass(&self) -> Milligrams {
        match self {
            Self::Known(mass) => *mass,
            Self::Unknown(_) => Milligrams(0),
        }
    }
}

/// What should become of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Admit,
    Hold,
    Reject,
}

/// Why, as a condition's reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Fits,
    /// Room will come when jobs settle or the period ends.
    WaitingForBudget,
    /// Fits, but what is left is kept for a job that has waited for long and needs more.
    WaitingForTurn,
    /// Does not fit now, and the budget rejects instead of deferring.
    BudgetExceeded,
    /// Would not fit an empty period.
    ExceedsPeriodLimit,
    /// More than one job may emit.
    ExceedsJobLimit,
    MissingParameters,
    DeadlineReached,
    /// Someone who may has said that it is to run whatever its budgets say.
    BreakGlass,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fits => "Fits",
            Self::WaitingForBudget => "WaitingForBudget",
            Self::WaitingForTurn => "WaitingForTurn",
            Self::BudgetExceeded => "BudgetExceeded",
            Self::ExceedsPeriodLimit => "ExceedsPeriodLimit",
            Self::ExceedsJobLimit => "ExceedsJobLimit",
            Self::MissingParameters => "MissingParameters",
            Self::DeadlineReached => "DeadlineReached",
            Self::BreakGlass => "BreakGlass",
        }
    }
}

/// A decision with the figures it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// `namespace/name` of the budget.
    pub budget: String,
    pub decision: Decision,
    pub reason: Reason,
    pub need: Need,
    pub left: Milligrams,
    /// Of that, what is kept for jobs that have waited for long.
    pub kept: Milligrams,
    /// The largest job that would be let in now.
    pub room: Milligrams,
    /// What one job may emit at most.
    pub per_job: Option<Milligrams>,
    pub limit: Milligrams,
    /// The largest job that a period with nothing carried over would let in.
    pub most: Milligrams,
    pub until: Timestamp,
    pub quantile: f64,
}

/// Decides on a job that has waited for `waited` so far.
pub fn decide(
    budget: &str,
    policy: &Policy,
    totals: &Totals,
    need: Need,
    waited: SignedDuration,
    now: Timestamp,
) -> Verdict {
    let (left, room) = (totals.remaining(), totals.room());
    let over = match &need {
        Need::Known(mass) => *mass > room,
        Need::Unknown(_) => room <= Milligrams(0),
    };
    let most = totals.most().max(policy.limit);
    let (decision, reason) = match &need {
        Need::Unknown(_) if policy.on_unknown == OnUnknown::Reject => {
            (Decision::Reject, Reason::MissingParameters)
        }
        Need::Known(mass) if policy.per_job.is_some_and(|most| *mass > most) => {
            (Decision::Reject, Reason::ExceedsJobLimit)
        }
        Need::Known(mass) if *mass > most => (Decision::Reject, Reason::ExceedsPeriodLimit),
        _ if !over => (Decision::Admit, Reason::Fits),
        _ if policy.on_exceed == OnExceed::Reject => (Decision::Reject, Reason::BudgetExceeded),
        _ if waited < policy.longest_delay => (Decision::Hold, Reason::WaitingForBudget),
        _ if policy.at_deadline == AtDeadline::Run => (Decision::Admit, Reason::DeadlineReached),
        _ => (Decision::Reject, Reason::DeadlineReached),
    };
    Verdict {
        budget: budget.to_owned(),
        decision,
        reason,
        need,
        left,
        kept: Milligrams(0),
        room: policy.per_job.map_or(room, |most| most.min(room)),
        per_job: policy.per_job,
        limit: policy.limit + totals.carried,
        most: policy.limit + policy.grace,
        until: policy.period.end(now),
        quantile: policy.quantile,
    }
}

impl Verdict {
    /// The same where so much is kept for jobs that have waited for long: who fits, and would
    /// take of it, waits for its turn.
    pub(super) fn in_turn(mut self, room: Milligrams, kept: Milligrams, may_wait: bool) -> Self {
        let room = (room - kept).or_zero();
        let takes = match self.need {
            Need::Known(mass) => mass > room,
            Need::Unknown(_) => room <= Milligrams(0),
        };
        if may_wait && takes && self.reason == Reason::Fits {
            (self.decision, self.reason) = (Decision::Hold, Reason::WaitingForTurn);
        }
        if self.decision == Decision::Hold {
            self.kept = kept;
            self.room = self.per_job.map_or(room, |most| most.min(room));
        }
        self
    }

    /// The verdict in one paragraph: needed, left, limit, until when, law, intensity, what
    /// would fit. The same text goes to kubectl, the Event and the condition.
    pub fn message(&self, estimate: Option<&Estimate>, fits: &[Alternative]) -> String {
        let mut text = format!("budget {}: ", self.budget);
        let needs = match &self.need {
            Need::Known(mass) => format!("needs {mass} CO2e (p{:.0})", self.quantile * 100.0),
            Need::Unknown(why) => format!("cannot be predicted ({why})"),
        };
        let needs = match self
            .per_job
            .filter(|_| self.reason == Reason::ExceedsJobLimit)
        {
            Some(most) => format!("{needs}, one job may emit {most}"),
            None => needs,
        };
        let _ = write!(
            text,
            "{needs}, {} of {} left until {}",
            self.left,
            self.limit,
            day(self.until)
        );
        if self.kept > Milligrams(0) {
            let _ = write!(text, ", {} kept for jobs that wait longer", self.kept);
        }
        if let Some(estimate) = estimate {
            let _ = write!(text, "; {}", estimate.provenance());
        }
        if self.decision != Decision::Admit {
            let _ = write!(text, ". {}", self.advice(fits));
        }
        text
    }

    fn advice(&self, fits: &[Alternative]) -> String {
        let mut options: Vec<String> = fits.iter().map(ToString::to_string).collect();
        match (&self.need, self.reason) {
            (Need::Unknown(_), Reason::MissingParameters) => {
                return "Set the annotations named".to_owned();
            }
            (_, Reason::ExceedsJobLimit) => {}
            (_, Reason::WaitingForTurn) => options.push("start after them".to_owned()),
            (Need::Known(mass), _) if *mass <= self.most => {
                options.push(format!("start after {}", day(self.until)));
            }
            _ => {}
        }
        if options.is_empty() {
            "Nothing smaller fits: ask the budget's owner for a higher limit".to_owned()
        } else {
            format!("Fits: {}", options.join(", or "))
        }
    }
}

/// A moment as people read it: the date, with the time where it is not midnight UTC.
fn day(at: Timestamp) -> String {
    let text = at.strftime("%Y-%m-%dT%H:%MZ").to_string();
    text.strip_suffix("T00:00Z")
        .map_or(text.clone(), str::to_owned)
}
