//! Jobs and pods as they come over the wire, reduced to the fields that anyone here reads:
//! the same lean types read an admission review and fill the caches.

use crate::law::workload::IMAGES_DONE;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Metadata, spec and status of a Job or Pod, as far as anyone here reads them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lite {
    pub metadata: Metadata,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub generate_name: String,
    pub namespace: String,
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub creation_timestamp: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub suspend: Option<bool>,
    pub parallelism: Option<u32>,
    pub completions: Option<u32>,
    pub template: Template,
    #[serde(flatten)]
    pub pod: PodSpec,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Template {
    pub metadata: TemplateMetadata,
    pub spec: PodSpec,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateMetadata {
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub node_name: Option<String>,
    pub node_selector: BTreeMap<String, String>,
    pub scheduling_gates: Vec<Gate>,
    pub affinity: Affinity,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gate {
    pub name: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub resources: Resources,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limits: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    pub node_affinity: NodeAffinity,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: NodeSelector,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    pub node_selector_terms: Vec<Term>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    pub match_expressions: Vec<Expression>,
    pub match_fields: Vec<Expression>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Expression {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    pub succeeded: Option<u32>,
    pub conditions: Vec<StatusCondition>,
    pub container_statuses: Vec<ContainerStatus>,
    pub init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub state: ContainerState,
    /// Of the container's run before.
    pub last_state: ContainerState,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Terminated,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Terminated {
    pub message: String,
}

impl ContainerState {
    fn images_told(&self) -> Option<u64> {
        let said: serde_json::Value = serde_json::from_str(&self.terminated.message).ok()?;
        said.get(IMAGES_DONE.name)?.as_u64()
    }
}

impl Status {
    /// Images that the containers of a pod say they made, in termination messages that are
    /// JSON objects with the annotation's name; others are others' words.
    pub fn images_told(&self) -> Option<i64> {
        let containers = self.container_statuses.iter();
        let all = containers.chain(&self.init_container_statuses);
        // What is told is all so far: the larger of a run and the one before it.
        let told = all.filter_map(|container| {
            let states = [&container.state, &container.last_state];
            states
                .into_iter()
                .filter_map(ContainerState::images_told)
                .max()
        });
        let told = told.filter(|images| *images <= MOST_IMAGES);
        told.map(|images| i64::try_from(images).unwrap_or(0))
            .fold(None, |sum, images| Some(sum.unwrap_or(0) + images))
    }
}

/// As for the annotation.
const MOST_IMAGES: u64 = 10_000_000;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub last_transition_time: Option<Timestamp>,
}
