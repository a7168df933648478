//! What a budget would have done under Enforce to jobs that ran without it: the plan and the
//! totals are the controller's own, only the time is that of the past.

use super::account::{Book, Charge, Entry};
use super::plan::{Budget, Candidate, plan};
use super::policy::{Mode, Policy};
use super::verdict::{Need, Reason};
use crate::carbon::Milligrams;
use jiff::{SignedDuration, Timestamp};

/// A job as it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    pub uid: String,
    /// When it asked to run.
    pub asked: Timestamp,
    /// How long it then ran.
    pub ran: SignedDuration,
    /// What the budget would have been asked for.
    pub need: Need,
    /// What it was measured to emit.
    pub charged: Milligrams,
}

/// What would have become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    AtOnce,
    After(SignedDuration),
    Refused(Reason),
    /// Still waiting when the last budget period that was looked at ended.
    Waiting,
}

/// Looks at so many moments at most: a guard against a period that never has room.
const MOMENTS: usize = 100_000;

/// What would have become of each job, in their order. What a job emitted is booked to the day of
/// its end; one that would have been refused emits nothing.
pub fn what_if(name: &str, policy: &Policy, past: &[Past]) -> Vec<Fate> {
    let policy = Policy {
        mode: Mode::Enforce,
        ..policy.clone()
    };
    let mut history = History {
        policy,
        past,
        fates: vec![None; past.len()],
        running: Vec::new(),
        book: Book::default(),
    };
    let mut asks: Vec<Timestamp> = past.iter().map(|job| job.asked).collect();
    asks.sort();
    let mut now = asks.first().copied();
    for _ in 0..MOMENTS {
        let Some(at) = now else { break };
        history.look(name, at);
        now = history.next(&asks, at);
    }
    let fates = history.fates.into_iter();
    fates.map(|fate| fate.unwrap_or(Fate::Waiting)).collect()
}

struct History<'a> {
    policy: Policy,
    past: &'a [Past],
    fates: Vec<Option<Fate>>,
    /// (when it ends, which).
    running: Vec<(Timestamp, usize)>,
    book: Book,
}

