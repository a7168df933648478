//! Who holds which GPU by the kubelet's answer: what the names mean that the device plugin,
//! GKE's and the DRA driver give to GPUs and their parts. Pure.

use super::attribution::Holder;
use super::podresources::{ContainerResources, ListResponse, PodResources};
use std::collections::BTreeMap;

/// NVIDIA's driver for Dynamic Resource Allocation.
pub const DRA_DRIVER: &str = "gpu.nvidia.com";

/// Who holds each GPU, and how: GPU UUID → holder → hold. The holder's UID is empty: the
/// kubelet does not tell it.
pub type Holders = BTreeMap<String, BTreeMap<Holder, Hold>>;

/// What a container holds of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    /// Replicas or parts of it; 1 where it is neither shared nor cut.
    pub replicas: u64,
    /// True where the device plugin hands the GPU to one pod at a time: whoever comes after
    /// comes when this one has left. A claim may be several pods', so it is none of these.
    pub whole: bool,
}

/// One device of one container, by the name that its plugin or driver gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub holder: Holder,
    pub device: String,
    /// Pool of a device that was claimed by DRA.
    pub pool: Option<String>,
}

/// A MIG instance, as a device name may mean it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The GPU that it is a part of.
    pub gpu: String,
    /// Its GPU instance's number, where NVML tells it.
    pub number: Option<u32>,
    /// Its compute slices, where NVML tells them.
    pub slices: Option<u32>,
}

/// The GPUs that device names may mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// UUID by the number of the device file: 0 of /dev/nvidia0.
    pub by_minor: BTreeMap<u32, String>,
    /// MIG instances by UUID.
    pub instances: BTreeMap<String, Part>,
}

/// NVIDIA's devices, out of the kubelet's answer.
pub fn claims(answer: &ListResponse) -> Vec<Claim> {
    let containers = answer
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)));
    containers
        .flat_map(|(pod, container)| {
            let mut claims = plugged(pod, container);
            claims.extend(claimed(pod, container));
            claims
        })
        .collect()
}

fn holder(pod: &PodResources, container: &ContainerResources) -> Holder {
    Holder {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        container: container.name.clone(),
        ..Holder::default()
    }
}

/// What a device plugin handed out.
fn plugged(pod: &PodResources, container: &ContainerResources) -> Vec<Claim> {
    let devices = container.devices.iter();
    let ids = devices
        .filter(|d| d.resource_name.starts_with("nvidia.com/"))
        .flat_map(|d| &d.device_ids);
    ids.map(|id| Claim {
        holder: holder(pod, container),
        device: id.clone(),
        pool: None,
    })
    .collect()
}

/// What claims brought; one that several pods share makes each of them a holder.
fn claimed(pod: &PodResources, container: &ContainerResources) -> Vec<Claim> {
    let claims = container.dynamic_resources.iter().flat_map(|claim| {
        let devices = claim.claim_resources.iter();
        devices.map(move |device| (claim, device))
    });
    claims
        .filter(|(_, device)| device.driver_name == DRA_DRIVER)
        .map(|(claim, device)| Claim {
            holder: Holder {
                claim: Some(format!("{}/{}", claim.claim_namespace, claim.claim_name)),
                ..holder(pod, container)
            },
            device: device.device_name.clone(),
            pool: Some(device.pool_name.clone()),
        })
        .collect()
}

