//! Namespaces, budgets and jobs, as authors and platform teams write them.

use crate::eventually;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::time::Duration;

pub const A100: &str = "NVIDIA-A100-SXM4-40GB";
pub const H100: &str = "NVIDIA-H100-80GB-HBM3";

/// What a generation job asks for.
#[derive(Debug, Clone)]
pub struct Generate {
    pub model: &'static str,
    pub size: u32,
    pub steps: u32,
    pub images: u32,
}

impl Generate {
    pub const SMALL: Self = Self {
        model: "sd1.5",
        size: 512,
        steps: 20,
        images: 2,
    };

    /// Enough pictures that loading the model hardly counts.
    pub const BIG: Self = Self {
        images: 12,
        ..Self::SMALL
    };

    /// A Job that generates, on an A100.
    pub fn job(&self, name: &str) -> Value {
        self.job_on(name, &json!({ "nvidia.com/gpu.product": A100 }))
    }

    /// A Job whose pod finds no node: it holds its place in the budget and burns nothing.
    pub fn placeholder(&self, name: &str) -> Value {
        self.job_on(
            name,
            &json!({ "nvidia.com/gpu.product": A100, "no-such": "node" }),
        )
    }

    /// A Job for nodes with some labels.
    pub fn job_on(&self, name: &str, node_selector: &Value) -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": name, "annotations": {
                "jouleward.dev/model": self.model,
                "jouleward.dev/width": self.size.to_string(),
                "jouleward.dev/height": self.size.to_string(),
                "jouleward.dev/num-inference-steps": self.steps.to_string(),
                "jouleward.dev/num-images": self.images.to_string(),
                "jouleward.dev/batch-size": "1",
            } },
            "spec": { "backoffLimit": 0, "template": {
                "metadata": { "annotations": self.template() },
                "spec": { "restartPolicy": "Never", "nodeSelector": node_selector, "containers": [container()] },
            } },
        })
    }

    /// The simulated node reads a pod's own annotations.
    fn template(&self) -> Value {
        json!({
            "jouleward.dev/model": self.model,
            "jouleward.dev/width": self.size.to_string(),
            "jouleward.dev/height": self.size.to_string(),
            "jouleward.dev/num-inference-steps": self.steps.to_string(),
            "jouleward.dev/num-images": self.images.to_string(),
            "jouleward.dev/batch-size": "1",
        })
    }

    /// A bare pod that generates.
    pub fn pod(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "annotations": self.template() },
            "spec": {
                "restartPolicy": "Never", "nodeSelector": { "nvidia.com/gpu.product": A100 },
                "containers": [container()],
            },
        })
    }
}

fn container() -> Value {
    json!({
        "name": "generate", "image": "example.org/diffusers:1",
        "resources": { "limits": { "nvidia.com/gpu": "1" } },
    })
}

/// A job without a GPU.
pub fn plain_job(name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": { "template": { "spec": { "restartPolicy": "Never",
            "containers": [{ "name": "work", "image": "example.org/work:1" }] } } },
    })
}

/// An API of one of our own kinds.
pub fn ours(
    client: &Client,
    namespace: Option<&str>,
    kind: &str,
    plural: &str,
) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("jouleward.dev", "v1alpha1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

pub fn budgets(client: &Client, namespace: &str) -> Api<DynamicObject> {
    ours(client, Some(namespace), "CarbonBudget", "carbonbudgets")
}

pub fn reservations(client: &Client, namespace: &str) -> Api<DynamicObject> {
    ours(
        client,
        Some(namespace),
        "CarbonReservation",
        "carbonreservations",
    )
}

pub fn statements(client: &Client) -> Api<DynamicObject> {
    ours(client, None, "CarbonStatement", "carbonstatements")
}

pub fn laws(client: &Client) -> Api<DynamicObject> {
    ours(client, None, "EnergyLaw", "energylaws")
}

pub fn jobs(client: &Client, namespace: &str) -> Api<Job> {
    Api::namespaced(client.clone(), namespace)
}

/// A namespace that can be worked in.
pub async fn namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    api.create(&PostParams::default(), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    eventually(
        "the namespace's default account",
        Duration::from_secs(30),
        || async { Ok(accounts.get_opt("default").await?.map(|_| ())) },
    )
    .await
}

/// Creates a budget, and waits until the controller keeps it and its namespace is
/// labelled with the mode.
pub async fn budget(
    client: &Client,
    namespace: &str,
    name: &str,
    spec: Value,
) -> anyhow::Result<()> {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
        "metadata": { "name": name }, "spec": spec,
    }))?;
    budgets(client, namespace)
        .create(&PostParams::default(), &object)
        .await?;
    kept(client, namespace, name).await
}

/// Waits until the controller has taken in a budget's present spec.
pub async fn kept(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    eventually(
        &format!("budget {namespace}/{name} is kept"),
        Duration::from_secs(30),
        || async {
            let budget = budgets(client, namespace).get(name).await?;
            let mode = budget.data["spec"]["mode"]
                .as_str()
                .unwrap_or("Audit")
                .to_lowercase();
            let kept =
                budget.data["status"]["observedGeneration"].as_i64() == budget.metadata.generation;
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let labelled = namespaces
                .get(namespace)
                .await?
                .labels()
                .get("jouleward.dev/mode")
                == Some(&mode);
            Ok((kept && labelled).then_some(()))
        },
    )
    .await?;
    // The webhook's own watch, a moment behind.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(())
}

pub async fn create_job(client: &Client, namespace: &str, job: &Value) -> Result<Job, kube::Error> {
    let job = serde_json::from_value(job.clone()).map_err(kube::Error::SerdeError)?;
    jobs(client, namespace)
        .create(&PostParams::default(), &job)
        .await
}

