//! The kubelet's loop: start what is bound here, end what is over, delete what is asked
//! to go.

use crate::Args;
use crate::gpus::Gpus;
use crate::truth::{Job, luck};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const GPU: &str = "nvidia.com/gpu";

struct Kubelet {
    client: kube::Client,
    args: Args,
    gpus: Gpus,
    pods: HashMap<String, Pod>,
    /// Phases that the API server did not take yet: told again, as a kubelet does.
    owed: HashMap<String, String>,
}

/// A call that takes longer is made again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs until the process ends.
pub(crate) async fn run(client: kube::Client, args: Args, gpus: Gpus) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", args.name));
    let mut events = std::pin::pin!(watcher::watcher(api, config));
    let mut kubelet = Kubelet {
        client,
        args,
        gpus,
        pods: HashMap::new(),
        owed: HashMap::new(),
    };
    let mut clock = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(event)) => kubelet.event(event).await,
                Ok(None) => return Ok(()),
                // The API server is away: what runs goes on, the watcher comes back.
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            },
            _ = clock.tick() => kubelet.tick().await,
        }
    }
}

impl Kubelet {
    async fn event(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                // News of before our own last word is no news.
                if self
                    .pods
                    .get(&uid)
                    .is_some_and(|known| is_older(&pod, known))
                {
                    return;
                }
                self.pods.insert(uid.clone(), pod);
                self.act(&uid).await;
            }
            Event::Delete(pod) => self.gone(&pod),
            Event::Init | Event::InitDone => {}
        }
    }

    /// Ends what is over, and starts what had to wait for a device.
    async fn tick(&mut self) {
        let finished = self
            .gpus
            .lock()
            .map(|state| state.finished())
            .unwrap_or_default();
        for uid in finished {
            if let Ok(mut state) = self.gpus.lock() {
                let _ = state.stop(&uid);
            }
            self.report(&uid, "Succeeded").await;
        }
        for (uid, phase) in std::mem::take(&mut self.owed) {
            self.report(&uid, &phase).await;
        }
        let waiting: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| phase(pod) == "Pending")
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in waiting {
            self.act(&uid).await;
        }
    }

    async fn act(&mut self, uid: &str) {
        let Some(pod) = self.pods.get(uid).cloned() else {
            return;
        };
        if pod.metadata.deletion_timestamp.is_some() {
            if let Ok(mut state) = self.gpus.lock() {
                let _ = state.stop(uid);
            }
            let api: Api<Pod> =
                Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let now = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            };
            let _ = api.delete(&pod.name_any(), &now).await;
            return;
        }
        if phase(&pod) == "Failed" {
            // Told so by another: a test, or who evicts and preempts.
            if let Ok(mut state) = self.gpus.lock() {
                let _ = state.stop(uid);
            }
            return;
        }
        if phase(&pod) != "Pending" {
            return;
        }
        let devices = devices(&pod);
        if devices == 0 {
            self.report(uid, "Running").await;
            if is_job(&pod) {
                self.report(uid, "Succeeded").await;
            }
        } else if self.start(uid, &pod, devices) {
            self.report(uid, "Running").await;
        }
    }

    fn start(&self, uid: &str, pod: &Pod, devices: usize) -> bool {
        let annotations: BTreeMap<String, String> = pod.annotations().clone();
        let luck = luck(uid);
        let burn = annotations.contains_key("jouleward.dev/model").then(|| {
            // By the job's name, so that a demonstration has the same liars every time.
            let lies = crate::truth::luck(owner(pod)) < self.args.liars
                || annotations.get("simnode/lies").is_some_and(|v| v == "true");
            Job::from_annotations(&annotations).burn(self.args.burn, self.args.noise, luck, lies)
        });
        // A job without parameters is short work of its own kind.
        let burn = burn.or_else(|| {
            is_job(pod)
                .then(|| Job::from_annotations(&annotations).burn(self.args.burn, 0.0, luck, false))
        });
        let namespace = pod.namespace().unwrap_or_default();
        let container = pod
            .spec
            .as_ref()
            .map(|s| s.containers[0].name.clone())
            .unwrap_or_default();
        let Ok(mut state) = self.gpus.lock() else {
            return false;
        };
        if state.held.contains_key(uid) {
            return false;
        }
        state
            .start(
                uid,
                (&namespace, &pod.name_any(), &container),
                devices,
                burn,
            )
            .unwrap_or(false)
    }

    async fn report(&mut self, uid: &str, phase: &str) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let message = self.args.state.join("termination").join(uid);
        let message = std::fs::read_to_string(message).unwrap_or_default();
        let status = status(pod, phase, &now, &self.args.ip.to_string(), &message);
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({ "status": status }));
        let (name, params) = (pod.name_any(), PatchParams::default());
        let call = api.patch_status(&name, &params, &patch);
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(patched)) => *pod = patched,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            failed => {
                eprintln!("{uid} is {phase}: told again, since {failed:?}");
                self.owed.insert(uid.to_owned(), phase.to_owned());
            }
        }
    }

    fn gone(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        self.pods.remove(&uid);
        if let Ok(mut state) = self.gpus.lock() {
            let _ = state.stop(&uid);
            state.forget(&uid, &pod.namespace().unwrap_or_default(), &pod.name_any());
        }
    }
}

