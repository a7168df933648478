//! Secrets in which certificates are kept, with the time until when they are good.

use super::context::{Context, Failure};
use super::pki::Pair;
use crate::serve::tls::{CertificateError, client_config};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use rustls::ClientConfig;
use std::collections::BTreeMap;

/// Certificates are renewed when less than this is left of their year.
const RENEW_SECONDS: i64 = 120 * 86_400;
/// A year, and a day for clocks that differ.
const LONGEST_SECONDS: i64 = 366 * 86_400;
const EXPIRES: &str = "jouleward.dev/expires";
const HOSTS: &str = "jouleward.dev/hosts";

/// A leaf as it is kept: beside the authority's certificate, and for some hosts.
pub(super) struct Kept<'a> {
    pub(super) name: &'static str,
    pub(super) authority: &'a str,
    pub(super) leaf: &'a Pair,
    pub(super) hosts: &'a [String],
    /// Kept besides, by its name in the Secret.
    pub(super) besides: Vec<(&'static str, &'a str)>,
}

pub(super) fn api(context: &Context) -> Api<Secret> {
    Api::namespaced(context.client.clone(), &context.settings.namespace)
}

pub(super) fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        .unwrap_or_default()
}

/// Until when what a Secret keeps is valid.
pub(super) fn expires(secret: &Secret) -> Option<Timestamp> {
    note(secret, EXPIRES)?.parse().ok()
}

/// True where the leaf is for these hosts and need not be renewed yet.
pub(super) fn is_good(secret: &Secret, hosts: &[String], now: Timestamp) -> bool {
    let left = expires(secret).map_or(0, |at| at.as_second() - now.as_second());
    // One that lasts too long was made by a clock that ran ahead, and is not valid yet.
    (RENEW_SECONDS..=LONGEST_SECONDS).contains(&left)
        && note(secret, HOSTS) == Some(hosts.join(",").as_str())
        && config(secret).is_ok()
}

/// A client with what a Secret keeps: that certificate and key are one pair, and there is an
/// authority.
pub(super) fn config(secret: &Secret) -> Result<ClientConfig, CertificateError> {
    let [authority, certificate, key] =
        ["ca.crt", "tls.crt", "tls.key"].map(|file| text(secret, file));
    client_config(authority.as_bytes(), certificate.as_bytes(), key.as_bytes())
}

fn note<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let notes = secret.metadata.annotations.as_ref()?;
    notes.get(key).map(String::as_str)
}

/// Writes a Secret, unless another was faster than `found` or this replica leads no more.
pub(super) async fn write(
    context: &Context,
    found: Option<Secret>,
    kept: Kept<'_>,
) -> Result<(), Failure> {
    let files = [
        ("ca.crt", kept.authority),
        ("tls.crt", &kept.leaf.certificate),
        ("tls.key", &kept.leaf.key),
    ];
    let data = files.into_iter().chain(kept.besides);
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
    // The type of one that somebody else made cannot be changed.
    let kind = found.as_ref().and_then(|secret| secret.type_.clone());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(kept.name.to_owned()),
            annotations: Some(BTreeMap::from([
                (EXPIRES.to_owned(), kept.leaf.expires.to_string()),
                (HOSTS.to_owned(), kept.hosts.join(",")),
            ])),
            resource_version: found.and_then(|secret| secret.metadata.resource_version),
            ..ObjectMeta::default()
        },
        type_: kind.or_else(|| Some("kubernetes.io/tls".to_owned())),
        data: Some(data.collect()),
        ..Secret::default()
    };
    context.check_leading()?;
    let (api, post) = (api(context), PostParams::default());
    if secret.metadata.resource_version.is_some() {
        context.call(api.replace(kept.name, &post, &secret)).await?;
    } else {
        context.call(api.create(&post, &secret)).await?;
    }
    tracing::info!(secret = kept.name, expires = %kept.leaf.expires, "a new certificate");
    Ok(())
}
