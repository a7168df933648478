//! What is put away of a namespace's records, and how its `CarbonStatement` counts it. Pure, but for
//! what the caches know.

use super::context::Context;
use super::energy::Pages;
use super::ledger::{Ledger, listed_elsewhere};
use super::memory::Memory;
use crate::api::{CarbonReservation, ReservationStatus, StatementStatus};
use crate::budget::by_day;
use crate::carbon::Milligrams;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Records that one write of a statement takes in at most.
pub(super) const AT_ONCE: usize = 128;
/// UIDs that a statement keeps in mind at most.
const MINDED: usize = 4_096;
/// Pods of one record that are named at most: those that an exporter may still list are none, so
/// their names are a second safeguard.
const PODS: usize = 256;
/// Lines of a statement; beyond, the oldest go.
const LINES: usize = 4_096;
/// Exporters list a pod for an hour after its end: a node that has been silent for longer than
/// this will not name it any more.
pub(super) const FORGOTTEN_US: u64 = 2 * 3_600_000_000;
/// What is still there of workloads, so that their records are still needed.
pub(super) struct Present {
    /// UIDs of jobs and pods.
    works: HashSet<String>,
    /// UIDs of pods that exporters list.
    listed: HashSet<String>,
    /// Nodes whose exporter does not answer.
    silent: HashSet<String>,
    /// Lessons that each law has written down, by UID.
    lessons: HashMap<String, i64>,
}

impl Present {
    pub(super) fn of(context: &Context, memory: &Memory, pages: &Pages, micros: u64) -> Self {
        let caches = &context.caches;
        let works = caches.jobs.all().into_iter().chain(caches.pods.all());
        let told = pages.all();
        let told = told.filter(|(_, _, at)| micros.saturating_sub(*at) < FORGOTTEN_US);
        let lines = told.flat_map(|(_, page, _)| &page.pods);
        let waits = memory
            .leads_since
            .is_none_or(|since| micros.saturating_sub(since) < FORGOTTEN_US);
        let nodes = caches.world.nodes.all();
        let silent = nodes.iter().filter(|_| waits);
        let silent = silent.filter(|node| pages.of(&node.name).is_none());
        let laws = caches.world.laws.all();
        let lessons = laws.iter().filter_map(|law| {
            let lessons = law.status.as_ref().map_or(0, |status| status.lessons);
            Some((law.metadata.uid.clone()?, lessons))
        });
        Self {
            works: works.map(|work| work.uid.clone()).collect(),
            listed: lines.map(|pod| pod.uid.clone()).collect(),
            silent: silent.map(|node| node.name.clone()).collect(),
            lessons: lessons.collect(),
        }
    }

    /// True where nothing will come any more that a record must be there for.
    pub(super) fn misses(&self, record: &CarbonReservation) -> bool {
        let Some(status) = &record.status else {
            return false;
        };
        let known = |uid: &String| self.works.contains(uid) || self.listed.contains(uid);
        let pods = &status.pods;
        let learnt = status.lesson.as_ref().is_none_or(|lesson| {
            let written = self.lessons.get(&lesson.law_uid);
            written.is_none_or(|written| *written >= lesson.number)
        });
        learnt
            && !known(&record.spec.workload.uid)
            && !pods
                .iter()
                .any(|pod| known(&pod.uid) || self.silent.contains(&pod.node))
    }
}

/// True where a record was settled at a moment, or before.
pub(super) fn settled_by(record: &CarbonReservation, moment: Timestamp) -> bool {
    let status = record.status.as_ref();
    let at = status.and_then(|status| status.settled_at.as_deref());
    record.is_settled()
        && at
            .and_then(|at| at.parse().ok())
            .is_none_or(|at: Timestamp| at <= moment)
}

/// The records of a ledger that can be put away now. Pure.
pub(super) fn ripe<'a>(
    ledger: &'a Ledger,
    present: &Present,
    moment: Timestamp,
) -> Vec<&'a CarbonReservation> {
    let listed = listed_elsewhere(ledger.records());
    let uid = |record: &'a CarbonReservation| record.spec.workload.uid.as_str();
    let own: HashSet<&str> = ledger.records().map(uid).collect();
    let mut uids = 0;
    ledger
        .records()
        .filter(|record| settled_by(record, moment) && present.misses(record))
        .filter(|record| !ledger.has_put_away(uid(record)))
        // While a pod's record stands beside its job's, the job's keeps it from counting.
        .filter(|record| {
            let pods = record.status.iter().flat_map(|status| &status.pods);
            let mut others = pods.filter(|pod| pod.uid != uid(record));
            listed.contains(uid(record)) || !others.any(|pod| own.contains(pod.uid.as_str()))
        })
        .take(AT_ONCE)
        .take_while(|record| {
            let first = uids == 0;
            uids += named(record).len();
            first || uids <= MINDED / 2
        })
        .collect()
}

