//! Lifting holds: with a grant, by hand, or all of them when Jouleward leaves.

use super::context::{Context, Failure};
use super::objects::{Kind, Work};
use super::review::annotation_path;
use super::stores;
use super::wire::Lite;
use crate::api::GrantInFlight;
use crate::contract::{GATE, GRANTED, HOLD, MODE_LABEL, REFUSED, WEBHOOKS};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// The patch that lifts a hold: only where it is still ours, and only on this very object.
fn patch(work: &Work, reservation: Option<&str>, object: &Lite) -> Vec<Value> {
    let mut patch = vec![json!({ "op": "test", "path": "/metadata/uid", "value": work.uid })];
    let annotations = &object.metadata.annotations;
    match work.kind {
        Kind::Job => {
            patch.push(json!({ "op": "test", "path": annotation_path(HOLD), "value": annotations.get(HOLD) }));
            patch.push(json!({ "op": "remove", "path": annotation_path(HOLD) }));
            patch.push(json!({ "op": "replace", "path": "/spec/suspend", "value": false }));
        }
        Kind::Pod => {
            let gates = &object.spec.pod.scheduling_gates;
            let Some(index) = gates.iter().position(|gate| gate.name == GATE) else {
                return Vec::new();
            };
            let path = format!("/spec/schedulingGates/{index}");
            patch.push(json!({ "op": "test", "path": path, "value": { "name": GATE } }));
            patch.push(json!({ "op": "remove", "path": path }));
        }
    }
    if annotations.contains_key(REFUSED) {
        patch.push(json!({ "op": "remove", "path": annotation_path(REFUSED) }));
    }
    if let Some(reservation) = reservation {
        if annotations.is_empty() {
            patch.push(json!({ "op": "add", "path": "/metadata/annotations", "value": {} }));
        }
        let granted = format!("{reservation} {}", work.pods);
        patch.push(json!({ "op": "add", "path": annotation_path(GRANTED), "value": granted }));
    }
    patch
}

