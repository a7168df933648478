//! What a reservation's status should be, given the exporters' pages: drawn down while the
//! job runs, settled when it has ended and its energy is known. Pure.

use crate::api::{
    BookedCharge, CarbonReservation, JoinedBudget, PodCharge, ReservationStatus, RunCharge,
};
use crate::carbon::{Milligrams, charge};
use crate::node::{LedgerPage, PodEnergy};

/// Runs of an exporter that one pod's record keeps apart.
const RUNS: usize = 16;

/// How sure it is that nothing more will be told of a workload's energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Told {
    /// Some node has not answered since the workload ended.
    #[default]
    Waiting,
    /// Every node it ran on has been asked since it ended.
    All,
    /// A node it ran on is gone for good, and the rest has been asked.
    Lost,
}

/// What is known of a reservation's workload now.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen<'a> {
    /// (page, pod's line) of each of its pods.
    pub(super) pods: Vec<(&'a LedgerPage, &'a PodEnergy)>,
    /// True once it has ended or is gone.
    pub(super) ended: bool,
    pub(super) told: Told,
    /// True where no pod of it is known that no page or record lists.
    pub(super) listed: bool,
    /// UIDs of pods that held a GPU before there was a budget.
    pub(super) older: Vec<String>,
    /// (budget, day) that a charge now goes to.
    pub(super) days: Vec<(String, String)>,
    /// (pod, images) that pods say they made.
    pub(super) images: Vec<(String, i64)>,
}

/// The status that follows.
pub(super) fn follow(reservation: &CarbonReservation, seen: &Seen, now: &str) -> ReservationStatus {
    let mut status = reservation.status.clone().unwrap_or_default();
    if status.settled {
        return status;
    }
    join(reservation, &mut status, &seen.days);
    for (page, pod) in &seen.pods {
        record(&mut status.pods, page, pod, seen.older.contains(&pod.uid));
    }
    for (uid, images) in &seen.images {
        if let Some(pod) = status.pods.iter_mut().find(|pod| pod.uid == *uid) {
            pod.images_done = Some(*images);
        }
    }
    let measured: i64 = status.pods.iter().map(PodCharge::millijoules).sum();
    status.measured_millijoules = measured.max(status.measured_millijoules);
    let charged = price(reservation, status.measured_millijoules);
    book(&mut status, charged, &seen.days);
    // A deleted job's pod may burn on for as long as its grace period.
    let burning = seen.pods.iter().any(|(_, pod)| !pod.is_final);
    let all_there = i64::try_from(status.pods.len()).is_ok_and(|n| n >= reservation.spec.pods);
    let known = seen.listed && all_there && status.pods.iter().all(|pod| pod.is_final);
    if seen.ended && !burning && (known || seen.told != Told::Waiting) {
        let unsure = status.pods.iter().any(|pod| pod.incomplete);
        if (seen.told == Told::Lost && !known) || unsure {
            estimate(reservation, &mut status, &seen.days);
        }
        status.settled = true;
        status.settled_at = Some(now.to_owned());
        status.refund_milligrams = reservation.spec.reserved_milligrams - status.charged_milligrams;
    }
    status
}

/// Takes in budgets that came after the reservation: they count from now on.
fn join(
    reservation: &CarbonReservation,
    status: &mut ReservationStatus,
    days: &[(String, String)],
) {
    for (budget, _) in days {
        let has_part = reservation.spec.budgets.iter().any(|b| b.name == *budget);
        if has_part || status.joined.iter().any(|joined| joined.name == *budget) {
            continue;
        }
        let left = reservation.spec.reserved_milligrams - status.charged_milligrams;
        status.joined.push(JoinedBudget {
            name: budget.clone(),
            charged_before_milligrams: status.charged_milligrams,
            reserved_milligrams: left.max(0),
        });
    }
}

/// Where what was burned last is lost, every budget is charged what it set aside.
fn estimate(
    reservation: &CarbonReservation,
    status: &mut ReservationStatus,
    days: &[(String, String)],
) {
    status.estimated = true;
    let charged = status.charged_milligrams;
    for (budget, day) in days {
        let part = reservation.reserved_for(budget).unwrap_or_default();
        let before = before(status, budget);
        let all = Milligrams((part.0 + before).max(charged));
        book(status, all, &[(budget.clone(), day.clone())]);
    }
    let all = reservation.spec.reserved_milligrams.max(charged);
    status.charged_milligrams = all;
}

