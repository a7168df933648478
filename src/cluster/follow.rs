//! Following what burns: every open reservation is brought up to what the exporters say,
//! and settled once nothing more can come.

use super::context::{Context, Failure, carry_on};
use super::energy::Pages;
use super::lawbook::LawBook;
use super::learning;
use super::ledger::listed_elsewhere;
use super::memory::{Drawn, Memory};
use super::objects::{Kind, Progress, Work};
use super::overrun::{act, is_stopped, wish};
use super::tracking::{Seen, Told, follow};
use super::verdicts::Terms;
use crate::api::{CarbonBudget, CarbonReservation, ReservationStatus};
use crate::budget::Policy;
use crate::contract as c;
use crate::node::{LedgerPage, PodEnergy};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Drawing down is written this often at most, and more seldom where much runs: so much apart for
/// every job that is open, which is fifty writes a second in all. An end is written at once.
const WRITE_EVERY_US: u64 = 2_000_000;
const WRITE_APART_US: u64 = 20_000;
/// After an end, the page of a pod's node must be younger than this before a pod that it
/// does not list is taken to have burned nothing.
const SETTLE_US: u64 = 2_500_000;
/// A node that has not answered for this long after the end is not waited for any more.
const PATIENCE_US: u64 = 600_000_000;

/// What the exporters and the API server said by this cycle, by pod and job.
pub(super) struct Round<'a> {
    pages: &'a Pages,
    lines: HashMap<&'a str, (&'a LedgerPage, &'a PodEnergy)>,
    /// Pods by job and namespace.
    children: HashMap<(String, String), Vec<String>>,
    /// Nodes of the pods that were seen.
    nodes: HashMap<String, String>,
    /// Images that pods say they made.
    images: HashMap<String, i64>,
    /// Nodes that there are.
    there: HashSet<String>,
    now: Timestamp,
    /// µs, monotonic.
    micros: u64,
    /// How far writes of one record that is drawn down lie apart, µs.
    write_every: u64,
}

impl<'a> Round<'a> {
    pub(super) fn new(context: &Context, memory: &Memory, pages: &'a Pages, micros: u64) -> Self {
        let young = |at: u64| micros.saturating_sub(at) < PATIENCE_US;
        let lines = pages.all().filter(|(_, _, at)| young(*at));
        let lines = lines.flat_map(|(_, page, _)| {
            let line = move |pod: &'a PodEnergy| (pod.uid.as_str(), (page.as_ref(), pod));
            page.pods.iter().map(line)
        });
        let mut children: HashMap<(String, String), Vec<String>> = HashMap::new();
        let (mut nodes, mut images) = (HashMap::new(), HashMap::new());
        for (uid, pod) in memory.pods() {
            if let Some(job) = &pod.job {
                let of = (pod.namespace.clone(), job.clone());
                children.entry(of).or_default().push(uid.clone());
            }
            if let Some(made) = pod.images {
                images.insert(uid.clone(), made);
            }
            if let Some(node) = &pod.node {
                nodes.insert(uid.clone(), node.clone());
            }
        }
        let there = context.caches.world.nodes.all();
        let records = context.caches.reservations.all();
        let open = records.iter().filter(|r| !r.is_settled()).count() as u64;
        Self {
            pages,
            lines: lines.collect(),
            children,
            nodes,
            images,
            there: there.iter().map(|node| node.name.clone()).collect(),
            now: context.now(),
            micros,
            write_every: WRITE_EVERY_US.max(open * WRITE_APART_US),
        }
    }

    /// UIDs of a reservation's pods; one with a reservation of its own pays for itself.
    fn pods(&self, reservation: &CarbonReservation, own: &HashSet<String>) -> BTreeSet<String> {
        let workload = &reservation.spec.workload;
        let of = (
            reservation.namespace().unwrap_or_default(),
            workload.uid.clone(),
        );
        let status = reservation.status.as_ref();
        let known = status.into_iter().flat_map(|s| &s.pods).map(|p| &p.uid);
        let children = self.children.get(&of).into_iter().flatten();
        let children = children.filter(|pod| !own.contains(*pod));
        // What it lists it keeps, whatever another leader made of it meanwhile.
        let mut pods: BTreeSet<String> = children.chain(known).cloned().collect();
        if workload.kind == Kind::Pod.as_str() {
            pods.insert(workload.uid.clone());
        }
        pods
    }

