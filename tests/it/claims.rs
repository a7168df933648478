//! GPUs that Dynamic Resource Allocation handed out: the real exporter beside a real API
//! server that keeps the claims.

use crate::exporter::{Bench, folder, gpu, scenario, start_in, value};
use crate::kubelet::Kubelet;
use crate::support::{Shared, on_plane};
use anyhow::Context;
use harness::chart::Chart;
use harness::jobs;
use jouleward::node::podresources::{
    ClaimResource, ContainerResources, DynamicResource, PodResources,
};
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use nvml_sim::scenario::{Gpu, Instance, Process};
use serde_json::{Value, json};

const NAMESPACE: &str = "claims";
const DRIVER: &str = "gpu.nvidia.com";
/// Pod, claim, device. The monitor's claim is for administration, and the board's instances
/// are alike: only a ResourceSlice says which is meant.
const PODS: [(&str, &str, &str); 4] = [
    ("a", "shared", "gpu-0"),
    ("b", "shared", "gpu-0"),
    ("monitor", "watch", "gpu-0"),
    ("c", "part", PART),
];
const PART: &str = "gpu-1-mig-3g20gb-9-4";

fn claimed((name, claim, device): (&str, &str, &str)) -> PodResources {
    let device = ClaimResource {
        driver_name: DRIVER.into(),
        pool_name: "n".into(),
        device_name: device.into(),
    };
    let claim = DynamicResource {
        claim_name: claim.into(),
        claim_namespace: NAMESPACE.into(),
        claim_resources: vec![device],
    };
    PodResources {
        name: name.into(),
        namespace: NAMESPACE.into(),
        containers: vec![ContainerResources {
            name: "main".into(),
            devices: vec![],
            dynamic_resources: vec![claim],
        }],
    }
}

fn boards() -> Vec<Gpu> {
    let process = |pid, instance: Option<&str>| Process {
        pid,
        watts: 100.0,
        sm_percent: 40,
        instance: instance.map(str::to_owned),
        ..Process::default()
    };
    let instance = |uuid: &str, slot| Instance {
        uuid: uuid.into(),
        slot,
        slices: 3,
        from_us: 0,
        until_us: None,
    };
    let whole = Gpu {
        processes: vec![process(6_000, None), process(6_001, None)],
        ..gpu(0)
    };
    let cut = Gpu {
        processes: vec![process(6_003, Some("MIG-1"))],
        instances: vec![instance("MIG-0", 0), instance("MIG-1", 4)],
        ..gpu(1)
    };
    vec![whole, cut]
}

fn resource(shared: &Shared, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("resource.k8s.io", "v1", kind);
    let kind = ApiResource::from_gvk(&kind);
    let client = shared.stack.client.clone();
    if kind.kind == "ResourceClaim" {
        Api::namespaced_with(client, NAMESPACE, &kind)
    } else {
        Api::all_with(client, &kind)
    }
}

/// A claim as it is once the scheduler has found it a device.
async fn claim(shared: &Shared, name: &str, device: &str, admin: bool) -> anyhow::Result<()> {
    let api = resource(shared, "ResourceClaim");
    let exactly = json!({ "deviceClassName": DRIVER, "adminAccess": admin });
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": name },
        "spec": { "devices": { "requests": [{ "name": "gpu", "exactly": exactly }] } },
    });
    let claim = serde_json::from_value(claim)?;
    api.create(&PostParams::default(), &claim).await?;
    let result = json!({
        "request": "gpu", "driver": DRIVER, "pool": "n", "device": device, "adminAccess": admin,
    });
    let status = json!({ "status": { "allocation": { "devices": { "results": [result] } } } });
    let patch = Patch::Merge(status);
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .context("allocation")?;
    Ok(())
}

async fn cluster(shared: &Shared) -> anyhow::Result<()> {
    jobs::namespace(&shared.stack.client, NAMESPACE).await?;
    let label =
        json!({ "metadata": { "labels": { "resource.kubernetes.io/admin-access": "true" } } });
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> =
        Api::all(shared.stack.client.clone());
    let patch = Patch::Merge(label);
    namespaces
        .patch(NAMESPACE, &PatchParams::default(), &patch)
        .await?;
    for (name, device, admin) in [
        ("shared", "gpu-0", false),
        ("watch", "gpu-0", true),
        ("part", PART, false),
    ] {
        claim(shared, name, device, admin).await.context(name)?;
    }
    let slice = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": { "name": "n-gpus" },
        "spec": {
            "nodeName": "n", "driver": DRIVER,
            "pool": { "name": "n", "generation": 1, "resourceSliceCount": 1 },
            "devices": [{ "name": PART, "attributes": { "uuid": { "string": "MIG-1" } } }],
        },
    });
    let slices = resource(shared, "ResourceSlice");
    slices
        .create(&PostParams::default(), &serde_json::from_value(slice)?)
        .await?;
    Ok(())
}

