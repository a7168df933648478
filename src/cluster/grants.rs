//! The spender. Grants are committed to the budgets' own status in one guarded write
//! each, then become reservations, then release the holds; whatever a crash leaves
//! between is finished or undone from the UIDs in the status.

use super::controller::{Context, Failure};
use super::crash;
use super::lift;
use super::objects::{Kind, Work};
use super::verdicts::{Forecast, Terms, explain, forecast};
use crate::api::{
    BudgetStatus, CarbonBudget, CarbonReservation, CarbonReservationSpec, GrantInFlight,
    IntensityUsed, LawUsed, PeriodStatus, ReservedFor, WorkloadRef, set_condition,
};
use crate::budget::{
    Candidate, Entry, Estimate, Grant, Granting, Need, Oracle, Plan, Reason, Totals, decide, plan,
    totals,
};
use crate::carbon::Milligrams;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Grants that one write of a budget carries at most.
const IN_FLIGHT: usize = 128;

/// A namespace's ledger, read fresh from the API server.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) budgets: Vec<CarbonBudget>,
    pub(super) reservations: Vec<CarbonReservation>,
}

impl Ledger {
    /// Reads a namespace's budgets and then its reservations: a reservation missing here
    /// is still among the budgets' grants in flight, so no grant is overlooked.
    pub(super) async fn read(context: &Context, namespace: &str) -> Result<Self, Failure> {
        let budgets: Api<CarbonBudget> = Api::namespaced(context.client.clone(), namespace);
        let reservations: Api<CarbonReservation> =
            Api::namespaced(context.client.clone(), namespace);
        let everything = ListParams::default();
        let mut budgets = context.call(budgets.list(&everything)).await?.items;
        budgets.sort_by_key(ResourceExt::name_any);
        let reservations = context.call(reservations.list(&everything)).await?.items;
        Ok(Self {
            budgets,
            reservations,
        })
    }

    fn has(&self, uid: &str) -> bool {
        self.reservations.iter().any(|r| r.spec.workload.uid == uid)
    }

    pub(super) fn entries(&self, budget: &str) -> Vec<Entry> {
        self.reservations
            .iter()
            .filter_map(|r| r.entry(budget))
            .collect()
    }

    /// Grants of a budget that have no reservation yet.
    fn in_flight(&self, budget: &CarbonBudget) -> Vec<GrantInFlight> {
        let status = budget.status.clone().unwrap_or_default();
        status
            .granting
            .into_iter()
            .filter(|grant| !self.has(&grant.uid))
            .collect()
    }

    /// The budgets that make sense, with totals from these very objects.
    pub(super) fn terms(&self, now: Timestamp) -> Vec<Terms> {
        self.budgets
            .iter()
            .filter_map(|budget| {
                let terms = Terms::of(budget)?;
                let granting: Vec<Granting> =
                    self.in_flight(budget).iter().map(Granting::from).collect();
                let entries = self.entries(&terms.name);
                let policy = &terms.policy;
                let totals = totals(policy.limit, &policy.period, &entries, &granting, now);
                Some(Terms { totals, ..terms })
            })
            .collect()
    }
}

/// What is asked of the ledger.
#[derive(Debug, Default)]
pub(super) struct Question<'a> {
    /// Held work that waits for a grant.
    pub(super) held: Vec<&'a Work>,
    /// Work that runs already and must be charged, fitting or not.
    pub(super) running: Vec<&'a Work>,
}

/// What was decided and committed.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) plan: Plan,
    /// Committed masses by UID, then budget.
    pub(super) granted: BTreeMap<String, Vec<ReservedFor>>,
}

/// The plan for a question against a ledger: pure.
pub(super) fn decide_on(
    namespace: &str,
    terms: &[Terms],
    question: &Question,
    oracle: &Oracle,
    now: Timestamp,
) -> Plan {
    let budgets: Vec<_> = terms.iter().map(Terms::budget).collect();
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
            created: work.created,
            needs: needs(work),
        })
        .collect();
    let mut plan = plan(namespace, &budgets, &candidates, now);
    for work in &question.running {
        let masses = terms
            .iter()
            .zip(needs(work))
            .map(|(terms, need)| match need {
                Need::Known(mass) => (terms.name.clone(), mass),
                Need::Unknown(_) => (terms.name.clone(), Milligrams(0)),
            })
            .collect();
        plan.grants.push(Grant {
            uid: work.uid.clone(),
            masses,
            reason: Reason::Fits,
        });
    }
    plan.grants.truncate(IN_FLIGHT);
    plan
}

