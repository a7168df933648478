//! Work: jobs and pods that ask for a GPU, as admission and the ledger look at them.

use super::wire::{Container, Expression, Lite, Metadata, PodSpec, Spec, Term};
use crate::budget::{NODE_NAME, Operator, Placement, Requirement};
use crate::contract::{BREAK_GLASS, GATE, GPU_RESOURCE, GRANTED, HOLD, PRODUCT_LABEL, REFUSED};
use crate::law::Gpu;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What is held or charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Job,
    Pod,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Job => "Job",
            Self::Pod => "Pod",
        }
    }
}

/// How far a piece of work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Open,
    Succeeded,
    Failed,
}

/// What controls a piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Nobody,
    /// A batch/v1 Job, by UID.
    Job(String),
    Another,
}

/// A GPU job or pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Timestamp,
    /// Since when it waits: its creation, or when it was held as it asked to run.
    pub since: Timestamp,
    /// The job's annotations with its template's on top.
    pub annotations: BTreeMap<String, String>,
    /// Pods that each do the annotated work.
    pub pods: u32,
    /// GPUs of each pod.
    pub gpus: u32,
    /// Products that the pod template allows; empty = any.
    pub eligible: Vec<Gpu>,
    /// What the pod template asks of its node.
    pub placement: Placement,
    /// Suspended or gated by us.
    pub held: bool,
    /// Suspended by its author, and not held by us.
    pub author_suspended: bool,
    pub granted: bool,
    /// Why it is to run whatever its budgets say; who may say so, the API server checks.
    pub break_glass: Option<String>,
    /// The refusal, as it was stamped.
    pub refused: Option<String>,
    pub progress: Progress,
    /// When it ended, if it has.
    pub ended: Option<Timestamp>,
    /// The node a pod is bound to; one that is created with it cannot be gated.
    pub node: Option<String>,
    pub owner: Owner,
    /// Images that a pod's containers say they made, as they ended.
    pub images_told: Option<i64>,
}

impl Work {
    /// `None` where the object asks for no GPU.
    pub fn of(kind: Kind, object: Lite) -> Option<Self> {
        let (progress, ended) = (object.progress(kind), object.ended(kind));
        let images_told = object.status.images_told();
        let Lite { metadata, spec, .. } = object;
        let pod = match kind {
            Kind::Job => &spec.template.spec,
            Kind::Pod => &spec.pod,
        };
        let gpus = gpus(pod);
        if gpus == 0 {
            return None;
        }
        let eligible = eligible(pod);
        let placement = placement(pod);
        let stamp = |name: &str| metadata.annotations.get(name);
        let suspended = spec.suspend == Some(true);
        let created = metadata.creation_timestamp.unwrap_or(Timestamp::UNIX_EPOCH);
        let since = stamp(HOLD).and_then(|at| at.parse().ok());
        let held = match kind {
            Kind::Job => suspended && stamp(HOLD).is_some(),
            Kind::Pod => pod.scheduling_gates.iter().any(|gate| gate.name == GATE),
        };
        let break_glass = stamp(BREAK_GLASS).map(|why| why.trim().to_owned());
        let (granted, refused) = (stamp(GRANTED).is_some(), stamp(REFUSED).cloned());
        let owner = metadata.owner();
        let pods = match kind {
            Kind::Job => spec.pods(),
            Kind::Pod => 1,
        };
        let mut annotations = metadata.annotations;
        if kind == Kind::Job {
            annotations.extend(spec.template.metadata.annotations);
        }
        Some(Self {
            kind,
            namespace: metadata.namespace,
            name: if metadata.name.is_empty() {
                metadata.generate_name
            } else {
                metadata.name
            },
            uid: metadata.uid,
            created,
            since: since.map_or(created, |since: Timestamp| since.max(created)),
            annotations,
            pods,
            gpus,
            eligible,
            placement,
            held,
            author_suspended: kind == Kind::Job && suspended && !held,
            granted,
            break_glass: break_glass.filter(|why| !why.is_empty()),
            refused,
            progress,
            ended,
            node: spec.pod.node_name,
            owner,
            images_told,
        })
    }

