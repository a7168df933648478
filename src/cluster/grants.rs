//! The spender. Grants are committed to the budgets' own status in one guarded write
//! each, then become reservations, then release the holds; whatever a crash leaves
//! between is finished or undone from the UIDs in the status.

use super::budget_status::{status_of, write_status};
use super::context::{Context, Failure};
use super::ledger::Ledger;
use super::lift;
use super::objects::Work;
use super::queue::Queue;
use super::records::reservation;
use super::verdicts::{Terms, forecast};
use crate::api::{
    BudgetStatus, CarbonBudget, CarbonReservation, CarbonStatement, GrantInFlight, ReservedFor,
};
use crate::budget::{Candidate, Grant, Need, Oracle, Plan, Reason, plan};
use crate::serve::crash;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Grants that one write of a budget carries at most.
const IN_FLIGHT: usize = 128;

/// What is asked of the ledger.
#[derive(Debug, Default)]
pub(super) struct Question<'a> {
    /// Held work that waits for a grant.
    pub(super) held: Vec<&'a Work>,
    /// Work that runs already, or is to run whatever budgets say, and must be charged, fitting or
    /// not.
    pub(super) running: Vec<&'a Work>,
}

/// What was decided and committed.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) plan: Plan,
    /// Committed masses by UID, then budget.
    pub(super) granted: BTreeMap<String, Vec<ReservedFor>>,
    /// Why starts that were promised were put off, by UID.
    pub(super) put_off: BTreeMap<String, String>,
}

/// What this leader's caches know.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// UIDs of the work that is charged by itself.
    pub(super) works: HashSet<&'a str>,
    /// All pods of the namespace.
    pub(super) pods: Vec<Arc<Work>>,
}

/// The plan for a question against a ledger: pure.
pub(super) fn decide_on(
    namespace: &str,
    terms: &[Terms],
    question: &Question,
    oracle: &Oracle,
    now: Timestamp,
) -> Plan {
    let mut budgets: Vec<_> = terms.iter().map(Terms::budget).collect();
    let needs = |work: &Work| -> Vec<Need> {
        let forecast = forecast(work, oracle);
        terms
            .iter()
            .map(|terms| forecast.need(oracle, terms.policy.quantile))
            .collect()
    };
    let candidates: Vec<Candidate> = question
        .held
        .iter()
        .map(|work| Candidate {
            uid: work.uid.clone(),
            since: work.since,
            needs: needs(work),
        })
        .collect();
    // What runs already has taken its room before anybody is asked.
    let mut adopted = Vec::new();
    for work in &question.running {
        let mut masses = Vec::new();
        for (budget, need) in budgets.iter_mut().zip(needs(work)) {
            let mass = need.mass();
            budget.totals.reserved += mass;
            masses.push((budget.name.clone(), mass));
        }
        adopted.push(Grant {
            uid: work.uid.clone(),
            masses,
            reason: if work.break_glass.is_some() {
                Reason::BreakGlass
            } else {
                Reason::Fits
            },
        });
    }
    let mut plan = plan(namespace, &budgets, &candidates, now);
    plan.grants.splice(0..0, adopted);
    plan
}

/// Decides on fresh figures and commits what is granted to every budget's status. Where
/// one write loses a race nothing is released; the next cycle cleans up.
pub(super) async fn commit(
    context: &Context,
    namespace: &str,
    question: &Question<'_>,
    known: &Known<'_>,
    held: i64,
) -> Result<Committed, Failure> {
    let ledger = Ledger::read(context, namespace).await?;
    let now = context.now();
    // What the watch has not told of yet is made good before anything is granted.
    if misses(context, namespace, &ledger) {
        return Ok(Committed::default());
    }
    let half = ledger.half_committed();
    if !half.is_empty() {
        undo(context, &ledger, &half, held, now).await?;
        return Ok(Committed::default());
    }
    let flying = ledger.flying();
    let open = |work: &&&Work| {
        let known = ledger.has(&work.uid) || flying.contains_key(&work.uid);
        !known && !ledger.lists(&work.uid)
    };
    let question = Question {
        held: question.held.iter().filter(open).copied().collect(),
        running: question.running.iter().filter(open).copied().collect(),
    };
    let (terms, oracle) = (ledger.terms(now), context.oracle());
    let mut plan = decide_on(namespace, &terms, &question, &oracle, now);
    let asked = (&plan, &question);
    let queue = Queue::of(namespace, &ledger, &terms, asked, &oracle, (held, now));
    plan.grants.truncate(IN_FLIGHT.saturating_sub(flying.len()));
    let standing = standing(context, namespace, &flying, known).await?;
    let new = in_flight(&plan, &question);
    let mut granted: BTreeMap<String, Vec<ReservedFor>> = BTreeMap::new();
    let mut put_off = BTreeMap::new();
    for budget in &ledger.budgets {
        let name = budget.name_any();
        let mut granting = ledger.in_flight(budget);
        granting.retain(|grant| standing.contains(&grant.uid));
        granting.extend(new.get(&name).cloned().unwrap_or_default());
        let status = status_of(context, budget, &ledger, &granting, &queue, now);
        put_off.extend(newly_put_off(budget, &status));
        if !new.is_empty() {
            crash::point("before-commit");
        }
        write_status(context, budget, status).await?;
        if !new.is_empty() {
            crash::point("after-commit");
        }
        for grant in granting {
            granted.entry(grant.uid).or_default().push(ReservedFor {
                name: name.clone(),
                milligrams: grant.milligrams,
            });
        }
    }
    Ok(Committed {
        plan,
        granted,
        put_off,
    })
}

