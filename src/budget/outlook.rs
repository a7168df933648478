//! What a job that waits may expect: its place in line, what is ahead of it, when it will start.
//! Pure: the plan itself is asked, at the moments at which something changes by the calendar.

use super::account::{Book, Charge, Entry};
use super::plan::{Budget, Candidate, Plan, plan};
use crate::carbon::Milligrams;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Moments that are looked at, at most.
const MOMENTS: usize = 128;

/// A budget with the ledger that its totals are of.
#[derive(Debug, Clone)]
pub struct Standing {
    pub budget: Budget,
    pub book: Book,
    /// When the ledger was begun.
    pub since: Option<Timestamp>,
}

/// What becomes of a job that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    Starts(Timestamp),
    /// Its longest delay is over by then.
    Refused(Timestamp),
    /// Neither within the moments that were looked at.
    Open,
}

/// One job's place in line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub uid: String,
    /// When it began to wait.
    pub since: Timestamp,
    /// What it asks of each budget, in their order.
    pub needs: Vec<Milligrams>,
    /// What those before it ask of each.
    pub ahead: Vec<Milligrams>,
    pub prospect: Prospect,
}

/// The places of jobs that wait now, those first that wait longest. What runs is taken to burn all
/// that is set aside for it, today; nothing is taken to come besides, and no limit to change.
pub fn outlook(
    namespace: &str,
    standings: &[Standing],
    waiting: &[Candidate],
    now: Timestamp,
) -> Vec<Place> {
    let mut queue: Vec<&Candidate> = waiting.iter().collect();
    queue.sort_by(|a, b| (a.since, &a.uid).cmp(&(b.since, &b.uid)));
    let prospects = prospects(namespace, standings, &queue, now);
    let mut ahead = vec![Milligrams(0); standings.len()];
    let place = |candidate: &&Candidate| {
        let needs: Vec<Milligrams> = candidate.needs.iter().map(super::Need::mass).collect();
        let before = ahead.clone();
        for (sum, need) in ahead.iter_mut().zip(&needs) {
            *sum += *need;
        }
        let known = prospects.get(candidate.uid.as_str());
        Place {
            uid: candidate.uid.clone(),
            since: candidate.since,
            needs,
            ahead: before,
            prospect: known.copied().unwrap_or(Prospect::Open),
        }
    };
    queue.iter().map(place).collect()
}

fn prospects<'a>(
    namespace: &str,
    standings: &[Standing],
    queue: &[&'a Candidate],
    now: Timestamp,
) -> HashMap<&'a str, Prospect> {
    let mut futures: Vec<Future> = standings.iter().map(|s| Future::of(s, now)).collect();
    let mut left: Vec<&Candidate> = queue.to_vec();
    let mut prospects = HashMap::new();
    for moment in moments(standings, queue, now) {
        if left.is_empty() {
            break;
        }
        let budgets: Vec<Budget> = futures.iter().map(|future| future.at(moment)).collect();
        let asked: Vec<Candidate> = left.iter().map(|candidate| (*candidate).clone()).collect();
        let Plan {
            grants, rejections, ..
        } = plan(namespace, &budgets, &asked, moment);
        for grant in &grants {
            for (future, (_, mass)) in futures.iter_mut().zip(&grant.masses) {
                future.charge(moment, *mass);
            }
        }
        let started: HashSet<&str> = grants.iter().map(|grant| grant.uid.as_str()).collect();
        let refused: HashSet<&str> = rejections.iter().map(|r| r.uid.as_str()).collect();
        left.retain(|candidate| {
            let uid = candidate.uid.as_str();
            let prospect = if started.contains(uid) {
                Prospect::Starts(moment)
            } else if refused.contains(uid) {
                Prospect::Refused(moment)
            } else {
                return true;
            };
            prospects.insert(uid, prospect);
            false
        });
    }
    prospects
}