    /// A pod that burned and is gone, of which no more is known than its exporter tells.
    pub(super) fn gone(namespace: &str, name: &str, uid: &str, ended: Timestamp) -> Self {
        Self {
            kind: Kind::Pod,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            created: ended,
            since: ended,
            annotations: BTreeMap::new(),
            pods: 1,
            gpus: 1,
            eligible: Vec::new(),
            placement: Placement::default(),
            held: false,
            author_suspended: false,
            granted: false,
            break_glass: None,
            refused: None,
            progress: Progress::Failed,
            ended: Some(ended),
            node: None,
            owner: Owner::Nobody,
            images_told: None,
        }
    }

    /// The parameters that were asked for, without prefix and stamps.
    pub fn parameters(&self) -> BTreeMap<String, String> {
        self.annotations
            .iter()
            .filter(|(name, _)| !crate::contract::NO_PARAMETERS.contains(&name.as_str()))
            .filter_map(|(name, value)| {
                let name = name.strip_prefix("jouleward.dev/")?;
                Some((name.to_owned(), value.clone()))
            })
            .collect()
    }
}

impl Metadata {
    fn owner(&self) -> Owner {
        let mut owners = self.owner_references.iter();
        match owners.find(|owner| owner.controller == Some(true)) {
            None => Owner::Nobody,
            Some(owner) if owner.kind == "Job" && owner.api_version == "batch/v1" => {
                Owner::Job(owner.uid.clone())
            }
            Some(_) => Owner::Another,
        }
    }
}

impl Spec {
    /// Pods that run to completion.
    fn pods(&self) -> u32 {
        self.completions.or(self.parallelism).unwrap_or(1).max(1)
    }
}

impl Lite {
    /// The last change of a condition of what has ended.
    fn ended(&self, kind: Kind) -> Option<Timestamp> {
        if self.progress(kind) == Progress::Open {
            return None;
        }
        let conditions = self.status.conditions.iter();
        conditions.filter_map(|c| c.last_transition_time).max()
    }

    fn progress(&self, kind: Kind) -> Progress {
        let is = |name: &str| {
            self.status
                .conditions
                .iter()
                .any(|c| c.kind == name && c.status == "True")
        };
        let phase = self.status.phase.as_deref();
        match kind {
            Kind::Job if is("Complete") => Progress::Succeeded,
            Kind::Job if is("Failed") => Progress::Failed,
            Kind::Pod if phase == Some("Succeeded") => Progress::Succeeded,
            Kind::Pod if phase == Some("Failed") => Progress::Failed,
            _ => Progress::Open,
        }
    }
}

/// GPUs that the pod holds at once at most: of its containers with its sidecars, or of one
/// init container with the sidecars started before it.
fn gpus(pod: &PodSpec) -> u32 {
    let mut sidecars = 0;
    let mut most = 0;
    for container in &pod.init_containers {
        let own = container.gpus();
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
        } else {
            most = most.max(sidecars + own);
        }
    }
    let running: u32 = pod.containers.iter().map(Container::gpus).sum();
    most.max(sidecars + running)
}

impl Container {
    fn gpus(&self) -> u32 {
        let limits = self.resources.limits.iter();
        limits
            .filter(|(name, _)| name.starts_with(GPU_RESOURCE))
            .map(|(_, quantity)| count(quantity))
            .sum()
    }
}

fn count(quantity: &serde_json::Value) -> u32 {
    let number = quantity
        .as_u64()
        .or_else(|| quantity.as_str()?.trim().parse().ok());
    number
        .and_then(|number| u32::try_from(number).ok())
        .unwrap_or(0)
}

