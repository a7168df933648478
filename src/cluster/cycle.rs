//! One cycle of the leader: follow what burns, settle what ended, decide what waits.

use super::controller::{Context, Failure};
use super::energy::Pages;
use super::grants::{Question, by_uid, commit, decide_on, fulfil, is_own, status_of};
use super::objects::{Progress, Work};
use super::refusals::{asks_again, refuse, tell_waiting};
use super::tracking::{Seen, follow};
use super::verdicts::{Terms, strictest};
use super::{grants, learning, lift, upkeep};
use crate::api::{CarbonBudget, CarbonReservation, ReservationStatus};
use crate::budget::{Mode, Policy};
use crate::clock;
use crate::contract as c;
use crate::node::{LedgerPage, PodEnergy};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What the leader remembers between cycles; all of it can be lost.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Job of each pod that was ever seen, since pods go before their last joule is told.
    owners: HashMap<String, String>,
    /// µs, monotonic: when a workload was first seen to have ended.
    ended: HashMap<String, u64>,
    /// µs, monotonic: when a reservation's status was last written.
    written: HashMap<String, u64>,
    /// Workloads that were told why they wait.
    pub(super) told: HashSet<String>,
}

/// Drawing down is written this often at most, an end at once.
const WRITE_EVERY_US: u64 = 2_000_000;
/// After an end, every node's page must be younger than this before a pod that it does
/// not list is taken to have burned nothing.
const SETTLE_US: u64 = 2_500_000;

