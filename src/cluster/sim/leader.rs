//! A controller in the simulation: the real cycle with a client whose calls wait for the
//! scheduler, and caches that lag behind as its watches do.

use super::server::{Answer, Change, Request, Server};
use super::world::NAMESPACE;
use crate::cluster::archive::Archive;
use crate::cluster::context::{Context, Settings};
use crate::cluster::cycle;
use crate::cluster::energy::Pages;
use crate::cluster::lease;
use crate::cluster::memory::Memory;
use crate::cluster::objects::{Kind, Work};
use crate::cluster::stores::Cache;
use crate::cluster::wire::Lite;
use crate::cluster::world::NodeInfo;
use crate::contract::PRODUCT_LABEL;
use http_body_util::BodyExt;
use hyper::header::CONTENT_TYPE;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

pub(super) const PRODUCT: &str = "NVIDIA-A100-SXM4-40GB";

/// A request on its way, and then its answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) leader: usize,
    pub(super) request: Request,
    /// Once the server has handled it.
    pub(super) answer: Option<Answer>,
    back: oneshot::Sender<Option<Answer>>,
}

impl Call {
    /// The caller hears the answer, or that its connection broke.
    pub(super) fn finish(self, heard: bool) {
        let answer = self.answer.filter(|_| heard);
        let _ = self.back.send(answer);
    }
}

/// Requests between leaders and the server.
pub(super) type Wire = Arc<Mutex<Vec<Call>>>;

fn client(leader: usize, wire: &Wire) -> Client {
    let wire = wire.clone();
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let wire = wire.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?;
            let content_type = head.headers.get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok());
            let (back, answered) = oneshot::channel();
            let call = Call {
                leader,
                request: Request {
                    method: head.method,
                    path: head.uri.path().to_owned(),
                    content_type: content_type.unwrap_or_default().to_owned(),
                    body: body.to_bytes().to_vec(),
                },
                answer: None,
                back,
            };
            wire.lock().unwrap().push(call);
            let (code, body) = answered
                .await
                .ok()
                .flatten()
                .ok_or_else(|| std::io::Error::other("the connection broke"))?;
            let response = hyper::Response::builder().status(code);
            let bytes = serde_json::to_vec(&body).map_err(std::io::Error::other)?;
            let response = response.body(Body::from(bytes));
            response.map_err(std::io::Error::other)
        }
    });
    Client::new(service, "default")
}

/// One controller.
pub(super) struct Leader {
    pub(super) number: usize,
    pub(super) context: Arc<Context>,
    memory: Arc<tokio::sync::Mutex<Memory>>,
    /// How far each watch has come.
    seen: BTreeMap<&'static str, usize>,
    running: Option<AbortHandle>,
}

/// What a controller watches.
pub(super) const WATCHED: [&str; 6] = [
    "carbonbudgets",
    "carbonreservations",
    "carbonstatements",
    "energylaws",
    "jobs",
    "pods",
];

impl Leader {
    /// A controller that has just become the leader with this number.
    pub(super) fn new(number: usize, wire: &Wire, server: &Server, law_write: Duration) -> Self {
        let settings = Settings {
            namespace: "jouleward-system".to_owned(),
            identity: format!("controller-{number}"),
            listen: ([127, 0, 0, 1], 0).into(),
            lease: lease::Terms {
                duration: Duration::from_secs(6),
                renew_deadline: Duration::from_secs(4),
                retry: Duration::from_secs(1),
            },
            ignore_lease: true,
            law_write,
            own_certificate: true,
            certificate_overlap: Duration::from_secs(30),
            keep_records: Duration::from_secs(2),
            archive: Archive::Nowhere,
            webhook_hosts: Vec::new(),
        };
        let context = Context::new(client(number, wire), settings);
        context.lead(i64::try_from(number).unwrap(), u64::MAX);
        let node = NodeInfo {
            name: "n1".to_owned(),
            labels: Arc::new(BTreeMap::from([(
                PRODUCT_LABEL.to_owned(),
                PRODUCT.to_owned(),
            )])),
        };
        context.caches.world.nodes.put("/n1", Some(node));
        let namespace = PartialObjectMeta::<Namespace>::default();
        let key = format!("/{NAMESPACE}");
        context.caches.namespaces.put(&key, Some(namespace));
        let mut leader = Self {
            number,
            context: Arc::new(context),
            memory: Arc::default(),
            seen: BTreeMap::new(),
            running: None,
        };
        // The first list of each watch is of now.
        for plural in WATCHED {
            leader.watch(server, plural, usize::MAX);
        }
        leader.context.caches.mind_removals();
        leader
    }

    /// Its watch of one kind sees up to so many changes more.
    pub(super) fn watch(&mut self, server: &Server, plural: &'static str, most: usize) {
        let seen = self.seen.entry(plural).or_insert(0);
        let Some(history) = server.history.get(plural) else {
            return;
        };
        let until = seen.saturating_add(most).min(history.len());
        let caches = &self.context.caches;
        for change in &history[*seen..until] {
            match plural {
                "carbonbudgets" => keep(&caches.world.budgets, change, parsed),
                "energylaws" => keep(&caches.world.laws, change, parsed),
                "carbonreservations" => keep(&caches.reservations, change, parsed),
                "carbonstatements" => keep(&caches.statements, change, parsed),
                "jobs" => keep(&caches.jobs, change, |v| work(Kind::Job, v)),
                _ => keep(&caches.pods, change, |v| work(Kind::Pod, v)),
            }
        }
        *seen = until;
    }

    pub(super) fn read_pages(&self, pages: Pages) {
        *self.context.pages.lock().unwrap() = Arc::new(pages);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|task| !task.is_finished())
    }

    /// Starts a cycle.
    pub(super) fn cycle(&mut self, tasks: &mut JoinSet<()>) {
        let (context, memory) = (self.context.clone(), self.memory.clone());
        let cycle = async move {
            let mut memory = memory.lock().await;
            Box::pin(cycle::run(&context, &mut memory)).await;
        };
        self.running = Some(tasks.spawn(cycle));
    }

    /// kill -9: what is on the wire may still arrive, nobody hears of it.
    pub(super) fn kill(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
        }
    }
}

fn parsed<K: DeserializeOwned>(object: &Value) -> Option<K> {
    serde_json::from_value(object.clone()).ok()
}

fn work(kind: Kind, object: &Value) -> Option<Work> {
    Work::of(kind, parsed::<Lite>(object)?)
}

fn keep<V>(cache: &Cache<V>, change: &Change, reduce: impl Fn(&Value) -> Option<V>) {
    let ((_, namespace, name), object) = change;
    let key = format!("{namespace}/{name}");
    cache.put(&key, object.as_ref().and_then(reduce));
}
