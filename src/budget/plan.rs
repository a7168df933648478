//! The leader's plan for one namespace: which held jobs are granted now, which are
//! refused, which go on waiting. Data; the executor decides nothing.

use super::account::Totals;
use super::policy::Policy;
use super::verdict::{Decision, Need, Reason, Verdict, decide};
use crate::carbon::Milligrams;
use jiff::{SignedDuration, Timestamp};

/// A budget as the planner sees it.
#[derive(Debug, Clone)]
pub struct Budget {
    pub name: String,
    pub policy: Policy,
    pub totals: Totals,
}

/// A held job.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub uid: String,
    /// When it began to wait.
    pub since: Timestamp,
    /// What each budget of the namespace is asked for, in the budgets' order: budgets may
    /// charge different quantiles.
    pub needs: Vec<Need>,
}

/// A job that is granted, and what each budget sets aside for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    pub uid: String,
    /// (budget, mass), in the budgets' order.
    pub masses: Vec<(String, Milligrams)>,
    pub reason: Reason,
}

/// A job that is refused for good, or waits, with the verdict that decided it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub uid: String,
    pub verdict: Verdict,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub grants: Vec<Grant>,
    pub rejections: Vec<Refusal>,
    pub waiting: Vec<Refusal>,
}

/// Plans for one namespace: who waits longest first; one that does not fit lets smaller ones
/// pass. Every budget must have room, or none is charged.
pub fn plan(namespace: &str, budgets: &[Budget], candidates: &[Candidate], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut budgets = budgets.to_vec();
    let mut queue: Vec<&Candidate> = candidates.iter().collect();
    queue.sort_by(|a, b| (a.since, &a.uid).cmp(&(b.since, &b.uid)));
    for candidate in queue {
        let waited = SignedDuration::from_secs(now.as_second() - candidate.since.as_second());
        let verdicts: Vec<Verdict> = budgets
            .iter()
            .zip(&candidate.needs)
            .map(|(b, need)| {
                let name = format!("{namespace}/{}", b.name);
                decide(&name, &b.policy, &b.totals, need.clone(), waited, now)
            })
            .collect();
        settle(&mut plan, &mut budgets, candidate, verdicts);
    }
    plan
}