/// Decides on fresh figures and commits what is granted to every budget's status. Where
/// one write loses a race nothing is released; the next cycle cleans up.
pub(super) async fn commit(
    context: &Context,
    namespace: &str,
    question: &Question<'_>,
    known: &HashSet<String>,
    held: i64,
) -> Result<Committed, Failure> {
    let ledger = Ledger::read(context, namespace).await?;
    let now = context.now();
    let oracle = context.oracle();
    let terms = ledger.terms(now);
    let flying: BTreeSet<String> = ledger
        .budgets
        .iter()
        .flat_map(|b| ledger.in_flight(b))
        .map(|grant| grant.uid)
        .collect();
    let open = |work: &&&Work| !ledger.has(&work.uid) && !flying.contains(&work.uid);
    let question = Question {
        held: question.held.iter().filter(open).copied().collect(),
        running: question.running.iter().filter(open).copied().collect(),
    };
    let plan = decide_on(namespace, &terms, &question, &oracle, now);
    let asked: HashMap<&str, &Work> = question
        .held
        .iter()
        .chain(&question.running)
        .map(|work| (work.uid.as_str(), *work))
        .collect();
    let standing = standing(context, namespace, &ledger, &terms, known).await?;
    let mut granted: BTreeMap<String, Vec<ReservedFor>> = BTreeMap::new();
    for budget in &ledger.budgets {
        let name = budget.name_any();
        let mut granting = ledger.in_flight(budget);
        granting.retain(|grant| standing.contains(&grant.uid));
        for grant in &plan.grants {
            if let (Some((_, mass)), Some(work)) = (
                grant.masses.iter().find(|(budget, _)| *budget == name),
                asked.get(grant.uid.as_str()),
            ) {
                granting.push(GrantInFlight {
                    uid: grant.uid.clone(),
                    kind: work.kind.as_str().to_owned(),
                    name: work.name.clone(),
                    milligrams: mass.0,
                });
            }
        }
        let status = status_of(context, budget, &ledger, &granting, held, now);
        let grants = !plan.grants.is_empty();
        if grants {
            crash::point("before-commit");
        }
        write_status(context, budget, status).await?;
        if grants {
            crash::point("after-commit");
        }
        for grant in granting {
            granted.entry(grant.uid).or_default().push(ReservedFor {
                name: name.clone(),
                milligrams: grant.milligrams,
            });
        }
    }
    Ok(Committed { plan, granted })
}

/// UIDs in flight whose grant stands: every budget has committed it, and its object is
/// still there. What another leader granted may not be in this one's cache yet, so absence
/// is believed only of the API server.
async fn standing(
    context: &Context,
    namespace: &str,
    ledger: &Ledger,
    terms: &[Terms],
    known: &HashSet<String>,
) -> Result<HashSet<String>, Failure> {
    let mut committed: HashMap<String, (GrantInFlight, usize)> = HashMap::new();
    for budget in &ledger.budgets {
        for grant in ledger.in_flight(budget) {
            committed.entry(grant.uid.clone()).or_insert((grant, 0)).1 += 1;
        }
    }
    let mut standing = HashSet::new();
    for (uid, (grant, budgets)) in committed {
        let whole = budgets == terms.len();
        if whole && (known.contains(&uid) || lift::exists(context, namespace, &grant).await?) {
            standing.insert(uid);
        }
    }
    Ok(standing)
}

/// The status that a budget should have: a pure function of the ledger.
pub(super) fn status_of(
    context: &Context,
    budget: &CarbonBudget,
    ledger: &Ledger,
    granting: &[GrantInFlight],
    held: i64,
    now: Timestamp,
) -> BudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.observed_generation = budget.metadata.generation.unwrap_or(0);
    status.held_jobs = held;
    status.lease_epoch = context.epoch();
    if status.measured_since.is_empty() {
        status.measured_since = now.to_string();
    }
    let condition = |kind: &str, yes: bool, reason: &str, message: String| {
        context.condition(kind, yes, reason, message, budget.metadata.generation)
    };
    let terms = match crate::budget::Policy::try_from(&budget.spec) {
        Ok(policy) => policy,
        Err(error) => {
            status.granting.clear();
            set_condition(
                &mut status.conditions,
                condition("Ready", false, "InvalidSpec", error.to_string()),
            );
            return status;
        }
    };
    let flying: Vec<Granting> = granting.iter().map(Granting::from).collect();
    let sum = totals(
        terms.limit,
        &terms.period,
        &ledger.entries(&budget.name_any()),
        &flying,
        now,
    );
    let span = terms.period.at(now);
    status.period = PeriodStatus {
        id: span.id,
        start: span.start.to_string(),
        end: span.end.to_string(),
    };
    figures(&mut status, &sum);
    status.granting = granting.to_vec();
    let spent = sum.consumed >= sum.limit;
    let near = sum.remaining().0 < sum.limit.0 / 10;
    let conditions = &mut status.conditions;
    set_condition(
        conditions,
        condition("Ready", true, "Accounted", "the ledger is kept".to_owned()),
    );
    set_condition(
        conditions,
        condition(
            "Exceeded",
            spent,
            if spent { "LimitReached" } else { "WithinLimit" },
            format!("{} of {} used", sum.consumed, sum.limit),
        ),
    );
    set_condition(
        conditions,
        condition(
            "NearLimit",
            near,
            if near { "LittleLeft" } else { "RoomLeft" },
            format!("{} of {} can be granted", sum.remaining(), sum.limit),
        ),
    );
    status
}

