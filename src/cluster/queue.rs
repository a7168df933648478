//! Who waits: places in line, promised starts, and why a promise had to be put off.

use super::grants::Question;
use super::ledger::Ledger;
use super::objects::Work;
use super::verdicts::{Terms, forecast};
use crate::api::{BudgetStatus, QueuedJob};
use crate::budget::{
    Candidate, Granting, Oracle, Place, Plan, Prospect, Reason, Standing, Totals, outlook, promise,
};
use crate::carbon::Milligrams;
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::HashMap;

/// Places that a budget's status tells.
const TOLD: usize = 20;

/// Those that wait in a namespace.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// All that are held.
    pub(super) held: i64,
    /// The first of those that wait for room; `None` where it was not asked.
    places: Option<Vec<Waiting>>,
    /// Names of the budgets that the places' masses are of.
    budgets: Vec<String>,
    /// Of each that waits, how many wait before it.
    before: HashMap<String, usize>,
}

#[derive(Debug)]
struct Waiting {
    kind: &'static str,
    name: String,
    reason: Reason,
    place: Place,
}

impl Queue {
    /// So many are held; who waits for what is not asked, and stays as it was told.
    pub(super) fn of_held(held: i64) -> Self {
        Self {
            held,
            ..Self::default()
        }
    }

