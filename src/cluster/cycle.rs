//! One cycle of the leader: follow what burns, settle what ended, decide what waits.

use super::budget_status::status_of;
use super::context::{Context, Failure, carry_on, note};
use super::follow::{Round, track};
use super::grants::{Committed, Known, Question, by_uid, commit, decide_on, fulfil};
use super::ledger::Ledger;
use super::memory::Memory;
use super::objects::{Progress, Work};
use super::queue::Queue;
use super::refusals::{
    asks_again, refuse, tell_of_glass, tell_of_pods, tell_put_off, tell_waiting,
};
use super::verdicts::{Terms, strictest};
use super::works::works;
use super::{lift, missing, put_away, upkeep};
use crate::api::{CarbonBudget, CarbonReservation};
use crate::budget::{Mode, Plan, Verdict};
use crate::clock;
use crate::contract as c;
use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

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
    let micros = clock::monotonic_micros();
    memory.leads_since.get_or_insert(micros);
    let mut done = Box::pin(missing::run(context, memory, micros)).await;
    if done.is_ok() {
        done = Box::pin(put_away::run(context, memory, &pages, micros)).await;
    }
    match done {
        Err(Failure::Deposed) => return,
        Err(error) => note("statements", &error),
        Ok(()) => {}
    }
    let works = works(context, memory, &pages, micros);
    let mut by_namespace: HashMap<&str, Vec<Work>> = HashMap::new();
    for work in &works {
        by_namespace
            .entry(&work.namespace)
            .or_default()
            .push(work.clone());
    }
    let round = Round::new(context, memory, &pages, micros);
    for namespace in &namespaces(context, &works) {
        let local = by_namespace.remove(namespace.as_str()).unwrap_or_default();
        if let Err(error) = cycle(context, memory, namespace, &local, &round).await {
            if matches!(error, Failure::Deposed) {
                return;
            }
            note(namespace, &error);
        }
    }
    let laws = &mut memory.laws;
    for done in [laws.catch_up(context).await, laws.flush(context).await] {
        if let Err(error) = done {
            note("laws", &error);
        }
    }
    super::gauges::publish(context, &works);
}

/// Namespaces with a budget, a hold of ours, or a reservation that is not settled.
fn namespaces(context: &Context, works: &[Work]) -> BTreeSet<String> {
    let budgets = context.caches.world.budgets.all();
    let reservations = context.caches.reservations.all();
    let held = works.iter().filter(|work| work.held);
    let open = reservations.iter().filter(|r| !r.is_settled());
    budgets
        .iter()
        .filter_map(|b| b.namespace())
        .chain(held.map(|work| work.namespace.clone()))
        .chain(open.filter_map(|r| r.namespace()))
        .collect()
}

async fn cycle(
    context: &Context,
    memory: &mut Memory,
    namespace: &str,
    works: &[Work],
    round: &Round<'_>,
) -> Result<(), Failure> {
    let mut live: Vec<Arc<CarbonBudget>> = context.caches.world.budgets.within(namespace);
    live.retain(|budget| budget.metadata.deletion_timestamp.is_none());
    track(context, memory, namespace, works, round, &live).await?;
    let terms: Vec<Terms> = live.iter().filter_map(|budget| Terms::of(budget)).collect();
    // Only Enforce ever delays: elsewhere every hold of ours goes. A job may be seen before
    // its budget is, so that there is none is believed only of the API server.
    let held: Vec<&Work> = works.iter().filter(|work| work.held).collect();
    if !held.is_empty()
        && strictest(&terms) != Some(Mode::Enforce)
        && !enforced(context, namespace).await?
    {
        for work in held {
            carry_on(&work.name, lift::lift(context, work, None).await)?;
        }
    }
    if live.is_empty() {
        return Ok(());
    }
    decide(context, memory, namespace, works, &live, &terms).await
}

/// True where the API server knows a budget under Enforce.
async fn enforced(context: &Context, namespace: &str) -> Result<bool, Failure> {
    let ledger = Ledger::read(context, namespace).await?;
    let live = ledger.budgets.iter();
    let live = live.filter(|budget| budget.metadata.deletion_timestamp.is_none());
    let terms: Vec<Terms> = live.filter_map(Terms::of).collect();
    Ok(strictest(&terms) == Some(Mode::Enforce))
}

