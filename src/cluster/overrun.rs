//! Work that burns more than was set aside for it, and what its budgets want done.

use super::context::{Context, Failure};
use super::memory::Memory;
use super::objects::{Kind, Work};
use super::refusals::{event, refused_for, stamp};
use super::verdicts::Terms;
use crate::api::{CarbonBudget, CarbonReservation, ReservationStatus};
use crate::budget::{Mode, OnOverrun};
use crate::carbon::Milligrams;
use crate::contract::{self as c, REFUSED};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::runtime::events::EventType;
use serde_json::json;
use std::sync::Arc;

const REASON: &str = "Overrun";

/// What one budget wants done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) action: OnOverrun,
    message: String,
}

impl Wish {
    /// True where it can be done: a pod cannot be suspended.
    pub(super) fn stops(&self, work: &Work) -> bool {
        self.action == OnOverrun::Delete || work.kind == Kind::Job
    }
}

/// True of a job that is suspended since it burned beyond what was set aside.
pub(super) fn is_stopped(work: &Work) -> bool {
    work.author_suspended && refused_for(work).as_deref() == Some(REASON)
}

/// The strictest wish of the budgets under Enforce that a job has burned through; pure. Work that
/// nothing was predicted for has nothing to overrun.
pub(super) fn wish(
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    terms: &[Terms],
) -> Option<Wish> {
    let namespace = reservation
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    let wishes = terms.iter().filter_map(|terms| {
        let policy = &terms.policy;
        let reserved = reservation.reserved_for(&terms.name)?;
        let own = status.charges.iter().filter(|c| c.budget == terms.name);
        let charged = Milligrams(own.map(|c| c.milligrams).sum());
        let tolerated = i128::from(reserved.0) * (100 + i128::from(policy.overrun_tolerance)) / 100;
        let over = reserved > Milligrams(0) && i128::from(charged.0) > tolerated;
        let message = format!(
            "budget {namespace}/{}: burned {charged} CO2e of {reserved} set aside, more than the {} % over that are tolerated. Annotate what it really does and create it anew",
            terms.name, policy.overrun_tolerance
        );
        let acts = policy.mode == Mode::Enforce && policy.on_overrun != OnOverrun::Allow && over;
        acts.then_some(Wish {
            action: policy.on_overrun,
            message,
        })
    });
    wishes.max_by_key(|wish| wish.action)
}

/// Does what is wished; again in each cycle until it is so.
pub(super) async fn act(
    context: &Context,
    memory: &mut Memory,
    work: &Work,
    budgets: &[Arc<CarbonBudget>],
    wish: &Wish,
) -> Result<(), Failure> {
    context.check_leading()?;
    let resource = match work.kind {
        Kind::Job => ApiResource::erase::<Job>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &work.namespace, &resource);
    let done = match (wish.action, work.kind) {
        (OnOverrun::Allow, _) => return Ok(()),
        // A pod cannot be suspended: it is told, and runs on.
        (OnOverrun::Suspend, Kind::Pod) => "told",
        (OnOverrun::Suspend, Kind::Job) => {
            let value = stamp(work, budgets, REASON, &wish.message);
            let patch = json!({
                "metadata": { "uid": work.uid, "annotations": { REFUSED: value } },
                "spec": { "suspend": true },
            });
            let params = PatchParams::default();
            context
                .call(api.patch(&work.name, &params, &Patch::Merge(&patch)))
                .await?;
            "suspended"
        }
        (OnOverrun::Delete, _) => {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(work.uid.clone()),
                    resource_version: None,
                }),
                propagation_policy: Some(PropagationPolicy::Background),
                ..DeleteParams::default()
            };
            context.call(api.delete(&work.name, &params)).await?;
            "deleted"
        }
    };
    if memory.tell(&work.uid, REASON) {
        event(context, work, EventType::Warning, REASON, &wish.message).await;
        let labels = vec![
            ("namespace", work.namespace.clone()),
            ("action", done.to_owned()),
        ];
        context.tallies.count(&c::OVERRUNS, labels);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tracking::tests::reservation;
    use super::*;
    use crate::api::BookedCharge;
    use crate::budget::Policy;

    fn terms(name: &str, mode: Mode, on_overrun: OnOverrun) -> Terms {
        Terms {
            days: std::collections::BTreeMap::new(),
            name: name.into(),
            policy: Policy {
                mode,
                on_overrun,
                ..Policy::monthly(Milligrams(1000))
            },
            totals: crate::budget::Totals::default(),
        }
    }

    fn wished(charged: i64, terms: &[Terms]) -> Option<OnOverrun> {
        let charge = |day: &str, milligrams| BookedCharge {
            budget: "b".into(),
            day: day.into(),
            milligrams,
        };
        let status = ReservationStatus {
            charges: vec![
                charge("2026-11-30", 100),
                charge("2026-12-01", charged - 100),
            ],
            ..ReservationStatus::default()
        };
        wish(&reservation(100), &status, terms).map(|wish| wish.action)
    }

    #[test]
    fn what_burns_beyond_what_is_tolerated_is_stopped_as_its_budget_says() {
        let suspend = [terms("b", Mode::Enforce, OnOverrun::Suspend)];
        assert_eq!(wished(120, &suspend), None, "20 % are tolerated");
        assert_eq!(wished(121, &suspend), Some(OnOverrun::Suspend));
        let both = [
            terms("b", Mode::Enforce, OnOverrun::Delete),
            terms("b", Mode::Enforce, OnOverrun::Suspend),
        ];
        assert_eq!(wished(121, &both), Some(OnOverrun::Delete), "the strictest");
    }

    #[test]
    fn nothing_is_stopped_under_audit_or_where_it_is_allowed_or_by_another_budget() {
        for one in [
            terms("b", Mode::Audit, OnOverrun::Delete),
            terms("b", Mode::Warn, OnOverrun::Suspend),
            terms("b", Mode::Enforce, OnOverrun::Allow),
        ] {
            assert_eq!(wished(100_000, &[one]), None);
        }
        let mut unknown = reservation(0);
        unknown.spec.budgets[0].milligrams = 0;
        let status = ReservationStatus {
            charges: vec![BookedCharge {
                budget: "b".into(),
                day: "2026-11-30".into(),
                milligrams: 500,
            }],
            ..ReservationStatus::default()
        };
        let delete = [terms("b", Mode::Enforce, OnOverrun::Delete)];
        assert_eq!(
            wish(&unknown, &status, &delete),
            None,
            "nothing was predicted"
        );
    }
}