/// Products that the node selector, or else every term of the required node affinity, names;
/// terms are alternatives, so one that names none leaves every product open.
fn eligible(pod: &PodSpec) -> Vec<Gpu> {
    let selected = pod.node_selector.get(PRODUCT_LABEL);
    let mut gpus: Vec<Gpu> = if let Some(name) = selected {
        Gpu::parse(name).into_iter().collect()
    } else {
        let terms = &pod.affinity.node_affinity.required.node_selector_terms;
        let named: Option<Vec<Vec<Gpu>>> = terms.iter().map(Term::products).collect();
        named.unwrap_or_default().concat()
    };
    gpus.sort();
    gpus.dedup();
    gpus
}

/// What a pod asks of its node: the selector and one of the affinity's terms. An operator that is
/// not known is left to the scheduler.
fn placement(pod: &PodSpec) -> Placement {
    let selected = pod.node_selector.iter().map(|(key, value)| Requirement {
        key: key.clone(),
        operator: Operator::In,
        values: vec![value.clone()],
    });
    let selected: Vec<Requirement> = selected.collect();
    let required = &pod.affinity.node_affinity.required.node_selector_terms;
    let mut terms: Vec<Vec<Requirement>> = required
        .iter()
        .map(Term::requirements)
        .filter(|term| !term.is_empty())
        .map(|term| [selected.clone(), term].concat())
        .collect();
    if terms.is_empty() && !selected.is_empty() {
        terms.push(selected);
    }
    Placement {
        node: pod.node_name.clone(),
        terms,
    }
}

impl Term {
    fn requirements(&self) -> Vec<Requirement> {
        let requirement = |key: &str, e: &Expression| {
            Some(Requirement {
                key: key.to_owned(),
                operator: Operator::parse(&e.operator)?,
                values: e.values.clone(),
            })
        };
        let expressions = self.match_expressions.iter();
        let expressions = expressions.filter_map(|e| requirement(&e.key, e));
        // The one field that there is.
        let fields = self
            .match_fields
            .iter()
            .filter(|e| e.key == "metadata.name");
        let fields = fields.filter_map(|e| requirement(NODE_NAME, e));
        expressions.chain(fields).collect()
    }

