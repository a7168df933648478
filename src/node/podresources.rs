//! The kubelet's PodResources API v1: which container holds which device.

use prost::Message;
use std::path::Path;
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A thousand pods answer with more than tonic's 4 MiB.
const LARGEST_ANSWER: usize = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Message)]
pub struct ListRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodResources>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
    #[prost(message, repeated, tag = "5")]
    pub dynamic_resources: Vec<DynamicResource>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub resource_name: String,
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
}

/// A claim of Dynamic Resource Allocation that a container uses.
#[derive(Clone, PartialEq, Message)]
pub struct DynamicResource {
    #[prost(string, tag = "2")]
    pub claim_name: String,
    #[prost(string, tag = "3")]
    pub claim_namespace: String,
    #[prost(message, repeated, tag = "4")]
    pub claim_resources: Vec<ClaimResource>,
}

/// A device that was allocated to a claim.
#[derive(Clone, PartialEq, Message)]
pub struct ClaimResource {
    #[prost(string, tag = "2")]
    pub driver_name: String,
    #[prost(string, tag = "3")]
    pub pool_name: String,
    #[prost(string, tag = "4")]
    pub device_name: String,
}

/// A connection to the kubelet's socket that is made when first needed and again after
/// the kubelet restarts.
#[derive(Debug, Clone)]
pub struct Kubelet {
    channel: Channel,
}

impl Kubelet {
    /// Must run inside a tokio runtime; does not connect yet.
    pub fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .connect_timeout(DEADLINE)
            .timeout(DEADLINE);
        Ok(Self {
            channel: endpoint.connect_lazy(),
        })
    }

    /// Asks who holds what.
    pub async fn list(&self) -> Result<ListResponse, tonic::Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(LARGEST_ANSWER);
        let unavailable =
            |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
        tokio::time::timeout(DEADLINE, async {
            grpc.ready().await.map_err(unavailable)?;
            let path = PathAndQuery::from_static("/v1.PodResourcesLister/List");
            let codec = ProstCodec::<ListRequest, ListResponse>::default();
            grpc.unary(tonic::Request::new(ListRequest {}), path, codec)
                .await
        })
        .await
        .map_err(|_| tonic::Status::deadline_exceeded("the kubelet did not answer in 5 s"))?
        .map(tonic::Response::into_inner)
    }
}