/// Waits until a job is no longer suspended.
pub async fn released(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Job> {
    eventually(
        &format!("job {namespace}/{name} is released"),
        Duration::from_secs(30),
        || async {
            let job = jobs(client, namespace).get(name).await?;
            Ok((!is_suspended(&job)).then_some(job))
        },
    )
    .await
}

pub fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

pub fn is_held(job: &Job) -> bool {
    is_suspended(job) && job.annotations().contains_key("jouleward.dev/hold")
}

/// Merges a patch into a budget's spec and waits until it is kept.
pub async fn amend(
    client: &Client,
    namespace: &str,
    name: &str,
    spec: Value,
) -> anyhow::Result<()> {
    let patch = kube::api::Patch::Merge(json!({ "spec": spec }));
    budgets(client, namespace)
        .patch(name, &kube::api::PatchParams::default(), &patch)
        .await?;
    kept(client, namespace, name).await
}

/// What a job of this kind reserves now, in milligrams: asked of a budget that has room.
pub async fn price(client: &Client, namespace: &str, ask: &Generate) -> anyhow::Result<i64> {
    let job = create_job(client, namespace, &ask.placeholder("price")).await?;
    let uid = job.uid().unwrap_or_default();
    let reservation = eventually("a price", Duration::from_secs(10), || async {
        reservation_of(client, namespace, &uid).await
    })
    .await?;
    remove_job(client, namespace, "price").await?;
    settled(client, namespace, &uid).await?;
    Ok(reservation.data["spec"]["reservedMilligrams"]
        .as_i64()
        .unwrap_or(0))
}

/// A namespace with a budget `images` under Enforce, with room for `quarters` / 4 of what
/// `ask` reserves; returns what it reserves.
pub async fn room_for(
    client: &Client,
    name: &str,
    ask: &Generate,
    quarters: i64,
) -> anyhow::Result<i64> {
    namespace(client, name).await?;
    let spec = json!({ "limit": "1kg", "mode": "Enforce" });
    budget(client, name, "images", spec).await?;
    let price = price(client, name, ask).await?;
    let limit = json!({ "limit": format!("{}mg", price * quarters / 4) });
    amend(client, name, "images", limit).await?;
    Ok(price)
}

/// The same with room for one and a quarter, which the placeholder `filler` holds.
pub async fn filled(client: &Client, name: &str, ask: &Generate) -> anyhow::Result<i64> {
    let price = room_for(client, name, ask, 5).await?;
    create_job(client, name, &ask.placeholder("filler")).await?;
    released(client, name, "filler").await?;
    Ok(price)
}

/// Deletes a job and its pods.
pub async fn remove_job(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    jobs(client, namespace)
        .delete(name, &kube::api::DeleteParams::background())
        .await?;
    Ok(())
}

/// The reservation of a workload by UID, once it is there.
pub async fn reservation_of(
    client: &Client,
    namespace: &str,
    uid: &str,
) -> anyhow::Result<Option<DynamicObject>> {
    let list = reservations(client, namespace)
        .list(&ListParams::default())
        .await?;
    Ok(list
        .into_iter()
        .find(|r| r.data["spec"]["workload"]["uid"] == uid))
}

/// Waits until a workload's reservation is settled.
pub async fn settled(client: &Client, namespace: &str, uid: &str) -> anyhow::Result<DynamicObject> {
    let settled = eventually(
        &format!("the reservation of {uid} is settled"),
        Duration::from_mins(1),
        || async {
            let reservation = reservation_of(client, namespace, uid).await?;
            Ok(reservation.filter(|r| r.data["status"]["settled"] == true))
        },
    )
    .await;
    match settled {
        Ok(record) => {
            in_the_law(client, &record, uid).await?;
            Ok(record)
        }
        Err(error) => {
            let record = reservation_of(client, namespace, uid).await?;
            let record = record.map(|r| r.data["status"].clone());
            let everything = ListParams::default();
            let jobs = jobs(client, namespace).list(&everything).await?;
            let jobs: Vec<_> = jobs.items.into_iter().map(|job| job.status).collect();
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let pods = pods.list(&everything).await?.items;
            let pods: Vec<_> = pods
                .iter()
                .map(|pod| (pod.name_any(), &pod.status))
                .collect();
            Err(error.context(format!("record {record:?}; jobs {jobs:?}; pods {pods:?}")))
        }
    }
}

/// Waits until the law that a record speaks of has been written with its lesson.
async fn in_the_law(client: &Client, record: &DynamicObject, uid: &str) -> anyhow::Result<()> {
    let lesson = &record.data["status"]["lesson"];
    let (Some(law), Some(number)) = (lesson["law"].as_str(), lesson["number"].as_i64()) else {
        return Ok(());
    };
    let what = format!("lesson {number} of {uid} is in {law}");
    eventually(&what, Duration::from_secs(20), || async {
        let object = laws(client).get(law).await?;
        let anew = object.metadata.uid.as_deref() != lesson["lawUid"].as_str();
        let written = object.data["status"]["lessons"].as_i64();
        Ok((anew || written >= Some(number)).then_some(()))
    })
    .await
}

pub async fn wait_for_crds(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for plural in [
        "carbonbudgets",
        "carbonreservations",
        "carbonstatements",
        "energylaws",
        "diffusionmodels",
        "gridzones",
    ] {
        let name = format!("{plural}.jouleward.dev");
        eventually(
            &format!("{name} is established"),
            Duration::from_secs(30),
            || async {
                let crd = api.get(&name).await?;
                let conditions = crd
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                let established = conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True");
                Ok(established.then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}
