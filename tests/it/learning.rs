//! What is learnt from, and from whom: authors whose annotations do not fit what they burn,
//! and applications that say what they made.

use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::jobs::{self, Generate};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

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
        for number in 0..3 {
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
        let pods: Api<Pod> = Api::namespaced(client.clone(), "tells");
        let pod = harness::eventually("it runs", std::time::Duration::from_secs(30), || async {
            let pods = pods.list(&ListParams::default()).await?.items;
            let running = |pod: &Pod| {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                phase == Some("Running")
            };
            Ok(pods.into_iter().find(running))
        })
        .await?;
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
