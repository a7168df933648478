//! The webhook's certificate: made and renewed by the leader, kept in a Secret, its CA put
//! into the webhook configurations before the leaf is served.

use super::context::{Context, Failure};
use crate::contract::{TLS_SECRET, WEBHOOKS};
use crate::serve::shutdown::Stop;
use jiff::{Timestamp, ToSpan};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Leaf and CA live a year; they are renewed together when less than a third is left.
const DAYS: i64 = 365;
const RENEW_DAYS: i64 = 120;
const CHECK: Duration = Duration::from_secs(10);
const EXPIRES: &str = "jouleward.dev/expires";
const HOSTS: &str = "jouleward.dev/hosts";

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("the certificate cannot be made")]
    Rcgen(#[from] rcgen::Error),
    #[error("the certificate's dates are out of range")]
    Dates,
}

struct Pair {
    ca: String,
    certificate: String,
    key: String,
    expires: Timestamp,
}

/// Checks every ten seconds while leading.
pub(super) async fn keep(context: Arc<Context>, stop: Stop) {
    loop {
        if context.is_leading()
            && let Err(error) = ensure(&context).await
        {
            tracing::warn!(error = %crate::serve::telemetry::chain(&error), "the webhook's certificate");
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
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let found = context.call(api.get_opt(TLS_SECRET)).await?;
    if let Some(secret) = found.as_ref().filter(|secret| is_good(context, secret)) {
        let ca = text(secret, "ca.crt");
        return trust(context, &ca).await;
    }
    let pair = make(&context.settings.webhook_hosts, context.now())
        .map_err(|error| Failure::Invalid(error.to_string()))?;
    // Old and new CA are both trusted before the new leaf is served.
    let old = found
        .as_ref()
        .map(|secret| text(secret, "ca.crt"))
        .unwrap_or_default();
    trust(context, &format!("{}{old}", pair.ca)).await?;
    context.check_leading()?;
    let secret = secret(context, &pair, found);
    let written = match secret.metadata.resource_version {
        Some(_) => {
            context
                .call(api.replace(TLS_SECRET, &PostParams::default(), &secret))
                .await
        }
        None => {
            context
                .call(api.create(&PostParams::default(), &secret))
                .await
        }
    };
    written.map(|_| tracing::info!(expires = %pair.expires, "a new certificate for the webhook"))
}

fn secret(context: &Context, pair: &Pair, found: Option<Secret>) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(TLS_SECRET.to_owned()),
            annotations: Some(BTreeMap::from([
                (EXPIRES.to_owned(), pair.expires.to_string()),
                (HOSTS.to_owned(), context.settings.webhook_hosts.join(",")),
            ])),
            resource_version: found.and_then(|secret| secret.metadata.resource_version),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("ca.crt".to_owned(), bytes(&pair.ca)),
            ("tls.crt".to_owned(), bytes(&pair.certificate)),
            ("tls.key".to_owned(), bytes(&pair.key)),
        ])),
        ..Secret::default()
    }
}

fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        .unwrap_or_default()
}

fn is_good(context: &Context, secret: &Secret) -> bool {
    let note = |key: &str| {
        secret
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(key))
            .cloned()
    };
    let expires: Option<Timestamp> = note(EXPIRES).and_then(|text| text.parse().ok());
    let left = expires.map_or(0, |at| at.as_second() - context.now().as_second());
    left > RENEW_DAYS * 86_400
        && note(HOSTS).as_deref() == Some(context.settings.webhook_hosts.join(",").as_str())
        && !text(secret, "tls.crt").is_empty()
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

fn make(hosts: &[String], now: Timestamp) -> Result<Pair, MakeError> {
    let from = now.checked_sub(1.hour()).map_err(|_| MakeError::Dates)?;
    let until = now
        .checked_add((24 * DAYS).hours())
        .map_err(|_| MakeError::Dates)?;
    let dates = |params: &mut CertificateParams| -> Result<(), MakeError> {
        params.not_before = date(from)?;
        params.not_after = date(until)?;
        Ok(())
    };
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Distinct names, or a client takes the leaf for its own issuer.
    ca.distinguished_name.push(
        DnType::CommonName,
        format!("jouleward CA {}", now.as_second()),
    );
    dates(&mut ca)?;
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let mut leaf = CertificateParams::new(hosts.to_vec())?;
    leaf.distinguished_name
        .push(DnType::CommonName, "jouleward webhook");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    dates(&mut leaf)?;
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(Pair {
        ca: ca_certificate.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        expires: until,
    })
}

fn date(at: Timestamp) -> Result<time::OffsetDateTime, MakeError> {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| MakeError::Dates)
}