    fn products(&self) -> Option<Vec<Gpu>> {
        let names = self
            .match_expressions
            .iter()
            .find(|e| e.key == PRODUCT_LABEL && e.operator == "In");
        let gpus = names?.values.iter().filter_map(|name| Gpu::parse(name));
        Some(gpus.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(extra: &serde_json::Value) -> Lite {
        let mut job = json!({
            "metadata": { "name": "j", "annotations": { "jouleward.dev/model": "sdxl", "jouleward.dev/width": "512" } },
            "spec": { "completions": 3, "template": {
                "metadata": { "annotations": { "jouleward.dev/width": "768" } },
                "spec": { "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "2", "cpu": "1" } } }] },
            } },
        });
        json_patch::merge(&mut job, extra);
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_jobs_template_wins_over_its_own_annotations() {
        let work = Work::of(Kind::Job, job(&json!({}))).unwrap();
        assert_eq!(work.annotations["jouleward.dev/width"], "768");
        assert_eq!((work.pods, work.gpus), (3, 2));
    }

    #[test]
    fn a_job_without_a_gpu_is_none_of_ours() {
        let limits = json!({ "spec": { "template": { "spec": { "containers": [{ "resources": { "limits": { "cpu": "1" } } }] } } } });
        assert!(Work::of(Kind::Job, job(&limits)).is_none());
    }

    #[test]
    fn a_job_that_its_author_suspended_is_not_held_by_us() {
        let work = Work::of(Kind::Job, job(&json!({ "spec": { "suspend": true } }))).unwrap();
        assert!(work.author_suspended && !work.held);
        let stamped =
            json!({ "metadata": { "annotations": { HOLD: "x" } }, "spec": { "suspend": true } });
        assert!(Work::of(Kind::Job, job(&stamped)).unwrap().held);
    }

    #[test]
    fn a_term_that_names_no_product_leaves_every_product_open() {
        let expression = |key: &str, value: &str| json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": [value] }] });
        let eligible = |terms: serde_json::Value| {
            let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
            let extra = json!({ "spec": { "template": { "spec": { "affinity": affinity } } } });
            Work::of(Kind::Job, job(&extra)).unwrap().eligible.len()
        };
        let l40s = expression(PRODUCT_LABEL, "NVIDIA-L40S");
        let h100 = expression(PRODUCT_LABEL, "NVIDIA-H100-80GB-HBM3");
        assert_eq!(eligible(json!([l40s, h100])), 2);
        assert_eq!(
            eligible(json!([l40s, expression("kubernetes.io/os", "linux")])),
            0
        );
    }

    #[test]
    fn a_term_may_name_a_node_by_its_field_and_a_selector_holds_beside_it() {
        let terms = json!([
            { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n7"] }] },
            { "matchExpressions": [{ "key": "pool", "operator": "Exists" }] },
        ]);
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
        let pod = json!({ "affinity": affinity, "nodeSelector": { "zone": "a" } });
        let work = Work::of(
            Kind::Job,
            job(&json!({ "spec": { "template": { "spec": pod } } })),
        );
        let placement = work.unwrap().placement;
        let keys: Vec<Vec<&str>> = placement
            .terms
            .iter()
            .map(|term| term.iter().map(|r| r.key.as_str()).collect())
            .collect();
        assert_eq!(keys, [["zone", NODE_NAME], ["zone", "pool"]]);
    }

    #[test]
    fn gpus_of_init_containers_and_sidecars_count_as_the_scheduler_counts_them() {
        let with = |number: u32| json!({ "limits": { "nvidia.com/gpu": number } });
        let pod: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                { "resources": with(1), "restartPolicy": "Always" },
                { "resources": with(4) },
            ],
            "containers": [{ "resources": with(2) }],
        }))
        .unwrap();
        assert_eq!(gpus(&pod), 5);
    }

    #[test]
    fn only_a_batch_job_that_controls_a_pod_is_its_job() {
        let owned = |api_version: &str, controller: bool| {
            let pod: Lite = serde_json::from_value(json!({
                "metadata": { "ownerReferences": [{ "apiVersion": api_version, "kind": "Job",
                    "name": "j", "uid": "u", "controller": controller }] },
                "spec": { "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "1" } } }] },
            }))
            .unwrap();
            Work::of(Kind::Pod, pod).unwrap().owner
        };
        assert_eq!(owned("batch/v1", true), Owner::Job("u".into()));
        assert_eq!(owned("batch.volcano.sh/v1alpha1", true), Owner::Another);
        assert_eq!(owned("batch/v1", false), Owner::Nobody);
    }

    #[test]
    fn a_hold_tells_since_when_it_waits_and_never_from_before_the_job_was() {
        let held = |since: &str| {
            let extra = json!({
                "metadata": { "creationTimestamp": "2026-11-23T12:00:00Z", "annotations": { HOLD: since } },
                "spec": { "suspend": true },
            });
            Work::of(Kind::Job, job(&extra)).unwrap().since.to_string()
        };
        assert_eq!(held("2026-11-23T13:00:00Z"), "2026-11-23T13:00:00Z");
        assert_eq!(held("2020-01-01T00:00:00Z"), "2026-11-23T12:00:00Z");
        assert_eq!(held("WaitingForBudget"), "2026-11-23T12:00:00Z");
    }

    #[test]
    fn selector_and_affinity_name_the_eligible_products() {
        let pinned = json!({ "spec": { "template": { "spec": {
            "nodeSelector": { PRODUCT_LABEL: "NVIDIA-A100-SXM4-40GB" },
        } } } });
        let work = Work::of(Kind::Job, job(&pinned)).unwrap();
        assert_eq!(work.eligible, [Gpu::parse("A100-SXM4-40GB").unwrap()]);
    }
}
