//! A kubelet's PodResources v1 on a unix socket, as far as List goes. Written from the
//! protocol, apart from the product's client.

use crate::gpus::Gpus;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::path::Path;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pod {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<Devices>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Devices {
    #[prost(string, tag = "1")]
    resource: String,
    #[prost(string, repeated, tag = "2")]
    ids: Vec<String>,
}

#[derive(Clone)]
struct Lister(Gpus);

impl UnaryService<Empty> for Lister {
    type Response = List;
    type Future = std::future::Ready<Result<tonic::Response<List>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<Empty>) -> Self::Future {
        let list = self
            .0
            .lock()
            .map_err(|error| tonic::Status::internal(error.to_string()))
            .map(|state| {
                let pods = state.held.values().map(|held| Pod {
                    name: held.pod.clone(),
                    namespace: held.namespace.clone(),
                    containers: vec![Container {
                        name: held.container.clone(),
                        devices: vec![Devices {
                            resource: "nvidia.com/gpu".to_owned(),
                            ids: held.devices.clone(),
                        }],
                    }],
                });
                tonic::Response::new(List {
                    pods: pods.collect(),
                })
            });
        std::future::ready(list)
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(state: &Path, gpus: Gpus) -> anyhow::Result<()> {
    let path = state.join("kubelet.sock");
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let lister = Lister(gpus.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let lister = lister.clone();
                async move { Ok::<_, Infallible>(answer(request, lister).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, lister: Lister) -> Response<tonic::body::Body> {
    if request.uri().path() != "/v1.PodResourcesLister/List" {
        return tonic::Status::unimplemented("only List is served").into_http();
    }
    let request = request.map(|body| tonic::body::Body::new(body.map_err(tonic_error)));
    Grpc::new(ProstCodec::<List, Empty>::default())
        .unary(lister, request)
        .await
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn tonic_error(error: hyper::Error) -> tonic::Status {
    tonic::Status::internal(error.to_string())
}
