//! The leader's plan for one namespace: which held jobs are granted now, which are
//! refused, which go on waiting. Data; the executor decides nothing.

use super::account::Totals;
use super::period::Period;
use super::policy::Policy;
use super::verdict::{Decision, Need, Reason, Verdict, decide};
use crate::carbon::Milligrams;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// A budget as the planner sees it.
#[derive(Debug, Clone)]
pub struct Budget {
    pub name: String,
    pub policy: Policy,
    pub totals: Totals,
    /// What was charged by day, where that is known: of a rolling window it falls out.
    pub days: BTreeMap<Date, Milligrams>,
}

impl Budget {
    /// From when on what comes free is kept for a job: a quarter of the longest delay.
    fn ripe(&self) -> SignedDuration {
        self.policy.longest_delay / 4
    }

    /// True where a job that waits now may come to fit before this period is over, beside what is
    /// kept already: once all that is set aside were given back, and of a rolling window what falls
    /// out before its longest delay is over.
    fn may_fit(&self, need: &Need, since: Timestamp, kept: Milligrams) -> bool {
        let Need::Known(mass) = need else {
            return false;
        };
        let period = &self.policy.period;
        let consumed = match (period, since.checked_add(self.policy.longest_delay)) {
            (Period::Rolling(..), Ok(end)) if !self.days.is_empty() => {
                let days = self.days.iter();
                let left = days.filter(|(day, _)| period.counts(**day, end));
                left.map(|(_, mass)| *mass).sum()
            }
            _ => self.totals.consumed,
        };
        let best = Totals {
            consumed: consumed + kept,
            reserved: Milligrams(0),
            ..self.totals
        };
        *mass <= best.room()
    }
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
/// pass, until it has waited for a quarter of the longest delay: from then on what comes free is
/// kept for it, as long as that may help it before the period is over. Every budget must have
/// room, or none is charged.
pub fn plan(namespace: &str, budgets: &[Budget], candidates: &[Candidate], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut budgets = budgets.to_vec();
    let mut kept = vec![Milligrams(0); budgets.len()];
    let mut queue: Vec<&Candidate> = candidates.iter().collect();
    queue.sort_by(|a, b| (a.since, &a.uid).cmp(&(b.since, &b.uid)));
    for candidate in queue {
        let waited = SignedDuration::from_secs(now.as_second() - candidate.since.as_second());
        let verdicts: Vec<Verdict> = budgets
            .iter()
            .zip(&candidate.needs)
            .zip(&kept)
            .map(|((b, need), kept)| {
                let name = format!("{namespace}/{}", b.name);
                let verdict = decide(&name, &b.policy, &b.totals, need.clone(), waited, now);
                verdict.in_turn(b.totals.room(), *kept, waited < b.policy.longest_delay)
            })
            .collect();
        let holding = budgets.iter().zip(&verdicts);
        let holding = holding.filter(|(_, verdict)| verdict.decision == Decision::Hold);
        let ripe = holding.map(|(budget, _)| budget.ripe()).min();
        let waits = settle(&mut plan, &mut budgets, candidate, verdicts);
        if waits && ripe.is_some_and(|ripe| waited >= ripe) {
            keep(&mut kept, &budgets, candidate);
        }
    }
    plan
}

/// Keeps what a job needs that has waited for long, where that may help it.
fn keep(kept: &mut [Milligrams], budgets: &[Budget], candidate: &Candidate) {
    let mut asked = budgets.iter().zip(&candidate.needs).zip(&*kept);
    let helps = asked.all(|((budget, need), kept)| budget.may_fit(need, candidate.since, *kept));
    if helps {
        for (kept, need) in kept.iter_mut().zip(&candidate.needs) {
            *kept += need.mass();
        }
    }
}

/// Takes a job into the plan; true where it waits.
fn settle(
    plan: &mut Plan,
    budgets: &mut [Budget],
    candidate: &Candidate,
    verdicts: Vec<Verdict>,
) -> bool {
    let worst = |decision| verdicts.iter().find(|v| v.decision == decision).cloned();
    let uid = candidate.uid.clone();
    if let Some(verdict) = worst(Decision::Reject) {
        plan.rejections.push(Refusal { uid, verdict });
    } else if let Some(verdict) = worst(Decision::Hold) {
        plan.waiting.push(Refusal { uid, verdict });
        return true;
    } else {
        let reason = verdicts
            .iter()
            .map(|v| v.reason)
            .find(|reason| *reason != Reason::Fits)
            .unwrap_or(Reason::Fits);
        let masses: Vec<(String, Milligrams)> = budgets
            .iter()
            .zip(&candidate.needs)
            .map(|(budget, need)| (budget.name.clone(), need.mass()))
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
    false
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
            days: BTreeMap::new(),
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

    fn after(jobs: &[(&str, i64, i64)], consumed: i64, reserved: i64, rolling: bool) -> Plan {
        let mut budget = budget("b", 100, OnExceed::Defer, AtDeadline::Reject);
        budget.totals.consumed = Milligrams(consumed);
        budget.totals.reserved = Milligrams(reserved);
        if rolling {
            // An hour of waiting ends after midnight, when the oldest day falls out.
            budget.policy.period = Period::Rolling(jiff::tz::TimeZone::UTC, 7);
            budget.policy.longest_delay = SignedDuration::from_hours(24);
            let oldest = period_day(-6);
            budget.days = [(oldest, Milligrams(consumed))].into();
        }
        let jobs: Vec<Candidate> = jobs
            .iter()
            .map(|(uid, age, mg)| job(uid, *age, *mg, 1))
            .collect();
        plan("ns", &[budget], &jobs, now())
    }

    fn period_day(days: i64) -> Date {
        let today = Period::Day(jiff::tz::TimeZone::UTC).day(now());
        today.saturating_add(jiff::Span::new().days(days))
    }

    fn granted(plan: &Plan) -> Vec<&str> {
        plan.grants.iter().map(|grant| grant.uid.as_str()).collect()
    }

    #[test]
    fn a_big_job_lets_small_ones_pass_until_it_has_waited_for_a_quarter_of_the_longest_delay() {
        let jobs = |age| [("big", age, 80), ("small", 1, 10)];
        assert_eq!(granted(&after(&jobs(899), 0, 30, false)), ["small"]);
        let plan = after(&jobs(900), 0, 30, false);
        assert_eq!(granted(&plan), [""; 0]);
        let small = &plan.waiting[1].verdict;
        assert_eq!(
            (small.reason, small.left, small.kept),
            (Reason::WaitingForTurn, Milligrams(70), Milligrams(80))
        );
        let words = small.message(None, &[]);
        assert!(
            words.contains("80 mg kept for jobs that wait longer"),
            "{words}"
        );
    }

    #[test]
    fn nothing_is_kept_for_a_job_that_this_period_cannot_let_in() {
        let jobs = [("big", 900, 80), ("small", 1, 10)];
        assert_eq!(granted(&after(&jobs, 25, 10, false)), ["small"]);
        // Of a rolling window what was burned falls out, where it does so in time.
        let old = [("big", 6 * 3600, 80), ("small", 1, 10)];
        assert_eq!(granted(&after(&old, 25, 10, true)), [""; 0]);
        let mut window = budget("b", 100, OnExceed::Defer, AtDeadline::Reject);
        window.policy.period = Period::Rolling(jiff::tz::TimeZone::UTC, 30);
        window.policy.longest_delay = SignedDuration::from_hours(24);
        window.days = (0..30)
            .map(|ago| (period_day(-ago), Milligrams(3)))
            .collect();
        window.totals.consumed = Milligrams(90);
        let jobs = [job("big", 6 * 3600, 80, 1), job("small", 1, 10, 1)];
        assert_eq!(granted(&plan("ns", &[window], &jobs, now())), ["small"]);
    }

    #[test]
    fn who_waits_for_one_budget_is_ripe_by_its_delay_whatever_another_says() {
        let mut day = budget("day", 100, OnExceed::Defer, AtDeadline::Reject);
        day.totals.reserved = Milligrams(30);
        let mut month = budget("month", 1000, OnExceed::Reject, AtDeadline::Reject);
        month.policy.longest_delay = SignedDuration::from_hours(24);
        let jobs = [job("big", 900, 80, 2), job("small", 1, 10, 2)];
        assert_eq!(granted(&plan("ns", &[day, month], &jobs, now())), [""; 0]);
    }

    #[test]
    fn of_several_that_have_waited_for_long_each_is_kept_for_as_far_as_all_may_fit() {
        let jobs = [("a", 903, 60), ("b", 902, 60), ("c", 901, 30), ("d", 1, 10)];
        // For b there is no room beside a; for c there is.
        let kept = |consumed| {
            let plan = after(&jobs, consumed, 50, false);
            assert_eq!(granted(&plan), [""; 0]);
            plan.waiting[3].verdict.kept
        };
        assert_eq!((kept(5), kept(11)), (Milligrams(90), Milligrams(60)));
    }

    #[test]
    fn a_stream_of_small_jobs_never_keeps_a_big_one_waiting_for_ever() {
        // Of a rolling day, small jobs come every minute and would take all that falls out.
        let mut budget = budget("b", 100, OnExceed::Defer, AtDeadline::Reject);
        budget.policy.longest_delay = SignedDuration::from_hours(24);
        let begun = now();
        let mut running: Vec<(Timestamp, i64)> = (0..10)
            .map(|n| (begun + SignedDuration::from_mins(n * 6), 10))
            .collect();
        let big = Candidate {
            since: begun,
            ..job("big", 0, 95, 1)
        };
        for minute in 0..24 * 60 {
            let at = begun + SignedDuration::from_mins(minute);
            running.retain(|(ends, _)| *ends > at);
            budget.totals.reserved = Milligrams(running.iter().map(|(_, mg)| mg).sum());
            let small = Candidate {
                since: at,
                ..job(&format!("small-{minute}"), 0, 10, 1)
            };
            let plan = plan("ns", &[budget.clone()], &[big.clone(), small], at);
            if granted(&plan).contains(&"big") {
                assert!(minute <= 6 * 60 + 60, "only after {minute} minutes");
                return;
            }
            let started = plan.grants.iter().map(|grant| grant.masses[0].1.0);
            running.extend(started.map(|mg| (at + SignedDuration::from_hours(1), mg)));
        }
        panic!("it never began");
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
