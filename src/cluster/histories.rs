//! Histories of a ledger, without a cluster: budgets, jobs that ask, exporters whose pages come
//! late, twice, in another order or not at all, lists that are read anew, days that pass. The
//! ledger's arithmetic, its plan and its draw-down are those of the controller; only time and the
//! order of events are chance, and come from a seed.

use super::sim::random::Random;
use super::tracking::{Seen, follow};
use crate::api::{
    CarbonReservation, CarbonReservationSpec, IntensityUsed, ReservedFor, WorkloadRef,
};
use crate::budget::{
    Book, Budget, Candidate, Entry, Granting, Mode, Need, OnExceed, Period, Policy, Totals, plan,
};
use crate::carbon::Milligrams;
use crate::node::{LedgerPage, PodEnergy};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// Histories in `make test`; `make soak` and `JOULEWARD_HISTORIES` tell more.
const HISTORIES: u64 = 100_000;
const JOBS: usize = 4;
const EVENTS: u64 = 16;
/// 3.6 mg a joule is 1 mg for 10 J at PUE 1.
const MILLIGRAMS_PER_KWH: i64 = 360_000;

/// One job, and what is true of it.
struct Job {
    need: i64,
    asked: Timestamp,
    /// What it has burned so far, by run of the exporter.
    burned: Vec<u64>,
    /// What was told of that before the record was closed, by run.
    heard: BTreeMap<String, u64>,
    ended: bool,
    /// Pages that were made and not delivered yet, or may be delivered again.
    pages: Vec<LedgerPage>,
    record: Option<CarbonReservation>,
}

struct History {
    chance: Random,
    now: Timestamp,
    budgets: Vec<Policy>,
    jobs: Vec<Job>,
    /// Committed to the status, and not yet a reservation.
    granting: Vec<(usize, i64)>,
    /// What each budget had consumed at the last look, and in which period.
    consumed: Vec<(String, Milligrams)>,
}

fn uid(job: usize) -> String {
    format!("job-{job}")
}

fn name(budget: usize) -> String {
    format!("budget-{budget}")
}

impl History {
    fn new(seed: u64) -> Self {
        let mut chance = Random::new(seed);
        let start: Timestamp = "2026-03-26T08:00:00Z".parse().unwrap();
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let periods = [
            Period::Month(berlin.clone()),
            Period::Week(berlin.clone()),
            Period::Day(berlin.clone()),
            Period::Rolling(berlin, 3),
        ];
        let policy = |chance: &mut Random| Policy {
            period: periods[chance.index(periods.len())].clone(),
            mode: Mode::Enforce,
            on_exceed: OnExceed::Defer,
            longest_delay: SignedDuration::from_hours(10_000),
            grace: Milligrams(i64::try_from(chance.below(2) * 20).unwrap()),
            ..Policy::monthly(Milligrams(i64::try_from(60 + chance.below(140)).unwrap()))
        };
        let budgets: Vec<Policy> = (0..=chance.index(2)).map(|_| policy(&mut chance)).collect();
        let job = |chance: &mut Random| Job {
            need: i64::try_from(1 + chance.below(90)).unwrap(),
            asked: start,
            burned: vec![0],
            heard: BTreeMap::new(),
            ended: false,
            pages: Vec::new(),
            record: None,
        };
        let jobs = (0..JOBS).map(|_| job(&mut chance)).collect();
        let consumed = budgets
            .iter()
            .map(|_| (String::new(), Milligrams(0)))
            .collect();
        Self {
            chance,
            now: start,
            budgets,
            jobs,
            granting: Vec::new(),
            consumed,
        }
    }

    fn book(&self, budget: usize) -> Book {
        let records = self.jobs.iter().filter_map(|job| job.record.as_ref());
        let entries = records.filter_map(|record| record.entry(&name(budget)));
        let granting = self.granting.iter().map(|(job, mass)| Granting {
            uid: uid(*job),
            mass: Milligrams(*mass),
        });
        Book {
            entries: entries.collect(),
            granting: granting.collect(),
            ..Book::default()
        }
    }

    fn totals(&self, budget: usize, again: bool) -> Totals {
        let book = self.book(budget);
        let totals = self.budgets[budget].totals(&book, None, self.now);
        if !again {
            return totals;
        }
        // Twice, and backwards: a list that is read anew changes nothing.
        let mut again: Vec<Entry> = book.entries.iter().rev().cloned().collect();
        again.extend(book.entries);
        let again = Book {
            entries: again,
            ..book
        };
        let anew = self.budgets[budget].totals(&again, None, self.now);
        assert_eq!(totals, anew, "each UID counts once, in any order");
        totals
    }

