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

/// One device of one container, by the name that its plugin gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub holder: Holder,
    pub device: String,
}

/// The GPUs that device names may mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// UUID by index.
    pub by_index: BTreeMap<u32, String>,
    /// The GPU of each MIG instance, by UUID.
    pub instances: BTreeMap<String, String>,
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

/// NVIDIA's devices, out of the kubelet's answer.
pub fn claims(answer: &ListResponse) -> Vec<Claim> {
    let mut claims = Vec::new();
    for pod in &answer.pods {
        for container in &pod.containers {
            let ids = container
                .devices
                .iter()
                .filter(|d| d.resource_name.starts_with("nvidia.com/"))
                .flat_map(|d| &d.device_ids);
            claims.extend(ids.map(|id| Claim {
                holder: Holder {
                    uid: String::new(),
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name.clone(),
                    instance: None,
                },
                device: id.clone(),
            }));
        }
    }
    claims
}

impl Devices {
    /// Holders by GPU, and how many devices are none that is known.
    pub fn holders(&self, claims: &[Claim]) -> (Holders, usize) {
        let mut holders = Holders::new();
        let mut unknown = 0;
        for claim in claims {
            let Some((gpu, instance)) = self.find(&claim.device) else {
                unknown += 1;
                continue;
            };
            let holder = Holder {
                instance,
                ..claim.holder.clone()
            };
            *holders.entry(gpu).or_default().entry(holder).or_default() += 1;
        }
        (holders, unknown)
    }

    /// GPU and MIG instance of `GPU-uuid`, `MIG-uuid`, either with `::replica`, `nvidia0`,
    /// `nvidia0/vgpu3`. GKE's `nvidia0/gi3` is left out: an instance is known by UUID alone.
    fn find(&self, id: &str) -> Option<(String, Option<String>)> {
        let device = id.split("::").next().unwrap_or(id);
        if device.starts_with("GPU-") {
            return Some((device.to_owned(), None));
        }
        if device.starts_with("MIG-") {
            let gpu = self.instances.get(device)?;
            return Some((gpu.clone(), Some(device.to_owned())));
        }
        let (board, part) = device.split_once('/').unwrap_or((device, ""));
        if part.starts_with("gi") {
            return None;
        }
        let index = board.strip_prefix("nvidia")?.parse().ok()?;
        Some((self.by_index.get(&index)?.clone(), None))
    }
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
                    &[
                        "GPU-1::0",
                        "GPU-1::1",
                        "nvidia3",
                        "MIG-5::0",
                        "MIG-6",
                        "nvidia3/gi1",
                    ],
                ),
                devices("example.com/fpga", &["GPU-1"]),
            ],
        };
        let pod = PodResources {
            name: "p".into(),
            namespace: "n".into(),
            containers: vec![container],
        };
        let devices = Devices {
            by_index: BTreeMap::from([(3, "GPU-3".to_owned())]),
            instances: BTreeMap::from([("MIG-5".to_owned(), "GPU-4".to_owned())]),
        };
        let (holders, unknown) = devices.holders(&claims(&ListResponse { pods: vec![pod] }));
        let weights = |gpu: &str| holders[gpu].values().copied().collect::<Vec<_>>();
        assert_eq!(weights("GPU-1"), [2]);
        assert_eq!(weights("GPU-3"), [1]);
        let (instance, _) = holders["GPU-4"].first_key_value().unwrap();
        assert_eq!(instance.instance.as_deref(), Some("MIG-5"));
        assert_eq!(
            unknown, 2,
            "instances that are not there, or not by that name"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_from_the_kubelet_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            if let Ok(answer) = ListResponse::decode(bytes.as_slice()) {
                let _ = Devices::default().holders(&claims(&answer));
            }
        }
    }
}