/// UIDs of a record's workload and of its newest pods.
fn named(record: &CarbonReservation) -> BTreeSet<String> {
    let pods = record.status.iter().flat_map(|status| &status.pods);
    let pods = pods.rev().take(PODS).map(|pod| pod.uid.clone());
    pods.chain([record.spec.workload.uid.clone()]).collect()
}

/// Counts a record in a statement: all that its budgets were charged, and where it was not
/// settled what is set aside too. One that `counts` nowhere is only named. Pure.
pub(super) fn count(
    status: &mut StatementStatus,
    record: &CarbonReservation,
    namespace_uid: &str,
    counts: bool,
    today: Date,
) {
    let known = record.status.clone().unwrap_or_default();
    if counts {
        let ended = known.settled_at.as_deref().and_then(|at| at.parse().ok());
        let ended = ended.map_or(today, |at: Timestamp| at.to_zoned(TimeZone::UTC).date());
        for budget in budgets(record, &known) {
            let Some(mut entry) = record.entry(&budget) else {
                continue;
            };
            let open = entry.outstanding();
            if open > Milligrams(0) {
                let day = entry.last_day().unwrap_or(today);
                entry
                    .charges
                    .push(crate::budget::Charge { day, mass: open });
            }
            entry.settled = true;
            for (day, sum) in by_day(&entry, ended) {
                status.add(namespace_uid, &budget, day, sum);
            }
        }
        let charged = if known.settled {
            known.charged_milligrams
        } else {
            let reserved = record.spec.reserved_milligrams;
            known.charged_milligrams.max(reserved)
        };
        status.jobs += 1;
        status.charged_milligrams += charged;
    }
    status.put_away.extend(named(record));
}

/// Budgets that have a part in a record.
fn budgets(record: &CarbonReservation, status: &ReservationStatus) -> BTreeSet<String> {
    let parts = record.spec.budgets.iter().map(|part| &part.name);
    let joined = status.joined.iter().map(|joined| &joined.name);
    parts.chain(joined).cloned().collect()
}

/// What people read, and bounds.
pub(super) fn finish(status: &mut StatementStatus, epoch: i64) {
    let old = status.put_away.len().saturating_sub(MINDED);
    status.put_away.drain(..old);
    let old = status.lines.len().saturating_sub(LINES);
    status.lines.drain(..old);
    status.charged = Milligrams(status.charged_milligrams).to_string();
    let last = status.lines.last();
    status.last_day = last.map_or(String::new(), |line| line.day.clone());
    status.lease_epoch = epoch;
}

#[cfg(test)]
mod tests {
    use super::super::tracking::tests::reservation;
    use super::*;
    use crate::api::{BookedCharge, PodCharge};
    use std::sync::Arc;

    fn record(uid: &str, pods: &[&str], charged: i64, settled: bool) -> CarbonReservation {
        let mut record = reservation(100);
        record.spec.workload.uid = uid.into();
        let pod = |uid: &&str| PodCharge {
            uid: (*uid).into(),
            node: "n1".into(),
            ..PodCharge::default()
        };
        record.status = Some(ReservationStatus {
            settled,
            settled_at: settled.then(|| "2026-11-20T10:00:00Z".into()),
            charged_milligrams: charged,
            charges: vec![BookedCharge {
                budget: "b".into(),
                day: "2026-11-20".into(),
                milligrams: charged,
            }],
            pods: pods.iter().map(pod).collect(),
            ..ReservationStatus::default()
        });
        record
    }

    fn ledger(reservations: Vec<CarbonReservation>) -> Ledger {
        let records = reservations.into_iter().map(Arc::new);
        Ledger::new(vec![], records.collect(), None)
    }

    fn nothing() -> Present {
        Present {
            works: HashSet::new(),
            listed: HashSet::new(),
            silent: HashSet::new(),
            lessons: HashMap::new(),
        }
    }