/// What had been charged elsewhere before a budget came.
fn before(status: &ReservationStatus, budget: &str) -> i64 {
    let joined = status.joined.iter().find(|joined| joined.name == budget);
    joined.map_or(0, |joined| joined.charged_before_milligrams)
}

fn record(pods: &mut Vec<PodCharge>, page: &LedgerPage, pod: &PodEnergy, older: bool) {
    let millijoules = i64::try_from(pod.microjoules.div_ceil(1000)).unwrap_or(i64::MAX);
    let index = pods.iter().position(|known| known.uid == pod.uid);
    let index = index.unwrap_or_else(|| {
        pods.push(PodCharge {
            uid: pod.uid.clone(),
            before_millijoules: if older { millijoules } else { 0 },
            ..PodCharge::default()
        });
        pods.len() - 1
    });
    let known = &mut pods[index];
    known.node.clone_from(&page.node);
    known.is_final = pod.is_final;
    known.incomplete |= pod.incomplete;
    // Two exporters may answer in turn while one replaces the other: each run counts once,
    // and a page that comes late takes nothing back.
    if let Some(run) = known.runs.iter_mut().find(|run| run.epoch == page.epoch) {
        run.millijoules = run.millijoules.max(millijoules);
        return;
    }
    if known.runs.len() >= RUNS {
        let oldest = known.runs.remove(0);
        known.runs[0].millijoules += oldest.millijoules;
    }
    known.runs.push(RunCharge {
        epoch: page.epoch.clone(),
        millijoules,
    });
}

/// Milligrams of an energy at the intensity and PUE that the reservation froze.
fn price(reservation: &CarbonReservation, millijoules: i64) -> Milligrams {
    let spec = &reservation.spec;
    charge(
        millijoules,
        spec.intensity.milligrams_per_kwh,
        spec.pue_permille,
    )
}