fn figures(status: &mut BudgetStatus, sum: &Totals) {
    status.limit_milligrams = sum.limit.0;
    status.consumed_milligrams = sum.consumed.0;
    status.reserved_milligrams = sum.reserved.0;
    status.remaining_milligrams = sum.remaining().0;
    status.refunded_milligrams = sum.refunded.0;
    status.overrun_milligrams = sum.overrun.0;
    status.used = sum.consumed.to_string();
    status.reserved = sum.reserved.to_string();
    status.remaining = sum.remaining().to_string();
}

/// The guarded write: the object's resourceVersion, and no leader older than the last.
async fn write_status(
    context: &Context,
    budget: &CarbonBudget,
    status: BudgetStatus,
) -> Result<(), Failure> {
    let before = budget.status.clone().unwrap_or_default();
    if before.lease_epoch > context.epoch() {
        return Err(Failure::Deposed);
    }
    // A new leader writes every budget once: a write of the one before then loses its race.
    if before == status {
        return Ok(());
    }
    context.check_leading()?;
    let api: Api<CarbonBudget> = Api::namespaced(
        context.client.clone(),
        &budget.namespace().unwrap_or_default(),
    );
    let mut written = budget.clone();
    written.metadata.managed_fields = None;
    written.status = Some(status);
    context
        .call(api.replace_status(&budget.name_any(), &PostParams::default(), &written))
        .await?;
    Ok(())
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

fn reservation(
    work: &Work,
    budgets: &[ReservedFor],
    forecast: &Forecast,
    terms: &[Terms],
    oracle: &Oracle,
    adopted: bool,
    now: Timestamp,
) -> CarbonReservation {
    let quantile = terms.iter().map(|t| t.policy.quantile).fold(0.5, f64::max);
    let estimate = forecast.estimate(oracle, quantile).ok();
    let verdict = terms.first().map_or(String::new(), |terms| {
        let need = forecast.need(oracle, terms.policy.quantile);
        let name = format!("{}/{}", work.namespace, terms.name);
        let verdict = decide(
            &name,
            &terms.policy,
            &terms.totals,
            need,
            SignedDuration::ZERO,
            now,
        );
        explain(&verdict, forecast, oracle)
    });
    let (intensity, pue) = estimate.as_ref().map_or_else(
        || oracle.fallback.clone(),
        |e| (e.intensity.clone(), e.pue.clone()),
    );
    let mut reservation = CarbonReservation::new(
        &CarbonReservation::name_of(work.kind.as_str(), &work.uid),
        CarbonReservationSpec {
            workload: WorkloadRef {
                kind: work.kind.as_str().to_owned(),
                name: work.name.clone(),
                uid: work.uid.clone(),
            },
            budgets: budgets.to_vec(),
            reserved_milligrams: budgets
                .iter()
                .map(|part| part.milligrams)
                .max()
                .unwrap_or(0),
            predicted_millijoules: estimate
                .as_ref()
                .map_or(0, |e| whole(e.prediction.median.0 * 1000.0)),
            predicted_uncertainty_permille: estimate
                .as_ref()
                .map_or(0, |e| whole(e.prediction.relative_90() * 1000.0)),
            parameters: work.parameters(),
            pods: i64::from(work.pods),
            gpus: i64::from(work.gpus),
            law: estimate.as_ref().map(law_used).unwrap_or_default(),
            intensity: IntensityUsed {
                zone: intensity.zone.clone(),
                milligrams_per_kwh: whole(intensity.grams_per_kwh * 1000.0),
                source: intensity.source.clone(),
                signal: format!("{:?}", intensity.signal),
                basis: format!("{:?}", intensity.basis),
                kind: format!("{:?}", intensity.kind),
            },
            pue_permille: whole(pue.value * 1000.0),
            adopted,
            verdict,
        },
    );
    reservation.metadata.namespace = Some(work.namespace.clone());
    reservation
}

fn law_used(estimate: &Estimate) -> LawUsed {
    LawUsed {
        gpu: estimate.gpu.to_string(),
        form: estimate.form.as_str().to_owned(),
        observations: i64::try_from(estimate.observations).unwrap_or(i64::MAX),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn whole(value: f64) -> i64 {
    value.round() as i64
}

/// All work by UID: what a grant in flight may still belong to.
pub(super) fn by_uid(works: &[Work]) -> HashMap<&str, &Work> {
    works.iter().map(|work| (work.uid.as_str(), work)).collect()
}

/// A pod that a controller made is charged to its job, never by itself.
pub(super) fn is_own(work: &Work) -> bool {
    work.kind == Kind::Job || work.owner.as_ref().is_none_or(|(kind, _)| kind != "Job")
}
