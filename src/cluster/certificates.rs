//! The webhook's certificate: made and renewed by the leader, kept in a Secret, its CA put
//! into the webhook configurations for a while before the leaf is served.

use super::context::{Context, Failure, note};
use super::ledger_tls;
use super::pki::{MakeError, Pair, authority, leaf};
use super::secrets::{self, Kept, text};
use crate::clock;
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
/// Authorities in a bundle beside the newest.
const EARLIER: usize = 2;
const PREVIOUS: &str = "previous-ca.crt";

/// A certificate that is trusted, or about to be, and not served yet.
struct Staged {
    authority: String,
    leaf: Pair,
    /// Authorities that are trusted beside it: of what is served meanwhile.
    earlier: String,
    /// µs, monotonic: since when the API server is told to trust it.
    since: u64,
    /// µs, monotonic: when it was made.
    made: u64,
}

/// Checks every ten seconds while leading, and more often while a certificate is on its way.
pub(super) async fn keep(context: Arc<Context>, stop: Stop) {
    let overlap = context.settings.certificate_overlap;
    let mut staged: Option<Staged> = None;
    loop {
        if context.is_leading() {
            for (what, done) in [
                (
                    "the webhook's certificate",
                    ensure(&context, &mut staged).await,
                ),
                (
                    "the ledger's certificates",
                    ledger_tls::ensure(&context).await,
                ),
            ] {
                if let Err(error) = done {
                    note(what, &error);
                }
            }
        } else {
            staged = None;
        }
        let pause = match (&staged, context.is_leading()) {
            (Some(_), _) => CHECK.min(overlap / 4),
            (None, true) => CHECK.min(overlap),
            (None, false) => Duration::from_millis(250),
        };
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(pause.max(Duration::from_millis(20))) => {}
        }
    }
}

/// A new certificate is trusted for a while before it is served, and the one before it is trusted
/// until the next: whichever a webhook serves meanwhile, every API server believes it.
async fn ensure(context: &Context, staged: &mut Option<Staged>) -> Result<(), Failure> {
    if !context.settings.own_certificate {
        return Ok(());
    }
    let hosts = &context.settings.webhook_hosts;
    let found = context
        .call(secrets::api(context).get_opt(TLS_SECRET))
        .await?;
    let good = |secret: &&Secret| secrets::is_good(secret, hosts, context.now());
    if let Some(secret) = found.as_ref().filter(good) {
        *staged = None;
        let all = text(secret, "ca.crt") + &text(secret, PREVIOUS);
        trust(context, &first(&all, 1 + EARLIER)).await?;
        return Ok(());
    }
    if staged.is_none() {
        let kept = found
            .as_ref()
            .map(|secret| text(secret, "ca.crt") + &text(secret, PREVIOUS));
        let mut earlier = first(&kept.unwrap_or_default(), EARLIER);
        if earlier.is_empty() {
            // Of a Secret that is gone, webhooks may serve the certificate all the same.
            earlier = first(&trusted(context).await?, EARLIER);
        }
        let (authority, leaf) =
            make(hosts, context.now()).map_err(|error| Failure::Invalid(error.to_string()))?;
        *staged = Some(Staged {
            authority,
            leaf,
            earlier,
            since: clock::monotonic_micros(),
            made: clock::monotonic_micros(),
        });
    }
    let Some(new) = staged else {
        return Ok(());
    };
    // Whoever takes it out meanwhile, as an upgrade of the chart may, makes it begin anew.
    if trust(context, &format!("{}{}", new.authority, new.earlier)).await? {
        new.since = clock::monotonic_micros();
    }
    let ago = |at: u64| Duration::from_micros(clock::monotonic_micros().saturating_sub(at));
    let overlap = context.settings.certificate_overlap;
    // Where somebody takes it out again and again, an old certificate must not run out over it.
    let waits = ago(new.since) < overlap && ago(new.made) < overlap * 10;
    if waits && !new.earlier.is_empty() {
        return Ok(());
    }
    let kept = Kept {
        name: TLS_SECRET,
        authority: &new.authority,
        leaf: &new.leaf,
        hosts,
        besides: vec![(PREVIOUS, &new.earlier)],
    };
    secrets::write(context, found, kept).await?;
    *staged = None;
    Ok(())
}

/// The first certificates of a bundle.
fn first(bundle: &str, most: usize) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let whole = bundle
        .split_inclusive(END)
        .filter(|part| part.contains(END));
    let mut text = String::new();
    for certificate in whole.take(most) {
        text += certificate.trim_start();
        text.push('\n');
    }
    text
}

/// What the webhook configurations trust now.
async fn trusted(context: &Context) -> Result<String, Failure> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let found = context.call(api.get_opt(WEBHOOKS)).await?;
    let webhooks = found.and_then(|configuration| configuration.webhooks);
    let bundle = webhooks
        .into_iter()
        .flatten()
        .find_map(|webhook| webhook.client_config.ca_bundle);
    Ok(bundle.map_or(String::new(), |bundle| {
        String::from_utf8_lossy(&bundle.0).into_owned()
    }))
}

/// Puts the CA into both webhook configurations, where it differs; true where it did.
async fn trust(context: &Context, ca: &str) -> Result<bool, Failure> {
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(ca);
    let mut changed = false;
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
        changed = true;
    }
    Ok(changed)
}

/// An authority's certificate, whose key is not kept, and a leaf that it has signed.
fn make(hosts: &[String], now: Timestamp) -> Result<(String, Pair), MakeError> {
    let ca = authority("jouleward CA", now, DAYS)?;
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let leaf = leaf(&ca, "jouleward webhook", hosts, usage, now, DAYS)?;
    Ok((ca.certificate, leaf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_bundle_the_first_whole_certificates_are_kept() {
        let one = |n: u8| format!("-----BEGIN CERTIFICATE-----\n{n}\n-----END CERTIFICATE-----\n");
        let all = format!("{}\n{}{}", one(1), one(2), one(3));
        assert_eq!(first(&all, 2), one(1) + &one(2));
        assert_eq!(first(&one(1), 2), one(1));
        assert_eq!(first("-----BEGIN CERTIFICATE-----\nhalf", 2), "");
        assert_eq!(first("", 2), "");
    }
}
