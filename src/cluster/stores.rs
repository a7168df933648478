//! Caches of the cluster's objects: one watch each, reduced to what is needed before it is
//! kept.

use super::objects::{Kind, Work};
use super::wire::Lite;
use super::world::NodeInfo;
use crate::budget::NODE_NAME;
use crate::clock;
use crate::serve::shutdown::Stop;
use futures::TryStreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::Notify;

/// Objects by `namespace/name`.
#[derive(Debug)]
pub(super) struct Cache<V> {
    map: RwLock<BTreeMap<String, Arc<V>>>,
    synced: AtomicBool,
    /// What went, where that is minded, and when (µs, monotonic); the oldest first.
    removed: Mutex<Option<VecDeque<Removed<V>>>>,
}

/// An object that is no longer there.
#[derive(Debug)]
pub(super) struct Removed<V> {
    /// `namespace/name`.
    pub(super) key: String,
    pub(super) value: Arc<V>,
    /// µs, monotonic: when it was seen that it is gone.
    pub(super) at: u64,
}

/// Removals kept in mind at most, and for how long.
const REMOVALS: usize = 100_000;
const MINDED_US: u64 = 600_000_000;

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self {
            map: RwLock::default(),
            synced: AtomicBool::new(false),
            removed: Mutex::new(None),
        }
    }
}

impl<V> Cache<V> {
    pub(super) fn all(&self) -> Vec<Arc<V>> {
        self.map
            .read()
            .map(|map| map.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Objects of one namespace.
    pub(super) fn within(&self, namespace: &str) -> Vec<Arc<V>> {
        let prefix = format!("{namespace}/");
        let Ok(map) = self.map.read() else {
            return Vec::new();
        };
        map.range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(_, v)| v.clone())
            .collect()
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<V>> {
        self.map.read().ok()?.get(key).cloned()
    }

    /// From now on what goes is kept in mind until it is taken.
    pub(super) fn mind_removals(&self) {
        if let Ok(mut removed) = self.removed.lock() {
            removed.get_or_insert_default();
        }
    }

    /// What went since it was asked last, and has not come back.
    pub(super) fn take_removed(&self) -> Vec<Removed<V>> {
        let Ok(mut removed) = self.removed.lock() else {
            return Vec::new();
        };
        let now = clock::monotonic_micros();
        let taken = removed.as_mut().map(std::mem::take).unwrap_or_default();
        let young = |gone: &Removed<V>| now.saturating_sub(gone.at) <= MINDED_US;
        taken.into_iter().filter(young).collect()
    }

    /// True where such an object went, has not come back, and nobody has taken it yet.
    pub(super) fn has_removed(&self, such: impl Fn(&V) -> bool) -> bool {
        let removed = self.removed.lock();
        removed.is_ok_and(|removed| {
            let all = removed.iter().flatten();
            all.map(|gone| &*gone.value).any(such)
        })
    }

    /// What the watch says of one object now.
    pub(super) fn put(&self, key: &str, value: Option<V>) {
        let Ok(mut map) = self.map.write() else {
            return;
        };
        if let Some(value) = value {
            let before = map.insert(key.to_owned(), Arc::new(value));
            if before.is_none() {
                self.is_back(|known| known == key);
            }
        } else {
            let gone = map.remove(key);
            self.mind(gone.map(|value| (key.to_owned(), value)));
        }
    }

    /// What a list says: all there is.
    fn put_all(&self, fresh: BTreeMap<String, Arc<V>>) {
        let Ok(mut map) = self.map.write() else {
            return;
        };
        let before = std::mem::replace(&mut *map, fresh);
        let gone = before.into_iter().filter(|(key, _)| !map.contains_key(key));
        self.mind(gone);
        self.is_back(|known| map.contains_key(known));
    }

    /// Forgets the removal of what is there again.
    fn is_back(&self, there: impl Fn(&str) -> bool) {
        if let Ok(mut removed) = self.removed.lock()
            && let Some(removed) = removed.as_mut()
        {
            removed.retain(|gone| !there(&gone.key));
        }
    }

    fn mind(&self, gone: impl IntoIterator<Item = (String, Arc<V>)>) {
        let now = clock::monotonic_micros();
        if let Ok(mut removed) = self.removed.lock()
            && let Some(removed) = removed.as_mut()
        {
            removed.extend(gone.into_iter().map(|(key, value)| Removed {
                key,
                value,
                at: now,
            }));
            let old = |gone: &Removed<V>| now.saturating_sub(gone.at) > MINDED_US;
            while removed.front().is_some_and(old) {
                removed.pop_front();
            }
            let lost = removed.len().saturating_sub(REMOVALS);
            if lost > 0 {
                removed.drain(..lost);
                tracing::error!(lost, "so many objects went at once that some are forgotten");
            }
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }
}

fn key<K: Resource>(object: &K) -> String {
    format!(
        "{}/{}",
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.name_any()
    )
}

/// Seconds since [`keep`] last heard of the API server; `None` before it has.
pub(super) fn seconds_since(heard: &AtomicU64) -> Option<f64> {
    let heard = heard.load(Ordering::Relaxed);
    (heard > 0).then(|| clock::monotonic_micros().saturating_sub(heard) as f64 / 1e6)
}

/// The same as a line for /readyz.
pub(super) fn last_heard(heard: &AtomicU64) -> String {
    let said = seconds_since(heard).map_or_else(
        || "not heard of yet".to_owned(),
        |seconds| format!("last heard of {seconds:.0} s ago"),
    );
    format!("API server: {said}\n")
}

/// Keeps a cache up to date until told to stop; wakes `changed` with every event.
pub(super) async fn keep<K, V>(
    api: Api<K>,
    config: watcher::Config,
    reduce: impl Fn(K) -> Option<V>,
    cache: Arc<Cache<V>>,
    changed: Arc<Notify>,
    heard: Arc<AtomicU64>,
    stop: Stop,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let events = watch(api, config.page_size(500)).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut fresh: BTreeMap<String, Arc<V>> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            () = stop.wait() => return,
            event = events.try_next() => event,
        };
        // `Init` comes before anything was asked.
        if matches!(&event, Ok(Some(event)) if !matches!(event, Event::Init)) {
            heard.store(clock::monotonic_micros(), Ordering::Relaxed);
        }
        match event {
            Ok(Some(Event::Init)) => fresh.clear(),
            Ok(Some(Event::InitApply(object))) => {
                let key = key(&object);
                if let Some(value) = reduce(object) {
                    fresh.insert(key, Arc::new(value));
                }
            }
            Ok(Some(Event::InitDone)) => {
                cache.put_all(std::mem::take(&mut fresh));
                cache.synced.store(true, Ordering::Release);
            }
            Ok(Some(Event::Apply(object))) => {
                cache.put(&key(&object), reduce(object));
            }
            Ok(Some(Event::Delete(object))) => cache.put(&key(&object), None),
            Ok(None) => return,
            Err(error) => tracing::debug!(%error, "watch broke; it comes back"),
        }
        changed.notify_one();
    }
}

/// Custom resources are kept whole; one that does not parse is left out, and said once an
/// event, instead of stopping the watch.
pub(super) fn parsed<K>(guarded: DeserializeGuard<K>) -> Option<K>
where
    K: Resource,
{
    match guarded.0 {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(
                name = error.metadata.name,
                error = error.error,
                "an object does not parse and is left out"
            );
            None
        }
    }
}

