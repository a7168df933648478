//! The controller: watches, leads, scrapes, and runs the cycle gather → decide → apply →
//! status whenever something changed.

use super::cycle::Memory;
use super::energy::Pages;
use super::lease::{self, Watched};
use super::objects::Work;
use super::stores::{self, Cache, ExporterSeen, PodSeen, keep, parsed};
use super::world::{NodeInfo, Objects};
use super::{certificates, cycle};
use crate::api::{CarbonBudget, CarbonReservation, Condition, DiffusionModel, EnergyLaw, GridZone};
use crate::budget::Oracle;
use crate::clock;
use crate::contract::{self as c, LEASE};
use crate::serve::exposition::{Family, Tallies, render};
use crate::serve::http::{Answer, Call, Server};
use crate::serve::shutdown::Stop;
use arc_swap::ArcSwap;
use hyper::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::Config;
use kube::{Client, ResourceExt};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What a controller is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of Jouleward itself.
    pub namespace: String,
    /// Name of this replica.
    pub identity: String,
    pub listen: SocketAddr,
    pub lease: lease::Terms,
    /// Leads whatever the lease says: for tests of the guarded writes.
    pub ignore_lease: bool,
    /// Names and addresses that the webhook's certificate is for.
    pub webhook_hosts: Vec<String>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("another write was faster")]
    Conflict,
    #[error("the object is gone")]
    NotFound,
    #[error("this replica leads no more")]
    Deposed,
    #[error("the API server refused: {0}")]
    Invalid(String),
    #[error("the API server did not answer in 5 s")]
    Late,
    #[error("the API server could not be asked")]
    Api(#[source] Box<kube::Error>),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            kube::Error::Api(status) if status.code == 404 => Self::NotFound,
            kube::Error::Api(status) if status.code == 422 || status.code == 403 => {
                Self::Invalid(status.message.clone())
            }
            other => Self::Api(Box::new(other)),
        }
    }
}

/// Everything that is watched.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub(super) budgets: Arc<Cache<CarbonBudget>>,
    pub(super) reservations: Arc<Cache<CarbonReservation>>,
    pub(super) laws: Arc<Cache<EnergyLaw>>,
    pub(super) models: Arc<Cache<DiffusionModel>>,
    pub(super) zones: Arc<Cache<GridZone>>,
    pub(super) nodes: Arc<Cache<NodeInfo>>,
    pub(super) namespaces: Arc<Cache<PartialObjectMeta<Namespace>>>,
    pub(super) jobs: Arc<Cache<Work>>,
    pub(super) pods: Arc<Cache<PodSeen>>,
    pub(super) exporters: Arc<Cache<ExporterSeen>>,
}

impl Caches {
    fn synced(&self) -> bool {
        self.budgets.is_synced()
            && self.reservations.is_synced()
            && self.laws.is_synced()
            && self.models.is_synced()
            && self.zones.is_synced()
            && self.nodes.is_synced()
            && self.namespaces.is_synced()
            && self.jobs.is_synced()
            && self.pods.is_synced()
            && self.exporters.is_synced()
    }

    pub(super) fn objects(&self) -> Objects {
        Objects {
            laws: self.laws.all(),
            models: self.models.all(),
            zones: self.zones.all(),
            nodes: self
                .nodes
                .all()
                .iter()
                .map(|node| (**node).clone())
                .collect(),
        }
    }
}

/// What every part of the controller works with.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) caches: Caches,
    pub(super) tallies: Tallies,
    pub(super) gauges: ArcSwap<Vec<Family>>,
    pub(super) pages: Mutex<Arc<Pages>>,
    oracle: ArcSwap<Option<Arc<Oracle>>>,
    epoch: AtomicI64,
    leads_until: AtomicU64,
    changed: Arc<Notify>,
}

const CALL_DEADLINE: Duration = Duration::from_secs(5);