    /// The places of those that a plan lets wait.
    pub(super) fn of(
        namespace: &str,
        ledger: &Ledger,
        terms: &[Terms],
        (plan, question): (&Plan, &Question<'_>),
        oracle: &Oracle,
        (held, now): (i64, Timestamp),
    ) -> Self {
        // Most of the time nobody waits.
        let held_works = question.held.iter().filter(|_| !plan.waiting.is_empty());
        let works: HashMap<&str, &Work> =
            held_works.map(|work| (work.uid.as_str(), *work)).collect();
        let before = plan.waiting.iter().enumerate();
        let before = before.map(|(place, refusal)| (refusal.uid.clone(), place));
        let first = plan.waiting.iter().take(TOLD);
        let first = first.filter_map(|w| Some((*works.get(w.uid.as_str())?, w.verdict.reason)));
        let first: Vec<(&Work, Reason)> = first.collect();
        let places = places(namespace, ledger, terms, (plan, &first), oracle, now);
        let waiting = first.iter().zip(places);
        let waiting = waiting.map(|((work, reason), place)| Waiting {
            kind: work.kind.as_str(),
            name: work.name.clone(),
            reason: *reason,
            place,
        });
        Self {
            held,
            places: Some(waiting.collect()),
            budgets: terms.iter().map(|terms| terms.name.clone()).collect(),
            before: before.collect(),
        }
    }

    /// What a budget's status says of those that wait; `sum` is where the budget stands now.
    pub(super) fn told(&self, budget: &str, before: &BudgetStatus, sum: &Totals) -> Vec<QueuedJob> {
        let Some(places) = &self.places else {
            return before.queue.clone();
        };
        let Some(index) = self.budgets.iter().position(|name| name == budget) else {
            return Vec::new();
        };
        let told = places.iter().enumerate();
        told.map(|(number, waiting)| {
            let known = before.queue.iter().find(|q| q.uid == waiting.place.uid);
            waiting.told(number, index, known, before, sum)
        })
        .collect()
    }

    /// A job's place in line for people; `None` where it does not wait.
    pub(super) fn words(&self, uid: &str) -> Option<String> {
        let before = *self.before.get(uid)?;
        let mut text = match before {
            0 => "First in line".to_owned(),
            before => format!("Number {} in line", before + 1),
        };
        let places = self.places.as_ref()?;
        let place = places.iter().map(|w| &w.place).find(|p| p.uid == uid);
        let Some(place) = place else {
            return Some(text);
        };
        let ahead = place.ahead.iter().max().copied().unwrap_or_default();
        if before > 0 {
            text += &format!(", behind {ahead}");
        }
        match place.prospect {
            Prospect::Starts(at) => text += &format!(", expected to start by {at}"),
            Prospect::Refused(at) => text += &format!(", refused at {at} unless room comes sooner"),
            Prospect::Open => {}
        }
        Some(text)
    }
}

fn places(
    namespace: &str,
    ledger: &Ledger,
    terms: &[Terms],
    (plan, first): (&Plan, &[(&Work, Reason)]),
    oracle: &Oracle,
    now: Timestamp,
) -> Vec<Place> {
    if first.is_empty() {
        return Vec::new();
    }
    let candidates = first.iter().map(|(work, _)| {
        let forecast = forecast(work, oracle);
        let needs = terms.iter();
        let needs = needs.map(|terms| forecast.need(oracle, terms.policy.quantile));
        Candidate {
            uid: work.uid.clone(),
            since: work.since,
            needs: needs.collect(),
        }
    });
    let candidates: Vec<Candidate> = candidates.collect();
    let standings = terms.iter().filter_map(|terms| {
        let named = |budget: &&crate::api::CarbonBudget| budget.name_any() == terms.name;
        let budget = ledger.budgets.iter().find(named)?;
        let mut book = ledger.book(&terms.name, &ledger.in_flight(budget));
        // What is granted now has its room before anybody who waits.
        let granted = plan.grants.iter().flat_map(|grant| {
            let own = grant.masses.iter().filter(|(name, _)| *name == terms.name);
            own.map(|(_, mass)| Granting {
                uid: grant.uid.clone(),
                mass: *mass,
            })
        });
        book.granting.extend(granted);
        Some(Standing {
            budget: terms.budget(),
            book,
            since: budget.measured_since(),
        })
    });
    let standings: Vec<Standing> = standings.collect();
    outlook(namespace, &standings, &candidates, now)
}

impl Waiting {
    fn told(
        &self,
        number: usize,
        budget: usize,
        known: Option<&QueuedJob>,
        before: &BudgetStatus,
        sum: &Totals,
    ) -> QueuedJob {
        let of = |masses: &[Milligrams]| masses.get(budget).map_or(0, |mass| mass.0);
        let place = &self.place;
        let promised = known.and_then(|known| known.starts.parse().ok());
        let (starts, broken) = promise(promised, place.prospect);
        let mut told = QueuedJob {
            kind: self.kind.to_owned(),
            name: self.name.clone(),
            uid: place.uid.clone(),
            position: i64::try_from(number).unwrap_or(i64::MAX).saturating_add(1),
            since: place.since.to_string(),
            milligrams: of(&place.needs),
            ahead_milligrams: of(&place.ahead),
            reason: self.reason.as_str().to_owned(),
            starts: starts.map_or(String::new(), |at| at.to_string()),
            refused: match place.prospect {
                Prospect::Refused(at) => at.to_string(),
                _ => String::new(),
            },
            put_off: known.map_or(String::new(), |known| known.put_off.clone()),
        };
        if let Some(known) = known.filter(|_| broken) {
            told.put_off = why(known, &told, before, sum);
        }
        told
    }
}

/// Why a promise cannot be kept: what is otherwise than when it was given.
fn why(known: &QueuedJob, told: &QueuedJob, before: &BudgetStatus, sum: &Totals) -> String {
    let mass = |milligrams: i64| Milligrams(milligrams).to_string();
    let then = match known.starts.as_str() {
        "" => String::new(),
        starts => format!("promised for {starts}: "),
    };
    let used = (sum.consumed + sum.reserved).0;
    let used_before =
        Milligrams(before.consumed_milligrams) + Milligrams(before.reserved_milligrams);
    let used_before = used_before.0;
    let what = if sum.limit.0 < before.limit_milligrams {
        let (now, was) = (mass(sum.limit.0), mass(before.limit_milligrams));
        format!("the limit was lowered from {was} to {now}")
    } else if told.milligrams > known.milligrams {
        let (now, was) = (mass(told.milligrams), mass(known.milligrams));
        format!("it is predicted to need {now}, and was to need {was}")
    } else if told.ahead_milligrams > known.ahead_milligrams {
        let (now, was) = (mass(told.ahead_milligrams), mass(known.ahead_milligrams));
        format!("those before it need {now}, and were to need {was}")
    } else if used > used_before {
        let more = mass(used.saturating_sub(used_before));
        format!("{more} more than was foreseen is burned or set aside")
    } else {
        "less came free than was foreseen".to_owned()
    };
    then + &what
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn waiting(uid: &str, need: i64, ahead: i64, prospect: Prospect) -> Waiting {
        Waiting {
            kind: "Job",
            name: uid.to_owned(),
            reason: Reason::WaitingForBudget,
            place: Place {
                uid: uid.to_owned(),
                since: at("2026-11-28T12:00:00Z"),
                needs: vec![Milligrams(need)],
                ahead: vec![Milligrams(ahead)],
                prospect,
            },
        }
    }

    fn queue(all: Vec<Waiting>) -> Queue {
        let before = all.iter().enumerate();
        Queue {
            held: 2,
            before: before.map(|(n, w)| (w.place.uid.clone(), n)).collect(),
            places: Some(all),
            budgets: vec!["b".to_owned()],
        }
    }

    #[test]
    fn a_promise_stands_while_nothing_is_worse_and_is_put_off_with_the_reason() {
        let starts = |day: u8| Prospect::Starts(at(&format!("2026-12-0{day}T00:00:00Z")));
        let sum = |limit: i64, used: i64| Totals {
            limit: Milligrams(limit),
            consumed: Milligrams(used),
            ..Totals::default()
        };
        let mut status = BudgetStatus {
            limit_milligrams: 100,
            consumed_milligrams: 50,
            ..BudgetStatus::default()
        };
        let mut told = |need: i64, day: u8, sum: &Totals| {
            status.queue = queue(vec![waiting("a", need, 0, starts(day))]).told("b", &status, sum);
            status.limit_milligrams = sum.limit.0;
            status.consumed_milligrams = sum.consumed.0;
            let first = &status.queue[0];
            (first.starts[..10].to_owned(), first.put_off.clone())
        };
        let of = |day: &str, why: &str| (day.to_owned(), why.to_owned());
        assert_eq!(told(60, 3, &sum(100, 50)), of("2026-12-03", ""));
        assert_eq!(told(60, 1, &sum(100, 40)), of("2026-12-01", ""));
        let why = "promised for 2026-12-01T00:00:00Z: ";
        let burned = format!("{why}5 mg more than was foreseen is burned or set aside");
        assert_eq!(told(60, 2, &sum(100, 45)), of("2026-12-02", &burned));
        assert_eq!(told(60, 1, &sum(100, 40)), of("2026-12-01", &burned));
        let need = format!("{why}it is predicted to need 70 mg, and was to need 60 mg");
        assert_eq!(told(70, 2, &sum(100, 40)), of("2026-12-02", &need));
        let why = "promised for 2026-12-02T00:00:00Z: ";
        let limit = format!("{why}the limit was lowered from 100 mg to 90 mg");
        assert_eq!(told(70, 3, &sum(90, 40)), of("2026-12-03", &limit));
    }

    #[test]
    fn places_are_told_in_words_and_stay_as_they_were_where_nobody_asked() {
        let refused = Prospect::Refused(at("2026-11-29T12:00:00Z"));
        let starts = Prospect::Starts(at("2026-12-01T00:00:00Z"));
        let queue = queue(vec![
            waiting("a", 60, 0, refused),
            waiting("b", 30, 60, starts),
        ]);
        assert_eq!(
            queue.words("a").unwrap(),
            "First in line, refused at 2026-11-29T12:00:00Z unless room comes sooner"
        );
        assert_eq!(
            queue.words("b").unwrap(),
            "Number 2 in line, behind 60 mg, expected to start by 2026-12-01T00:00:00Z"
        );
        assert_eq!(queue.words("c"), None);
        let sum = Totals::default();
        let status = BudgetStatus {
            queue: queue.told("b", &BudgetStatus::default(), &sum),
            ..BudgetStatus::default()
        };
        assert_eq!(status.queue.len(), 2);
        assert_eq!(Queue::of_held(2).told("b", &status, &sum), status.queue);
        assert!(queue.told("another", &status, &sum).is_empty());
    }
}
