//! Who is charged: jobs, the pods that no job is charged for, and pods that are gone but
//! have burned.

use super::context::Context;
use super::energy::Pages;
use super::memory::Memory;
use super::objects::{Owner, Progress, Work};
use super::statements::FORGOTTEN_US;
use crate::api::CarbonReservation;
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What decides who pays.
struct Books<'a> {
    /// Reservations by the UID of their workload.
    records: HashMap<&'a str, &'a CarbonReservation>,
    /// Pods that some reservation lists.
    charged: HashSet<&'a str>,
    /// Pods that burned, as the exporters say.
    burned: HashSet<&'a str>,
    /// Jobs, by namespace and UID, that have a record coming.
    open_jobs: HashSet<(&'a str, &'a str)>,
}

impl<'a> Books<'a> {
    fn new(
        jobs: &'a [Arc<Work>],
        reservations: &'a [Arc<CarbonReservation>],
        pages: &'a Pages,
    ) -> Self {
        let statuses = reservations.iter().filter_map(|r| r.status.as_ref());
        let lines = pages.all().flat_map(|(_, page, _)| page.pods.iter());
        let open =
            |job: &&Arc<Work>| job.progress == Progress::Open && !job.author_suspended && !job.held;
        Self {
            records: reservations
                .iter()
                .map(|r| (r.spec.workload.uid.as_str(), r.as_ref()))
                .collect(),
            charged: statuses
                .flat_map(|status| status.pods.iter().map(|pod| pod.uid.as_str()))
                .collect(),
            burned: lines
                .filter(|pod| pod.microjoules > 0)
                .map(|pod| pod.uid.as_str())
                .collect(),
            open_jobs: jobs
                .iter()
                .filter(open)
                .map(|job| (job.namespace.as_str(), job.uid.as_str()))
                .collect(),
        }
    }

    /// A pod is its job's only where that job is there and pays; an owner reference can be
    /// forged, and one that we gated was not made by the cluster's own controllers.
    fn whose(&self, work: &Work) -> Whose {
        if self.records.contains_key(work.uid.as_str()) {
            return Whose::Own;
        }
        if self.charged.contains(work.uid.as_str()) {
            return Whose::Jobs;
        }
        let Owner::Job(job) = &work.owner else {
            return Whose::Own;
        };
        if work.held {
            return Whose::Own;
        }
        let record = self.records.get(job.as_str());
        match record.filter(|r| r.namespace().as_deref() == Some(&work.namespace)) {
            // It was settled without this pod.
            Some(record) if record.is_settled() => {
                let burns = work.progress == Progress::Open || self.burned.contains(&*work.uid);
                if burns { Whose::Nobodys } else { Whose::Jobs }
            }
            Some(_) => Whose::Jobs,
            None if self.open_jobs.contains(&(&work.namespace, job)) => Whose::Jobs,
            None => Whose::Nobodys,
        }
    }
}

/// Who pays for a pod.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Own,
    Jobs,
    /// Its job is unknown, or was settled without it.
    Nobodys,
}

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
    let books = Books::new(&jobs, &reservations, pages);
    memory.see(&pods);
    let own = pods.iter().filter(|pod| match books.whose(pod) {
        Whose::Own => true,
        Whose::Jobs => false,
        Whose::Nobodys => memory.is_nobodys(&pod.uid, micros),
    });
    let mut works: Vec<Work> = own.map(|pod| (**pod).clone()).collect();
    works.extend(jobs.iter().map(|job| (**job).clone()));
    works.extend(gone(context, memory, pages, &pods, &books, micros));
    forget(memory, pages, &pods, &books, &works);
    works
}

