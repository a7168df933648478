//! Who is charged: jobs, the pods that no job is charged for, and pods that are gone but
//! have burned.

use super::context::Context;
use super::energy::Pages;
use super::memory::Memory;
use super::objects::{Owner, Progress, Work};
use crate::api::CarbonReservation;
use crate::node::PodEnergy;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Reservations by the UID of their workload.
type Records<'a> = HashMap<&'a str, &'a CarbonReservation>;

/// All work that is charged by itself.
pub(super) fn works(
    context: &Context,
    memory: &mut Memory,
    pages: &Pages,
    micros: u64,
) -> Vec<Work> {
    let caches = &context.caches;
    let (jobs, pods) = (caches.jobs.all(), caches.pods.all());
    let reservations = caches.reservations.all();
    let records: Records = reservations
        .iter()
        .map(|r| (r.spec.workload.uid.as_str(), r.as_ref()))
        .collect();
    memory.see(&pods);
    let known: HashSet<&str> = jobs.iter().map(|job| job.uid.as_str()).collect();
    let own = pods
        .iter()
        .filter(|pod| match whose(pod, &known, &records) {
            Whose::Own => true,
            Whose::Jobs => false,
            Whose::Nobodys => memory.is_nobodys(&pod.uid, micros),
        });
    let mut works: Vec<Work> = own.map(|pod| (**pod).clone()).collect();
    works.extend(jobs.iter().map(|job| (**job).clone()));
    works.extend(gone(context, memory, pages, &pods, &records, micros));
    forget(memory, pages, &pods, &records, &works);
    works
}

/// Who pays for a pod.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Own,
    Jobs,
    /// Its job is unknown, or was settled without it.
    Nobodys,
}

/// A pod is its job's only where that job is there and pays; an owner reference can be
/// forged, and one that we gated was not made by the cluster's own controllers.
fn whose(work: &Work, jobs: &HashSet<&str>, records: &Records) -> Whose {
    let Owner::Job(job) = &work.owner else {
        return Whose::Own;
    };
    if work.held || records.contains_key(work.uid.as_str()) {
        return Whose::Own;
    }
    match records.get(job.as_str()) {
        Some(record) if misses(record, &work.uid) && work.progress == Progress::Open => {
            Whose::Nobodys
        }
        Some(_) => Whose::Jobs,
        None if jobs.contains(job.as_str()) => Whose::Jobs,
        None => Whose::Nobodys,
    }
}

/// True where a record was settled without this pod.
fn misses(record: &CarbonReservation, pod: &str) -> bool {
    let status = record.status.as_ref();
    status.is_some_and(|s| s.settled && s.pods.iter().all(|known| known.uid != pod))
}

/// Pods that burned under a budget and went before any leader made them a reservation:
/// the exporters list them for an hour.
fn gone(
    context: &Context,
    memory: &mut Memory,
    pages: &Pages,
    pods: &[Arc<Work>],
    records: &Records,
    micros: u64,
) -> Vec<Work> {
    let now = context.now();
    let measured = measured_since(context);
    let there: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    let charged: HashSet<&str> = records
        .values()
        .filter_map(|record| record.status.as_ref())
        .flat_map(|status| status.pods.iter().map(|pod| pod.uid.as_str()))
        .collect();
    let mut found = Vec::new();
    for (_, page, at) in pages.all() {
        for pod in &page.pods {
            let uid = pod.uid.as_str();
            let paid = there.contains(uid) || charged.contains(uid) || records.contains_key(uid);
            let waits = memory
                .job_of(uid)
                .and_then(|job| records.get(job))
                .is_some_and(|record| !misses(record, uid));
            if !pod.is_final || pod.microjoules == 0 || paid || waits {
                continue;
            }
            let Some(ended) = ended(pod, at, micros, now) else {
                continue;
            };
            let budgeted = measured.get(&pod.namespace).is_some_and(|at| ended >= *at);
            if budgeted && memory.is_nobodys(uid, micros) {
                found.push(Work::gone(&pod.namespace, &pod.pod, uid, ended));
            }
        }
    }
    found
}

