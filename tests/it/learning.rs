//! What is learnt from, and from whom: authors whose annotations do not fit what they burn,
//! and applications that say what they made.

use crate::support::{alone, on_plane};
use anyhow::{Context, ensure};
use harness::NodeOptions;
use harness::jobs::{self, Generate};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const ASK: Generate = Generate {
    model: "sdxl",
    size: 512,
    steps: 20,
    images: 4,
};

/// A job that burns for twice the steps that it says.
fn liar(name: &str) -> Value {
    let mut job = ASK.job(name);
    job["spec"]["template"]["metadata"]["annotations"]["simnode/lies"] = json!("true");
    job
}

async fn budgeted(client: &kube::Client, namespace: &str) -> anyhow::Result<()> {
    jobs::namespace(client, namespace).await?;
    let spec = json!({ "limit": "10kg", "mode": "Enforce" });
    jobs::budget(client, namespace, "images", spec).await?;
    Ok(())
}

/// Runs a job and gives its record.
async fn record(
    client: &kube::Client,
    namespace: &str,
    job: &Value,
) -> anyhow::Result<DynamicObject> {
    let job = jobs::create_job(client, namespace, job).await?;
    jobs::settled(client, namespace, &job.metadata.uid.unwrap_or_default()).await
}

fn observation(record: &DynamicObject) -> &str {
    record.data["status"]["observation"]
        .as_str()
        .unwrap_or_default()
}

#[test]
fn a_namespace_that_says_half_of_what_it_burns_is_flagged_calibrated_and_not_learnt_from() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        for namespace in ["says-all", "says-half"] {
            budgeted(client, namespace).await?;
        }
        let mut honest = None;
        // Three for the model to be known by, and as many for a namespace to be compared by.
        for number in 0..7 {
            let job = ASK.job(&format!("honest-{number}"));
            honest = Some(record(client, "says-all", &job).await?);
        }
        let honest = honest.context("seven ran")?;
        ensure!(
            observation(&honest).starts_with("Learnt"),
            "{}",
            observation(&honest)
        );
        let mut last = None;
        for number in 0..6 {
            last = Some(record(client, "says-half", &liar(&format!("liar-{number}"))).await?);
        }
        let last = last.context("six ran")?;
        ensure!(
            observation(&last).starts_with("AnnotationSuspect"),
            "{}",
            observation(&last)
        );
        let predicted = |record: &DynamicObject| {
            record.data["spec"]["predictedMillijoules"]
                .as_f64()
                .unwrap_or(0.0)
        };
        let (theirs, ours) = (predicted(&last), predicted(&honest));
        ensure!(theirs > 1.4 * ours, "calibrated: {theirs} beside {ours}");
        let measured = last.data["status"]["measuredMillijoules"]
            .as_f64()
            .unwrap_or(0.0);
        ensure!(
            (theirs / measured - 1.0).abs() < 0.25,
            "{theirs} beside {measured}"
        );

        let law = jobs::laws(client).get("a100-sxm4-40gb").await?;
        let conditions = law.data["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let suspect = conditions.iter().find(|c| c["type"] == "AnnotationSuspect");
        let suspect = suspect.context("the condition is there")?;
        ensure!(suspect["status"] == "True", "{suspect}");
        let message = suspect["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("says-half") && !message.contains("says-all"),
            "{message}"
        );

        let events: Api<Event> = Api::namespaced(client.clone(), "says-half");
        let flagged = ListParams::default().fields("reason=AnnotationSuspect");
        harness::eventually("an Event", std::time::Duration::from_secs(10), || async {
            Ok((!events.list(&flagged).await?.items.is_empty()).then_some(()))
        })
        .await?;
        let controller = format!("{}:9403", shared.stack.address(10));
        harness::eventually("the metric", std::time::Duration::from_secs(10), || async {
            let (_, text) = harness::stack::get(&controller, "/metrics", "text/plain").await?;
            let line = text.lines().find(|line| {
                line.starts_with("jouleward_annotation_suspect") && line.contains("says-half")
            });
            Ok(line.map(|_| ()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn what_the_application_says_it_made_counts_not_what_was_asked() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(client, "says-made").await?;
        // Asked for eight pictures it stops after four, and says so.
        let ask = Generate { images: 8, ..ASK };
        let stopped = |name: &str, done: &str| {
            let mut job = ask.job(name);
            job["spec"]["template"]["metadata"]["annotations"]["simnode/makes"] = json!("4");
            job["metadata"]["annotations"]["jouleward.dev/images-done"] = json!(done);
            job
        };
        // Three for the model to be known by, whoever else has run it.
        for number in 0..5 {
            let job = stopped(&format!("made-{number}"), "4");
            let record = record(client, "says-made", &job).await?;
            let said = observation(&record);
            ensure!(said.starts_with("Learnt"), "{said}");
        }
        for (done, reason) in [("0", "NothingMade"), ("9", "MoreDoneThanAsked")] {
            let job = stopped(&format!("claims-{done}"), done);
            let record = record(client, "says-made", &job).await?;
            ensure!(observation(&record) == reason, "{}", observation(&record));
        }
        let law = jobs::laws(client).get("a100-sxm4-40gb").await?;
        let namespaces = law.data["status"]["namespaces"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let own = namespaces.iter().find(|n| n["namespace"] == "says-made");
        let off = own
            .and_then(|n| n["offPermille"].as_i64())
            .context("it is remembered")?;
        ensure!(off.abs() < 300, "off by {off} thousandths");
        Ok(())
    });
}

#[test]
fn a_run_whose_batch_nobody_says_and_one_that_warms_up_are_flagged_and_not_learnt_from() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(client, "says-little").await?;
        let mut silent = ASK.job("silent");
        for of in ["/metadata", "/spec/template/metadata"] {
            let annotations = silent.pointer_mut(&format!("{of}/annotations"));
            let annotations = annotations.and_then(Value::as_object_mut);
            annotations
                .context("annotations")?
                .remove("jouleward.dev/batch-size");
        }
        let mut warm = ASK.job("warm");
        warm["metadata"]["annotations"]["jouleward.dev/warm-up"] = json!("true");
        for (job, reason) in [(silent, "UnknownBatch"), (warm, "WarmUp")] {
            let record = record(client, "says-little", &job).await?;
            ensure!(observation(&record) == reason, "{}", observation(&record));
        }
        // Of one image there is no doubt.
        let mut single = Generate { images: 1, ..ASK }.job("single");
        for of in ["/metadata", "/spec/template/metadata"] {
            let annotations = single.pointer_mut(&format!("{of}/annotations"));
            let annotations = annotations.and_then(Value::as_object_mut);
            annotations
                .context("annotations")?
                .remove("jouleward.dev/batch-size");
        }
        let record = record(client, "says-little", &single).await?;
        ensure!(
            observation(&record).starts_with("Learnt"),
            "{}",
            observation(&record)
        );
        Ok(())
    });
}