fn settle(plan: &mut Plan, budgets: &mut [Budget], candidate: &Candidate, verdicts: Vec<Verdict>) {
    let worst = |decision| verdicts.iter().find(|v| v.decision == decision).cloned();
    let uid = candidate.uid.clone();
    if let Some(verdict) = worst(Decision::Reject) {
        plan.rejections.push(Refusal { uid, verdict });
    } else if let Some(verdict) = worst(Decision::Hold) {
        plan.waiting.push(Refusal { uid, verdict });
    } else {
        let reason = verdicts
            .iter()
            .map(|v| v.reason)
            .find(|reason| *reason != Reason::Fits)
            .unwrap_or(Reason::Fits);
        let masses: Vec<(String, Milligrams)> = budgets
            .iter()
            .zip(&candidate.needs)
            .map(|(budget, need)| {
                let mass = match need {
                    Need::Known(mass) => *mass,
                    Need::Unknown(_) => Milligrams(0),
                };
                (budget.name.clone(), mass)
            })
            .collect();
        for (budget, (_, mass)) in budgets.iter_mut().zip(&masses) {
            budget.totals.reserved += *mass;
        }
        plan.grants.push(Grant {
            uid,
            masses,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{AtDeadline, Mode, OnExceed, OnUnknown};
    use super::*;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn budget(name: &str, limit: i64, on_exceed: OnExceed, at_deadline: AtDeadline) -> Budget {
        let policy = Policy {
            mode: Mode::Enforce,
            on_exceed,
            longest_delay: SignedDuration::from_hours(1),
            at_deadline,
            ..Policy::monthly(Milligrams(limit))
        };
        Budget {
            name: name.into(),
            totals: Totals {
                limit: policy.limit,
                ..Totals::default()
            },
            policy,
        }
    }

    fn job(uid: &str, age: i64, mg: i64, budgets: usize) -> Candidate {
        Candidate {
            uid: uid.into(),
            since: now() - SignedDuration::from_secs(age),
            needs: vec![Need::Known(Milligrams(mg)); budgets],
        }
    }

    #[test]
    fn of_two_jobs_that_fit_only_singly_the_older_is_granted() {
        let budgets = [budget("b", 100, OnExceed::Defer, AtDeadline::Reject)];
        let plan = plan(
            "ns",
            &budgets,
            &[job("young", 1, 60, 1), job("old", 9, 60, 1)],
            now(),
        );
        assert_eq!(plan.grants.len(), 1);
        assert_eq!(plan.grants[0].uid, "old");
        assert_eq!(plan.waiting[0].verdict.reason, Reason::WaitingForBudget);
    }

    #[test]
    fn what_can_never_fit_is_rejected_at_once() {
        let budgets = [budget("b", 100, OnExceed::Defer, AtDeadline::Reject)];
        let plan = plan("ns", &budgets, &[job("a", 1, 101, 1)], now());
        assert_eq!(
            plan.rejections[0].verdict.reason,
            Reason::ExceedsPeriodLimit
        );
    }

    #[test]
    fn after_the_longest_delay_a_job_is_refused_or_run_by_policy() {
        for (policy, granted) in [(AtDeadline::Reject, 0), (AtDeadline::Run, 1)] {
            let mut full = budget("b", 100, OnExceed::Defer, policy);
            full.totals.consumed = Milligrams(90);
            let plan = plan("ns", &[full], &[job("a", 3601, 20, 1)], now());
            assert_eq!(plan.grants.len(), granted);
            assert_eq!(plan.rejections.len(), 1 - granted);
        }
    }

    #[test]
    fn of_two_budgets_both_must_have_room_or_none_is_charged() {
        let budgets = [
            budget("a", 100, OnExceed::Defer, AtDeadline::Reject),
            budget("b", 60, OnExceed::Defer, AtDeadline::Reject),
        ];
        let plan = plan(
            "ns",
            &budgets,
            &[job("x", 3, 50, 2), job("y", 2, 50, 2), job("z", 1, 10, 2)],
            now(),
        );
        let granted: Vec<&str> = plan.grants.iter().map(|g| g.uid.as_str()).collect();
        assert_eq!(granted, ["x", "z"]);
    }

    #[test]
    fn an_unknown_job_waits_only_for_an_exhausted_budget() {
        let mut b = budget("b", 100, OnExceed::Defer, AtDeadline::Reject);
        let unknown = Candidate {
            needs: vec![Need::Unknown("no model".into())],
            ..job("u", 1, 0, 1)
        };
        assert_eq!(
            plan("ns", &[b.clone()], std::slice::from_ref(&unknown), now())
                .grants
                .len(),
            1
        );
        b.totals.consumed = Milligrams(100);
        assert_eq!(
            plan("ns", &[b.clone()], std::slice::from_ref(&unknown), now())
                .waiting
                .len(),
            1
        );
        b.policy.on_unknown = OnUnknown::Reject;
        assert_eq!(
            plan("ns", &[b], &[unknown], now()).rejections[0]
                .verdict
                .reason,
            Reason::MissingParameters
        );
    }

    proptest! {
        #[test]
        fn no_plan_ever_grants_more_than_remains(
            limits in proptest::collection::vec(1_i64..2000, 1..4),
            needs in proptest::collection::vec((1_i64..900, 0_i64..3000), 0..40),
        ) {
            let budgets: Vec<Budget> = limits
                .iter()
                .enumerate()
                .map(|(i, limit)| budget(&format!("b{i}"), *limit, OnExceed::Defer, AtDeadline::Reject))
                .collect();
            let jobs: Vec<Candidate> = needs
                .iter()
                .enumerate()
                .map(|(i, (mg, age))| job(&i.to_string(), *age, *mg, budgets.len()))
                .collect();
            let plan = plan("ns", &budgets, &jobs, now());
            for (index, budget) in budgets.iter().enumerate() {
                let granted: Milligrams = plan.grants.iter().map(|g| g.masses[index].1).sum();
                prop_assert!(granted <= budget.policy.limit);
            }
            prop_assert_eq!(plan.grants.len() + plan.waiting.len() + plan.rejections.len(), jobs.len());
        }
    }
}