/// True for a device plugin's `GPU-uuid` and GKE's `nvidia0`: neither a replica nor a part.
fn is_whole(device: &str) -> bool {
    !device.starts_with("MIG-") && !device.contains("::") && !device.contains('/')
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
            let hold: &mut Hold = holders.entry(gpu).or_default().entry(holder).or_default();
            hold.replicas += 1;
            hold.whole = claim.pool.is_none() && is_whole(&claim.device);
        }
        (holders, unknown)
    }

    /// GPU and MIG instance of a device plugin's `GPU-uuid` and `MIG-uuid`, either with
    /// `::replica`; of GKE's `nvidia0`, `nvidia0/vgpu3`, `nvidia0/gi3`, `nvidia0/gi3/vgpu1`; of the DRA driver's
    /// `gpu-0`, `gpu-0-mig-1g10gb-19-0`.
    fn find(&self, id: &str) -> Option<(String, Option<String>)> {
        let device = id.split("::").next().unwrap_or(id);
        if device.starts_with("GPU-") {
            return Some((device.to_owned(), None));
        }
        if device.starts_with("MIG-") {
            let part = self.instances.get(device)?;
            return Some((part.gpu.clone(), Some(device.to_owned())));
        }
        if let Some(named) = device.strip_prefix("gpu-") {
            return self.of_dra(named);
        }
        let (board, part) = device.split_once('/').unwrap_or((device, ""));
        let gpu = self.minor(board.strip_prefix("nvidia")?)?;
        match part.strip_prefix("gi") {
            None => Some((gpu.to_owned(), None)),
            Some(number) => {
                // Shared in time: nvidia0/gi3/vgpu1.
                let number = number.split('/').next()?.parse().ok()?;
                self.only(gpu, |part| part.number == Some(number))
            }
        }
    }

    /// `0` or `0-mig-1g10gb-19-0`: the DRA driver names an instance by its board, profile and
    /// place, and NVML tells the place to root alone. So it is the board's only instance of
    /// as many slices, or none that can be told; a ResourceSlice says which where it may be
    /// read.
    fn of_dra(&self, named: &str) -> Option<(String, Option<String>)> {
        let Some((board, profile)) = named.split_once("-mig-") else {
            return Some((self.minor(named)?.to_owned(), None));
        };
        let slices = profile.split_once(['g', 'c'])?.0.parse().ok()?;
        self.only(self.minor(board)?, |part| part.slices == Some(slices))
    }

    fn minor(&self, number: &str) -> Option<&str> {
        let number = number.parse().ok()?;
        self.by_minor.get(&number).map(String::as_str)
    }

    /// The one instance of a GPU that is meant, if it is one.
    fn only(
        &self,
        gpu: &str,
        is_meant: impl Fn(&Part) -> bool,
    ) -> Option<(String, Option<String>)> {
        let instances = self.instances.iter();
        let mut meant = instances.filter(|(_, part)| part.gpu == gpu && is_meant(part));
        match (meant.next(), meant.next()) {
            (Some((uuid, _)), None) => Some((gpu.to_owned(), Some(uuid.clone()))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::podresources::{ClaimResource, ContainerDevices, DynamicResource};
    use super::*;
    use prost::Message;

    fn devices() -> Devices {
        let part = |gpu: &str, number, slices| Part {
            gpu: gpu.into(),
            number: Some(number),
            slices: Some(slices),
        };
        Devices {
            by_minor: BTreeMap::from([(3, "GPU-3".to_owned()), (4, "GPU-4".to_owned())]),
            instances: BTreeMap::from([
                ("MIG-5".to_owned(), part("GPU-4", 5, 3)),
                ("MIG-7".to_owned(), part("GPU-4", 7, 1)),
                ("MIG-8".to_owned(), part("GPU-4", 8, 1)),
            ]),
        }
    }

    fn plugged(resource: &str, ids: &[&str]) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
        }
    }

    fn claimed(name: &str, devices: &[(&str, &str)]) -> DynamicResource {
        let device = |(driver, device): &(&str, &str)| ClaimResource {
            driver_name: (*driver).into(),
            pool_name: "node".into(),
            device_name: (*device).into(),
        };
        DynamicResource {
            claim_name: name.into(),
            claim_namespace: "n".into(),
            claim_resources: devices.iter().map(device).collect(),
        }
    }

    fn answer(pods: &[&str], container: &ContainerResources) -> ListResponse {
        let pod = |name: &&str| PodResources {
            name: (*name).into(),
            namespace: "n".into(),
            containers: vec![container.clone()],
        };
        ListResponse {
            pods: pods.iter().map(pod).collect(),
        }
    }

    #[test]
    fn replicas_of_one_gpu_weigh_and_other_devices_do_not_count() {
        let ids = ["GPU-1::0", "GPU-1::1", "nvidia3", "MIG-5::0", "MIG-6"];
        let container = ContainerResources {
            name: "main".into(),
            devices: vec![
                plugged("nvidia.com/gpu.shared", &ids),
                plugged(
                    "nvidia.com/gpu",
                    &[
                        "nvidia4/gi7",
                        "nvidia4/gi8/vgpu1",
                        "nvidia4/gi9",
                        "nvidia3/vgpu2",
                    ],
                ),
                plugged("example.com/fpga", &["GPU-1"]),
            ],
            dynamic_resources: vec![],
        };
        let (holders, unknown) = devices().holders(&claims(&answer(&["p"], &container)));
        let weights = |gpu: &str| {
            let holds = holders[gpu].values();
            holds.map(|hold| hold.replicas).collect::<Vec<_>>()
        };
        assert_eq!(weights("GPU-1"), [2]);
        assert_eq!(weights("GPU-3"), [2]);
        let held = holders["GPU-4"].keys().map(|h| h.instance.as_deref());
        assert_eq!(
            held.collect::<Vec<_>>(),
            [Some("MIG-5"), Some("MIG-7"), Some("MIG-8")]
        );
        assert_eq!(unknown, 2, "instances that are not there");
    }

    #[test]
    fn only_what_a_plugin_hands_out_undivided_is_one_pods_at_a_time() {
        let whole = |devices: Vec<ContainerDevices>, dynamic_resources| {
            let container = ContainerResources {
                name: "main".into(),
                devices,
                dynamic_resources,
            };
            let (holders, _) =
                super::tests::devices().holders(&claims(&answer(&["p"], &container)));
            holders.values().flat_map(BTreeMap::values).all(|h| h.whole)
        };
        let plugin = |id: &str| whole(vec![plugged("nvidia.com/gpu", &[id])], vec![]);
        assert!(plugin("GPU-1") && plugin("nvidia3"));
        for part in [
            "GPU-1::0",
            "MIG-5",
            "MIG-5::1",
            "nvidia3/vgpu0",
            "nvidia4/gi7",
        ] {
            assert!(!plugin(part), "{part}");
        }
        assert!(!whole(vec![], vec![claimed("c", &[(DRA_DRIVER, "gpu-3")])]));
    }

    #[test]
    fn every_pod_of_a_shared_claim_holds_its_devices_and_other_drivers_do_not_count() {
        let devices_of_claim = [
            ("gpu.nvidia.com", "gpu-3"),
            ("gpu.nvidia.com", "gpu-4-mig-3g20gb-9-0"),
            ("gpu.nvidia.com", "gpu-4-mig-1g5gb-19-6"),
            ("gpu.nvidia.com", "gpu-vfio-3"),
            ("fpga.example.com", "gpu-3"),
        ];
        let container = ContainerResources {
            name: "main".into(),
            devices: vec![],
            dynamic_resources: vec![claimed("both", &devices_of_claim)],
        };
        let answer = answer(&["p", "q"], &container);
        let (holders, unknown) = devices().holders(&claims(&answer));
        let names = |gpu: &str| -> Vec<String> {
            let holders = holders[gpu].keys();
            holders.map(|h| format!("{h} {:?}", h.claim)).collect()
        };
        let both = |at: &str| ["p", "q"].map(|pod| format!("n/{pod}/main{at} Some(\"n/both\")"));
        assert_eq!(names("GPU-3"), both(""));
        assert_eq!(names("GPU-4"), both("@MIG-5"));
        assert_eq!(
            unknown, 4,
            "one of two alike, and one that is no GPU here, of each pod"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_from_the_kubelet_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            if let Ok(answer) = ListResponse::decode(bytes.as_slice()) {
                let _ = devices().holders(&claims(&answer));
            }
        }

        #[test]
        fn no_name_of_a_device_makes_it_panic(
            name in "(GPU-|MIG-|gpu-|nvidia)?[0-9a-z:/-]{0,12}(-mig-|/gi|::)?[0-9a-z-]{0,12}",
        ) {
            let container = ContainerResources {
                name: "main".into(),
                devices: vec![plugged("nvidia.com/gpu", &[&name])],
                dynamic_resources: vec![claimed("c", &[(DRA_DRIVER, &name)])],
            };
            let (holders, unknown) = devices().holders(&claims(&answer(&["p"], &container)));
            let holds = holders.values().flat_map(BTreeMap::values);
            let known: u64 = holds.map(|hold| hold.replicas).sum();
            proptest::prop_assert_eq!(known + unknown as u64, 2);
        }
    }
}