impl Context {
    /// Runs one call to the API server within its deadline.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let result = tokio::time::timeout(CALL_DEADLINE, call)
            .await
            .map_err(|_| Failure::Late);
        let result = result.and_then(|result| result.map_err(Failure::from));
        if let Err(error) = &result {
            let code = match error {
                Failure::Conflict => "conflict",
                Failure::NotFound => "not_found",
                Failure::Invalid(_) => "refused",
                Failure::Late => "timeout",
                _ => "unreachable",
            };
            self.tallies
                .count(&c::API_ERRORS, vec![("code", code.to_owned())]);
        }
        result
    }

    pub(super) fn now(&self) -> Timestamp {
        clock::now()
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn is_leading(&self) -> bool {
        self.settings.ignore_lease
            || clock::monotonic_micros() < self.leads_until.load(Ordering::Acquire)
    }

    /// Asked before every write: who could not renew in time must not spend.
    pub(super) fn check_leading(&self) -> Result<(), Failure> {
        if self.is_leading() {
            Ok(())
        } else {
            Err(Failure::Deposed)
        }
    }

    /// The oracle of this cycle.
    pub(super) fn oracle(&self) -> Arc<Oracle> {
        if let Some(oracle) = self.oracle.load().as_ref() {
            return oracle.clone();
        }
        self.renew_oracle()
    }

    pub(super) fn renew_oracle(&self) -> Arc<Oracle> {
        let oracle = Arc::new(self.caches.objects().oracle());
        self.oracle.store(Arc::new(Some(oracle.clone())));
        oracle
    }

    pub(super) fn condition(
        &self,
        kind: &str,
        yes: bool,
        reason: &str,
        message: String,
        generation: Option<i64>,
    ) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: if yes { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }
}

/// Runs until told to stop.
pub async fn run(client: Client, settings: Settings, stop: Stop) -> Result<(), std::io::Error> {
    let server = Server::bind(settings.listen).await?;
    let context = Arc::new(Context {
        client: client.clone(),
        caches: Caches::default(),
        tallies: Tallies::default(),
        gauges: ArcSwap::default(),
        pages: Mutex::default(),
        oracle: ArcSwap::from_pointee(None),
        epoch: AtomicI64::new(0),
        leads_until: AtomicU64::new(0),
        changed: Arc::new(Notify::new()),
        settings,
    });
    tracing::info!(identity = context.settings.identity, "controller starts");
    let mut tasks = JoinSet::new();
    watch_all(&mut tasks, &context, &stop);
    tasks.spawn(hold_lease(context.clone(), stop.clone()));
    tasks.spawn(scrape(context.clone(), stop.clone()));
    tasks.spawn(certificates::keep(context.clone(), stop.clone()));
    tasks.spawn(work(context.clone(), stop.clone()));
    let shown = context.clone();
    let handler = move |call: Call| {
        let context = shown.clone();
        async move { answer(&call, &context) }
    };
    tasks.spawn(server.run(None, handler, stop.clone()));
    // Any end but the asked-for one ends the process: no part runs on alone.
    while let Some(ended) = tasks.join_next().await {
        if !stop.is_stopped() {
            let why = ended
                .err()
                .map_or("ended".to_owned(), |error| error.to_string());
            return Err(std::io::Error::other(format!(
                "a part of the controller stopped: {why}"
            )));
        }
    }
    Ok(())
}

fn watch_all(tasks: &mut JoinSet<()>, context: &Arc<Context>, stop: &Stop) {
    let client = &context.client;
    let caches = &context.caches;
    macro_rules! watch {
        ($api:expr, $config:expr, $reduce:expr, $cache:ident) => {
            tasks.spawn(keep(
                $api,
                $config,
                $reduce,
                caches.$cache.clone(),
                context.changed.clone(),
                stop.clone(),
            ))
        };
    }
    let all = Config::default;
    watch!(
        Api::<DeserializeGuard<CarbonBudget>>::all(client.clone()),
        all(),
        parsed,
        budgets
    );
    watch!(
        Api::<DeserializeGuard<CarbonReservation>>::all(client.clone()),
        all(),
        parsed,
        reservations
    );
    watch!(
        Api::<DeserializeGuard<EnergyLaw>>::all(client.clone()),
        all(),
        parsed,
        laws
    );
    watch!(
        Api::<DeserializeGuard<DiffusionModel>>::all(client.clone()),
        all(),
        parsed,
        models
    );
    watch!(
        Api::<DeserializeGuard<GridZone>>::all(client.clone()),
        all(),
        parsed,
        zones
    );
    watch!(
        Api::<PartialObjectMeta<Node>>::all(client.clone()),
        all(),
        stores::node,
        nodes
    );
    watch!(
        Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
        all(),
        Some,
        namespaces
    );
    watch!(Api::<Job>::all(client.clone()), all(), stores::job, jobs);
    watch!(Api::<Pod>::all(client.clone()), all(), stores::pod, pods);
    let exporters =
        all().labels("app.kubernetes.io/name=jouleward,app.kubernetes.io/component=exporter");
    let own = Api::<Pod>::namespaced(client.clone(), &context.settings.namespace);
    watch!(own, exporters, stores::exporter, exporters);
}

