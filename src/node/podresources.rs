//! The kubelet's PodResources API v1: which container holds which device.

use super::attribution::Holder;
use prost::Message;
use std::collections::BTreeMap;
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
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub resource_name: String,
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
}

/// Who holds each GPU, with the number of its replicas: GPU UUID → holder → weight. The
/// holder's UID is empty: the kubelet does not tell it.
pub type Holders = BTreeMap<String, BTreeMap<Holder, u64>>;

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

/// Holders by GPU, out of the kubelet's answer. Device ids that name no GPU by UUID are
/// resolved through `by_index` (GKE's `nvidia0`); others are left out.
pub fn holders(answer: &ListResponse, by_index: &BTreeMap<u32, String>) -> Holders {
    let mut holders = Holders::new();
    for pod in &answer.pods {
        for container in &pod.containers {
            let ids = container
                .devices
                .iter()
                .filter(|d| d.resource_name.starts_with("nvidia.com/"))
                .flat_map(|d| &d.device_ids);
            for uuid in ids.filter_map(|id| gpu_of(id, by_index)) {
                let holder = Holder {
                    uid: String::new(),
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name.clone(),
                };
                *holders.entry(uuid).or_default().entry(holder).or_default() += 1;
            }
        }
    }
    holders
}

/// `GPU-uuid`, `GPU-uuid::replica`, `nvidia0`, `nvidia0/vgpu3`.
fn gpu_of(id: &str, by_index: &BTreeMap<u32, String>) -> Option<String> {
    let device = id.split("::").next().unwrap_or(id);
    if device.starts_with("GPU-") {
        return Some(device.to_owned());
    }
    let index = device
        .strip_prefix("nvidia")?
        .split('/')
        .next()?
        .parse()
        .ok()?;
    by_index.get(&index).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_of_one_gpu_weigh_and_other_devices_do_not_count() {
        let devices = |resource: &str, ids: &[&str]| ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
        };
        let container = ContainerResources {
            name: "main".into(),
            devices: vec![
                devices(
                    "nvidia.com/gpu.shared",
                    &["GPU-1::0", "GPU-1::1", "nvidia3"],
                ),
                devices("example.com/fpga", &["GPU-1"]),
            ],
        };
        let pod = PodResources {
            name: "p".into(),
            namespace: "n".into(),
            containers: vec![container],
        };
        let holders = holders(
            &ListResponse { pods: vec![pod] },
            &BTreeMap::from([(3, "GPU-3".to_owned())]),
        );
        assert_eq!(holders["GPU-1"].values().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(holders["GPU-3"].values().copied().collect::<Vec<_>>(), [1]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_from_the_kubelet_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            if let Ok(answer) = ListResponse::decode(bytes.as_slice()) {
                let _ = holders(&answer, &BTreeMap::new());
            }
        }
    }
}