/// Pods that burned under a budget and went before any leader made them a reservation:
/// the exporters list them for an hour.
fn gone(
    context: &Context,
    memory: &mut Memory,
    pages: &Pages,
    pods: &[Arc<Work>],
    books: &Books,
    micros: u64,
) -> Vec<Work> {
    let now = context.now();
    let measured = measured_since(context);
    let there: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    let mut found = Vec::new();
    // A node that has been silent for long says nothing new.
    let young = pages
        .all()
        .filter(|(_, _, at)| micros.saturating_sub(*at) < FORGOTTEN_US);
    for (_, page, at) in young {
        for pod in &page.pods {
            let uid = pod.uid.as_str();
            let paid = there.contains(uid)
                || books.charged.contains(uid)
                || books.records.contains_key(uid);
            let waits = memory
                .job_of(uid)
                .and_then(|job| books.records.get(job))
                .is_some_and(|record| !record.is_settled());
            if !pod.is_final || pod.microjoules == 0 || paid || waits {
                continue;
            }
            let ago = pod.ended_milliseconds_ago;
            let ended = ago.and_then(|ago| Pages::moment(at, ago, now, micros));
            let Some(ended) = ended else {
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

/// From when on each namespace is measured.
fn measured_since(context: &Context) -> HashMap<String, Timestamp> {
    let mut since: HashMap<String, Timestamp> = HashMap::new();
    for budget in context.caches.world.budgets.all() {
        if let (Some(at), Some(namespace)) = (budget.measured_since(), budget.namespace()) {
            let first = since.entry(namespace).or_insert(at);
            *first = at.min(*first);
        }
    }
    since
}

fn forget(memory: &mut Memory, pages: &Pages, pods: &[Arc<Work>], books: &Books, works: &[Work]) {
    let listed = pages.all().flat_map(|(_, page, _)| page.pods.iter());
    let pods = pods.iter().map(|pod| pod.uid.as_str());
    memory.keep_only(
        &pods.chain(listed.map(|pod| pod.uid.as_str())).collect(),
        &books
            .records
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
    use crate::cluster::objects::Kind;
    use crate::cluster::wire::Lite;
    use serde_json::json;

    fn pod(gated: bool) -> Work {
        let gates = if gated {
            json!([{ "name": crate::contract::GATE }])
        } else {
            json!([])
        };
        let object: Lite = serde_json::from_value(json!({
            "metadata": { "uid": "p", "namespace": "n", "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job",
                "name": "j", "uid": "u", "controller": true }] },
            "spec": { "schedulingGates": gates,
                "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "1" } } }] },
        }))
        .unwrap();
        Work::of(Kind::Pod, object).unwrap()
    }

    fn record(pods: &[&str], settled: bool) -> CarbonReservation {
        let mut record = reservation(100);
        record.metadata.namespace = Some("n".into());
        let charge = |uid: &&str| PodCharge {
            uid: (*uid).into(),
            ..PodCharge::default()
        };
        record.status = Some(ReservationStatus {
            settled,
            pods: pods.iter().map(charge).collect(),
            ..ReservationStatus::default()
        });
        record
    }

    fn whose(
        pod: &Work,
        jobs: &[(&str, &str)],
        record: Option<&CarbonReservation>,
        burned: &[&str],
    ) -> Whose {
        let books = Books {
            records: record.map(|r| ("u", r)).into_iter().collect(),
            charged: record
                .and_then(|r| r.status.as_ref())
                .map(|s| s.pods.iter().map(|p| p.uid.as_str()).collect())
                .unwrap_or_default(),
            burned: burned.iter().copied().collect(),
            open_jobs: jobs.iter().copied().collect(),
        };
        books.whose(pod)
    }

    #[test]
    fn a_pod_is_its_jobs_where_the_job_is_open_or_has_a_record() {
        assert_eq!(whose(&pod(false), &[("n", "u")], None, &[]), Whose::Jobs);
        let record = record(&[], false);
        assert_eq!(whose(&pod(false), &[], Some(&record), &[]), Whose::Jobs);
    }

    #[test]
    fn a_forged_owner_reference_saves_nobody_from_being_charged() {
        assert_eq!(whose(&pod(false), &[], None, &[]), Whose::Nobodys);
        assert_eq!(whose(&pod(false), &[("m", "u")], None, &[]), Whose::Nobodys);
        assert_eq!(whose(&pod(true), &[("n", "u")], None, &[]), Whose::Own);
        let settled = record(&["another"], true);
        let jobs = [("n", "u")];
        assert_eq!(
            whose(&pod(false), &jobs, Some(&settled), &[]),
            Whose::Nobodys
        );
    }

    #[test]
    fn a_pod_that_a_record_lists_stays_with_it_whatever_becomes_of_its_owner() {
        let record = record(&["p"], false);
        let mut orphan = pod(false);
        orphan.owner = Owner::Nobody;
        assert_eq!(whose(&orphan, &[], Some(&record), &[]), Whose::Jobs);
    }

    #[test]
    fn a_retry_that_burned_and_was_not_settled_is_charged_though_it_has_ended() {
        let settled = record(&["another"], true);
        let mut ended = pod(false);
        ended.progress = Progress::Failed;
        assert_eq!(whose(&ended, &[], Some(&settled), &[]), Whose::Jobs);
        assert_eq!(whose(&ended, &[], Some(&settled), &["p"]), Whose::Nobodys);
    }
}