/// When a pod ended, by the page's own clock.
fn ended(pod: &PodEnergy, at: u64, micros: u64, now: Timestamp) -> Option<Timestamp> {
    let page = SignedDuration::from_micros(i64::try_from(micros.saturating_sub(at)).ok()?);
    let ago = SignedDuration::from_millis(i64::try_from(pod.ended_milliseconds_ago?).ok()?);
    now.checked_sub(page + ago).ok()
}

/// From when on each namespace is measured.
fn measured_since(context: &Context) -> HashMap<String, Timestamp> {
    let mut since: HashMap<String, Timestamp> = HashMap::new();
    for budget in context.caches.world.budgets.all() {
        let at = budget
            .status
            .as_ref()
            .and_then(|status| status.measured_since.parse().ok());
        if let (Some(at), Some(namespace)) = (at, budget.namespace()) {
            let first = since.entry(namespace).or_insert(at);
            *first = at.min(*first);
        }
    }
    since
}

fn forget(
    memory: &mut Memory,
    pages: &Pages,
    pods: &[Arc<Work>],
    records: &Records,
    works: &[Work],
) {
    let listed = pages.all().flat_map(|(_, page, _)| page.pods.iter());
    let pods = pods.iter().map(|pod| pod.uid.as_str());
    memory.keep_only(
        &pods.chain(listed.map(|pod| pod.uid.as_str())).collect(),
        &records
            .iter()
            .filter(|(_, record)| !record.is_settled())
            .map(|(uid, _)| *uid)
            .collect(),
        &works.iter().map(|work| work.uid.as_str()).collect(),
    );
}

#[cfg(test)]
mod tests {
    use super::super::tracking::tests::reservation;
    use super::*;
    use crate::api::{PodCharge, ReservationStatus};
    use crate::cluster::objects::{Kind, Lite};
    use serde_json::json;

    fn pod(gated: bool) -> Work {
        let gates = if gated {
            json!([{ "name": crate::contract::GATE }])
        } else {
            json!([])
        };
        let object: Lite = serde_json::from_value(json!({
            "metadata": { "uid": "p", "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job",
                "name": "j", "uid": "u", "controller": true }] },
            "spec": { "schedulingGates": gates,
                "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "1" } } }] },
        }))
        .unwrap();
        Work::of(Kind::Pod, &object).unwrap()
    }

    fn settled_with(pods: &[&str]) -> CarbonReservation {
        let mut record = reservation(100);
        let charge = |uid: &&str| PodCharge {
            uid: (*uid).into(),
            ..PodCharge::default()
        };
        record.status = Some(ReservationStatus {
            settled: true,
            pods: pods.iter().map(charge).collect(),
            ..ReservationStatus::default()
        });
        record
    }

    #[test]
    fn a_pod_is_its_jobs_where_the_job_is_there_or_has_a_record() {
        let jobs = HashSet::from(["u"]);
        assert_eq!(whose(&pod(false), &jobs, &Records::new()), Whose::Jobs);
        let record = reservation(1);
        let records = Records::from([("u", &record)]);
        assert_eq!(whose(&pod(false), &HashSet::new(), &records), Whose::Jobs);
    }

    #[test]
    fn a_forged_owner_reference_saves_nobody_from_being_charged() {
        let none = HashSet::new();
        assert_eq!(whose(&pod(false), &none, &Records::new()), Whose::Nobodys);
        let jobs = HashSet::from(["u"]);
        assert_eq!(whose(&pod(true), &jobs, &Records::new()), Whose::Own);
        let record = settled_with(&["another"]);
        let records = Records::from([("u", &record)]);
        assert_eq!(whose(&pod(false), &jobs, &records), Whose::Nobodys);
        let record = settled_with(&["p"]);
        let records = Records::from([("u", &record)]);
        assert_eq!(whose(&pod(false), &jobs, &records), Whose::Jobs);
    }
}
