//! Mutual authentication between the controller and the exporters' ledgers: an authority of
//! its own signs one leaf for all exporters and one for the controller. The leader keeps both
//! in Secrets; DaemonSet pods mount theirs.

use super::context::{Context, Failure};
use super::pki::{MakeError, Pair, authority, leaf};
use super::secrets::{self, Kept, text};
use crate::contract::{CONTROLLER_TLS_SECRET, EXPORTER_NAME, EXPORTER_TLS_SECRET};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use rcgen::ExtendedKeyUsagePurpose;
use std::sync::Arc;

const LEAF_DAYS: i64 = 365;
/// The authority signs leaves for as long as they would outlive their renewal.
const AUTHORITY_DAYS: i64 = 3650;
const AUTHORITY_KEY: &str = "ca.key";
const AUTHORITY_EXPIRES: &str = "ca.expires";

/// Makes and renews both leaves where that is due, and takes up the controller's.
pub(super) async fn ensure(context: &Context) -> Result<(), Failure> {
    let api = secrets::api(context);
    let now = context.now();
    let mut own = context.call(api.get_opt(CONTROLLER_TLS_SECRET)).await?;
    if !own
        .as_ref()
        .is_some_and(|secret| secrets::is_good(secret, &[], now))
    {
        renew(context, own, now).await?;
        own = context.call(api.get_opt(CONTROLLER_TLS_SECRET)).await?;
    }
    let Some(own) = own else {
        return Err(Failure::NotFound);
    };
    take_up(context, &own)?;
    let theirs = context.call(api.get_opt(EXPORTER_TLS_SECRET)).await?;
    let fits = |secret: &Secret| {
        secrets::is_good(secret, &hosts(), now) && text(secret, "ca.crt") == text(&own, "ca.crt")
    };
    if !theirs.as_ref().is_some_and(fits) {
        let signed = |authority: &Pair| {
            let usage = ExtendedKeyUsagePurpose::ServerAuth;
            leaf(authority, EXPORTER_NAME, &hosts(), usage, now, LEAF_DAYS)
        };
        let Some((authority, pair)) = signer(&own)
            .and_then(|authority| signed(&authority).ok().map(|pair| (authority, pair)))
        else {
            // An authority whose key is gone signs nothing more: another takes its place.
            tracing::warn!("the ledger's authority cannot sign any more; it is made anew");
            let mut keyless = own;
            if let Some(data) = &mut keyless.data {
                data.remove(AUTHORITY_KEY);
            }
            return renew(context, Some(keyless), now).await;
        };
        let kept = Kept {
            name: EXPORTER_TLS_SECRET,
            authority: &authority.certificate,
            leaf: &pair,
            hosts: &hosts(),
            besides: Vec::new(),
        };
        secrets::write(context, theirs, kept).await?;
    }
    Ok(())
}

fn hosts() -> [String; 1] {
    [EXPORTER_NAME.to_owned()]
}

fn invalid(error: MakeError) -> Failure {
    Failure::Invalid(error.to_string())
}

/// The authority whose key a Secret keeps.
fn signer(secret: &Secret) -> Option<Pair> {
    Some(Pair {
        certificate: text(secret, "ca.crt"),
        key: text(secret, AUTHORITY_KEY),
        expires: text(secret, AUTHORITY_EXPIRES).parse().ok()?,
    })
}

/// The controller's leaf, by the authority that there is while it lasts.
async fn renew(context: &Context, found: Option<Secret>, now: Timestamp) -> Result<(), Failure> {
    let lasts = |pair: &Pair| {
        let left = pair.expires.as_second() - now.as_second();
        left > LEAF_DAYS * 86_400 && !pair.key.is_empty()
    };
    let signed = |authority: Pair| {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let pair = leaf(
            &authority,
            "jouleward-controller",
            &[],
            usage,
            now,
            LEAF_DAYS,
        )?;
        Ok((authority, pair))
    };
    let known = found.as_ref().and_then(signer).filter(lasts);
    let known = known.and_then(|authority| signed(authority).ok());
    let (authority, pair) = match known {
        Some(known) => known,
        None => authority("jouleward ledger CA", now, AUTHORITY_DAYS)
            .and_then(signed)
            .map_err(invalid)?,
    };
    let expires = authority.expires.to_string();
    let kept = Kept {
        name: CONTROLLER_TLS_SECRET,
        authority: &authority.certificate,
        leaf: &pair,
        hosts: &[],
        besides: vec![
            (AUTHORITY_KEY, authority.key.as_str()),
            (AUTHORITY_EXPIRES, &expires),
        ],
    };
    secrets::write(context, found, kept).await
}

/// Connections from now on are made with what the Secret keeps.
fn take_up(context: &Context, own: &Secret) -> Result<(), Failure> {
    let version = own.metadata.resource_version.clone();
    let known = context.ledger_tls.load();
    if known.as_ref().is_some_and(|known| known.0 == version) {
        return Ok(());
    }
    let config = secrets::config(own).map_err(|error| Failure::Invalid(error.to_string()))?;
    context
        .ledger_tls
        .store(Some(Arc::new((version, Arc::new(config)))));
    Ok(())
}
