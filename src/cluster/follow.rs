//! Following what burns: every open reservation is brought up to what the exporters say,
//! and settled once nothing more can come.

use super::context::{Context, Failure, carry_on};
use super::energy::Pages;
use super::learning;
use super::memory::Memory;
use super::objects::{Progress, Work};
use super::tracking::{Seen, Told, follow};
use crate::api::{CarbonBudget, CarbonReservation, ReservationStatus};
use crate::budget::Policy;
use crate::contract as c;
use crate::node::{LedgerPage, PodEnergy};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Drawing down is written this often at most, an end at once.
const WRITE_EVERY_US: u64 = 2_000_000;
/// After an end, the page of a pod's node must be younger than this before a pod that it
/// does not list is taken to have burned nothing.
const SETTLE_US: u64 = 2_500_000;

/// What the exporters and the API server said by this cycle, by pod and job.
pub(super) struct Round<'a> {
    pages: &'a Pages,
    lines: HashMap<&'a str, (&'a LedgerPage, &'a PodEnergy)>,
    /// Pods by job.
    children: HashMap<String, Vec<String>>,
    /// Nodes of the pods that are there.
    nodes: HashMap<String, String>,
    /// Nodes that there are.
    there: HashSet<String>,
    /// µs, monotonic.
    micros: u64,
}

impl<'a> Round<'a> {
    pub(super) fn new(context: &Context, memory: &Memory, pages: &'a Pages, micros: u64) -> Self {
        let lines = pages.all().flat_map(|(_, page, _)| {
            let line = move |pod: &'a PodEnergy| (pod.uid.as_str(), (page.as_ref(), pod));
            page.pods.iter().map(line)
        });
        let children = memory.children().into_iter().map(|(job, pods)| {
            let pods = pods.into_iter().map(str::to_owned).collect();
            (job.to_owned(), pods)
        });
        let pods = context.caches.pods.all();
        let nodes = pods
            .iter()
            .filter_map(|pod| Some((pod.uid.clone(), pod.node.clone()?)));
        let there = context.caches.world.nodes.all();
        Self {
            pages,
            lines: lines.collect(),
            children: children.collect(),
            nodes: nodes.collect(),
            there: there.iter().map(|node| node.name.clone()).collect(),
            micros,
        }
    }

    /// UIDs of a reservation's pods; one with a reservation of its own pays for itself.
    fn pods(&self, reservation: &CarbonReservation, own: &HashSet<String>) -> BTreeSet<String> {
        let uid = &reservation.spec.workload.uid;
        let status = reservation.status.as_ref();
        let known = status.into_iter().flat_map(|s| &s.pods).map(|p| &p.uid);
        let children = self.children.get(uid).into_iter().flatten();
        let mut pods: BTreeSet<String> = children
            .chain(known)
            .filter(|pod| !own.contains(*pod))
            .cloned()
            .collect();
        pods.insert(uid.clone());
        pods
    }

    /// Whether every node that the pods were on has answered since the workload ended.
    fn told(&self, pods: &BTreeSet<String>, status: &ReservationStatus, ended: u64) -> Told {
        if self.micros.saturating_sub(ended) < SETTLE_US {
            return Told::Waiting;
        }
        let seen = pods.iter().filter_map(|pod| self.nodes.get(pod));
        let open = status.pods.iter().filter(|pod| !pod.is_final);
        let nodes: BTreeSet<&String> = seen
            .chain(open.map(|pod| &pod.node))
            .filter(|node| !node.is_empty())
            .collect();
        let mut told = Told::All;
        for node in nodes {
            match self.pages.of(node) {
                Some((page, at)) if page.ready && at >= ended + SETTLE_US / 2 => {}
                None if !self.there.contains(node) => told = Told::Lost,
                _ => return Told::Waiting,
            }
        }
        told
    }
}

/// Brings every open reservation of a namespace up to date.
pub(super) async fn track(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    works: &[Work],
    round: &Round<'_>,
    budgets: &[Arc<CarbonBudget>],
) -> Result<(), Failure> {
    let now = context.now();
    let reservations = context.caches.reservations.within(namespace);
    let own: HashSet<String> = reservations
        .iter()
        .map(|r| r.spec.workload.uid.clone())
        .collect();
    let days = days(budgets, now);
    for reservation in reservations.iter().filter(|r| !r.is_settled()) {
        let uid = &reservation.spec.workload.uid;
        let work = works.iter().find(|work| work.uid == *uid);
        let ended = work.is_none_or(|work| work.progress != Progress::Open);
        let before = reservation.status.clone().unwrap_or_default();
        let pods = round.pods(reservation, &own);
        let told = if ended {
            let ended = memory.ended_at(uid, round.micros);
            round.told(&pods, &before, ended)
        } else {
            Told::Waiting
        };
        let mine = |name: &String| reservation.spec.budgets.iter().any(|b| b.name == *name);
        let seen = Seen {
            pods: pods
                .iter()
                .filter_map(|pod| round.lines.get(pod.as_str()).copied())
                .collect(),
            ended,
            told,
            days: days
                .iter()
                .filter(|(name, _)| mine(name))
                .cloned()
                .collect(),
        };
        let status = follow(reservation, &seen, &now.to_string());
        let written = memory.written.get(uid);
        let due = written.is_none_or(|at| round.micros.saturating_sub(*at) >= WRITE_EVERY_US);
        if status == before || !(status.settled || due) {
            continue;
        }
        let progress = work.map(|work| work.progress);
        let result = write(context, reservation, status, progress, &seen).await;
        if result.is_ok() {
            memory.written.insert(uid.clone(), round.micros);
        }
        carry_on(&reservation.name_any(), result)?;
    }
    Ok(())
}

/// The day that each budget books to now; one whose time zone makes no sense books by UTC.
fn days(budgets: &[Arc<CarbonBudget>], now: Timestamp) -> Vec<(String, String)> {
    let utc = || now.to_zoned(TimeZone::UTC).date();
    let day = |budget: &Arc<CarbonBudget>| {
        let policy = Policy::try_from(&budget.spec);
        let day = policy.map_or_else(|_| utc(), |policy| policy.period.day(now));
        (budget.name_any(), day.to_string())
    };
    budgets.iter().map(day).collect()
}

async fn write(
    context: &Context,
    reservation: &CarbonReservation,
    mut status: ReservationStatus,
    progress: Option<Progress>,
    seen: &Seen<'_>,
) -> Result<(), Failure> {
    if status.settled {
        status.observation =
            Some(learning::learn(context, reservation, &status, progress, &seen.pods).await?);
    }
    context.check_leading()?;
    let namespace = reservation.namespace().unwrap_or_default();
    let before = reservation.status.as_ref();
    let charged = status.charged_milligrams - before.map_or(0, |s| s.charged_milligrams);
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), &namespace);
    let mut written = reservation.clone();
    written.metadata.managed_fields = None;
    written.status = Some(status);
    super::crash::point("before-settle");
    context
        .call(api.replace_status(&reservation.name_any(), &PostParams::default(), &written))
        .await?;
    super::crash::point("after-settle");
    let grams = charged.max(0) as f64 / 1000.0;
    let labels = vec![("namespace", namespace)];
    context.tallies.add(&c::NAMESPACE_CO2, labels, grams);
    Ok(())
}