#[test]
fn what_the_application_tells_its_sidecar_counts_and_outlives_the_pod() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let options = harness::NodeOptions {
            product: "NVIDIA L4".to_owned(),
            gpus: 1,
            ..harness::NodeOptions::default()
        };
        let node = shared.stack.start_node("gpu-tells", 158, &options).await?;
        budgeted(client, "tells").await?;
        // Asked for twenty pictures it stops after ten, and tells its sidecar so.
        let l4 = json!({ "nvidia.com/gpu.product": "NVIDIA-L4" });
        let mut job = Generate { images: 20, ..ASK }.job_on("stops", &l4);
        let template = &mut job["spec"]["template"];
        template["metadata"]["annotations"]["simnode/makes"] = json!("10");
        let example = std::fs::read_to_string(harness::root().join("manifests/sidecar.yaml"))?;
        let example: Value = serde_yaml::from_str(&example)?;
        template["spec"]["initContainers"] =
            example["spec"]["template"]["spec"]["initContainers"].clone();
        let job = jobs::create_job(client, "tells", &job).await?;
        let pod = running(client, "tells", "stops").await?;
        let (name, uid) = (
            pod.metadata.name.unwrap_or_default(),
            pod.metadata.uid.unwrap_or_default(),
        );
        let _sidecar = shared.stack.sidecar(&node, 159, ("tells", &name, &uid))?;
        shared.stack.ready(159, 9402).await?;
        let address = format!("{}:9402", shared.stack.address(159));
        for done in ["4", "10"] {
            let path = format!("/v1/images?done={done}");
            let (status, said) = harness::stack::post(&address, &path).await?;
            ensure!(status == 200 && said.contains(done), "{status} {said}");
        }
        let (status, said) = harness::stack::post(&address, "/v1/images?done=all").await?;
        ensure!(status == 400 && said.contains("whole number"), "{said}");
        let (_, energy) = harness::stack::get(&address, "/v1/energy", "*/*").await?;
        ensure!(energy.contains("\"imagesDone\":10"), "{energy}");
        let record = jobs::settled(client, "tells", &job.metadata.uid.unwrap_or_default()).await?;
        let status = &record.data["status"];
        ensure!(status["pods"][0]["imagesDone"] == 10, "{status}");
        ensure!(status["lesson"]["imagesDone"] == 10, "{status}");
        ensure!(observation(&record).starts_with("Learnt"), "{status}");
        ensure!(status["lesson"]["driver"] == "580", "{status}");
        ensure!(status["lesson"]["powerLimitPermille"] == 1000, "{status}");
        Ok(())
    });
}