impl Memory {
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Runs one cycle; one namespace's trouble does not keep the others waiting.
pub(super) async fn run(context: &Context, memory: &mut Memory) {
    context.renew_oracle();
    if let Err(error) = upkeep::run(context).await {
        note("upkeep", &error);
    }
    let pages = context
        .pages
        .lock()
        .map(|pages| pages.clone())
        .unwrap_or_default();
    for pod in context.caches.pods.all() {
        if let Some((kind, owner)) = &pod.work.owner
            && kind == "Job"
        {
            memory.owners.insert(pod.work.uid.clone(), owner.clone());
        }
    }
    let works = works(context);
    let mut namespaces: BTreeSet<String> = context
        .caches
        .budgets
        .all()
        .iter()
        .filter_map(|b| b.namespace())
        .collect();
    namespaces.extend(
        works
            .iter()
            .filter(|work| work.held)
            .map(|work| work.namespace.clone()),
    );
    namespaces.extend(
        context
            .caches
            .reservations
            .all()
            .iter()
            .filter(|r| !settled(r))
            .filter_map(|r| r.namespace()),
    );
    for namespace in &namespaces {
        let local: Vec<Work> = works
            .iter()
            .filter(|work| work.namespace == *namespace)
            .cloned()
            .collect();
        if let Err(error) = cycle(context, memory, namespace, &local, &pages).await {
            if matches!(error, Failure::Deposed) {
                return;
            }
            note(namespace, &error);
        }
    }
    super::gauges::publish(context, &works);
}

fn note(what: &str, error: &Failure) {
    match error {
        // Lost races are the design at work.
        Failure::Conflict | Failure::NotFound => {
            tracing::debug!(what, %error, "again in the next cycle");
        }
        _ => {
            tracing::warn!(what, error = %crate::serve::telemetry::chain(error), "again in the next cycle");
        }
    }
}

/// Jobs, and the pods that no job is charged for.
fn works(context: &Context) -> Vec<Work> {
    let jobs = context.caches.jobs.all();
    let pods = context.caches.pods.all();
    let pods = pods.iter().map(|pod| pod.work.clone()).filter(is_own);
    jobs.iter().map(|job| (**job).clone()).chain(pods).collect()
}

pub(super) fn settled(reservation: &CarbonReservation) -> bool {
    reservation
        .status
        .as_ref()
        .is_some_and(|status| status.settled)
}

async fn cycle(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    works: &[Work],
    pages: &Pages,
) -> Result<(), Failure> {
    let budgets: Vec<Arc<CarbonBudget>> = context.caches.budgets.within(namespace);
    let live: Vec<Arc<CarbonBudget>> = budgets
        .iter()
        .filter(|b| b.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    track(context, memory, namespace, works, pages, &live).await?;
    let terms: Vec<Terms> = live.iter().filter_map(|budget| Terms::of(budget)).collect();
    if strictest(&terms) != Some(Mode::Enforce) {
        // Only Enforce ever delays: every hold of ours goes.
        for work in works.iter().filter(|work| work.held) {
            lift::lift(context, work, None).await?;
        }
    }
    if live.is_empty() {
        return Ok(());
    }
    decide(context, memory, namespace, works, &live, &terms).await
}

/// Asks the ledger where something waits, runs uncharged, or stands wrong in a status.
async fn decide(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    works: &[Work],
    live: &[Arc<CarbonBudget>],
    terms: &[Terms],
) -> Result<(), Failure> {
    let reservations = context.caches.reservations.within(namespace);
    let reserved: HashSet<&str> = reservations
        .iter()
        .map(|r| r.spec.workload.uid.as_str())
        .collect();
    let enforce = strictest(terms) == Some(Mode::Enforce);
    // What ended while nobody led has burned all the same, if it began under a budget.
    let since: Option<Timestamp> = live
        .iter()
        .filter_map(|b| b.status.as_ref()?.measured_since.parse().ok())
        .min();
    let open = |work: &&Work| {
        let counts = work.progress == Progress::Open || since.is_some_and(|at| work.created >= at);
        counts && !reserved.contains(work.uid.as_str())
    };
    let mut question = Question::default();
    let mut held = 0;
    for work in works.iter().filter(open) {
        if work.held && enforce {
            if asks_again(work, live) {
                question.held.push(work);
            }
            held += 1;
        } else if !work.held && !work.author_suspended {
            question.running.push(work);
        }
    }
    // A hold whose grant is persisted, and whose release a crash kept from happening.
    for work in works
        .iter()
        .filter(|work| work.held && reserved.contains(work.uid.as_str()))
    {
        let name = CarbonReservation::name_of(work.kind.as_str(), &work.uid);
        lift::lift(context, work, Some(&name)).await?;
    }
    let ledger = grants::Ledger {
        budgets: live.iter().map(|b| (**b).clone()).collect(),
        reservations: reservations.iter().map(|r| (**r).clone()).collect(),
    };
    let now = context.now();
    let cached = decide_on(
        namespace,
        &ledger.terms(now),
        &question,
        &context.oracle(),
        now,
    );
    let stale = ledger.budgets.iter().any(|budget| {
        let before = budget.status.clone().unwrap_or_default();
        before != status_of(context, budget, &ledger, &[], held, now)
    });
    for waiting in &cached.waiting {
        if let Some(work) = works.iter().find(|work| work.uid == waiting.uid) {
            tell_waiting(context, memory, work, &waiting.verdict).await;
        }
    }
    if cached.grants.is_empty() && cached.rejections.is_empty() && !stale {
        return Ok(());
    }
    let known: HashSet<String> = works.iter().map(|work| work.uid.clone()).collect();
    let committed = commit(context, namespace, &question, &known, held).await?;
    let by_uid = by_uid(works);
    for (uid, masses) in &committed.granted {
        let Some(work) = by_uid.get(uid.as_str()) else {
            continue;
        };
        fulfil(context, work, masses, terms, !work.held).await?;
        let reason = committed
            .plan
            .grants
            .iter()
            .find(|g| g.uid == *uid)
            .map_or("Fits", |g| g.reason.as_str());
        let labels = vec![
            ("namespace", namespace.to_owned()),
            ("reason", reason.to_owned()),
        ];
        context.tallies.count(&c::GRANTS, labels);
    }
    // A refusal stands, so it too rests on fresh figures.
    for refusal in &committed.plan.rejections {
        if let Some(work) = by_uid.get(refusal.uid.as_str()) {
            // One that cannot be told must not keep the others waiting.
            if let Err(error) = refuse(context, work, live, &refusal.verdict).await {
                note(namespace, &error);
            }
        }
    }
    Ok(())
}

/// Brings every open reservation up to what the exporters say.
async fn track(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    works: &[Work],
    pages: &Pages,
    budgets: &[Arc<CarbonBudget>],
) -> Result<(), Failure> {
    let now = context.now();
    let micros = clock::monotonic_micros();
    let buckets: Vec<(String, String)> = budgets
        .iter()
        .filter_map(|b| {
            Some((
                b.name_any(),
                Policy::try_from(&b.spec).ok()?.period.bucket(now),
            ))
        })
        .collect();
    for reservation in context.caches.reservations.within(namespace) {
        if settled(&reservation) {
            continue;
        }
        let uid = reservation.spec.workload.uid.clone();
        let work = works.iter().find(|work| work.uid == uid);
        let ended = work.is_none_or(|work| work.progress != Progress::Open);
        let pods = pods_of(&reservation, memory, pages);
        let complete = ended && complete(context, memory, &reservation, pages, micros);
        let mine: Vec<(String, String)> = buckets
            .iter()
            .filter(|(name, _)| {
                reservation
                    .spec
                    .budgets
                    .iter()
                    .any(|part| part.name == *name)
            })
            .cloned()
            .collect();
        let seen = Seen {
            pods,
            ended,
            complete,
            buckets: mine,
        };
        let status = follow(&reservation, &seen, &now.to_string());
        let before = reservation.status.clone().unwrap_or_default();
        let due = memory
            .written
            .get(&uid)
            .is_none_or(|at| micros.saturating_sub(*at) >= WRITE_EVERY_US);
        if status == before || !(status.settled || due) {
            continue;
        }
        let progress = work.map(|work| work.progress);
        write(context, namespace, &reservation, status, progress, &seen).await?;
        memory.written.insert(uid, micros);
    }
    Ok(())
}

async fn write(
    context: &Context,
    namespace: &str,
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
    let charged = status.charged_milligrams
        - reservation
            .status
            .clone()
            .unwrap_or_default()
            .charged_milligrams;
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), namespace);
    let mut written = reservation.clone();
    written.metadata.managed_fields = None;
    written.status = Some(status);
    super::crash::point("before-settle");
    context
        .call(api.replace_status(&reservation.name_any(), &PostParams::default(), &written))
        .await?;
    super::crash::point("after-settle");
    let labels = vec![("namespace", namespace.to_owned())];
    context
        .tallies
        .add(&c::NAMESPACE_CO2, labels, charged.max(0) as f64 / 1000.0);
    Ok(())
}

