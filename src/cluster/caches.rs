//! What is watched: the objects that predictions and budgets rest on, by webhook and
//! controller alike, and what the controller needs besides.

use super::objects::Work;
use super::stores::{self, Cache, ExporterSeen, keep, parsed};
use super::world::{NodeInfo, Objects};
use crate::api::{
    CarbonBudget, CarbonReservation, CarbonStatement, DiffusionModel, EnergyLaw, GridZone,
};
use crate::serve::shutdown::Stop;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Starts watches that wake the same waiter and end together.
pub(super) struct Watches<'a> {
    pub(super) tasks: &'a mut JoinSet<()>,
    pub(super) client: &'a Client,
    pub(super) changed: &'a Arc<Notify>,
    /// µs, monotonic: when any of them last heard of the API server.
    pub(super) heard: &'a Arc<AtomicU64>,
    pub(super) stop: &'a Stop,
}

impl Watches<'_> {
    /// Watches what `api` lists, and keeps what `reduce` leaves of it.
    pub(super) fn start<K, V>(
        &mut self,
        api: Api<K>,
        config: Config,
        reduce: impl Fn(K) -> Option<V> + Send + 'static,
        cache: &Arc<Cache<V>>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
        V: Send + Sync + 'static,
    {
        self.tasks.spawn(keep(
            api,
            config,
            reduce,
            cache.clone(),
            self.changed.clone(),
            self.heard.clone(),
            self.stop.clone(),
        ));
    }

    fn ours<K>(&mut self, cache: &Arc<Cache<K>>)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = Api::<DeserializeGuard<K>>::all(self.client.clone());
        self.start(api, Config::default(), parsed, cache);
    }
}

/// What predictions and budgets rest on.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) budgets: Arc<Cache<CarbonBudget>>,
    pub(super) laws: Arc<Cache<EnergyLaw>>,
    pub(super) models: Arc<Cache<DiffusionModel>>,
    pub(super) zones: Arc<Cache<GridZone>>,
    pub(super) nodes: Arc<Cache<NodeInfo>>,
}

impl World {
    pub(super) fn watch(&self, watches: &mut Watches) {
        watches.ours(&self.budgets);
        watches.ours(&self.laws);
        watches.ours(&self.models);
        watches.ours(&self.zones);
        let nodes = Api::<PartialObjectMeta<Node>>::all(watches.client.clone());
        watches.start(nodes, Config::default(), stores::node, &self.nodes);
    }

    pub(super) fn synced(&self) -> bool {
        self.budgets.is_synced()
            && self.laws.is_synced()
            && self.models.is_synced()
            && self.zones.is_synced()
            && self.nodes.is_synced()
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

/// Everything that the controller watches.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub(super) world: World,
    pub(super) reservations: Arc<Cache<CarbonReservation>>,
    pub(super) statements: Arc<Cache<CarbonStatement>>,
    pub(super) namespaces: Arc<Cache<PartialObjectMeta<Namespace>>>,
    pub(super) jobs: Arc<Cache<Work>>,
    pub(super) pods: Arc<Cache<Work>>,
    pub(super) exporters: Arc<Cache<ExporterSeen>>,
}

impl Caches {
    /// Watches all of it; exporters in `own`, the namespace of Jouleward itself.
    pub(super) fn watch(&self, watches: &mut Watches, own: &str) {
        self.world.watch(watches);
        self.mind_removals();
        watches.ours(&self.reservations);
        watches.ours(&self.statements);
        let client = watches.client.clone();
        let all = Config::default;
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        watches.start(namespaces, all(), Some, &self.namespaces);
        let jobs = Api::<Job>::all(client.clone());
        watches.start(jobs, all(), stores::job, &self.jobs);
        let pods = Api::<Pod>::all(client.clone());
        watches.start(pods, all(), stores::pod, &self.pods);
        let labels = "app.kubernetes.io/name=jouleward,app.kubernetes.io/component=exporter";
        let exporters = Api::<Pod>::namespaced(client, own);
        let reduce = stores::exporter;
        watches.start(exporters, all().labels(labels), reduce, &self.exporters);
    }

    /// What of the ledger goes is kept in mind: somebody else may have deleted it.
    pub(super) fn mind_removals(&self) {
        self.reservations.mind_removals();
        self.statements.mind_removals();
    }

    pub(super) fn synced(&self) -> bool {
        self.world.synced()
            && self.reservations.is_synced()
            && self.statements.is_synced()
            && self.namespaces.is_synced()
            && self.jobs.is_synced()
            && self.pods.is_synced()
            && self.exporters.is_synced()
    }
}