/// A job's first pod once it burns.
async fn running(client: &kube::Client, namespace: &str, job: &str) -> anyhow::Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    harness::eventually("it runs", Duration::from_secs(30), || async {
        let pods = pods.list(&of_job).await?.items;
        let running = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running")
        };
        Ok(pods.into_iter().find(running))
    })
    .await
}

/// What the controller has counted, by reason.
async fn refused(shared: &crate::support::Shared) -> anyhow::Result<BTreeMap<String, f64>> {
    let controller = format!("{}:9403", shared.stack.address(10));
    let (_, text) = harness::stack::get(&controller, "/metrics", "text/plain").await?;
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("jouleward_observations_refused_total{reason=\"")?;
        let (reason, count) = rest.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    });
    Ok(lines.collect())
}

/// How a pod may end before its work is done.
enum End {
    Fails,
    /// As the scheduler marks those that it preempts.
    Preempted,
    Evicted,
}

async fn end(client: &kube::Client, namespace: &str, pod: &Pod, how: &End) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let name = pod.name_any();
    let condition = json!({ "type": "DisruptionTarget", "status": "True",
        "reason": "PreemptionByScheduler", "message": "preempted",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let status = match how {
        End::Evicted => {
            pods.evict(&name, &EvictParams::default()).await?;
            return Ok(());
        }
        End::Fails => json!({ "phase": "Failed" }),
        End::Preempted => json!({ "phase": "Failed", "conditions": [condition] }),
    };
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(&name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

#[test]
fn runs_that_fail_are_retried_evicted_preempted_or_too_short_are_refused_by_name_and_counted() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(client, "cut-short").await?;
        let before = refused(shared).await?;
        let long = Generate { images: 12, ..ASK };
        let cases = [
            ("fails", 0, End::Fails, "NotSucceeded"),
            ("retried", 1, End::Fails, "RetriedOrUnmetered"),
            ("preempted", 1, End::Preempted, "RetriedOrUnmetered"),
            ("evicted", 1, End::Evicted, "RetriedOrUnmetered"),
        ];
        for (name, retries, how, reason) in cases {
            // What comes after the first pod is short.
            let mut job = long.job(name);
            job["spec"]["backoffLimit"] = json!(retries);
            if retries > 0 {
                job["spec"]["template"]["metadata"]["annotations"]["simnode/makes"] = json!("3");
            }
            let job = jobs::create_job(client, "cut-short", &job).await?;
            let pod = running(client, "cut-short", name).await?;
            // Long enough to be metered.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            end(client, "cut-short", &pod, &how).await?;
            let record = jobs::settled(client, "cut-short", &job.uid().unwrap_or_default()).await?;
            let said = observation(&record);
            ensure!(
                said == reason,
                "{name}: {said}, {:?}",
                record.data["status"]
            );
            ensure!(record.data["status"]["lesson"].is_null(), "{name}");
            let burned = record.data["status"]["measuredMillijoules"].as_i64();
            ensure!(burned > Some(0), "what it burned is charged all the same");
        }
        let blink = Generate {
            model: "sd1.5",
            size: 256,
            steps: 1,
            images: 1,
        };
        // How long it ran is known to half a second: of three one is told to be too short.
        let mut said = Vec::new();
        for number in 0..3 {
            let record =
                record(client, "cut-short", &blink.job(&format!("blinks-{number}"))).await?;
            said.push(observation(&record).to_owned());
            if said.last().is_some_and(|said| said == "TooShort") {
                break;
            }
        }
        ensure!(said.iter().any(|said| said == "TooShort"), "{said:?}");
        let after = refused(shared).await?;
        for (reason, times) in [
            ("NotSucceeded", 1.0),
            ("RetriedOrUnmetered", 3.0),
            ("TooShort", 1.0),
        ] {
            let of = |counts: &BTreeMap<String, f64>| counts.get(reason).copied().unwrap_or(0.0);
            ensure!(
                of(&after) - of(&before) >= times,
                "{reason}: {before:?}, then {after:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_law_of_a_newer_program_is_left_as_it_is_and_says_so() {
    alone(|shared| async move {
        let client = &shared.stack.client;
        let options = NodeOptions {
            product: "NVIDIA A16".to_owned(),
            gpus: 1,
            ..NodeOptions::default()
        };
        let _node = shared.stack.start_node("gpu-newer", 161, &options).await?;
        budgeted(client, "newer").await?;
        let a16 = json!({ "nvidia.com/gpu.product": "NVIDIA-A16" });
        let first = record(client, "newer", &ASK.job_on("first", &a16)).await?;
        ensure!(
            observation(&first).starts_with("Learnt"),
            "{}",
            observation(&first)
        );
        let law = first.data["status"]["lesson"]["law"].as_str();
        let law = law.context("a law")?.to_owned();
        let state = r#"{"version":99,"what":"comes"}"#;
        let patch = Patch::Merge(json!({ "status": { "state": state } }));
        let laws = jobs::laws(client);
        shared.stop_controller();
        laws.patch_status(&law, &PatchParams::default(), &patch)
            .await?;
        shared.restore().await?;
        let told = harness::eventually("it is told", Duration::from_secs(20), || async {
            let law = laws.get(&law).await?;
            let conditions = law.data["status"]["conditions"].as_array().cloned();
            let ready = conditions
                .into_iter()
                .flatten()
                .find(|c| c["type"] == "Ready");
            Ok(ready.filter(|ready| ready["status"] == "False"))
        })
        .await?;
        let words = told["message"].as_str().unwrap_or_default();
        ensure!(words.contains("99") && words.contains("newer"), "{words}");
        let second = record(client, "newer", &ASK.job_on("second", &a16)).await?;
        let said = observation(&second);
        ensure!(
            said.starts_with("NewerLaw") && said.contains("99"),
            "{said}"
        );
        let kept = laws.get(&law).await?;
        ensure!(kept.data["status"]["state"] == state, "it is left as it is");
        Ok(())
    });
}

#[test]
fn a_level_that_moves_is_announced_within_ten_runs_by_event_condition_and_metric() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(client, "moves").await?;
        let options = |burn: f64| NodeOptions {
            product: "NVIDIA A40".to_owned(),
            gpus: 1,
            burn,
            ..NodeOptions::default()
        };
        let _usual = shared
            .stack
            .start_node("gpu-usual", 162, &options(1.0))
            .await?;
        let on = |node: &str| json!({ "kubernetes.io/hostname": node });
        for number in 0..8 {
            let job = ASK.job_on(&format!("usual-{number}"), &on("gpu-usual"));
            let record = record(client, "moves", &job).await?;
            ensure!(
                observation(&record).starts_with("Learnt"),
                "{}",
                observation(&record)
            );
        }
        // The same product, from now on at three quarters: another driver, say.
        let _moved = shared
            .stack
            .start_node("gpu-moved", 163, &options(0.75))
            .await?;
        let events: Api<Event> = Api::all(client.clone());
        let moved = ListParams::default().fields("reason=LevelMoved");
        let (mut announced, mut off) = (None, Vec::new());
        for number in 0..14 {
            let job = ASK.job_on(&format!("moved-{number}"), &on("gpu-moved"));
            let record = record(client, "moves", &job).await?;
            let predicted = record.data["spec"]["predictedMillijoules"].as_f64();
            let measured = record.data["status"]["measuredMillijoules"].as_f64();
            off.push((predicted.unwrap_or(0.0) / measured.unwrap_or(1.0) - 1.0).abs());
            let told = events.list(&moved).await?.items;
            let of_product = told
                .iter()
                .any(|event| event.involved_object.name.as_deref() == Some("a40"));
            if of_product && announced.is_none() {
                announced = Some(number + 1);
            }
        }
        let within = announced.context("it was never announced")?;
        ensure!(within <= 10, "announced after {within} runs");
        // And what is reserved follows.
        let mut last = off[11..].to_vec();
        last.sort_by(f64::total_cmp);
        ensure!(last[1] < 0.15, "{off:?}");
        let law = jobs::laws(client).get("a40").await?;
        let conditions = law.data["status"]["conditions"].as_array().cloned();
        let moved = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "LevelMoved");
        let moved = moved.context("the condition is there")?;
        ensure!(moved["status"] == "True", "{moved}");
        let controller = format!("{}:9403", shared.stack.address(10));
        let (_, text) = harness::stack::get(&controller, "/metrics", "text/plain").await?;
        let counted = text
            .lines()
            .any(|line| line.starts_with("jouleward_law_shifts_total") && line.contains("a40"));
        ensure!(counted, "the metric is there");
        Ok(())
    });
}