/// Lifts one hold, with the reservation that pays for it or, on leaving, without.
pub(super) async fn lift(
    context: &Context,
    work: &Work,
    reservation: Option<&str>,
) -> Result<(), Failure> {
    // Most are as they were seen last, and then one call does it.
    let seen = context
        .call(lift_seen(&context.client, work, reservation))
        .await;
    if matches!(seen, Ok(true)) {
        return Ok(());
    }
    match context
        .call(lift_with(&context.client, work, reservation))
        .await
    {
        // Gone, lifted by another, or changed meanwhile: the next cycle sees.
        Err(Failure::NotFound | Failure::Conflict) => Ok(()),
        Err(Failure::Invalid(why)) => {
            tracing::warn!(
                namespace = work.namespace,
                name = work.name,
                why,
                "a hold was not lifted; again in the next cycle"
            );
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// Lifts a Job's hold as the watch has it; false where it is not, or where it is a Pod, whose
/// gates are known by their places alone.
async fn lift_seen(
    client: &Client,
    work: &Work,
    reservation: Option<&str>,
) -> Result<bool, kube::Error> {
    let Some(hold) = work
        .annotations
        .get(HOLD)
        .filter(|_| work.kind == Kind::Job)
    else {
        return Ok(false);
    };
    let mut object = Lite::default();
    let mut put = |name: &str, value: &String| {
        let annotations = &mut object.metadata.annotations;
        annotations.insert(name.to_owned(), value.clone());
    };
    put(HOLD, hold);
    if let Some(refused) = &work.refused {
        put(REFUSED, refused);
    }
    let operations = serde_json::from_value(Value::Array(patch(work, reservation, &object)))
        .map_err(kube::Error::SerdeError)?;
    let api: Api<Job> = Api::namespaced(client.clone(), &work.namespace);
    let params = PatchParams::default();
    let patched = api
        .patch_metadata(&work.name, &params, &Patch::<()>::Json(operations))
        .await;
    match patched {
        Ok(_) => Ok(true),
        // It has changed meanwhile.
        Err(kube::Error::Api(status)) if status.code == 422 || status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn lift_with(
    client: &Client,
    work: &Work,
    reservation: Option<&str>,
) -> Result<bool, kube::Error> {
    let resource = match work.kind {
        Kind::Job => kube::api::ApiResource::erase::<Job>(&()),
        Kind::Pod => kube::api::ApiResource::erase::<Pod>(&()),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &work.namespace, &resource);
    let Some(object) = api.get_opt(&work.name).await?.and_then(stores::lite) else {
        return Ok(false);
    };
    let still_held =
        Work::of(work.kind, object.clone()).is_some_and(|now| now.held && now.uid == work.uid);
    if !still_held {
        return Ok(false);
    }
    let operations: json_patch::Patch =
        serde_json::from_value(Value::Array(patch(work, reservation, &object)))
            .map_err(kube::Error::SerdeError)?;
    api.patch(
        &work.name,
        &PatchParams::default(),
        &Patch::<()>::Json(operations),
    )
    .await?;
    Ok(true)
}

/// True where the object of a grant in flight is there, with this very UID.
pub(super) async fn exists(
    context: &Context,
    namespace: &str,
    grant: &GrantInFlight,
) -> Result<bool, Failure> {
    let resource = if grant.kind == Kind::Job.as_str() {
        kube::api::ApiResource::erase::<Job>(&())
    } else {
        kube::api::ApiResource::erase::<Pod>(&())
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let object = context.call(api.get_opt(&grant.name)).await?;
    Ok(object.is_some_and(|object| object.metadata.uid.as_deref() == Some(&grant.uid)))
}

/// What a release by hand or an uninstall did.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifted {
    /// `Job namespace/name`.
    pub released: Vec<String>,
    /// What could not be released, and why.
    pub failed: Vec<String>,
    /// Other things removed.
    pub removed: Vec<String>,
}

/// Lifts every hold of ours in a namespace, or in all; of one object where `name` is given.
pub async fn release(
    client: &Client,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Lifted, kube::Error> {
    let mut lifted = Lifted::default();
    for (kind, (api, resource)) in [
        (Kind::Job, stores::lean::<Job>(client)),
        (Kind::Pod, stores::lean::<Pod>(client)),
    ] {
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => api,
        };
        for object in api.list(&ListParams::default()).await? {
            let Some(work) = stores::lite(object).and_then(|lite| Work::of(kind, lite)) else {
                continue;
            };
            if !work.held || name.is_some_and(|name| name != work.name) {
                continue;
            }
            let label = format!("{} {}/{}", kind.as_str(), work.namespace, work.name);
            match lift_with(client, &work, None).await {
                Ok(true) => lifted.released.push(label),
                Ok(false) => {}
                Err(error) => lifted.failed.push(format!("{label}: {error}")),
            }
        }
    }
    Ok(lifted)
}

/// Leaves the cluster as if Jouleward had never been: webhooks away first, so that nothing
/// is held anew; then every hold lifted, then the labels off.
pub async fn uninstall(client: &Client) -> Result<Lifted, kube::Error> {
    let gone = DeleteParams::default();
    let mut removed = Vec::new();
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    if found(mutating.delete(WEBHOOKS, &gone).await)? {
        removed.push(format!("MutatingWebhookConfiguration {WEBHOOKS}"));
    }
    if found(validating.delete(WEBHOOKS, &gone).await)? {
        removed.push(format!("ValidatingWebhookConfiguration {WEBHOOKS}"));
    }
    let mut lifted = release(client, None, None).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for namespace in namespaces
        .list(&ListParams::default().labels(MODE_LABEL))
        .await?
    {
        let unlabel = json!({ "metadata": { "labels": { MODE_LABEL: null } } });
        namespaces
            .patch(
                &namespace.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&unlabel),
            )
            .await?;
        removed.push(format!("label of namespace {}", namespace.name_any()));
    }
    lifted.removed = removed;
    Ok(lifted)
}

fn found<T>(result: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}