    fn ripe_of(ledger: &Ledger, present: &Present) -> Vec<String> {
        let moment = "2026-11-21T10:00:00Z".parse().unwrap();
        let ripe = ripe(ledger, present, moment).into_iter();
        ripe.map(|r| r.spec.workload.uid.clone()).collect()
    }

    #[test]
    fn a_record_stays_while_its_job_a_pod_a_page_or_a_lesson_needs_it() {
        let mut taught = record("taught", &["t"], 5, true);
        if let Some(status) = &mut taught.status {
            status.lesson = Some(crate::api::Lesson {
                law_uid: "law".into(),
                number: 7,
                ..crate::api::Lesson::default()
            });
        }
        let records = vec![
            record("done", &["d"], 5, true),
            record("open", &["o"], 5, false),
            taught,
        ];
        let ledger = ledger(records);
        let mut present = nothing();
        present.lessons.insert("law".into(), 6);
        assert_eq!(ripe_of(&ledger, &present), ["done"]);
        present.lessons.insert("law".into(), 7);
        assert_eq!(ripe_of(&ledger, &present), ["done", "taught"]);
        for needs in ["done", "d"] {
            let there = HashSet::from([needs.to_owned()]);
            let works = Present {
                works: there.clone(),
                ..nothing()
            };
            let listed = Present {
                listed: there,
                ..nothing()
            };
            for present in [works, listed] {
                assert_eq!(ripe_of(&ledger, &present), ["taught"], "{needs}");
            }
        }
        let mut present = nothing();
        present.silent.insert("n1".into());
        assert!(
            ripe_of(&ledger, &present).is_empty(),
            "its node may list it"
        );
        let early = ripe(&ledger, &nothing(), "2026-11-20T09:59:59Z".parse().unwrap());
        assert!(early.is_empty());
    }

    #[test]
    fn a_pods_own_record_goes_before_the_one_of_the_job_that_lists_it() {
        let records = vec![record("job", &["p"], 5, true), record("p", &["p"], 5, true)];
        assert_eq!(ripe_of(&ledger(records), &nothing()), ["p"]);
    }

    #[test]
    fn what_was_not_settled_is_counted_with_what_is_set_aside() {
        let today: Date = "2026-11-28".parse().unwrap();
        let mut status = StatementStatus::default();
        count(
            &mut status,
            &record("a", &["p"], 40, true),
            "ns",
            true,
            today,
        );
        count(
            &mut status,
            &record("b", &["q"], 30, false),
            "ns",
            true,
            today,
        );
        count(
            &mut status,
            &record("q", &["q"], 30, true),
            "ns",
            false,
            today,
        );
        let mut unburned = record("c", &[], 0, false);
        unburned.status = None;
        count(&mut status, &unburned, "ns", true, today);
        finish(&mut status, 3);
        let lines: Vec<(&str, i64, i64, i64)> = status
            .lines
            .iter()
            .map(|l| (&*l.day, l.jobs, l.milligrams, l.refunded_milligrams))
            .collect();
        assert_eq!(
            lines,
            [("2026-11-20", 2, 140, 60), ("2026-11-28", 1, 100, 0)]
        );
        assert_eq!((status.jobs, status.charged_milligrams), (3, 240));
        assert_eq!(status.put_away.len(), 6);
        assert_eq!((&*status.last_day, status.lease_epoch), ("2026-11-28", 3));
    }

    #[test]
    fn a_statement_is_bounded_however_many_jobs_and_days_it_takes_in() {
        let today: Date = "2026-11-28".parse().unwrap();
        let mut status = StatementStatus::default();
        for day in 0..6_000 {
            let mut record = record(&day.to_string(), &["p"], 10, true);
            let first: Date = "2010-01-01".parse().unwrap();
            let on = first.checked_add(jiff::Span::new().days(day)).unwrap();
            if let Some(status) = &mut record.status {
                status.charges[0].day = on.to_string();
            }
            count(&mut status, &record, "ns", true, today);
            finish(&mut status, 1);
        }
        assert_eq!((status.lines.len(), status.put_away.len()), (LINES, MINDED));
        assert_eq!(status.last_day, "2026-06-05");
        assert_eq!((status.jobs, status.charged_milligrams), (6_000, 60_000));
        let bytes = serde_json::to_vec(&status).unwrap().len();
        assert!(bytes < 1_000_000, "{bytes}");
    }
}