    /// One event.
    fn step(&mut self) {
        let job = self.chance.index(JOBS);
        match self.chance.below(8) {
            0 => self.decide(),
            1 => self.reserve(),
            2 => {
                self.now +=
                    SignedDuration::from_hours(i64::try_from(self.chance.below(60)).unwrap());
            }
            3 => self.end(job),
            4 => self.restart(job),
            5 => self.deliver(job, true),
            _ => self.burn(job),
        }
        self.check();
    }

    /// The leader decides, and commits what it grants.
    fn decide(&mut self) {
        let open = (0..JOBS).filter(|job| {
            self.jobs[*job].record.is_none() && !self.granting.iter().any(|(known, _)| known == job)
        });
        let candidates: Vec<Candidate> = open
            .map(|job| Candidate {
                uid: uid(job),
                since: self.jobs[job].asked,
                needs: vec![Need::Known(Milligrams(self.jobs[job].need)); self.budgets.len()],
            })
            .collect();
        let budgets: Vec<Budget> = (0..self.budgets.len())
            .map(|budget| Budget {
                days: BTreeMap::new(),
                name: name(budget),
                policy: self.budgets[budget].clone(),
                totals: self.totals(budget, true),
            })
            .collect();
        let mut room: Vec<Milligrams> = budgets.iter().map(|b| b.totals.remaining()).collect();
        for grant in plan("team", &budgets, &candidates, self.now).grants {
            for (budget, (_, mass)) in grant.masses.iter().enumerate() {
                let grace = self.budgets[budget].grace;
                assert!(
                    room[budget] > Milligrams(0) && *mass <= room[budget] + grace,
                    "granted beyond the limit: {mass:?} of {:?}",
                    room[budget]
                );
                room[budget] = room[budget] - *mass;
            }
            let job = (0..JOBS).find(|job| uid(*job) == grant.uid).unwrap();
            self.granting.push((job, self.jobs[job].need));
        }
    }

    /// A grant that was committed becomes a reservation; a second leader may do it again.
    fn reserve(&mut self) {
        let Some((job, mass)) = self.granting.first().copied() else {
            return;
        };
        if self.chance.once_in(3) {
            // The answer was lost: it stays among the grants, and counts once all the same.
        } else {
            self.granting.remove(0);
        }
        let budgets = (0..self.budgets.len()).map(|budget| ReservedFor {
            name: name(budget),
            milligrams: mass,
        });
        let record = reservation(job, mass, budgets.collect());
        self.jobs[job].record.get_or_insert(record);
    }

    fn burn(&mut self, number: usize) {
        let joules = self.chance.below(400);
        let job = &mut self.jobs[number];
        if job.record.is_none() || job.ended {
            return;
        }
        if let Some(run) = job.burned.last_mut() {
            *run += joules;
        }
        self.page(number);
        if !self.chance.once_in(3) {
            self.deliver(number, false);
        }
    }

    /// Its exporter starts anew: sums begin at zero, under another name.
    fn restart(&mut self, number: usize) {
        let job = &mut self.jobs[number];
        if job.record.is_some() && !job.ended && job.burned.len() < 4 {
            job.burned.push(0);
        }
    }

    fn end(&mut self, number: usize) {
        let job = &mut self.jobs[number];
        if job.record.is_some() && !job.ended {
            job.ended = true;
            self.page(number);
        }
    }

    /// What its exporter would say now.
    fn page(&mut self, number: usize) {
        let job = &mut self.jobs[number];
        let pod = PodEnergy {
            uid: format!("pod-{number}"),
            namespace: "team".into(),
            pod: format!("pod-{number}"),
            microjoules: job.burned.last().copied().unwrap_or(0) * 1_000_000,
            models: vec![],
            is_final: job.ended,
            shared: false,
            incomplete: false,
            power_limit_permille: None,
            held_milliseconds: 5_000,
            came_milliseconds_ago: None,
            ended_milliseconds_ago: None,
        };
        job.pages.push(LedgerPage {
            node: "node".into(),
            epoch: job.burned.len().to_string(),
            ready: true,
            driver: String::new(),
            watched_milliseconds: 0,
            pods: vec![pod],
            gpus: vec![],
            forgotten_microjoules: 0,
        });
    }

    /// The newest page, or any that was ever made.
    fn deliver(&mut self, number: usize, any: bool) {
        let pages = self.jobs[number].pages.len();
        if pages == 0 {
            return;
        }
        let index = if any {
            self.chance.index(pages)
        } else {
            pages - 1
        };
        let page = self.jobs[number].pages[index].clone();
        self.hear(number, &page);
    }

