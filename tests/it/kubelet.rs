//! A kubelet's pod-resources socket whose answers a test or a benchmark chooses, with the
//! folders and the processes that a node has for its pods.

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jouleward::node::podresources::{
    ContainerDevices, ContainerResources, ListRequest, ListResponse, PodResources,
};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

type Answer = Result<ListResponse, tonic::Code>;

/// Serves until it is dropped; its socket goes with it.
pub(crate) struct Kubelet {
    folder: PathBuf,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicU32>,
    /// Ends with it.
    server: Option<Runtime>,
}

#[derive(Clone)]
struct Lister {
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicU32>,
}

impl tonic::server::UnaryService<ListRequest> for Lister {
    type Response = ListResponse;
    type Future = std::future::Ready<Result<tonic::Response<ListResponse>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<ListRequest>) -> Self::Future {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone();
        std::future::ready(match answer {
            Ok(list) => Ok(tonic::Response::new(list)),
            Err(code) => Err(tonic::Status::new(code, "as the test wants it")),
        })
    }
}

impl Kubelet {
    pub(crate) fn start(folder: &Path, pods: Vec<PodResources>) -> Self {
        std::fs::create_dir_all(folder.join("pods")).unwrap();
        std::fs::create_dir_all(folder.join("proc/1")).unwrap();
        std::fs::write(folder.join("proc/1/cgroup"), "0::/init.scope\n").unwrap();
        let answer = Arc::new(Mutex::new(Ok(ListResponse { pods })));
        let asked = Arc::new(AtomicU32::new(0));
        let lister = Lister {
            answer: answer.clone(),
            asked: asked.clone(),
        };
        let socket = folder.join("kubelet.sock");
        let _ = std::fs::remove_file(&socket);
        let mut server = tokio::runtime::Builder::new_multi_thread();
        let server = server.worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = server.enter();
            tokio::net::UnixListener::bind(&socket).unwrap()
        };
        server.spawn(serve(listener, lister));
        Self {
            folder: folder.to_owned(),
            answer,
            asked,
            server: Some(server),
        }
    }

    pub(crate) fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Lists these pods from now on.
    pub(crate) fn lists(&self, pods: Vec<PodResources>) {
        self.answers(Ok(ListResponse { pods }));
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The log folder of a pod, and a process of its cgroup.
    pub(crate) fn set_up(&self, namespace: &str, name: &str, uid: &str, pid: u32) {
        self.admit(namespace, name, uid);
        self.run(uid, pid);
    }

    /// The log folder of a pod: nothing runs in it yet.
    pub(crate) fn admit(&self, namespace: &str, name: &str, uid: &str) {
        std::fs::create_dir_all(self.logs(namespace, name, uid)).unwrap();
    }

    /// A process of a pod's cgroup.
    pub(crate) fn run(&self, uid: &str, pid: u32) {
        let process = self.folder.join(format!("proc/{pid}"));
        std::fs::create_dir_all(&process).unwrap();
        let slice = uid.replace('-', "_");
        let cgroup =
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{pid:064x}.scope");
        std::fs::write(process.join("cgroup"), cgroup + "\n").unwrap();
        std::fs::write(process.join("comm"), "python\n").unwrap();
        let stat = format!("{pid} (python) S {} 4711", ["0"; 18].join(" "));
        std::fs::write(process.join("stat"), stat).unwrap();
    }

    /// The process has ended.
    pub(crate) fn exit(&self, pid: u32) {
        std::fs::remove_dir_all(self.folder.join(format!("proc/{pid}"))).unwrap();
    }

    /// The pod is deleted, its log folder too.
    pub(crate) fn remove(&self, namespace: &str, name: &str, uid: &str) {
        std::fs::remove_dir_all(self.logs(namespace, name, uid)).unwrap();
    }

    fn logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.folder.join(format!("pods/{namespace}_{name}_{uid}"))
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        let _ = std::fs::remove_file(self.folder.join("kubelet.sock"));
    }
}

/// One pod with one container that holds these devices.
pub(crate) fn pod(namespace: &str, name: &str, resource: &str, ids: &[&str]) -> PodResources {
    PodResources {
        name: name.into(),
        namespace: namespace.into(),
        containers: vec![ContainerResources {
            name: "main".into(),
            devices: vec![ContainerDevices {
                resource_name: resource.into(),
                device_ids: ids.iter().map(ToString::to_string).collect(),
            }],
            dynamic_resources: vec![],
        }],
    }
}

async fn serve(listener: tokio::net::UnixListener, lister: Lister) {
    // Connections end with the server: they are its own tasks.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let lister = lister.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let lister = lister.clone();
                async move {
                    let codec = tonic_prost::ProstCodec::<ListResponse, ListRequest>::default();
                    let mut grpc = tonic::server::Grpc::new(codec);
                    let request = request.map(tonic::body::Body::new);
                    Ok::<_, Infallible>(grpc.unary(lister, request).await)
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