impl History<'_> {
    /// What the leader does at a moment: settles what ended, and decides what waits.
    fn look(&mut self, name: &str, now: Timestamp) {
        let (ended, running): (Vec<_>, Vec<_>) = self
            .running
            .iter()
            .copied()
            .partition(|(end, _)| *end <= now);
        self.running = running;
        for (end, index) in ended {
            let job = &self.past[index];
            if let Some(entry) = self
                .book
                .entries
                .iter_mut()
                .find(|entry| entry.uid == job.uid)
            {
                entry.settled = true;
                entry.charges = vec![Charge {
                    day: self.policy.period.day(end),
                    mass: job.charged,
                }];
            }
        }
        let waiting: Vec<usize> = self.waiting(now).collect();
        if waiting.is_empty() {
            return;
        }
        let candidates: Vec<Candidate> = waiting
            .iter()
            .map(|index| Candidate {
                uid: self.past[*index].uid.clone(),
                since: self.past[*index].asked,
                needs: vec![self.past[*index].need.clone()],
            })
            .collect();
        let budget = Budget {
            name: name.to_owned(),
            totals: self.policy.totals(&self.book, None, now),
            policy: self.policy.clone(),
            days: self.book.charged_by_day(),
        };
        let plan = plan("", &[budget], &candidates, now);
        let index = |uid: &str| waiting.iter().copied().find(|i| self.past[*i].uid == uid);
        let refused: Vec<(usize, Reason)> = plan
            .rejections
            .iter()
            .filter_map(|refusal| Some((index(&refusal.uid)?, refusal.verdict.reason)))
            .collect();
        let granted: Vec<(usize, Milligrams)> = plan
            .grants
            .iter()
            .filter_map(|grant| Some((index(&grant.uid)?, grant.masses.first()?.1)))
            .collect();
        for (index, reason) in refused {
            self.fates[index] = Some(Fate::Refused(reason));
        }
        for (index, mass) in granted {
            self.start(index, mass, now);
        }
    }

    fn start(&mut self, index: usize, mass: Milligrams, now: Timestamp) {
        let job = &self.past[index];
        let waited = now.duration_since(job.asked);
        self.fates[index] = Some(if waited.is_zero() {
            Fate::AtOnce
        } else {
            Fate::After(waited)
        });
        let end = now.checked_add(job.ran).unwrap_or(Timestamp::MAX);
        self.running.push((end, index));
        self.book.entries.push(Entry {
            uid: job.uid.clone(),
            reserved: mass,
            charges: Vec::new(),
            settled: false,
        });
    }

    fn waiting(&self, now: Timestamp) -> impl Iterator<Item = usize> {
        let open = self.fates.iter().zip(self.past).enumerate();
        open.filter(move |(_, (fate, job))| fate.is_none() && job.asked <= now)
            .map(|(index, _)| index)
    }

    /// The next moment at which something can change: a job asks, one ends, a period does, or
    /// the longest delay of one that waits is over.
    fn next(&self, asks: &[Timestamp], now: Timestamp) -> Option<Timestamp> {
        let ask = asks.get(asks.partition_point(|at| *at <= now)).copied();
        let mut moments: Vec<Timestamp> = ask.into_iter().collect();
        let mut waits = false;
        for index in self.waiting(now) {
            waits = true;
            let deadline = self.past[index]
                .asked
                .checked_add(self.policy.longest_delay);
            moments.extend(deadline.ok());
        }
        if waits {
            moments.push(self.policy.period.end(now));
            moments.extend(self.running.iter().map(|(end, _)| *end));
        }
        moments.into_iter().filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{AtDeadline, OnExceed};
    use super::*;
    use proptest::prelude::*;

    fn policy(limit: i64, on_exceed: OnExceed, hours: i64) -> Policy {
        Policy {
            on_exceed,
            longest_delay: SignedDuration::from_hours(hours),
            at_deadline: AtDeadline::Reject,
            ..Policy::monthly(Milligrams(limit))
        }
    }

    fn job(number: usize, day: &str, need: i64, charged: i64) -> Past {
        Past {
            uid: number.to_string(),
            asked: format!("{day}T12:00:00Z").parse().unwrap(),
            ran: SignedDuration::from_hours(1),
            need: Need::Known(Milligrams(need)),
            charged: Milligrams(charged),
        }
    }

    #[test]
    fn a_budget_that_rejects_refuses_what_no_longer_fits_and_lets_the_next_month_in() {
        let past = [
            job(0, "2026-10-01", 60, 50),
            job(1, "2026-10-02", 60, 50),
            job(2, "2026-10-03", 40, 40),
            job(3, "2026-11-01", 60, 50),
        ];
        let fates = what_if("b", &policy(100, OnExceed::Reject, 24), &past);
        let refused = Fate::Refused(Reason::BudgetExceeded);
        assert_eq!(fates, [Fate::AtOnce, refused, Fate::AtOnce, Fate::AtOnce]);
    }

    #[test]
    fn a_budget_that_defers_lets_a_job_wait_for_room_or_for_the_next_period() {
        let at_once = [
            job(0, "2026-10-30", 90, 20),
            job(1, "2026-10-30", 60, 60),
            job(2, "2026-10-31", 60, 60),
        ];
        let fates = what_if("b", &policy(100, OnExceed::Defer, 100), &at_once);
        // The second begins when the first has given back what it did not burn; the third in
        // November.
        let hours = |n| Fate::After(SignedDuration::from_hours(n));
        assert_eq!(fates, [Fate::AtOnce, hours(1), hours(12)]);
        let short = what_if("b", &policy(100, OnExceed::Defer, 5), &at_once);
        assert_eq!(short[2], Fate::Refused(Reason::DeadlineReached));
    }

    #[test]
    fn what_would_not_fit_an_empty_period_is_refused_and_of_none_there_is_nothing_to_say() {
        let policy = policy(100, OnExceed::Defer, 24);
        let fates = what_if("b", &policy, &[job(0, "2026-10-30", 101, 90)]);
        assert_eq!(fates, [Fate::Refused(Reason::ExceedsPeriodLimit)]);
        assert!(what_if("b", &policy, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_job_has_a_fate_and_what_runs_fits(
            jobs in proptest::collection::vec((1_u8..28, 1_i64..150, 0_i64..150), 0..40),
            defer in any::<bool>(),
        ) {
            let past: Vec<Past> = jobs
                .iter()
                .enumerate()
                .map(|(n, (day, need, charged))| {
                    job(n, &format!("2026-10-{day:02}"), *need, (*charged).min(*need))
                })
                .collect();
            let on_exceed = if defer { OnExceed::Defer } else { OnExceed::Reject };
            let fates = what_if("b", &policy(200, on_exceed, 48), &past);
            prop_assert_eq!(fates.len(), past.len());
            prop_assert!(!fates.contains(&Fate::Waiting));
            let october = |fate: &Fate, job: &Past| match fate {
                Fate::AtOnce => true,
                Fate::After(waited) => (job.asked + *waited).to_string().starts_with("2026-10"),
                _ => false,
            };
            let ran = fates.iter().zip(&past).filter(|(fate, job)| october(fate, job));
            let burned: i64 = ran.map(|(_, job)| job.charged.0).sum();
            prop_assert!(burned <= 200, "{}", burned);
        }
    }
}