async fn hold_lease(context: Arc<Context>, stop: Stop) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let terms = context.settings.lease;
    let me = context.settings.identity.clone();
    let mut watched = Watched::default();
    while !stop.is_stopped() {
        let asked = clock::monotonic_micros();
        let mine = context
            .call(lease::tend(&api, LEASE, &me, &mut watched, &terms, asked))
            .await;
        match mine {
            Ok(true) => {
                let deadline = u64::try_from(terms.renew_deadline.as_micros()).unwrap_or(u64::MAX);
                if !context.is_leading() {
                    tracing::info!(epoch = watched.transitions, "leads");
                }
                context
                    .epoch
                    .store(i64::from(watched.transitions), Ordering::Release);
                context
                    .leads_until
                    .store(asked.saturating_add(deadline), Ordering::Release);
                context.changed.notify_one();
            }
            Ok(false) => {
                context.leads_until.store(0, Ordering::Release);
                if context.settings.ignore_lease {
                    // Forced beside the true leader, with the same right to write.
                    context
                        .epoch
                        .store(i64::from(watched.transitions), Ordering::Release);
                }
            }
            Err(error) => {
                tracing::warn!(error = %crate::serve::telemetry::chain(&error), "the lease could not be tended");
            }
        }
        tokio::select! {
            () = stop.wait() => break,
            () = tokio::time::sleep(terms.retry) => {}
        }
    }
    context.leads_until.store(0, Ordering::Release);
    let _ = context.call(lease::give_back(&api, LEASE, &me)).await;
}

async fn scrape(context: Arc<Context>, stop: Stop) {
    let mut pages = Pages::default();
    loop {
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if !context.is_leading() {
            continue;
        }
        for (node, error) in pages.refresh(context.caches.exporters.all()).await {
            tracing::debug!(node, %error, "an exporter does not answer");
            context
                .tallies
                .count(&c::EXPORTER_ERRORS, vec![("node", node)]);
        }
        if let Ok(mut shared) = context.pages.lock() {
            *shared = Arc::new(pages.clone());
        }
        context.changed.notify_one();
    }
}

/// The cycle: at once after a change, at least once a second.
async fn work(context: Arc<Context>, stop: Stop) {
    let mut memory = Memory::default();
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(1), context.changed.notified()).await;
        // Events come in swarms.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if stop.is_stopped() {
            return;
        }
        if !context.caches.synced() || !context.is_leading() {
            memory.forget();
            continue;
        }
        let began = clock::monotonic_micros();
        cycle::run(&context, &mut memory).await;
        let seconds = clock::monotonic_micros().saturating_sub(began) as f64 / 1e6;
        context
            .tallies
            .observe(&c::CYCLE_SECONDS, Vec::new(), seconds);
    }
}

fn answer(call: &Call, context: &Context) -> Answer {
    match call.path.as_str() {
        "/metrics" => {
            let mut families = context.gauges.load().as_ref().clone();
            let mut leader = Family::new(c::LEADER);
            let leads = f64::from(u8::from(context.is_leading()));
            leader.add(vec![("identity", context.settings.identity.clone())], leads);
            families.push(leader);
            families.extend(context.tallies.families(c::CONTROLLER_METRICS));
            let (body, content_type) = render(families, call.accept.as_deref());
            Answer {
                status: StatusCode::OK,
                content_type,
                body: body.into_bytes(),
            }
        }
        "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
        "/readyz" if context.caches.synced() => Answer::text(StatusCode::OK, "ok\n"),
        "/readyz" => Answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "caches are not synced yet\n",
        ),
        _ => Answer::not_found(),
    }
}

/// Namespaces that exist, with their labels.
pub(super) fn labels(context: &Context) -> BTreeMap<String, BTreeMap<String, String>> {
    context
        .caches
        .namespaces
        .all()
        .iter()
        .map(|n| (n.name_any(), n.labels().clone()))
        .collect()
}
