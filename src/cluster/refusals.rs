//! Telling a held job why it waits or that it will not run, where people look: an Event,
//! a condition, an annotation.

use super::context::{Context, Failure};
use super::memory::Memory;
use super::objects::{Kind, Work};
use super::queue::Queue;
use super::verdicts::{explain, forecast};
use crate::api::CarbonBudget;
use crate::budget::{Reason, Verdict};
use crate::contract::{self as c, GROUP, REFUSED};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

/// The stamp of a refusal.
#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    reason: String,
    message: String,
    /// What was asked: another question is decided anew.
    asked: String,
}

/// True where the work was not refused yet, or asks something else than what was refused.
pub(super) fn asks_again(work: &Work, budgets: &[Arc<CarbonBudget>]) -> bool {
    let Some(stamp) = &work.refused else {
        return true;
    };
    serde_json::from_str::<Refused>(stamp)
        .map_or(true, |refused| refused.asked != asked(work, budgets))
}

/// What is asked, and of which terms: parameters, pods, GPUs, and the budgets' generations.
fn asked(work: &Work, budgets: &[Arc<CarbonBudget>]) -> String {
    let generations: Vec<i64> = budgets
        .iter()
        .map(|b| b.metadata.generation.unwrap_or(0))
        .collect();
    let text = format!(
        "{:?} {} {} {:?} {:?} {generations:?}",
        work.parameters(),
        work.pods,
        work.gpus,
        work.eligible,
        work.placement
    );
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The reason that a piece of work was refused for.
pub(super) fn refused_for(work: &Work) -> Option<String> {
    let stamp: Refused = serde_json::from_str(work.refused.as_ref()?).ok()?;
    Some(stamp.reason)
}

/// The stamp of a refusal, as the annotation's value.
pub(super) fn stamp(
    work: &Work,
    budgets: &[Arc<CarbonBudget>],
    reason: &str,
    message: &str,
) -> String {
    let stamp = Refused {
        reason: reason.to_owned(),
        message: message.to_owned(),
        asked: asked(work, budgets),
    };
    serde_json::to_string(&stamp).unwrap_or_default()
}

/// Says once why a job waits.
pub(super) async fn tell_waiting(
    context: &Context,
    memory: &mut Memory,
    work: &Work,
    verdict: &Verdict,
    queue: &Queue,
) {
    if memory.tell(&work.uid, verdict.reason.as_str()) {
        // An Event is cut at its end: what is of this job alone comes first.
        let place = queue.words(&work.uid);
        let place = place.map_or(String::new(), |place| format!("{place}. "));
        let message = place + &words(context, work, verdict);
        event(
            context,
            work,
            EventType::Normal,
            verdict.reason.as_str(),
            &message,
        )
        .await;
    }
}

/// Says that a start that was promised is put off, and why.
pub(super) async fn tell_put_off(context: &Context, work: &Work, why: &str) {
    event(context, work, EventType::Normal, "StartPutOff", why).await;
}

const MORE_PODS: &str = "MorePodsThanReserved";

/// Says once that a job asks for more pods than its reservation is for.
pub(super) async fn tell_of_pods(context: &Context, memory: &mut Memory, work: &Work) {
    if memory.tell(&work.uid, MORE_PODS) {
        let message = "the job's reservation is for fewer pods than it asks for now: lower \
                       parallelism or completions, or create another job for the rest";
        event(
            context,
            work,
            EventType::Warning,
            "MorePodsThanReserved",
            message,
        )
        .await;
    }
}

/// Says that a job runs whatever its budgets say, and why.
pub(super) async fn tell_of_glass(context: &Context, work: &Work, why: &str) {
    let message = format!("runs whatever its budgets say, and is charged: {why}");
    let reason = Reason::BreakGlass.as_str();
    event(context, work, EventType::Warning, reason, &message).await;
}

fn words(context: &Context, work: &Work, verdict: &Verdict) -> String {
    let oracle = context.oracle();
    explain(verdict, &forecast(work, &oracle), &oracle)
}

/// Refuses a held job: it stays suspended, with a stamp, a condition and an Event.
pub(super) async fn refuse(
    context: &Context,
    work: &Work,
    budgets: &[Arc<CarbonBudget>],
    verdict: &Verdict,
) -> Result<(), Failure> {
    context.check_leading()?;
    let message = words(context, work, verdict);
    let reason = verdict.reason.as_str();
    let value = stamp(work, budgets, reason, &message);
    let resource = match work.kind {
        Kind::Job => ApiResource::erase::<Job>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &work.namespace, &resource);
    let patch = json!({ "metadata": { "uid": work.uid, "annotations": { REFUSED: value } } });
    context
        .call(api.patch(&work.name, &PatchParams::default(), &Patch::Merge(&patch)))
        .await?;
    condition(context, &api, work, reason, &message).await?;
    event(context, work, EventType::Warning, reason, &message).await;
    let labels = vec![
        ("namespace", work.namespace.clone()),
        ("reason", reason.to_owned()),
    ];
    context.tallies.count(&c::REFUSALS, labels);
    Ok(())
}

/// Adds or renews the condition without touching those of others.
async fn condition(
    context: &Context,
    api: &Api<DynamicObject>,
    work: &Work,
    reason: &str,
    message: &str,
) -> Result<(), Failure> {
    let kind = format!("{GROUP}/Refused");
    let object = context.call(api.get(&work.name)).await?;
    let mut conditions = object.data["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions.retain(|condition| condition["type"] != kind.as_str());
    let now = context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    conditions.push(json!({
        "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now,
    }));
    let version = object.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "status": { "conditions": conditions } });
    context
        .call(api.patch_status(&work.name, &PatchParams::default(), &Patch::Merge(&patch)))
        .await?;
    Ok(())
}

/// A message as an Event takes it: the API server allows 1,024 bytes.
pub(super) fn note(message: &str) -> String {
    const MOST: usize = 1000;
    message[..message.floor_char_boundary(MOST)].to_owned()
}

pub(super) async fn event(
    context: &Context,
    work: &Work,
    kind: EventType,
    reason: &str,
    message: &str,
) {
    let reporter = Reporter {
        controller: "jouleward-controller".to_owned(),
        instance: Some(context.settings.identity.clone()),
    };
    let reference = ObjectReference {
        api_version: Some(
            if work.kind == Kind::Job {
                "batch/v1"
            } else {
                "v1"
            }
            .to_owned(),
        ),
        kind: Some(work.kind.as_str().to_owned()),
        name: Some(work.name.clone()),
        namespace: Some(work.namespace.clone()),
        uid: Some(work.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(note(message)),
        action: "Budget".to_owned(),
        secondary: None,
    };
    let recorder = Recorder::new(context.client.clone(), reporter);
    let _ = context.call(recorder.publish(&event, &reference)).await;
}