/// Books what is new to the day at hand, for every budget by itself, so that one that could
/// not be booked for a while gets all of it later; never takes back.
fn book(status: &mut ReservationStatus, charged: Milligrams, days: &[(String, String)]) {
    for (budget, day) in days {
        let booked: i64 = status
            .charges
            .iter()
            .filter(|charge| charge.budget == *budget)
            .map(|charge| charge.milligrams)
            .sum();
        let new = charged.0 - before(status, budget) - booked;
        if new <= 0 {
            continue;
        }
        match status
            .charges
            .iter_mut()
            .find(|c| c.budget == *budget && c.day == *day)
        {
            Some(charge) => charge.milligrams += new,
            None => status.charges.push(BookedCharge {
                budget: budget.clone(),
                day: day.clone(),
                milligrams: new,
            }),
        }
    }
    status.charged_milligrams = charged.0.max(status.charged_milligrams);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{CarbonReservationSpec, IntensityUsed, LawUsed, ReservedFor, WorkloadRef};
    use std::collections::BTreeMap;

    pub(crate) fn reservation(reserved: i64) -> CarbonReservation {
        CarbonReservation::new(
            "job-u",
            CarbonReservationSpec {
                workload: WorkloadRef {
                    kind: "Job".into(),
                    name: "j".into(),
                    uid: "u".into(),
                },
                budgets: vec![ReservedFor {
                    name: "b".into(),
                    milligrams: reserved,
                }],
                reserved_milligrams: reserved,
                predicted_millijoules: 0,
                predicted_uncertainty_permille: 0,
                parameters: BTreeMap::new(),
                pods: 1,
                gpus: 1,
                law: LawUsed::default(),
                // 3.6 mg a joule: one joule is one milligram at PUE 1 … times 1000/3600.
                intensity: IntensityUsed {
                    milligrams_per_kwh: 360_000,
                    ..IntensityUsed::default()
                },
                pue_permille: 1000,
                adopted: false,
                verdict: String::new(),
            },
        )
    }

    fn page(epoch: &str, joules: u64, is_final: bool) -> LedgerPage {
        let pod = PodEnergy {
            uid: "p".into(),
            namespace: "n".into(),
            pod: "j-x".into(),
            microjoules: joules * 1_000_000,
            models: vec![],
            is_final,
            shared: false,
            incomplete: false,
            power_limit_permille: None,
            held_milliseconds: 0,
            came_milliseconds_ago: None,
            ended_milliseconds_ago: None,
        };
        LedgerPage {
            node: "a".into(),
            epoch: epoch.into(),
            ready: true,
            driver: String::new(),
            watched_milliseconds: 0,
            pods: vec![pod],
            gpus: vec![],
            forgotten_microjoules: 0,
        }
    }

    fn step(reservation: &mut CarbonReservation, page: &LedgerPage, day: &str, ended: bool) {
        let seen = Seen {
            pods: vec![(page, &page.pods[0])],
            ended,
            listed: true,
            days: vec![("b".into(), day.into())],
            ..Seen::default()
        };
        reservation.status = Some(follow(reservation, &seen, "now"));
    }

    #[test]
    fn a_running_job_is_drawn_down_and_settled_at_its_end() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11-30", false);
        assert_eq!(r.status.as_ref().unwrap().charged_milligrams, 30);
        step(&mut r, &page("1", 500, true), "2026-11-30", true);
        let status = r.status.unwrap();
        assert!(status.settled);
        assert_eq!(
            (status.charged_milligrams, status.refund_milligrams),
            (50, 50)
        );
    }

    #[test]
    fn an_exporter_that_starts_anew_loses_nothing_that_was_drawn() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11-30", false);
        step(&mut r, &page("2", 100, false), "2026-11-30", false);
        assert_eq!(r.status.unwrap().measured_millijoules, 400_000);
    }

    #[test]
    fn a_job_over_a_periods_end_is_charged_by_time_of_burning() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11-30", false);
        step(&mut r, &page("1", 800, true), "2026-12-01", true);
        let charges: Vec<i64> = r
            .status
            .unwrap()
            .charges
            .iter()
            .map(|c| c.milligrams)
            .collect();
        assert_eq!(charges, [30, 50]);
    }

    #[test]
    fn a_job_that_is_gone_is_not_settled_while_its_pod_still_burns() {
        let mut r = reservation(100);
        let page = page("1", 300, false);
        let seen = Seen {
            pods: vec![(&page, &page.pods[0])],
            ended: true,
            told: Told::All,
            listed: true,
            days: vec![("b".into(), "2026-11-30".into())],
            ..Seen::default()
        };
        r.status = Some(follow(&r, &seen, "now"));
        assert!(!r.status.unwrap().settled);
    }

    #[test]
    fn two_exporters_that_answer_in_turn_are_not_added_up_twice() {
        let mut r = reservation(100);
        for joules in [100, 200, 300] {
            step(&mut r, &page("1", joules, false), "2026-11-30", false);
            step(&mut r, &page("2", 40, false), "2026-11-30", false);
        }
        assert_eq!(r.status.unwrap().measured_millijoules, 340_000);
    }

    #[test]
    fn exporters_that_restart_for_ever_lose_nothing_and_fill_nothing() {
        let mut r = reservation(100);
        for run in 0..100 {
            step(
                &mut r,
                &page(&run.to_string(), 10, false),
                "2026-11-30",
                false,
            );
        }
        let status = r.status.unwrap();
        assert_eq!(status.measured_millijoules, 1_000_000);
        assert!(status.pods[0].runs.len() <= RUNS);
    }

    fn charges_of(r: &CarbonReservation, budget: &str) -> i64 {
        let status = r.status.as_ref().unwrap();
        let own = status.charges.iter().filter(|c| c.budget == budget);
        own.map(|c| c.milligrams).sum()
    }

    fn step_for(r: &mut CarbonReservation, page: &LedgerPage, budgets: &[&str]) {
        let days = budgets.iter().map(|n| ((*n).into(), "2026-11-30".into()));
        let seen = Seen {
            pods: vec![(page, &page.pods[0])],
            days: days.collect(),
            ..Seen::default()
        };
        r.status = Some(follow(r, &seen, "now"));
    }

    #[test]
    fn a_budget_that_could_not_be_booked_for_a_while_gets_all_of_it_later() {
        let mut r = reservation(100);
        r.spec.budgets.push(ReservedFor {
            name: "c".into(),
            milligrams: 90,
        });
        step_for(&mut r, &page("1", 300, false), &["b"]);
        step_for(&mut r, &page("1", 500, true), &["b", "c"]);
        assert_eq!((charges_of(&r, "b"), charges_of(&r, "c")), (50, 50));
    }

    #[test]
    fn a_budget_that_comes_while_the_job_runs_counts_from_then_on() {
        let mut r = reservation(100);
        step_for(&mut r, &page("1", 300, false), &["b"]);
        assert_eq!(r.entry("new").unwrap().outstanding(), Milligrams(70));
        step_for(&mut r, &page("1", 300, false), &["b", "new"]);
        step_for(&mut r, &page("1", 500, false), &["b", "new"]);
        assert_eq!((charges_of(&r, "b"), charges_of(&r, "new")), (50, 20));
        assert_eq!(r.entry("new").unwrap().outstanding(), Milligrams(50));
    }

    #[test]
    fn what_was_burned_before_there_was_a_budget_is_not_charged() {
        let mut r = reservation(100);
        let (early, late) = (page("1", 300, false), page("1", 500, false));
        for page in [&early, &late] {
            let seen = Seen {
                pods: vec![(page, &page.pods[0])],
                older: vec!["p".into()],
                days: vec![("b".into(), "2026-11-30".into())],
                ..Seen::default()
            };
            r.status = Some(follow(&r, &seen, "now"));
        }
        assert_eq!(r.status.unwrap().measured_millijoules, 200_000);
    }

    #[test]
    fn a_retry_that_no_page_lists_yet_keeps_the_job_from_being_settled() {
        let mut r = reservation(100);
        let page = page("1", 300, true);
        let seen = Seen {
            pods: vec![(&page, &page.pods[0])],
            ended: true,
            listed: false,
            ..Seen::default()
        };
        assert!(!follow(&r, &seen, "now").settled);
        step(&mut r, &page, "2026-11-30", true);
        assert!(r.status.unwrap().settled);
    }

    #[test]
    fn where_the_meter_is_not_sure_the_reservation_stands() {
        let mut r = reservation(100);
        let mut page = page("1", 300, true);
        page.pods[0].incomplete = true;
        step(&mut r, &page, "2026-11-30", true);
        let status = r.status.unwrap();
        assert!(status.settled && status.estimated);
        assert_eq!(status.charged_milligrams, 100);
    }

    #[test]
    fn where_the_node_is_lost_the_reservation_stands_for_the_measurement() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11-30", false);
        let seen = Seen {
            ended: true,
            told: Told::Lost,
            days: vec![("b".into(), "2026-11-30".into())],
            ..Seen::default()
        };
        let status = follow(&r, &seen, "now");
        assert!(status.settled && status.estimated);
        assert_eq!(
            (status.charged_milligrams, status.measured_millijoules),
            (100, 300_000)
        );
    }

    #[test]
    fn energy_not_yet_known_stays_reserved() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11-30", true);
        assert!(!r.status.unwrap().settled);
    }

    proptest::proptest! {
        #[test]
        fn nothing_charged_is_ever_taken_back_whatever_order_pages_come_in(
            pages in proptest::collection::vec((0_u8..3, 0_u64..1000), 1..20),
        ) {
            let mut r = reservation(100);
            let mut before = 0;
            for (epoch, joules) in pages {
                step(&mut r, &page(&epoch.to_string(), joules, false), "2026-11-30", false);
                let status = r.status.clone().unwrap();
                proptest::prop_assert!(status.charged_milligrams >= before);
                let booked: i64 = status.charges.iter().map(|c| c.milligrams).sum();
                proptest::prop_assert_eq!(booked, status.charged_milligrams);
                before = status.charged_milligrams;
            }
        }
    }
}