/// When something changes by the calendar: a period ends, a day falls out of a window, somebody
/// has waited for long or for too long.
fn moments(standings: &[Standing], queue: &[&Candidate], now: Timestamp) -> BTreeSet<Timestamp> {
    let mut moments = BTreeSet::new();
    let policies = standings.iter().map(|standing| &standing.budget.policy);
    let longest = policies.clone().map(|policy| policy.longest_delay).max();
    let since = queue.iter().map(|candidate| candidate.since).max();
    let later = |at: Timestamp, by: SignedDuration| at.checked_add(by).unwrap_or(Timestamp::MAX);
    let horizon = since
        .zip(longest)
        .map_or(now, |(since, longest)| later(since, longest));
    for policy in policies {
        let mut end = policy.period.end(now);
        while end <= horizon && moments.len() < MOMENTS {
            moments.insert(end);
            end = policy.period.end(end);
        }
        for candidate in queue {
            let longest = policy.longest_delay;
            moments.extend([longest, longest / 4].map(|by| later(candidate.since, by)));
        }
    }
    moments.retain(|moment| *moment > now);
    moments.into_iter().take(MOMENTS).collect()
}

/// A budget as it will be if all that is set aside is burned today.
struct Future<'a> {
    standing: &'a Standing,
    days: BTreeMap<Date, Milligrams>,
}

impl<'a> Future<'a> {
    fn of(standing: &'a Standing, now: Timestamp) -> Self {
        let mut days: BTreeMap<Date, Milligrams> = BTreeMap::new();
        let mut add = |day: Date, mass: Milligrams| *days.entry(day).or_default() += mass;
        let today = standing.budget.policy.period.day(now);
        let mut known: HashSet<&str> = HashSet::new();
        let book = &standing.book;
        for (day, mass) in book.charged_by_day() {
            add(day, mass);
        }
        for entry in book.entries.iter().filter(|entry| known.insert(&entry.uid)) {
            add(today, entry.outstanding());
        }
        for grant in book
            .granting
            .iter()
            .filter(|grant| known.insert(&grant.uid))
        {
            add(today, grant.mass);
        }
        Self { standing, days }
    }

    fn charge(&mut self, at: Timestamp, mass: Milligrams) {
        let day = self.standing.budget.policy.period.day(at);
        *self.days.entry(day).or_default() += mass;
    }

    fn at(&self, moment: Timestamp) -> Budget {
        let days = self.days.iter();
        let charges = days.map(|(day, mass)| Charge {
            day: *day,
            mass: *mass,
        });
        let all = Entry {
            uid: String::new(),
            reserved: Milligrams(0),
            charges: charges.collect(),
            settled: true,
        };
        let book = Book {
            entries: vec![all],
            ..Book::default()
        };
        let budget = &self.standing.budget;
        Budget {
            name: budget.name.clone(),
            policy: budget.policy.clone(),
            days: self.days.clone(),
            totals: budget.policy.totals(&book, self.standing.since, moment),
        }
    }
}

