//! The node's own object: registered, labelled as GPU feature discovery does, ready.

use crate::Args;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

/// Creates the node, reports it ready, and takes off the taint that new nodes get.
pub(crate) async fn register(client: &kube::Client, args: &Args) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let devices = (args.gpus * args.replicas).to_string();
    let product = args.product.replace(' ', "-");
    let shared = if args.replicas > 1 { "-SHARED" } else { "" };
    let mut labels = serde_json::Map::new();
    labels.insert("kubernetes.io/hostname".into(), json!(args.name));
    labels.insert("kubernetes.io/os".into(), json!("linux"));
    labels.insert("kubernetes.io/arch".into(), json!("amd64"));
    if args.gpus > 0 {
        labels.insert("nvidia.com/gpu.present".into(), json!("true"));
        labels.insert(
            "nvidia.com/gpu.product".into(),
            json!(format!("{product}{shared}")),
        );
        labels.insert("nvidia.com/gpu.count".into(), json!(args.gpus.to_string()));
    }
    let params = PatchParams::apply("simnode").force();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": args.name, "labels": labels },
        "spec": { "taints": [] },
    });
    nodes
        .patch(&args.name, &params, &Patch::Apply(&node))
        .await?;
    let capacity =
        json!({ "cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": devices });
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let status = json!({
        "apiVersion": "v1", "kind": "Node",
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "addresses": [{ "type": "InternalIP", "address": args.ip.to_string() }],
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Simulated",
                "message": "simulated node", "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
            "nodeInfo": {
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "sim://1",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
                "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
            },
        },
    });
    nodes
        .patch_status(&args.name, &params, &Patch::Apply(&status))
        .await?;
    untaint(&nodes, &args.name).await
}

async fn untaint(nodes: &Api<Node>, name: &str) -> anyhow::Result<()> {
    let none = json!({ "spec": { "taints": null } });
    nodes
        .patch(name, &PatchParams::default(), &Patch::Merge(&none))
        .await?;
    Ok(())
}
