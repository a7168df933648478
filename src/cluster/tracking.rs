//! What a reservation's status should be, given the exporters' pages: drawn down while the
//! job runs, settled when it has ended and its energy is known. Pure.

use crate::api::{BookedCharge, CarbonReservation, PodCharge, ReservationStatus};
use crate::carbon::{Basis, Intensity, Kind, Milligrams, Pue, Signal, grams};
use crate::law::Joules;
use crate::node::{LedgerPage, PodEnergy};

/// What is known of a reservation's workload now.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen<'a> {
    /// (page, pod's line) of each of its pods.
    pub(super) pods: Vec<(&'a LedgerPage, &'a PodEnergy)>,
    /// True once it has ended or is gone.
    pub(super) ended: bool,
    /// True once nothing more can come: every node it ran on has been asked since it ended.
    pub(super) complete: bool,
    /// (budget, bucket) that a charge now goes to.
    pub(super) buckets: Vec<(String, String)>,
}

/// The status that follows.
pub(super) fn follow(reservation: &CarbonReservation, seen: &Seen, now: &str) -> ReservationStatus {
    let mut status = reservation.status.clone().unwrap_or_default();
    if status.settled {
        return status;
    }
    for (page, pod) in &seen.pods {
        record(&mut status.pods, page, pod);
    }
    let measured: i64 = status
        .pods
        .iter()
        .map(|pod| pod.millijoules + pod.earlier_millijoules)
        .sum();
    status.measured_millijoules = measured.max(status.measured_millijoules);
    let charged = price(reservation, status.measured_millijoules);
    book(&mut status, charged, &seen.buckets);
    let known = status.pods.iter().all(|pod| pod.is_final) || seen.complete;
    // A deleted job's pod may burn on for as long as its grace period.
    let burning = seen.pods.iter().any(|(_, pod)| !pod.is_final);
    if seen.ended && !burning && known && (seen.complete || !status.pods.is_empty()) {
        status.settled = true;
        status.settled_at = Some(now.to_owned());
        status.refund_milligrams = reservation.spec.reserved_milligrams - status.charged_milligrams;
    }
    status
}

fn record(pods: &mut Vec<PodCharge>, page: &LedgerPage, pod: &PodEnergy) {
    let millijoules = i64::try_from(pod.microjoules.div_ceil(1000)).unwrap_or(i64::MAX);
    match pods.iter_mut().find(|known| known.uid == pod.uid) {
        None => pods.push(PodCharge {
            uid: pod.uid.clone(),
            millijoules,
            earlier_millijoules: 0,
            epoch: page.epoch.clone(),
            is_final: pod.is_final,
        }),
        Some(known) => {
            if known.epoch != page.epoch {
                known.earlier_millijoules += known.millijoules;
                known.millijoules = 0;
                known.epoch.clone_from(&page.epoch);
            }
            // A page that comes late must not take anything back.
            known.millijoules = known.millijoules.max(millijoules);
            known.is_final = pod.is_final;
        }
    }
}

/// Milligrams of an energy at the intensity and PUE that the reservation froze.
fn price(reservation: &CarbonReservation, millijoules: i64) -> Milligrams {
    let intensity = Intensity {
        zone: String::new(),
        grams_per_kwh: reservation.spec.intensity.milligrams_per_kwh as f64 / 1000.0,
        signal: Signal::Average,
        basis: Basis::Lifecycle,
        kind: Kind::Static,
        source: String::new(),
        relative_uncertainty: 0.0,
    };
    let pue = Pue {
        value: reservation.spec.pue_permille as f64 / 1000.0,
        source: String::new(),
    };
    grams(Joules(millijoules as f64 / 1000.0), &intensity, &pue)
}

/// Books what is new to the period at hand, for every budget; never takes back.
fn book(status: &mut ReservationStatus, charged: Milligrams, buckets: &[(String, String)]) {
    let new = charged.0 - status.charged_milligrams;
    if new <= 0 {
        return;
    }
    for (budget, bucket) in buckets {
        match status
            .charges
            .iter_mut()
            .find(|c| c.budget == *budget && c.bucket == *bucket)
        {
            Some(charge) => charge.milligrams += new,
            None => status.charges.push(BookedCharge {
                budget: budget.clone(),
                bucket: bucket.clone(),
                milligrams: new,
            }),
        }
    }
    status.charged_milligrams = charged.0;
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
            held_milliseconds: 0,
        };
        LedgerPage {
            node: "a".into(),
            epoch: epoch.into(),
            ready: true,
            pods: vec![pod],
        }
    }

    fn step(reservation: &mut CarbonReservation, page: &LedgerPage, bucket: &str, ended: bool) {
        let seen = Seen {
            pods: vec![(page, &page.pods[0])],
            ended,
            complete: false,
            buckets: vec![("b".into(), bucket.into())],
        };
        reservation.status = Some(follow(reservation, &seen, "now"));
    }

    #[test]
    fn a_running_job_is_drawn_down_and_settled_at_its_end() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11", false);
        assert_eq!(r.status.as_ref().unwrap().charged_milligrams, 30);
        step(&mut r, &page("1", 500, true), "2026-11", true);
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
        step(&mut r, &page("1", 300, false), "2026-11", false);
        step(&mut r, &page("2", 100, false), "2026-11", false);
        assert_eq!(r.status.unwrap().measured_millijoules, 400_000);
    }

    #[test]
    fn a_job_over_a_periods_end_is_charged_by_time_of_burning() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11", false);
        step(&mut r, &page("1", 800, true), "2026-12", true);
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
            complete: true,
            buckets: vec![("b".into(), "2026-11".into())],
        };
        r.status = Some(follow(&r, &seen, "now"));
        assert!(!r.status.unwrap().settled);
    }

    #[test]
    fn energy_not_yet_known_stays_reserved() {
        let mut r = reservation(100);
        step(&mut r, &page("1", 300, false), "2026-11", true);
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
                step(&mut r, &page(&epoch.to_string(), joules, false), "2026-11", false);
                let status = r.status.clone().unwrap();
                proptest::prop_assert!(status.charged_milligrams >= before);
                let booked: i64 = status.charges.iter().map(|c| c.milligrams).sum();
                proptest::prop_assert_eq!(booked, status.charged_milligrams);
                before = status.charged_milligrams;
            }
        }
    }
}
