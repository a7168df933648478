//! The status of a budget: what it should be, and the one guarded write that spends.

use super::context::{Context, Failure};
use super::ledger::Ledger;
use super::queue::Queue;
use crate::api::{BudgetStatus, CarbonBudget, GrantInFlight, PeriodStatus, set_condition};
use crate::budget::Totals;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};

/// The status that a budget should have: a pure function of the ledger.
pub(super) fn status_of(
    context: &Context,
    budget: &CarbonBudget,
    ledger: &Ledger,
    granting: &[GrantInFlight],
    queue: &Queue,
    now: Timestamp,
) -> BudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.observed_generation = budget.metadata.generation.unwrap_or(0);
    status.held_jobs = queue.held;
    status.lease_epoch = context.epoch();
    if status.measured_since.is_empty() {
        // To the second, as the API server stamps objects: what is created in this very second
        // is charged.
        status.measured_since = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    }
    let condition = |kind: &str, yes: bool, reason: &str, message: String| {
        context.condition(kind, yes, reason, message, budget.metadata.generation)
    };
    let terms = match crate::budget::Policy::try_from(&budget.spec) {
        Ok(policy) => policy,
        Err(error) => {
            status.granting = granting.to_vec();
            status.queue.clear();
            set_condition(
                &mut status.conditions,
                condition("Ready", false, "InvalidSpec", error.to_string()),
            );
            return status;
        }
    };
    let book = ledger.book(&budget.name_any(), granting);
    let sum = terms.totals(&book, budget.measured_since(), now);
    status.queue = queue.told(&budget.name_any(), &status, &sum);
    let span = terms.period.at(now);
    status.period = PeriodStatus {
        id: span.id,
        start: span.start.to_string(),
        end: span.end.to_string(),
    };
    figures(&mut status, &sum);
    status.granting = granting.to_vec();
    let spent = sum.consumed >= sum.limit;
    let near = sum.is_near(terms.warn_at);
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
    status.carried_milligrams = sum.carried.0;
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
pub(super) async fn write_status(
    context: &Context,
    budget: &CarbonBudget,
    status: BudgetStatus,
) -> Result<(), Failure> {
    let before = budget.status.clone().unwrap_or_default();
    if before.lease_epoch > context.epoch() {
        tracing::warn!(
            budget = budget.name_any(),
            leader = before.lease_epoch,
            own = context.epoch(),
            "a later leader has written this budget: nothing is written"
        );
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