/// The lines of the pages that belong to a reservation.
fn pods_of<'a>(
    reservation: &CarbonReservation,
    memory: &Memory,
    pages: &'a Pages,
) -> Vec<(&'a LedgerPage, &'a PodEnergy)> {
    let workload = &reservation.spec.workload;
    let status = reservation.status.clone().unwrap_or_default();
    let belongs = |pod: &PodEnergy| {
        pod.uid == workload.uid
            || memory.owners.get(&pod.uid) == Some(&workload.uid)
            || status.pods.iter().any(|known| known.uid == pod.uid)
    };
    pages
        .all()
        .flat_map(|(_, page, _)| page.pods.iter().map(move |pod| (page.as_ref(), pod)))
        .filter(|(_, pod)| belongs(pod))
        .collect()
}

/// True once every node that the workload's pods were on has answered since it ended.
fn complete(
    context: &Context,
    memory: &mut Memory,
    reservation: &CarbonReservation,
    pages: &Pages,
    now: u64,
) -> bool {
    let uid = &reservation.spec.workload.uid;
    let ended = *memory.ended.entry(uid.clone()).or_insert(now);
    if now.saturating_sub(ended) < SETTLE_US {
        return false;
    }
    let pods = context.caches.pods.all();
    let own = |work: &Work| {
        work.uid == *uid || work.owner.as_ref().is_some_and(|(_, owner)| owner == uid)
    };
    let on_nodes: BTreeSet<&str> = pods
        .iter()
        .filter(|pod| own(&pod.work))
        .filter_map(|pod| pod.node.as_deref())
        .collect();
    let known = reservation.status.clone().unwrap_or_default().pods;
    let open: Vec<&str> = known
        .iter()
        .filter(|pod| !pod.is_final)
        .map(|pod| pod.uid.as_str())
        .collect();
    let fresh = |at: u64| at >= ended.saturating_add(SETTLE_US / 2);
    let answered = |node: &&str| {
        pages
            .of(node)
            .is_some_and(|(page, at)| page.ready && fresh(at))
    };
    // A pod whose exporter is away stays charged at what was set aside.
    let heard = open.is_empty() || pages.all().all(|(_, page, at)| page.ready && fresh(at));
    on_nodes.iter().all(answered) && heard
}