    /// What is to be waited for since the workload ended: of every pod that no page lists as
    /// ended, the word of its node.
    fn told(&self, pods: &BTreeSet<String>, reservation: &CarbonReservation, ended: u64) -> Told {
        let waited = self.micros.saturating_sub(ended);
        if waited < SETTLE_US {
            return Told::Waiting;
        }
        let mut told = Told::All;
        let status = reservation.status.as_ref();
        for pod in pods
            .iter()
            .filter(|pod| !self.lines.contains_key(pod.as_str()))
        {
            let record = status.and_then(|s| s.pods.iter().find(|known| known.uid == *pod));
            if record.is_some_and(|record| record.is_final) {
                continue;
            }
            let node = record.map(|record| &record.node);
            // One that was never bound to a node has burned nothing.
            let Some(node) = node.or_else(|| self.nodes.get(pod)) else {
                continue;
            };
            match self.pages.of(node) {
                Some((page, at)) if page.ready && at >= ended + SETTLE_US / 2 => {
                    if record.is_some() || !self.watched_all(page, at, reservation) {
                        told = Told::Lost;
                    }
                }
                None if !self.there.contains(node) => told = Told::Lost,
                _ if waited >= PATIENCE_US => told = Told::Lost,
                _ => return Told::Waiting,
            }
        }
        told
    }

    /// True where an exporter has watched its GPUs since before a reservation was made: only
    /// then does a pod that it does not list have burned nothing.
    fn watched_all(&self, page: &LedgerPage, at: u64, reservation: &CarbonReservation) -> bool {
        let made = reservation.metadata.creation_timestamp.as_ref();
        let since = self.ago(at, page.watched_milliseconds);
        // Both are read of clocks that may differ by a little.
        let slack = SignedDuration::from_secs(2);
        let all = made
            .zip(since)
            .is_some_and(|(made, since)| since <= made.0 + slack);
        all && !page.gpus.is_empty()
    }

    fn ago(&self, at: u64, milliseconds: u64) -> Option<Timestamp> {
        Pages::moment(at, milliseconds, self.now, self.micros)
    }