/// Promises that a status puts off, by UID, with the reason.
fn newly_put_off(budget: &CarbonBudget, status: &BudgetStatus) -> Vec<(String, String)> {
    let before = budget.status.iter().flat_map(|status| &status.queue);
    let before: HashMap<&str, &str> = before
        .map(|queued| (queued.uid.as_str(), queued.put_off.as_str()))
        .collect();
    let new = status.queue.iter().filter(|queued| {
        let known = before.get(queued.uid.as_str()).copied().unwrap_or_default();
        queued.put_off != known
    });
    new.map(|queued| (queued.uid.clone(), queued.put_off.clone()))
        .collect()
}

/// True where this leader's watches knew of a record or a statement that is gone now.
fn misses(context: &Context, namespace: &str, ledger: &Ledger) -> bool {
    let caches = &context.caches;
    let missing = |record: &CarbonReservation| !ledger.has(&record.spec.workload.uid);
    let gone = |record: &CarbonReservation| {
        record.metadata.namespace.as_deref() == Some(namespace) && missing(record)
    };
    let known = caches.statements.get(&format!("/{namespace}"));
    let statement = |statement: &CarbonStatement| statement.spec.namespace == namespace;
    let known_here = caches.reservations.within(namespace);
    known_here.iter().any(|record| missing(record))
        || caches.reservations.has_removed(gone)
        || caches.statements.has_removed(statement)
        || (known.is_some() && ledger.statement.is_none())
}

/// The plan's grants as each budget's status carries them.
fn in_flight(plan: &Plan, question: &Question) -> HashMap<String, Vec<GrantInFlight>> {
    let asked: HashMap<&str, &Work> = question
        .held
        .iter()
        .chain(&question.running)
        .map(|work| (work.uid.as_str(), *work))
        .collect();
    let mut by_budget: HashMap<String, Vec<GrantInFlight>> = HashMap::new();
    for grant in &plan.grants {
        let Some(work) = asked.get(grant.uid.as_str()) else {
            continue;
        };
        let budgets: Vec<String> = grant.masses.iter().map(|(name, _)| name.clone()).collect();
        for (name, mass) in &grant.masses {
            by_budget
                .entry(name.clone())
                .or_default()
                .push(GrantInFlight {
                    uid: grant.uid.clone(),
                    kind: work.kind.as_str().to_owned(),
                    name: work.name.clone(),
                    milligrams: mass.0,
                    budgets: budgets.clone(),
                });
        }
    }
    by_budget
}

/// Takes back what only some budgets carry. Commits go from the first budget to the last,
/// this from the last to the first, and it changes every one: a leader that is still on
/// its way with such a grant loses its next write, so it never releases what is taken back
/// here.
async fn undo(
    context: &Context,
    ledger: &Ledger,
    half: &HashSet<String>,
    held: i64,
    now: Timestamp,
) -> Result<(), Failure> {
    for budget in ledger.budgets.iter().rev() {
        let mut granting = ledger.in_flight(budget);
        granting.retain(|grant| !half.contains(&grant.uid));
        let queue = Queue::of_held(held);
        let mut status = status_of(context, budget, ledger, &granting, &queue, now);
        status.revision += 1;
        write_status(context, budget, status).await?;
    }
    Ok(())
}

/// UIDs in flight whose object is still there. What another leader granted may not be in
/// this one's cache yet, so absence is believed only of the API server.
async fn standing(
    context: &Context,
    namespace: &str,
    flying: &BTreeMap<String, GrantInFlight>,
    known: &Known<'_>,
) -> Result<HashSet<String>, Failure> {
    let mut standing = HashSet::new();
    for (uid, grant) in flying {
        let mine = known.works.contains(uid.as_str());
        // A pod that turned out to be its job's needs no grant.
        let jobs = !mine && known.pods.iter().any(|pod| pod.uid == *uid);
        if mine || (!jobs && lift::exists(context, namespace, grant).await?) {
            standing.insert(uid.clone());
        }
    }
    Ok(standing)
}

/// Makes a committed grant a reservation, and lifts the hold.
pub(super) async fn fulfil(
    context: &Context,
    work: &Work,
    budgets: &[ReservedFor],
    terms: &[Terms],
    adopted: bool,
) -> Result<(), Failure> {
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), &work.namespace);
    let oracle = context.oracle();
    let forecast = forecast(work, &oracle);
    let reservation = reservation(
        work,
        budgets,
        &forecast,
        terms,
        &oracle,
        adopted,
        context.now(),
    );
    context.check_leading()?;
    crash::point("before-reservation");
    match context
        .call(api.create(&PostParams::default(), &reservation))
        .await
    {
        Ok(_) | Err(Failure::Conflict) => {}
        Err(error) => return Err(error),
    }
    crash::point("after-reservation");
    if work.held {
        lift::lift(context, work, Some(&reservation.name_any())).await?;
        crash::point("after-release");
    }
    Ok(())
}

/// All work by UID: what a grant in flight may still belong to.
pub(super) fn by_uid(works: &[Work]) -> HashMap<&str, &Work> {
    works.iter().map(|work| (work.uid.as_str(), work)).collect()
}