/// What holds a GPU: pod, claim, GPU instance's number.
fn held(text: &str) -> Vec<(String, String, String)> {
    let label = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        Some(rest.split('"').next()?.to_owned())
    };
    let lines = text.lines();
    let mut held: Vec<_> = lines
        .filter(|line| line.starts_with("jouleward_pod_gpu_claim_info{"))
        .filter_map(|line| {
            let claim = label(line, "claim")?;
            Some((label(line, "pod")?, claim, label(line, "gpu_instance_id")?))
        })
        .collect();
    held.sort();
    held
}

fn holders(bench: &Bench, what: &str, expected: &[(&str, &str, &str)]) -> String {
    let expected: Vec<_> = expected
        .iter()
        .map(|(pod, claim, part)| ((*pod).into(), (*claim).into(), (*part).into()))
        .collect();
    bench.until("/metrics", what, |_, text| held(text) == expected)
}

#[test]
fn every_pod_of_a_shared_claim_is_a_holder_and_one_that_administers_is_none() {
    on_plane(|shared| async move {
        cluster(shared).await?;
        let name = "claims";
        let kubelet = Kubelet::start(&folder(name), PODS.map(claimed).into());
        for (number, (name, ..)) in PODS.iter().enumerate() {
            let uid = format!("00000000-0000-4000-8000-{number:012}");
            kubelet.set_up(NAMESPACE, name, &uid, 6_000 + number as u32);
        }
        let identity = shared.stack.plane.kubeconfig("jouleward-exporter");
        let flags = [
            "--resource-claims",
            "--publish-delay-seconds=0",
            "--idle-watts=50",
        ];
        tokio::task::spawn_blocking(move || {
            let world = scenario(boards());
            let bench = start_in(name, Some(&world), &flags, &[("KUBECONFIG", &identity)]);
            without_the_right(&bench);
            let values = json!({ "exporter": { "resourceClaims": true } });
            let chart = Chart::render(&shared.stack.plane, &values).unwrap();
            let role = |kind: &str| kind.starts_with("ClusterRole");
            shared
                .stack
                .plane
                .apply(&chart.manifests(role).unwrap())
                .unwrap();
            with_the_right(&bench);
        })
        .await?;
        Ok(())
    });
}

fn without_the_right(bench: &Bench) {
    // One of two instances alike is meant, and which is not known.
    let told = bench.until("/readyz", "what is missing is told", |status, text| {
        status == 200
            && text.contains("resource claims: ")
            && text.contains("devices that NVML does not show: 1")
    });
    assert!(
        told.contains("cannot get resource \"resourceclaims\""),
        "{told}"
    );
    let all = [
        ("a", "shared", ""),
        ("b", "shared", ""),
        ("monitor", "watch", ""),
    ];
    let text = holders(bench, "whoever has a claim is a holder", &all);
    let refused = "jouleward_resource_claim_errors_total{node=\"n\",code=\"Forbidden\"}";
    assert!(value(&text, refused) >= 1.0, "{text}");
}

fn with_the_right(bench: &Bench) {
    let expected = [("a", "shared", ""), ("b", "shared", ""), ("c", "part", "4")];
    let text = holders(bench, "the monitor holds nothing", &expected);
    for (pod, ratio) in [("a", 0.5), ("b", 0.5), ("c", 3.0 / 7.0)] {
        let series = format!(
            "jouleward_pod_gpu_allocation_ratio{{node=\"n\",namespace=\"claims\",pod=\"{pod}\""
        );
        let shown = value(&text, &series);
        assert!((shown - ratio).abs() < 1e-3, "{pod}: {shown}");
    }
    let dra = text.lines().filter(|line| line.contains("source=\"dra\""));
    assert_eq!(dra.count(), 3);
    bench.until("/readyz", "nothing is left to tell", |status, text| {
        status == 200 && !text.contains("resource claims") && !text.contains("does not show")
    });
    bench.until("/v1/pods", "the instance's pod is billed", |_, text| {
        let page: Value = serde_json::from_str(text).unwrap_or_default();
        let pods = page["pods"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .any(|pod| pod["pod"] == "c" && pod["microjoules"].as_u64() > Some(0))
    });
}