    /// Pods that held a GPU before anything was measured here.
    fn older(&self, pods: &BTreeSet<String>, measured: Option<Timestamp>) -> Vec<String> {
        let Some(measured) = measured else {
            return Vec::new();
        };
        let held_before = |pod: &&String| {
            let line = self.lines.get(pod.as_str());
            let since = line.and_then(|(page, line)| {
                let (_, at) = self.pages.of(&page.node)?;
                // An exporter of before says it by two figures.
                let ended = line.ended_milliseconds_ago.unwrap_or(0);
                let came = line.came_milliseconds_ago;
                self.ago(at, came.unwrap_or(line.held_milliseconds + ended))
            });
            since.is_some_and(|since| since < measured)
        };
        pods.iter().filter(held_before).cloned().collect()
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
    let reservations = context.caches.reservations.within(namespace);
    let own: HashSet<String> = reservations
        .iter()
        .map(|r| r.spec.workload.uid.clone())
        .collect();
    let listed = listed_elsewhere(reservations.iter().map(AsRef::as_ref));
    let terms: Vec<Terms> = budgets
        .iter()
        .filter_map(|budget| Terms::of(budget))
        .collect();
    let days = days(budgets, round.now);
    let measured = budgets.iter().filter_map(|b| b.measured_since()).min();
    let works: HashMap<&str, &Work> = works.iter().map(|work| (work.uid.as_str(), work)).collect();
    for cached in reservations.iter().filter(|r| !r.is_settled()) {
        let uid = &cached.spec.workload.uid;
        // What was seen and not written yet was burned on the day that it was seen.
        let drawn = memory.drawn.get(uid).filter(|drawn| drawn.is_of(cached));
        let mut newest = CarbonReservation::clone(cached);
        if let Some(drawn) = drawn {
            newest.status = Some(drawn.status.clone());
        }
        let reservation = &newest;
        let work = works.get(uid.as_str()).copied();
        // One that was stopped for good ends with its pods.
        let ended = work.is_none_or(|work| work.progress != Progress::Open || is_stopped(work));
        let before = cached.status.clone().unwrap_or_default();
        let pods = round.pods(reservation, &own);
        let told = if ended {
            let ended = memory.ended_at(uid, round.micros);
            round.told(&pods, reservation, ended)
        } else {
            memory.goes_on(uid);
            Told::Waiting
        };
        let is_listed = |pod: &String| {
            let recorded = before.pods.iter().any(|known| known.uid == *pod);
            recorded || round.lines.contains_key(pod.as_str())
        };
        let seen = Seen {
            pods: pods
                .iter()
                .filter_map(|pod| round.lines.get(pod.as_str()).copied())
                .collect(),
            ended,
            told,
            listed: pods.iter().all(is_listed),
            older: if reservation.spec.adopted {
                round.older(&pods, measured)
            } else {
                Vec::new()
            },
            days: days.clone(),
            images: pods
                .iter()
                .filter_map(|pod| Some((pod.clone(), *round.images.get(pod)?)))
                .collect(),
        };
        let seen = if listed.contains(uid.as_str()) {
            // Its job's record has it: here is nothing to charge.
            Seen {
                pods: Vec::new(),
                ended: true,
                told: Told::All,
                ..seen
            }
        } else {
            seen
        };
        let status = follow(reservation, &seen, &round.now.to_string());
        // What runs by break-glass runs on.
        let runs = work.filter(|work| {
            !ended && !work.held && !work.author_suspended && work.break_glass.is_none()
        });
        let wish = runs.and_then(|work| Some((work, wish(reservation, &status, &terms)?)));
        let written = memory.written.get(uid);
        let due = written.is_none_or(|at| round.micros.saturating_sub(*at) >= round.write_every);
        let stops = wish.as_ref().is_some_and(|(work, wish)| wish.stops(work));
        if status != before && (status.settled || due || stops) {
            let laws = &mut memory.laws;
            let result = write(context, laws, cached, status, work, &seen).await;
            if result.is_err() {
                carry_on(&cached.name_any(), result)?;
                continue;
            }
            memory.written.insert(uid.clone(), round.micros);
        } else if status != before {
            memory.drawn.insert(uid.clone(), Drawn::of(cached, status));
        }
        // What it is stopped for is in its record by now.
        if let Some((work, wish)) = wish {
            let done = act(context, memory, work, budgets, &wish).await;
            carry_on(&work.name, done)?;
        }
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
    laws: &mut LawBook,
    reservation: &CarbonReservation,
    mut status: ReservationStatus,
    work: Option<&Work>,
    seen: &Seen<'_>,
) -> Result<(), Failure> {
    let mut lesson = None;
    if status.settled {
        let learn = learning::learn(context, laws, reservation, &mut status, work, &seen.pods);
        lesson = Box::pin(learn).await?;
    }
    context.check_leading()?;
    let namespace = reservation.namespace().unwrap_or_default();
    let before = reservation.status.as_ref();
    let charged = status.charged_milligrams - before.map_or(0, |s| s.charged_milligrams);
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), &namespace);
    let mut written = reservation.clone();
    written.metadata.managed_fields = None;
    written.status = Some(status);
    crate::serve::crash::point("before-settle");
    let params = PostParams::default();
    let done = context
        .call(api.replace_status(&reservation.name_any(), &params, &written))
        .await;
    if matches!(done, Err(Failure::Late | Failure::Api(_)))
        && let Some(lesson) = lesson.take()
    {
        lesson.unheard(laws);
    }
    done?;
    crate::serve::crash::point("after-settle");
    if let Some(lesson) = lesson {
        learning::learnt(context, laws, reservation, lesson).await;
    }
    let grams = charged.max(0) as f64 / 1000.0;
    let labels = vec![("namespace", namespace)];
    context.tallies.add(&c::NAMESPACE_CO2, labels, grams);
    Ok(())
}
