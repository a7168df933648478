//! The rest of a simulated cluster: authors, the job controller, one node with its exporter.

use super::leader::PRODUCT;
use super::random::Random;
use super::server::{Key, Server};
use crate::cluster::energy::Pages;
use crate::contract::{HOLD, PRODUCT_LABEL};
use crate::node::{LedgerPage, PodEnergy};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const NAMESPACE: &str = "n";

/// What a pod burns, as its exporter counts it.
#[derive(Debug, Clone)]
struct Burning {
    /// The job's key and UID.
    job: Key,
    pod: Key,
    line: PodEnergy,
    /// Microjoules in all, and of each step.
    all: u64,
    step: u64,
    /// µs, monotonic.
    since: u64,
    ended: Option<u64>,
}

impl Burning {
    fn line(&self, now: u64) -> PodEnergy {
        PodEnergy {
            held_milliseconds: (self.ended.unwrap_or(now) - self.since) / 1000,
            came_milliseconds_ago: None,
            ended_milliseconds_ago: self.ended.map(|ended| (now - ended) / 1000),
            ..self.line.clone()
        }
    }
}

/// What happens beside the leaders.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Timestamp,
    /// µs, monotonic.
    pub(super) micros: u64,
    burning: BTreeMap<String, Burning>,
    jobs: u32,
    /// Pods that the exporter lists no more.
    retired: BTreeSet<String>,
    /// True where pods may burn more than was predicted.
    pub(super) overruns: bool,
}

impl World {
    pub(super) fn new(overruns: bool) -> Self {
        Self {
            now: Timestamp::from_second(1_790_000_000).unwrap(),
            micros: 1_000_000_000,
            burning: BTreeMap::new(),
            jobs: 0,
            retired: BTreeSet::new(),
            overruns,
        }
    }

    /// Time passes, on both clocks.
    pub(super) fn pass(&mut self, milliseconds: u64, server: &mut Server) {
        self.micros += milliseconds * 1000;
        let step = SignedDuration::from_millis(i64::try_from(milliseconds).unwrap());
        self.now += step;
        crate::clock::simulated::set(self.now, self.micros);
        server.now = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    }