/// An exporter, by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExporterSeen {
    pub(super) node: String,
    pub(super) ip: String,
}

/// Any Job or Pod, through the lean types.
pub(super) fn lite<K: Serialize>(object: K) -> Option<Lite> {
    serde_json::from_value(serde_json::to_value(object).ok()?).ok()
}

pub(super) fn job(object: Job) -> Option<Work> {
    Work::of(Kind::Job, lite(object)?)
}

pub(super) fn pod(object: Pod) -> Option<Work> {
    Work::of(Kind::Pod, lite(object)?)
}

/// An exporter that answers; one that is being deleted is replaced by another.
pub(super) fn exporter(object: Pod) -> Option<ExporterSeen> {
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let lite = lite(object)?;
    Some(ExporterSeen {
        node: lite.spec.pod.node_name?,
        ip: lite.status.pod_ip?,
    })
}

pub(super) fn node(
    object: kube::core::PartialObjectMeta<k8s_openapi::api::core::v1::Node>,
) -> Option<NodeInfo> {
    let name = object.name_any();
    let mut labels = object.labels().clone();
    labels.insert(NODE_NAME.to_owned(), name.clone());
    Some(NodeInfo {
        name,
        labels: Arc::new(labels),
    })
}

/// Watches of built-in kinds through the lean types.
pub(super) fn lean<K>(client: &kube::Client) -> (Api<DynamicObject>, ApiResource)
where
    K: Resource<DynamicType = ()>,
{
    let resource = ApiResource::erase::<K>(&());
    (Api::all_with(client.clone(), &resource), resource)
}
