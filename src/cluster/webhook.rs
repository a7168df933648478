//! The webhook: answers reviews from a snapshot that watches keep fresh. It calls nobody
//! while answering, and it does not matter to it who leads, only that someone does.

use super::caches::{Watches, World};
use super::review::{Snapshot, by_namespace};
use super::reviewer::Reviewer;
use super::stores::{Cache, last_heard, seconds_since};
use super::world::Objects;
use crate::clock;
use crate::contract::{self as c, LEASE, TLS_SECRET};
use crate::serve::exposition::{Family, render};
use crate::serve::http::{Answer, Call, Server, readiness};
use crate::serve::shutdown::{Stop, until_stopped};
use crate::serve::tls::{Certificate, server_config};
use hyper::StatusCode;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::Config;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What a webhook is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of Jouleward itself.
    pub namespace: String,
    pub listen: SocketAddr,
    /// Plain HTTP for metrics and health.
    pub admin_listen: SocketAddr,
    /// How long a lease holds. Twice as long without a change, the leader is given up: one
    /// that dies is followed by another before that, and no job slips through meanwhile.
    pub lease_duration: Duration,
}

#[derive(Debug, Default)]
struct Caches {
    world: World,
    lease: Arc<Cache<String>>,
    certificate: Arc<Cache<(Vec<u8>, Vec<u8>)>>,
}

impl Caches {
    fn synced(&self) -> bool {
        self.world.synced() && self.lease.is_synced()
    }

    fn watch(&self, watches: &mut Watches, own: &str) {
        self.world.watch(watches);
        let named = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
        let leases = Api::<Lease>::namespaced(watches.client.clone(), own);
        watches.start(leases, named(LEASE), held_version, &self.lease);
        let secrets = Api::<Secret>::namespaced(watches.client.clone(), own);
        watches.start(secrets, named(TLS_SECRET), pair, &self.certificate);
    }
}

struct Context {
    caches: Caches,
    reviewer: Reviewer,
    /// µs, monotonic: when the API server was last heard of.
    heard: Arc<AtomicU64>,
    certificate: Arc<Certificate>,
    changed: Arc<Notify>,
}

/// Runs until told to stop.
pub async fn run(client: Client, settings: Settings, stop: Stop) -> Result<(), std::io::Error> {
    let server = Server::bind(settings.listen).await?;
    let admin = Server::bind(settings.admin_listen).await?;
    let context = Arc::new(Context {
        caches: Caches::default(),
        reviewer: Reviewer::new(Snapshot {
            oracle: Objects::default().oracle(),
            budgets: HashMap::new(),
            leader_stale: true,
        }),
        heard: Arc::default(),
        certificate: Arc::default(),
        changed: Arc::new(Notify::new()),
    });
    tracing::info!(listen = %settings.listen, "webhook starts");
    let mut tasks = JoinSet::new();
    let mut watches = Watches {
        tasks: &mut tasks,
        client: &client,
        changed: &context.changed,
        heard: &context.heard,
        stop: &stop,
    };
    context.caches.watch(&mut watches, &settings.namespace);
    tasks.spawn(refresh(
        context.clone(),
        settings.lease_duration,
        stop.clone(),
    ));
    let tls = server_config(context.certificate.clone());
    let reviewed = context.clone();
    let review = move |call: Call| {
        let context = reviewed.clone();
        async move { context.reviewer.answer(&call) }
    };
    tasks.spawn(server.run(Some(tls), review, stop.clone()));
    let shown = context.clone();
    let show = move |call: Call| {
        let context = shown.clone();
        async move { context.show(&call) }
    };
    tasks.spawn(admin.run(None, show, stop.clone()));
    until_stopped(tasks, &stop, "webhook").await
}

/// The lease's version while someone holds it.
fn held_version(lease: Lease) -> Option<String> {
    let holder = lease
        .spec
        .as_ref()?
        .holder_identity
        .clone()
        .filter(|holder| !holder.is_empty())?;
    Some(format!(
        "{holder} {}",
        lease.metadata.resource_version.unwrap_or_default()
    ))
}

fn pair(secret: Secret) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut data = secret.data?;
    Some((data.remove("tls.crt")?.0, data.remove("tls.key")?.0))
}

/// Renews the snapshot when something changed, and the leader's state once a second.
async fn refresh(context: Arc<Context>, lease_duration: Duration, stop: Stop) {
    let mut lease: Option<(String, u64)> = None;
    let mut served: Option<Arc<(Vec<u8>, Vec<u8>)>> = None;
    loop {
        let _ = tokio::time::timeout(Duration::from_millis(500), context.changed.notified()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if stop.is_stopped() {
            return;
        }
        let now = clock::monotonic_micros();
        if let Some(version) = context.caches.lease.all().first()
            && lease
                .as_ref()
                .is_none_or(|(last, _)| last != version.as_ref())
        {
            lease = Some((version.to_string(), now));
        }
        let alive = lease.as_ref().is_some_and(|(_, at)| {
            Duration::from_micros(now.saturating_sub(*at)) <= lease_duration * 2
        });
        context.renew(!alive);
        let newest = context.caches.certificate.all().first().cloned();
        if let Some(pair) = newest.filter(|pair| served.as_ref() != Some(pair)) {
            match context.certificate.set(&pair.0, &pair.1) {
                Ok(()) => tracing::info!("serves a new certificate"),
                // The one before stays.
                Err(error) => {
                    tracing::error!(error = %crate::serve::telemetry::chain(&error), "a certificate that cannot be used");
                }
            }
            served = Some(pair);
        }
    }
}

impl Context {
    fn renew(&self, leader_stale: bool) {
        let objects = self.caches.world.objects();
        let budgets = self.caches.world.budgets.all();
        let budgets = by_namespace(budgets.iter().map(AsRef::as_ref));
        self.reviewer.snapshot.store(Arc::new(Snapshot {
            oracle: objects.oracle(),
            budgets,
            leader_stale,
        }));
    }

    fn show(&self, call: &Call) -> Answer {
        match call.path.as_str() {
            "/metrics" => {
                let mut age = Family::new(c::SNAPSHOT_AGE);
                if let Some(seconds) = seconds_since(&self.heard) {
                    age.add(Vec::new(), seconds);
                }
                let mut stale = Family::new(c::LEADER_STALE);
                stale.add(
                    Vec::new(),
                    f64::from(u8::from(self.reviewer.snapshot.load().leader_stale)),
                );
                let mut families = vec![age, stale];
                families.extend(self.reviewer.families());
                let (body, content_type) = render(families, call.accept.as_deref());
                Answer {
                    status: StatusCode::OK,
                    content_type,
                    body: body.into(),
                }
            }
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let caches = if self.caches.synced() {
                    "ok"
                } else {
                    "not synced"
                };
                let certificate = if self.certificate.is_set() {
                    "ok"
                } else {
                    "none yet"
                };
                let heard = last_heard(&self.heard);
                let text = format!("caches: {caches}\ncertificate: {certificate}\n{heard}");
                let ready = self.caches.synced() && self.certificate.is_set();
                Answer::text(readiness(ready), text)
            }
            _ => Answer::not_found(),
        }
    }
}