/// What the ledger is asked, and how many are held.
fn question<'a>(
    works: &'a [Work],
    live: &[Arc<CarbonBudget>],
    terms: &[Terms],
    reserved: &HashSet<&str>,
) -> (Question<'a>, i64) {
    let enforce = strictest(terms) == Some(Mode::Enforce);
    // What ended while nobody led has burned all the same, if it was under a budget then.
    let since: Option<Timestamp> = live.iter().filter_map(|b| b.measured_since()).min();
    let open = |work: &&Work| {
        let last = work.ended.unwrap_or(work.created);
        let counts = work.progress == Progress::Open || since.is_some_and(|at| last >= at);
        counts && !reserved.contains(work.uid.as_str())
    };
    let mut question = Question::default();
    let mut held = 0;
    for work in works.iter().filter(open) {
        if work.break_glass.is_some() && !work.author_suspended {
            question.running.push(work);
        } else if work.held && enforce {
            if asks_again(work, live) {
                question.held.push(work);
            }
            held += 1;
        } else if !work.held && !work.author_suspended {
            question.running.push(work);
        }
    }
    (question, held)
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
    let statement = context.caches.statements.get(&format!("/{namespace}"));
    let put_away = statement.iter().filter_map(|s| s.status.as_ref());
    let reserved: HashSet<&str> = reservations
        .iter()
        .map(|r| r.spec.workload.uid.as_str())
        .chain(put_away.flat_map(|status| status.put_away.iter().map(String::as_str)))
        .collect();
    let (question, held) = if terms.is_empty() {
        // Where no budget makes sense there is nobody to ask.
        (Question::default(), 0)
    } else {
        question(works, live, terms, &reserved)
    };
    // A hold whose grant is persisted, and whose release a crash kept from happening.
    for work in works
        .iter()
        .filter(|work| work.held && reserved.contains(work.uid.as_str()))
    {
        let name = CarbonReservation::name_of(work.kind.as_str(), &work.uid);
        let record = reservations.iter().find(|r| r.name_any() == name);
        if record.is_some_and(|r| i64::from(work.pods) > r.spec.pods) {
            tell_of_pods(context, memory, work).await;
            continue;
        }
        carry_on(&work.name, lift::lift(context, work, Some(&name)).await)?;
    }
    let ledger = Ledger::new(
        live.iter().map(|b| (**b).clone()).collect(),
        reservations.clone(),
        statement.as_deref().cloned(),
    );
    let now = context.now();
    let (fresh, oracle) = (ledger.terms(now), context.oracle());
    let cached = decide_on(namespace, &fresh, &question, &oracle, now);
    let asked = (&cached, &question);
    let queue = Queue::of(namespace, &ledger, &fresh, asked, &oracle, (held, now));
    let stale = ledger.budgets.iter().any(|budget| {
        let before = budget.status.clone().unwrap_or_default();
        before != status_of(context, budget, &ledger, &[], &queue, now)
    });
    let by_uid = by_uid(works);
    if cached.grants.is_empty() && cached.rejections.is_empty() && !stale {
        tell(context, memory, &by_uid, &cached, &queue).await;
        return Ok(());
    }
    let known = Known {
        works: works.iter().map(|work| work.uid.as_str()).collect(),
        pods: context.caches.pods.within(namespace),
    };
    if memory.misses_a_record_of(namespace) {
        // A record is gone, and it is not settled yet why: a ledger without it says too little.
        return Ok(());
    }
    let committed = commit(context, namespace, &question, &known, held).await?;
    release(context, namespace, &by_uid, terms, &committed).await?;
    // A refusal stands, so it too rests on fresh figures.
    for refusal in &committed.plan.rejections {
        if let Some(work) = by_uid.get(refusal.uid.as_str()) {
            let told = refuse(context, work, live, &refusal.verdict).await;
            carry_on(&work.name, told)?;
        }
    }
    let put_off = committed.put_off.iter();
    let put_off = put_off.filter_map(|(uid, why)| Some((*by_uid.get(uid.as_str())?, why)));
    for (work, why) in put_off.take(TOLD_AT_ONCE) {
        tell_put_off(context, work, why).await;
    }
    tell(context, memory, &by_uid, &cached, &queue).await;
    Ok(())
}

/// Grants that are on their way to a release at once: one waits for the API server while others
/// are answered.
const AT_ONCE: usize = 16;

/// Makes what was committed reservations, and lifts the holds.
async fn release(
    context: &Context,
    namespace: &str,
    by_uid: &HashMap<&str, &Work>,
    terms: &[Terms],
    committed: &Committed,
) -> Result<(), Failure> {
    let plan = committed.plan.grants.iter();
    let reasons: HashMap<&str, &str> = plan.map(|g| (g.uid.as_str(), g.reason.as_str())).collect();
    let granted = committed.granted.iter();
    let granted = granted.filter_map(|(uid, masses)| Some((*by_uid.get(uid.as_str())?, masses)));
    let releases = granted.map(|(work, masses)| {
        let adopted = !work.held || work.break_glass.is_some();
        let fulfilled = fulfil(context, work, masses, terms, adopted);
        fulfilled.map(move |done| (work, done)).boxed()
    });
    let releases: Vec<_> = releases.collect();
    let mut releases = stream::iter(releases).buffer_unordered(AT_ONCE);
    while let Some((work, fulfilled)) = releases.next().await {
        let done = fulfilled.is_ok();
        // One that cannot be fulfilled now stays in flight, and keeps no other waiting.
        carry_on(&work.name, fulfilled)?;
        if !done {
            continue;
        }
        if let Some(why) = &work.break_glass {
            tell_of_glass(context, work, why).await;
        }
        let reason = reasons.get(work.uid.as_str()).copied().unwrap_or("Fits");
        let labels = vec![
            ("namespace", namespace.to_owned()),
            ("reason", reason.to_owned()),
        ];
        context.tallies.count(&c::GRANTS, labels);
    }
    Ok(())
}

/// Jobs that are told in one cycle that they wait: an Event is a write, and nobody reads a
/// thousand of them at once.
const TOLD_AT_ONCE: usize = 16;

async fn tell(
    context: &Context,
    memory: &mut Memory,
    by_uid: &HashMap<&str, &Work>,
    plan: &Plan,
    queue: &Queue,
) {
    let untold = plan.waiting.iter().filter_map(|waiting| {
        let work = by_uid.get(waiting.uid.as_str())?;
        let reason = waiting.verdict.reason.as_str();
        let told = memory.has_told(&work.uid, reason);
        (!told).then_some((*work, &waiting.verdict))
    });
    let untold: Vec<(&Work, &Verdict)> = untold.take(TOLD_AT_ONCE).collect();
    for (work, verdict) in untold {
        tell_waiting(context, memory, work, verdict, queue).await;
    }
}
