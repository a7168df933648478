//! The webhook's certificate: made and renewed by the leader, kept in a Secret, its CA put
//! into the webhook configurations before the leaf is served.

use super::context::{Context, Failure, note};
use super::ledger_tls;
use super::pki::{MakeError, Pair, authority, leaf};
use super::secrets::{self, Kept, text};
use crate::contract::{TLS_SECRET, WEBHOOKS};
use crate::serve::shutdown::Stop;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Leaf and CA live a year; they are renewed together.
const DAYS: i64 = 365;
const CHECK: Duration = Duration::from_secs(10);

/// Checks every ten seconds while leading.
pub(super) async fn keep(context: Arc<Context>, stop: Stop) {
    loop {
        if context.is_leading() {
            for (what, done) in [
                ("the webhook's certificate", ensure(&context).await),
                (
                    "the ledger's certificates",
                    ledger_tls::ensure(&context).await,
                ),
            ] {
                if let Err(error) = done {
                    note(what, &error);
                }
            }
        }
        let pause = if context.is_leading() {
            CHECK
        } else {
            Duration::from_millis(250)
        };
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn ensure(context: &Context) -> Result<(), Failure> {
    let hosts = &context.settings.webhook_hosts;
    let found = context
        .call(secrets::api(context).get_opt(TLS_SECRET))
        .await?;
    let good = |secret: &&Secret| secrets::is_good(secret, hosts, context.now());
    if let Some(secret) = found.as_ref().filter(good) {
        return trust(context, &text(secret, "ca.crt")).await;
    }
    let (ca, leaf) =
        make(hosts, context.now()).map_err(|error| Failure::Invalid(error.to_string()))?;
    // Old and new CA are both trusted before the new leaf is served.
    let old = found.as_ref().map(|secret| text(secret, "ca.crt"));
    trust(context, &format!("{ca}{}", old.unwrap_or_default())).await?;
    let kept = Kept {
        name: TLS_SECRET,
        authority: &ca,
        leaf: &leaf,
        hosts,
        besides: Vec::new(),
    };
    secrets::write(context, found, kept).await
}

/// Puts the CA into both webhook configurations, where it differs.
async fn trust(context: &Context, ca: &str) -> Result<(), Failure> {
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(ca);
    for resource in [
        ApiResource::erase::<MutatingWebhookConfiguration>(&()),
        ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
    ] {
        let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource);
        let Some(configuration) = context.call(api.get_opt(WEBHOOKS)).await? else {
            continue;
        };
        let webhooks = configuration.data["webhooks"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let operations: Vec<Value> = webhooks
            .iter()
            .enumerate()
            .filter(|(_, webhook)| webhook["clientConfig"]["caBundle"] != bundle.as_str())
            .map(|(i, _)| json!({ "op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": bundle }))
            .collect();
        if operations.is_empty() {
            continue;
        }
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations))
            .map_err(|error| Failure::Api(Box::new(kube::Error::SerdeError(error))))?;
        context.check_leading()?;
        context
            .call(api.patch(WEBHOOKS, &PatchParams::default(), &Patch::<()>::Json(patch)))
            .await?;
    }
    Ok(())
}

/// An authority's certificate, whose key is not kept, and a leaf that it has signed.
fn make(hosts: &[String], now: Timestamp) -> Result<(String, Pair), MakeError> {
    let ca = authority("jouleward CA", now, DAYS)?;
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let leaf = leaf(&ca, "jouleward webhook", hosts, usage, now, DAYS)?;
    Ok((ca.certificate, leaf))
}