    fn hear(&mut self, number: usize, page: &LedgerPage) {
        let days = self.budgets.iter().enumerate().map(|(budget, policy)| {
            let day = policy.period.day(self.now);
            (name(budget), day.to_string())
        });
        let days: Vec<(String, String)> = days.collect();
        let job = &mut self.jobs[number];
        let (Some(record), Some(pod)) = (&mut job.record, page.pods.first()) else {
            return;
        };
        if !record.is_settled() {
            let most = job.heard.entry(page.epoch.clone()).or_default();
            *most = pod.microjoules.max(*most);
        }
        let seen = Seen {
            pods: vec![(page, pod)],
            ended: job.ended,
            listed: true,
            days,
            ..Seen::default()
        };
        let now = self.now.to_string();
        let status = follow(record, &seen, &now);
        let again = follow(
            &CarbonReservation {
                status: Some(status.clone()),
                ..record.clone()
            },
            &seen,
            &now,
        );
        assert_eq!(status, again, "what is heard twice counts once");
        record.status = Some(status);
    }

    /// What is true after every event.
    fn check(&mut self) {
        for budget in 0..self.budgets.len() {
            let totals = self.totals(budget, false);
            let period = self.budgets[budget].period.at(self.now).id;
            let (then, before) = &self.consumed[budget];
            assert!(
                *then != period || totals.consumed >= *before,
                "what is consumed never falls within a period"
            );
            let over = totals.consumed + totals.reserved - totals.overrun;
            let most = totals.most();
            // What began in an older period may lie beyond this one's limit.
            let older = self.jobs.iter().filter_map(|job| job.record.as_ref());
            let older = older.filter_map(|record| record.status.as_ref());
            let older = older.flat_map(|status| &status.charges);
            let all_here = older
                .map(|charge| charge.day.parse().unwrap())
                .all(|day| self.budgets[budget].period.counts(day, self.now));
            assert!(
                !all_here || over <= most,
                "{over:?} of {most:?} without an overrun"
            );
            self.consumed[budget] = (period, totals.consumed);
        }
        for job in self.jobs.iter().filter_map(|job| job.record.as_ref()) {
            let Some(status) = &job.status else { continue };
            for budget in 0..self.budgets.len() {
                let entry = job.entry(&name(budget)).unwrap();
                assert_eq!(entry.charged(), Milligrams(status.charged_milligrams));
                if status.settled {
                    assert_eq!(entry.refund() + entry.charged(), entry.reserved);
                    assert_eq!(entry.outstanding(), Milligrams(0));
                }
            }
        }
    }

    /// Everything ends, and every page that was not heard of is heard in the end.
    fn finish(&mut self) {
        while !self.granting.is_empty() {
            self.reserve();
        }
        for number in 0..JOBS {
            self.end(number);
            for page in self.jobs[number].pages.clone() {
                self.hear(number, &page);
            }
        }
        self.check();
        for budget in 0..self.budgets.len() {
            assert_eq!(
                self.totals(budget, true).reserved,
                Milligrams(0),
                "nothing stays set aside"
            );
        }
        for job in &self.jobs {
            let Some(record) = &job.record else { continue };
            let status = record.status.as_ref().unwrap();
            let heard: u64 = job.heard.values().sum();
            assert!(status.settled && heard <= job.burned.iter().sum::<u64>() * 1_000_000);
            assert_eq!(
                status.measured_millijoules,
                i64::try_from(heard / 1000).unwrap()
            );
            let milligrams = i64::try_from(heard.div_ceil(10_000_000)).unwrap();
            assert_eq!(
                status.charged_milligrams, milligrams,
                "whatever order it was told in"
            );
        }
    }
}

fn reservation(job: usize, mass: i64, budgets: Vec<ReservedFor>) -> CarbonReservation {
    let spec = CarbonReservationSpec {
        workload: WorkloadRef {
            kind: "Job".into(),
            name: uid(job),
            uid: uid(job),
        },
        budgets,
        reserved_milligrams: mass,
        intensity: IntensityUsed {
            milligrams_per_kwh: MILLIGRAMS_PER_KWH,
            ..IntensityUsed::default()
        },
        ..super::tracking::tests::reservation(mass).spec
    };
    CarbonReservation::new(&uid(job), spec)
}

/// A whole history.
fn tell(seed: u64) {
    let mut history = History::new(seed);
    for _ in 0..EVENTS {
        history.step();
    }
    history.finish();
}

#[test]
fn whatever_the_order_of_events_a_ledger_adds_up() {
    let wanted = |name: &str| {
        let set = std::env::vars().find(|(key, _)| key == name);
        set.and_then(|(_, value)| value.parse::<u64>().ok())
    };
    if let Some(seed) = wanted("JOULEWARD_HISTORY") {
        return tell(seed);
    }
    let histories = wanted("JOULEWARD_HISTORIES").unwrap_or(HISTORIES);
    for seed in 0..histories {
        let told = std::panic::catch_unwind(|| tell(seed));
        assert!(
            told.is_ok(),
            "history {seed}: JOULEWARD_HISTORY={seed} cargo test --lib histories tells it again"
        );
    }
    println!("{histories} histories");
}