/// True where one version of an object came before another.
fn is_older(pod: &Pod, known: &Pod) -> bool {
    let version = |pod: &Pod| pod.resource_version()?.parse::<u64>().ok();
    version(pod) < version(known)
}

/// Name of the job, or of the pod itself.
fn owner(pod: &Pod) -> &str {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.first().map_or_else(
        || pod.metadata.name.as_deref().unwrap_or_default(),
        |o| &o.name,
    )
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

fn is_job(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.restart_policy.as_deref() != Some("Always"))
}

fn devices(pod: &Pod) -> usize {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter_map(|c| {
            c.resources
                .as_ref()?
                .limits
                .as_ref()?
                .get(GPU)?
                .0
                .parse::<usize>()
                .ok()
        })
        .sum()
}

fn status(pod: &Pod, phase: &str, now: &str, ip: &str, message: &str) -> Value {
    let done = phase == "Succeeded";
    let started = pod
        .status
        .as_ref()
        .and_then(|s| s.start_time.as_ref())
        .map_or(now.to_owned(), |t| {
            t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        });
    let state = if done {
        json!({ "terminated": { "exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": now } })
    } else {
        json!({ "running": { "startedAt": started } })
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
        json!({
            "name": container.name, "image": container.image, "imageID": "", "containerID": "sim://1",
            "ready": !done, "started": !done, "restartCount": 0, "state": state,
        })
    });
    // Native sidecars; the file of a pod is that of its sidecar's termination message.
    let sidecars = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = sidecars.map(|container| {
        let mut state = state.clone();
        if done {
            state["terminated"]["message"] = json!(message);
        }
        json!({
            "name": container.name, "image": container.image, "imageID": "", "containerID": "sim://2",
            "ready": !done, "started": !done, "restartCount": 0, "state": state,
        })
    });
    let condition = |kind: &str, yes: bool| {
        json!({ "type": kind, "status": if yes { "True" } else { "False" }, "lastTransitionTime": now,
                "reason": if done { "PodCompleted" } else { "" } })
    };
    json!({
        "phase": phase, "startTime": started, "hostIP": ip, "podIP": ip, "podIPs": [{ "ip": ip }],
        "containerStatuses": containers.collect::<Vec<_>>(),
        "initContainerStatuses": sidecars.collect::<Vec<_>>(),
        "conditions": [condition("Initialized", true), condition("Ready", !done),
                       condition("ContainersReady", !done), condition("PodScheduled", true)],
    })
}