/// When a job is promised to start: what was promised before holds, unless it is to be earlier, or
/// cannot be kept.
pub fn promise(before: Option<Timestamp>, prospect: Prospect) -> (Option<Timestamp>, bool) {
    match (before, prospect) {
        (before, Prospect::Starts(at)) => (Some(at), before.is_some_and(|before| at > before)),
        (before, Prospect::Refused(_) | Prospect::Open) => (None, before.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{AtDeadline, Policy};
    use super::super::{Need, Period, Totals};
    use super::*;
    use jiff::tz::TimeZone;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn now() -> Timestamp {
        at("2026-11-23T12:00:00Z")
    }

    fn standing(period: Period, limit: i64, charged: &[(&str, i64)], open: i64) -> Standing {
        let policy = Policy {
            period,
            longest_delay: SignedDuration::from_hours(24 * 20),
            ..Policy::monthly(Milligrams(limit))
        };
        let mut book = Book::default();
        let charges = charged.iter().map(|(day, mass)| Charge {
            day: day.parse().unwrap(),
            mass: Milligrams(*mass),
        });
        book.entries.push(Entry {
            uid: "done".into(),
            reserved: Milligrams(0),
            charges: charges.collect(),
            settled: true,
        });
        book.entries.push(Entry {
            uid: "runs".into(),
            reserved: Milligrams(open),
            charges: vec![],
            settled: false,
        });
        Standing {
            budget: Budget {
                name: "b".into(),
                totals: Totals::default(),
                policy,
                days: BTreeMap::new(),
            },
            book,
            since: None,
        }
    }

    fn job(uid: &str, minutes: i64, mg: i64) -> Candidate {
        Candidate {
            uid: uid.into(),
            since: now() - SignedDuration::from_mins(minutes),
            needs: vec![Need::Known(Milligrams(mg))],
        }
    }

    fn starts(standing: &Standing, jobs: &[Candidate]) -> Vec<(String, Prospect)> {
        let places = outlook("ns", std::slice::from_ref(standing), jobs, now());
        places.into_iter().map(|p| (p.uid, p.prospect)).collect()
    }

    #[test]
    fn who_waits_longest_starts_first_when_the_next_day_begins_and_the_rest_the_days_after() {
        let day = standing(Period::Day(TimeZone::UTC), 100, &[("2026-11-23", 90)], 0);
        let jobs = [job("b", 5, 60), job("a", 9, 70), job("c", 1, 30)];
        let next = |day: &str| Prospect::Starts(at(day));
        assert_eq!(
            starts(&day, &jobs),
            [
                ("a".into(), next("2026-11-24T00:00:00Z")),
                ("b".into(), next("2026-11-25T00:00:00Z")),
                // It lets the small one pass beside the first.
                ("c".into(), next("2026-11-24T00:00:00Z")),
            ]
        );
        let places = outlook("ns", &[day], &jobs, now());
        let ahead: Vec<i64> = places.iter().map(|place| place.ahead[0].0).collect();
        assert_eq!(ahead, [0, 70, 130]);
    }

    #[test]
    fn of_a_window_that_rolls_what_was_burned_falls_out_day_by_day() {
        let burned = [("2026-11-20", 40), ("2026-11-22", 40)];
        let window = standing(Period::Rolling(TimeZone::UTC, 7), 100, &burned, 15);
        let jobs = [job("a", 9, 40), job("b", 1, 80)];
        assert_eq!(
            starts(&window, &jobs),
            [
                ("a".into(), Prospect::Starts(at("2026-11-27T00:00:00Z"))),
                // What it burned itself is in the way of the next: from the 27th on for a week.
                ("b".into(), Prospect::Starts(at("2026-12-04T00:00:00Z"))),
            ]
        );
    }

    #[test]
    fn who_cannot_start_in_time_is_told_when_it_is_refused_or_run() {
        let mut month = standing(Period::Month(TimeZone::UTC), 100, &[("2026-11-02", 90)], 0);
        month.budget.policy.longest_delay = SignedDuration::from_hours(24);
        let ends = at("2026-11-24T11:00:00Z");
        let one = [job("a", 60, 50)];
        assert_eq!(starts(&month, &one)[0].1, Prospect::Refused(ends));
        month.budget.policy.at_deadline = AtDeadline::Run;
        assert_eq!(starts(&month, &one)[0].1, Prospect::Starts(ends));
    }

    #[test]
    fn every_budget_must_have_room_by_then() {
        let day = standing(Period::Day(TimeZone::UTC), 100, &[("2026-11-23", 90)], 0);
        let week = standing(Period::Week(TimeZone::UTC), 200, &[("2026-11-23", 180)], 0);
        let job = Candidate {
            needs: vec![Need::Known(Milligrams(50)); 2],
            ..job("a", 1, 0)
        };
        let places = outlook("ns", &[day, week], &[job], now());
        let monday = at("2026-11-30T00:00:00Z");
        assert_eq!(places[0].prospect, Prospect::Starts(monday));
    }

    #[test]
    fn a_promise_is_revised_to_an_earlier_moment_silently_and_to_a_later_one_aloud() {
        let (early, late) = (at("2026-11-24T00:00:00Z"), at("2026-11-25T00:00:00Z"));
        assert_eq!(promise(None, Prospect::Starts(late)), (Some(late), false));
        assert_eq!(
            promise(Some(late), Prospect::Starts(early)),
            (Some(early), false)
        );
        assert_eq!(
            promise(Some(early), Prospect::Starts(late)),
            (Some(late), true)
        );
        assert_eq!(promise(Some(early), Prospect::Refused(late)), (None, true));
        assert_eq!(promise(None, Prospect::Open), (None, false));
    }
}