    /// An author creates a job; where the webhook was away it is not held.
    pub(super) fn author(&mut self, server: &mut Server, held: bool, random: &mut Random) {
        self.jobs += 1;
        let mut annotations = json!({
            "jouleward.dev/model": "sd1.5", "jouleward.dev/width": "512",
            "jouleward.dev/height": "512", "jouleward.dev/num-inference-steps": "20",
            "jouleward.dev/batch-size": "1",
            "jouleward.dev/num-images": (1 + random.below(6)).to_string(),
        });
        if held {
            annotations[HOLD] = json!(self.now.to_string());
        }
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": format!("j{}", self.jobs), "annotations": annotations },
            "spec": { "suspend": held, "template": { "spec": {
                "nodeSelector": { PRODUCT_LABEL: PRODUCT },
                "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "1" } } }],
            } } },
        });
        server.make("jobs", NAMESPACE, job);
    }

    /// The job controller and the kubelet: what is not suspended runs.
    pub(super) fn start(&mut self, server: &mut Server, random: &mut Random) {
        let jobs: Vec<Value> = server.all("jobs").cloned().collect();
        for job in jobs {
            let uid = text(&job["metadata"]["uid"]);
            let conditions = job["status"]["conditions"].as_array();
            let ended = conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Complete"));
            if job["spec"]["suspend"] == true || ended || self.burning.contains_key(&uid) {
                continue;
            }
            let name = text(&job["metadata"]["name"]);
            let pod = server.make(
                "pods",
                NAMESPACE,
                json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": { "name": format!("{name}-pod"), "ownerReferences": [{
                        "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true,
                    }] },
                    "spec": { "nodeName": "n1", "containers": job["spec"]["template"]["spec"]["containers"] },
                    "status": { "phase": "Running" },
                }),
            );
            let images: f64 = job["metadata"]["annotations"]["jouleward.dev/num-images"]
                .as_str()
                .and_then(|n| n.parse().ok())
                .unwrap_or(1.0);
            // Between a third and four fifths of what is predicted at the 90th percentile, or more.
            let most = if self.overruns { 3.0 } else { 0.75 };
            let joules = (40.0 + 200.0 * images) * (0.3 + (most - 0.3) * random.fraction());
            let all = (joules * 1e6).round().max(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small and positive"
            )]
            let all = all as u64;
            let pod_uid = text(&pod["metadata"]["uid"]);
            let line = PodEnergy {
                uid: pod_uid,
                namespace: NAMESPACE.to_owned(),
                pod: format!("{name}-pod"),
                microjoules: 0,
                models: vec![PRODUCT.to_owned()],
                is_final: false,
                shared: false,
                incomplete: false,
                power_limit_permille: None,
                held_milliseconds: 0,
                came_milliseconds_ago: None,
                ended_milliseconds_ago: None,
            };
            let key = |plural: &str, name: String| (plural.to_owned(), NAMESPACE.to_owned(), name);
            let burning = Burning {
                job: key("jobs", name.clone()),
                pod: key("pods", format!("{name}-pod")),
                line,
                all,
                step: all / (1 + random.below(4)) + 1,
                since: self.micros,
                ended: None,
            };
            self.burning.insert(uid, burning);
        }
    }

    /// GPUs burn; pods that are done end, and their jobs with them.
    pub(super) fn burn(&mut self, server: &mut Server) {
        let at = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        for burning in self.burning.values_mut().filter(|b| !b.line.is_final) {
            burning.line.microjoules = (burning.line.microjoules + burning.step).min(burning.all);
            // A job that was deleted takes its pod along.
            let gone = !server.objects.contains_key(&burning.job);
            if burning.line.microjoules < burning.all && !gone {
                continue;
            }
            burning.line.is_final = true;
            burning.ended = Some(self.micros);
            if gone {
                server.remove(&burning.pod);
            }
            server.change(&burning.pod, |pod| {
                pod["status"] = json!({ "phase": "Succeeded", "conditions": [
                    { "type": "Ready", "status": "False", "reason": "PodCompleted", "lastTransitionTime": at },
                ] });
            });
            server.change(&burning.job, |job| {
                let complete =
                    json!({ "type": "Complete", "status": "True", "lastTransitionTime": at });
                match job["status"]["conditions"].as_array_mut() {
                    Some(all) => all.push(complete),
                    None => job["status"]["conditions"] = json!([complete]),
                }
            });
        }
    }

    /// A job that has ended goes, with its pod.
    pub(super) fn delete_one_that_ended(&self, server: &mut Server) {
        let mut ended = self.burning.values().filter(|b| b.line.is_final);
        if let Some(gone) = ended.find(|b| server.objects.contains_key(&b.job)) {
            server.remove(&gone.job);
            server.remove(&gone.pod);
        }
    }

    /// The exporter's page as it is now. It lists a pod for long after its end: until its record
    /// has been settled for a while.
    pub(super) fn pages(&mut self, server: &Server) -> Pages {
        let settled = server.all("carbonreservations").filter(|record| {
            let at = record["status"]["settledAt"].as_str();
            let at: Option<Timestamp> = at.and_then(|at| at.parse().ok());
            at.is_some_and(|at| self.now.duration_since(at).as_secs() >= 5)
        });
        for record in settled {
            let pods = record["status"]["pods"].as_array().into_iter().flatten();
            self.retired.extend(pods.map(|pod| text(&pod["uid"])));
        }
        let page = LedgerPage {
            node: "n1".to_owned(),
            epoch: "1".to_owned(),
            ready: true,
            driver: "580.95.05".to_owned(),
            watched_milliseconds: 1_000_000_000,
            pods: self
                .burning
                .values()
                .filter(|b| !self.retired.contains(&b.line.uid))
                .map(|b| b.line(self.micros))
                .collect(),
            gpus: serde_json::from_value(json!([
                { "uuid": "GPU-0", "microjoules": 0, "unattributed": {} },
            ]))
            .unwrap(),
            forgotten_microjoules: 0,
        };
        Pages::read([page], self.micros)
    }

    /// What each pod truly burned, in microjoules.
    pub(super) fn burned(&self) -> BTreeMap<&str, u64> {
        self.burned_since(Timestamp::MIN)
    }

    /// The same of pods that did not end before a moment.
    pub(super) fn burned_since(&self, moment: Timestamp) -> BTreeMap<&str, u64> {
        let ended = |b: &&Burning| {
            let ago = b.ended.map_or(0, |ended| self.micros - ended);
            let ago = SignedDuration::from_micros(i64::try_from(ago).unwrap());
            self.now - ago >= moment
        };
        let lines = self.burning.values().filter(ended).map(|b| &b.line);
        lines
            .map(|line| (line.uid.as_str(), line.microjoules))
            .collect()
    }

    pub(super) fn all_ended(&self) -> bool {
        self.burning.values().all(|b| b.line.is_final)
    }
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
