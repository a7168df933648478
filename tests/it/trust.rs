//! The ledger that is charged goes from the exporters to the controller over a port that
//! answers nobody else, and the controller believes no other exporter.

use crate::support::{Shared, alone, on_plane, runtime};
use anyhow::{Context, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use jouleward::contract::{
    CONTROLLER_TLS_SECRET, EXPORTER_NAME, EXPORTER_TLS_SECRET, LEDGER_PORT, TLS_SECRET, WEBHOOKS,
};
use jouleward::node::LedgerPage;
use jouleward::serve::fetch::{self, FetchError};
use jouleward::serve::http::{Answer, Server};
use jouleward::serve::shutdown;
use jouleward::serve::tls::{Certificate, client_config, server_config};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(40);

fn secrets(shared: &Shared) -> Api<Secret> {
    Api::namespaced(shared.stack.client.clone(), "jouleward-system")
}

fn file(secret: &Secret, name: &str) -> Vec<u8> {
    let data = secret.data.as_ref().and_then(|data| data.get(name));
    data.map(|bytes| bytes.0.clone()).unwrap_or_default()
}

/// A client with this Secret's certificate, that believes its authority.
fn client(secret: &Secret) -> anyhow::Result<Arc<ClientConfig>> {
    let [authority, chain, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| file(secret, name));
    Ok(Arc::new(client_config(&authority, &chain, &key)?))
}

fn ledgers(shared: &Shared) -> anyhow::Result<Vec<SocketAddr>> {
    let nodes = shared.stack.nodes.iter();
    nodes
        .map(|node| Ok(SocketAddr::new(node.ip.parse()?, LEDGER_PORT)))
        .collect()
}

async fn page(ledger: SocketAddr, config: Arc<ClientConfig>) -> Result<LedgerPage, FetchError> {
    let body = fetch::get_tls(ledger, EXPORTER_NAME, config, "/v1/pods", 16 << 20).await?;
    Ok(serde_json::from_slice(&body).expect("a page"))
}

#[test]
fn the_ledgers_port_answers_nobody_but_the_controller() {
    on_plane(|shared| async move {
        let own = secrets(shared).get(CONTROLLER_TLS_SECRET).await?;
        let theirs = secrets(shared).get(EXPORTER_TLS_SECRET).await?;
        ensure!(
            theirs.data.iter().flatten().count() == 3,
            "the authority's key stays with the controller"
        );
        for (node, ledger) in shared.stack.nodes.iter().zip(ledgers(shared)?) {
            let told = page(ledger, client(&own)?).await?;
            ensure!(told.node == node.name && told.ready, "{told:?}");
        }
        let ledger = ledgers(shared)?[0];
        let mut roots = RootCertStore::empty();
        let authority = file(&own, "ca.crt");
        for certificate in rustls_pki(&authority) {
            roots.add(certificate)?;
        }
        let nobody = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (stranger, key) = self_signed("jouleward-controller");
        let strangers = client_config(&authority, stranger.as_bytes(), key.as_bytes())?;
        for (who, config) in [
            ("one without a certificate", Arc::new(nobody)),
            ("another exporter", client(&theirs)?),
            ("one that has signed for itself", Arc::new(strangers)),
        ] {
            let told = page(ledger, config).await;
            ensure!(told.is_err(), "{who} was told {told:?}");
        }
        let plain = fetch::get(ledger, "/v1/pods", 16 << 20).await;
        ensure!(plain.is_err(), "plain HTTP was told {plain:?}");
        Ok(())
    });
}

fn rustls_pki(pem: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Certificate and key of somebody who takes a name.
fn self_signed(name: &str) -> (String, String) {
    let signed = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    (signed.cert.pem(), signed.signing_key.serialize_pem())
}

#[test]
fn an_exporter_that_took_the_name_is_not_believed() {
    on_plane(|shared| async move {
        let own = secrets(shared).get(CONTROLLER_TLS_SECRET).await?;
        let (chain, key) = self_signed(EXPORTER_NAME);
        let certificate = Arc::new(Certificate::default());
        certificate.set(chain.as_bytes(), key.as_bytes())?;
        let server = Server::bind("127.0.0.1:0".parse()?).await?;
        let address = server.address()?;
        let lies = |_| async { Answer::json(b"{}".to_vec()) };
        let serving = runtime().spawn(async move {
            let (_stopper, stop) = shutdown::pair();
            server
                .run(Some(server_config(certificate)), lies, stop)
                .await;
        });
        let told = page(address, client(&own)?).await;
        serving.abort();
        ensure!(
            matches!(told, Err(FetchError::Tls(..))),
            "it was believed: {told:?}"
        );
        Ok(())
    });
}

#[test]
fn a_leaf_that_is_due_or_damaged_is_renewed_by_the_same_authority() {
    alone(|shared| async move {
        let before = secrets(shared).get(CONTROLLER_TLS_SECRET).await?;
        let earlier = client(&before)?;
        let due = json!({ "metadata": { "annotations": {
            "jouleward.dev/expires": "2001-01-01T00:00:00Z" } } });
        let damaged = json!({ "data": { "tls.key": "bm8ga2V5" } });
        for (name, patch) in [(CONTROLLER_TLS_SECRET, due), (EXPORTER_TLS_SECRET, damaged)] {
            let found = secrets(shared).get(name).await?;
            let params = PatchParams::default();
            secrets(shared)
                .patch(name, &params, &Patch::Merge(patch))
                .await?;
            let renewed = || async {
                let now = secrets(shared).get(name).await?;
                ensure!(
                    file(&now, "ca.crt") == file(&before, "ca.crt"),
                    "the authority"
                );
                Ok((file(&now, "tls.crt") != file(&found, "tls.crt")).then_some(()))
            };
            eventually("it is renewed", SOON, renewed)
                .await
                .context(name)?;
        }
        for ledger in ledgers(shared)? {
            page(ledger, earlier.clone())
                .await
                .context("who has the leaf of before is believed until it ends")?;
        }
        Ok(())
    });
}

#[test]
fn certificates_that_are_gone_are_made_anew_and_energy_is_read_on() {
    alone(|shared| async move {
        let (client_of, namespace) = (&shared.stack.client, "trust");
        jobs::namespace(client_of, namespace).await?;
        jobs::budget(client_of, namespace, "images", json!({ "limit": "1kg" })).await?;
        let before = secrets(shared).get(CONTROLLER_TLS_SECRET).await?;
        for name in [CONTROLLER_TLS_SECRET, EXPORTER_TLS_SECRET] {
            let gone = DeleteParams::default();
            secrets(shared).delete(name, &gone).await?;
        }
        let anew = || async {
            let own = secrets(shared).get(CONTROLLER_TLS_SECRET).await?;
            ensure!(file(&own, "ca.crt") != file(&before, "ca.crt"));
            for ledger in ledgers(shared)? {
                page(ledger, client(&own)?).await?;
            }
            Ok(Some(()))
        };
        eventually("every exporter serves under the new authority", SOON, anew).await?;
        let job = Generate::SMALL.job("after");
        let uid = jobs::create_job(client_of, namespace, &job).await?.uid();
        let record = jobs::settled(client_of, namespace, &uid.context("a UID")?).await?;
        let measured = record.data["status"]["measuredMillijoules"].as_i64();
        ensure!(measured > Some(0), "{:?}", record.data["status"]);
        Ok(())
    });
}

/// What the API server does where a webhook cannot be asked.
async fn on_failure(shared: &Shared, policy: &str) -> anyhow::Result<()> {
    for resource in [
        ApiResource::erase::<MutatingWebhookConfiguration>(&()),
        ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
    ] {
        let api: Api<DynamicObject> = Api::all_with(shared.stack.client.clone(), &resource);
        let found = api.get(WEBHOOKS).await?;
        let webhooks = found.data["webhooks"].as_array().map_or(0, Vec::len);
        let operations = (0..webhooks).map(|n| {
            json!({ "op": "replace", "path": format!("/webhooks/{n}/failurePolicy"), "value": policy })
        });
        let patch: json_patch::Patch =
            serde_json::from_value(operations.collect::<Vec<_>>().into())?;
        let params = PatchParams::default();
        api.patch(WEBHOOKS, &params, &Patch::<()>::Json(patch))
            .await?;
    }
    Ok(())
}

const ROTATIONS: usize = 100;

#[test]
fn a_hundred_certificates_are_rotated_with_their_authorities_and_no_call_fails() {
    alone(|shared| async move {
        let (client, namespace) = (&shared.stack.client, "rotated");
        jobs::namespace(client, namespace).await?;
        let spec = json!({ "limit": "1kg", "mode": "Enforce" });
        jobs::budget(client, namespace, "images", spec).await?;
        shared.stop_controller();
        let often = ["--certificate-overlap-seconds=0.4"];
        let _controller = shared.stack.controller(7, &often, &[])?;
        on_failure(shared, "Fail").await?;

        let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ask = || async {
            let job: Job = serde_json::from_value(Generate::SMALL.job("dry"))?;
            let api = jobs::jobs(client, namespace);
            let dry = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            while !done.load(Ordering::Relaxed) {
                let held = api.create(&dry, &job).await.context("a call has failed")?;
                ensure!(jobs::is_held(&held), "the webhook was not asked: {held:?}");
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        };
        let rotate = async {
            let rotated = rotate(shared).await;
            done.store(true, Ordering::Relaxed);
            rotated
        };
        let rotated = tokio::try_join!(rotate, ask(), ask(), ask());
        on_failure(shared, "Ignore").await?;
        rotated?;
        let asked = asked.load(Ordering::Relaxed);
        ensure!(asked > 10 * ROTATIONS, "only {asked} calls");
        Ok(())
    });
}

async fn rotate(shared: &Shared) -> anyhow::Result<()> {
    let mut authorities = BTreeSet::new();
    for number in 0..ROTATIONS {
        let before = secrets(shared).get(TLS_SECRET).await?;
        if number % 20 == 10 {
            // Webhooks go on with what they have in hand.
            let gone = DeleteParams::default();
            secrets(shared).delete(TLS_SECRET, &gone).await?;
            let anew = || async { secrets(shared).get_opt(TLS_SECRET).await };
            let now = eventually("a Secret", SOON, || async { Ok(anew().await?) }).await?;
            authorities.insert(file(&now, "ca.crt"));
            continue;
        }
        let due = json!({ "metadata": { "annotations": {
            "jouleward.dev/expires": "2001-01-01T00:00:00Z" } } });
        let params = PatchParams::default();
        secrets(shared)
            .patch(TLS_SECRET, &params, &Patch::Merge(due))
            .await?;
        let anew = || async {
            let now = secrets(shared).get(TLS_SECRET).await?;
            Ok((file(&now, "tls.crt") != file(&before, "tls.crt")).then_some(now))
        };
        let now = eventually("another certificate", SOON, anew).await?;
        authorities.insert(file(&now, "ca.crt"));
    }
    ensure!(authorities.len() == ROTATIONS);
    Ok(())
}

/// A certificate for the webhook as somebody else makes it: authority, chain, key, in PEM. It would
/// be due to be renewed.
fn of_somebody(host: &str) -> anyhow::Result<[String; 3]> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
        .distinguished_name
        .push(DnType::CommonName, "somebody");
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate()?;
    let leaf = CertificateParams::new([host.to_owned()])?.signed_by(&own, &issuer)?;
    Ok([authority, leaf.pem(), own.serialize_pem()])
}

#[test]
fn a_certificate_that_somebody_else_keeps_is_served_and_left_alone() {
    alone(|shared| async move {
        use base64::Engine;
        let (client, namespace) = (&shared.stack.client, "external");
        jobs::namespace(client, namespace).await?;
        let spec = json!({ "limit": "1kg", "mode": "Enforce" });
        jobs::budget(client, namespace, "images", spec).await?;
        shared.stop_controller();
        let flags = [
            "--webhook-certificate=external",
            "--certificate-overlap-seconds=0.4",
        ];
        let _controller = shared.stack.controller(8, &flags, &[])?;
        shared.led_by(&["controller-8"]).await?;
        let [authority, chain, key] = of_somebody(&shared.stack.address(20))?;
        let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let bundle = encoded(&authority);
        let trust =
            json!([{ "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle }]);
        for resource in [
            ApiResource::erase::<MutatingWebhookConfiguration>(&()),
            ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
        ] {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let patch: json_patch::Patch = serde_json::from_value(trust.clone())?;
            let params = PatchParams::default();
            api.patch(WEBHOOKS, &params, &Patch::<()>::Json(patch))
                .await?;
        }
        let given = json!({
            "metadata": { "annotations": { "jouleward.dev/expires": "2001-01-01T00:00:00Z" } },
            "data": { "ca.crt": bundle, "tls.crt": encoded(&chain), "tls.key": encoded(&key) },
        });
        let params = PatchParams::default();
        secrets(shared)
            .patch(TLS_SECRET, &params, &Patch::Merge(given))
            .await?;
        // Many times as long as its own keeper would wait.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let now = secrets(shared).get(TLS_SECRET).await?;
        ensure!(file(&now, "tls.crt") == chain.as_bytes(), "it was replaced");
        let job: Job = serde_json::from_value(Generate::SMALL.job("asked"))?;
        let held = || async {
            let dry = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            let made = jobs::jobs(client, namespace).create(&dry, &job).await?;
            Ok(jobs::is_held(&made).then_some(()))
        };
        eventually("the webhook is asked under it", SOON, held).await
    });
}

#[test]
fn the_chart_leaves_the_certificate_to_cert_manager_or_to_a_secret_of_ones_own() {
    on_plane(|shared| async move {
        let render = |certificate: serde_json::Value| {
            let values = json!({ "webhook": { "certificate": certificate } });
            harness::chart::Chart::render(&shared.stack.plane, &values)
        };
        let of = |chart: &harness::chart::Chart, kind: &str| {
            let found = chart.objects.iter().find(|object| object["kind"] == kind);
            found.cloned().unwrap_or_default()
        };
        let configurations = [
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
        ];
        let external = |chart: &harness::chart::Chart| {
            let all = chart.objects.iter();
            let args = all.map(|object| object.pointer("/spec/template/spec/containers/0/args"));
            let mut args = args.flatten().map(ToString::to_string);
            args.any(|args| args.contains("--webhook-certificate=external"))
        };
        let own = render(json!({}))?;
        ensure!(!external(&own) && of(&own, "Certificate").is_null());

        let managed = render(json!({ "source": "cert-manager" }))?;
        let certificate = of(&managed, "Certificate");
        ensure!(external(&managed) && certificate["spec"]["secretName"] == TLS_SECRET);
        ensure!(certificate["spec"]["issuerRef"]["name"] == "jouleward-webhook");
        ensure!(of(&managed, "Issuer")["spec"]["selfSigned"].is_object());
        for kind in configurations {
            let from =
                of(&managed, kind)["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
                    .clone();
            ensure!(
                from == "jouleward-system/jouleward-webhook",
                "{kind}: {from}"
            );
        }
        let company = json!({ "name": "company", "kind": "ClusterIssuer" });
        let managed = render(json!({ "source": "cert-manager", "issuerRef": company.clone() }))?;
        ensure!(of(&managed, "Certificate")["spec"]["issuerRef"] == company);
        ensure!(of(&managed, "Issuer").is_null());

        let secret = render(json!({ "source": "secret", "caBundle": "PEM" }))?;
        ensure!(external(&secret) && of(&secret, "Certificate").is_null());
        for kind in configurations {
            let bundle = of(&secret, kind)["webhooks"][0]["clientConfig"]["caBundle"].clone();
            ensure!(bundle == "UEVN", "{kind}: {bundle}");
        }
        let without = render(json!({ "source": "secret" }))
            .err()
            .context("refused")?;
        ensure!(format!("{without:#}").contains("webhook.certificate.caBundle"));
        Ok(())
    });
}
