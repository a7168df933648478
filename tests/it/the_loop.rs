//! The loop, closed: predicted, reserved, released, run, measured, settled, learnt.

use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::time::Duration;

/// What the simulated counter shows at once at most: 100 ms at the board's limit of 400 W.
const COUNTER_STEP: f64 = 40.0;

#[test]
fn an_enforced_job_is_predicted_reserved_released_run_measured_settled_and_learnt() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "loop").await?;
        jobs::budget(
            client,
            "loop",
            "images",
            json!({ "limit": "10kg", "mode": "Enforce" }),
        )
        .await?;
        let before = observations(client).await?;
        let author = shared.stack.plane.client("author").await?;
        let created = jobs::create_job(&author, "loop", &Generate::SMALL.job("pictures")).await?;
        let uid = created.uid().context("a job has a UID")?;
        ensure!(
            created.spec.as_ref().and_then(|s| s.suspend) == Some(true),
            "it is suspended at create"
        );
        ensure!(
            created
                .annotations()
                .contains_key("jouleward.dev/prediction"),
            "it is stamped"
        );

        let reservation = eventually("a reservation", Duration::from_secs(10), || async {
            jobs::reservation_of(client, "loop", &uid).await
        })
        .await?;
        ensure!(
            reservation.data["spec"]["reservedMilligrams"].as_i64() > Some(0),
            "predicted mg: {}",
            reservation.data
        );
        let settled = jobs::settled(client, "loop", &uid).await?;
        let pod = settled.data["status"]["pods"][0]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let truth = *shared
            .stack
            .truth()
            .get(&pod)
            .context("the node knows what the pod burned")?;
        let line = shared.stack.line_of(&pod).await?.context("its line")?;
        let measured = line["microjoules"].as_f64().unwrap_or(0.0) / 1e6;
        println!("measured {measured:.3} J, truly {truth:.3} J");
        ensure!(
            (measured - truth).abs() <= COUNTER_STEP,
            "measured {measured} J, truly {truth} J"
        );
        ensure!(
            settled.data["status"]["measuredMillijoules"].as_f64()
                == Some((measured * 1000.0).ceil()),
            "the record is the exporter's figure: {}",
            settled.data["status"]
        );

        let budget = jobs::budgets(client, "loop").get("images").await?;
        let status = &budget.data["status"];
        let charged = settled.data["status"]["chargedMilligrams"].as_i64();
        eventually("the budget's figures", Duration::from_secs(5), || async {
            let budget = jobs::budgets(client, "loop").get("images").await?;
            let status = &budget.data["status"];
            let settled = status["reservedMilligrams"] == 0
                && status["consumedMilligrams"].as_i64() == charged;
            Ok((settled && status["refundedMilligrams"].as_i64() > Some(0)).then_some(()))
        })
        .await
        .with_context(|| format!("status {status}"))?;
        let observation = settled.data["status"]["observation"].as_str();
        let observation = observation.unwrap_or_default();
        ensure!(
            observations(client).await? > before && observation.starts_with("Learnt"),
            "the law has learnt: {}",
            settled.data["status"]
        );
        Ok(())
    });
}

async fn observations(client: &kube::Client) -> anyhow::Result<i64> {
    let law = jobs::laws(client).get("a100-sxm4-40gb").await?;
    Ok(law.data["status"]["observations"].as_i64().unwrap_or(0))
}

/// A law of its own, on the H100 node, whose truth lies 25 % above the prior.
#[test]
fn after_15_jobs_of_mixed_sizes_the_predictions_are_less_than_8_percent_off() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "learning").await?;
        jobs::budget(
            client,
            "learning",
            "images",
            json!({ "limit": "10kg", "mode": "Enforce" }),
        )
        .await?;
        // A form that no other product's law has: it inherits nothing, and begins from its prior.
        let form = json!({ "spec": { "form": "Additive" } });
        jobs::laws(client)
            .patch(
                "h100-80gb-hbm3",
                &PatchParams::default(),
                &Patch::Merge(&form),
            )
            .await?;
        let h100 = json!({ "nvidia.com/gpu.product": jobs::H100 });
        let mut errors = Vec::new();
        for number in 0..20_usize {
            let ask = Generate {
                model: ["sd1.5", "sdxl", "sd2"][number % 3],
                size: [512, 768, 640][(number / 2) % 3],
                steps: [12, 20, 15][number % 3],
                images: 2 + (number as u32 * 5) % 4,
            };
            let job = jobs::create_job(
                client,
                "learning",
                &ask.job_on(&format!("run-{number}"), &h100),
            )
            .await?;
            let record = jobs::settled(client, "learning", &job.uid().unwrap_or_default()).await?;
            let predicted = record.data["spec"]["predictedMillijoules"]
                .as_f64()
                .unwrap_or(0.0);
            let measured = record.data["status"]["measuredMillijoules"]
                .as_f64()
                .unwrap_or(0.0);
            ensure!(measured > 0.0, "{}", record.data);
            errors.push((predicted / measured - 1.0).abs());
        }
        let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
        println!(
            "error of the first 3 jobs {:.1} %, of the last 5 {:.1} %",
            mean(&errors[..3]) * 100.0,
            mean(&errors[15..]) * 100.0
        );
        ensure!(
            mean(&errors[..3]) > 0.12,
            "it began far off: {:.3?}",
            &errors[..3]
        );
        ensure!(mean(&errors[15..]) < 0.08, "after 15 jobs: {errors:.3?}");
        let law = jobs::laws(client).get("h100-80gb-hbm3").await?;
        ensure!(
            law.data["status"]["observations"].as_i64() == Some(20),
            "{}",
            law.data["status"]["observations"]
        );
        ensure!(
            law.data["status"]["errorPermille"].as_i64() < Some(80),
            "shown: {}",
            law.data["status"]["error"]
        );
        Ok(())
    });
}

/// The identity that makes the meter worth trusting, on what it publishes.
#[test]
fn on_every_node_pods_and_unattributed_sum_to_what_its_counters_counted() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "identity").await?;
        for number in 0..4 {
            jobs::create_job(
                client,
                "identity",
                &Generate::SMALL.job(&format!("run-{number}")),
            )
            .await?;
        }
        let mut compared = 0;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            for page in shared.stack.pages().await? {
                let list = |name: &str| page[name].as_array().cloned().unwrap_or_default();
                let whole = |value: &Value| value.as_u64().unwrap_or_default();
                let counted: u64 = list("gpus").iter().map(|g| whole(&g["microjoules"])).sum();
                let gpus = list("gpus");
                let nobodys = gpus
                    .iter()
                    .filter_map(|gpu| gpu["unattributed"].as_object())
                    .flat_map(|reasons| reasons.values().map(whole))
                    .sum::<u64>();
                let pods: u64 = list("pods").iter().map(|p| whole(&p["microjoules"])).sum();
                let forgotten = whole(&page["forgottenMicrojoules"]);
                ensure!(
                    counted == nobodys + pods + forgotten && counted > 0,
                    "{}: {counted} != {nobodys} + {pods} + {forgotten} µJ",
                    page["node"]
                );
                compared += 1;
            }
        }
        ensure!(compared > 0);
        Ok(())
    });
}

#[test]
fn a_person_can_follow_every_joule_of_a_pod() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "followed").await?;
        jobs::budget(client, "followed", "images", json!({ "limit": "1kg" })).await?;
        let job = jobs::create_job(client, "followed", &Generate::SMALL.job("pictures")).await?;
        let record = jobs::settled(client, "followed", &job.uid().unwrap_or_default()).await?;
        let charge = &record.data["status"]["pods"][0];
        let uid = charge["uid"].as_str().unwrap_or_default();
        let line = shared.stack.line_of(uid).await?.context("its line")?;
        let name = format!("followed/{}", line["pod"].as_str().unwrap_or_default());
        let node = shared
            .stack
            .nodes
            .iter()
            .find(|node| charge["node"] == node.name.as_str());
        let address = format!("{}:9402", node.context("its node")?.ip);
        let replay = |format: &str| {
            let args = [
                "debug",
                "attribution",
                "--address",
                &address,
                "--pod",
                &name,
            ];
            let said = std::process::Command::new(harness::built("jouleward")?)
                .args(args)
                .args(["--last", "1000", "-o", format])
                .output()?;
            ensure!(
                said.status.success(),
                "{}",
                String::from_utf8_lossy(&said.stderr)
            );
            Ok(String::from_utf8(said.stdout)?)
        };
        let windows: Vec<Value> = serde_json::from_str(&replay("json")?)?;
        let mut billed = 0;
        for window in &windows {
            let parts = window["parts"].as_array().cloned().unwrap_or_default();
            let whole = |part: &Value| {
                let part = |name: &str| part[name].as_u64().unwrap_or(0);
                part("activeMicrojoules") + part("idleMicrojoules")
            };
            let sum: u64 = parts.iter().map(whole).sum();
            ensure!(Some(sum) == window["microjoules"].as_u64(), "{window}");
            let own = parts
                .iter()
                .filter(|part| part["to"].as_str().is_some_and(|to| to.starts_with(&name)));
            billed += own.map(whole).sum::<u64>();
        }
        ensure!(
            Some(billed) == line["microjoules"].as_u64(),
            "{billed} of {line} in {} windows",
            windows.len()
        );
        let table = replay("table")?;
        ensure!(
            table.contains("HELD BY") && table.contains("exact"),
            "{table}"
        );
        Ok(())
    });
}

#[test]
fn a_sidecar_tells_its_pod_the_joules_that_the_nodes_exporter_counts() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let options = harness::NodeOptions {
            product: "NVIDIA L40".to_owned(),
            gpus: 1,
            ..harness::NodeOptions::default()
        };
        let node = shared
            .stack
            .start_node("gpu-sidecar", 154, &options)
            .await?;
        jobs::namespace(client, "beside").await?;
        let l40 = json!({ "nvidia.com/gpu.product": "NVIDIA-L40" });
        let long = Generate {
            images: 30,
            ..Generate::SMALL
        };
        jobs::create_job(client, "beside", &long.job_on("pictures", &l40)).await?;
        let line = || async {
            let address = format!("{}:9402", node.ip);
            let (_, page) = harness::stack::get(&address, "/v1/pods", "application/json").await?;
            let page: Value = serde_json::from_str(&page)?;
            let pods = page["pods"].as_array().cloned().unwrap_or_default();
            Ok(pods.into_iter().find(|pod| pod["namespace"] == "beside"))
        };
        let pod = eventually("it burns", Duration::from_secs(30), line).await?;
        let text = |name: &str| pod[name].as_str().unwrap_or_default();
        let own = ("beside", text("pod"), text("uid"));
        let _sidecar = shared.stack.sidecar(&node, 155, own)?;
        shared.stack.ready(155, 9402).await?;
        let address = format!("{}:9402", shared.stack.address(155));
        let ask = |path: String| {
            let address = address.clone();
            async move {
                let (status, body) = harness::stack::get(&address, &path, "*/*").await?;
                ensure!(status == 200, "{path}: {status} {body}");
                anyhow::Ok(body)
            }
        };
        // The counters of both count from the first window on.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let whole = |value: &Value| value["microjoules"].as_u64().unwrap_or(0);
        let (own_before, node_before) = (ask("/v1/energy".into()).await?, line().await?);
        tokio::time::sleep(Duration::from_secs(8)).await;
        let before: Value = serde_json::from_str(&own_before)?;
        let since = format!("/v1/energy?since={}", whole(&before));
        let (own_after, node_after) = (ask(since).await?, line().await?);
        let after: Value = serde_json::from_str(&own_after)?;
        let own = after["joulesSince"].as_f64().unwrap_or(0.0);
        let by = |line: &Option<Value>| line.as_ref().map_or(0, whole) as f64 / 1e6;
        let nodes = by(&node_after) - by(&node_before);
        println!("in 8 s {own:.1} J by the sidecar, {nodes:.1} J by the node's exporter");
        // The sidecar looks when it is asked, the other once a second: a second at 350 W.
        ensure!(
            own > 1500.0 && (own - nodes).abs() < 350.0,
            "{own} J, {nodes} J"
        );
        let joules: f64 = ask("/v1/energy/joules".into()).await?.trim().parse()?;
        ensure!(
            joules >= whole(&after) as f64 / 1e6,
            "{joules} J after {after}"
        );
        let (status, why) = harness::stack::get(&address, "/v1/energy?since=x", "*/*").await?;
        ensure!(status == 400 && why.contains("earlier answer"), "{why}");
        Ok(())
    });
}

#[test]
fn the_example_of_a_sidecar_is_accepted_by_the_api_server() {
    on_plane(|shared| async move {
        let text = std::fs::read_to_string(harness::root().join("manifests/sidecar.yaml"))?;
        let classes = "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: nvidia}, handler: nvidia}";
        shared.stack.plane.apply(classes)?;
        let args = ["create", "--dry-run=server", "-n", "default", "-f", "-"];
        let said = shared.stack.plane.kubectl("author", &args, Some(&text))?;
        ensure!(said.ok, "{said:?}");
        Ok(())
    });
}

#[test]
fn two_jobs_on_one_time_sliced_gpu_are_each_charged_their_share() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "shared-gpu").await?;
        jobs::budget(client, "shared-gpu", "images", json!({ "limit": "10kg" })).await?;
        let l40s = json!({ "nvidia.com/gpu.product": "NVIDIA-L40S-SHARED" });
        let long = Generate {
            images: 16,
            ..Generate::SMALL
        };
        let mut uids = Vec::new();
        for name in ["left", "right"] {
            let job = jobs::create_job(client, "shared-gpu", &long.job_on(name, &l40s)).await?;
            uids.push(job.uid().context("a UID")?);
        }
        let (mut measured, mut truth) = (0.0, 0.0);
        for uid in &uids {
            let record = jobs::settled(client, "shared-gpu", uid).await?;
            let joules = record.data["status"]["measuredMillijoules"]
                .as_f64()
                .unwrap_or(0.0)
                / 1000.0;
            let pod = record.data["status"]["pods"][0]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let own = *shared.stack.truth().get(&pod).context("the node knows")?;
            ensure!(
                (joules / own - 1.0).abs() < 0.2,
                "measured {joules} J, truly {own} J"
            );
            ensure!(
                record.data["status"]["observation"] == "SharedGpu",
                "a shared GPU teaches nothing"
            );
            measured += joules;
            truth += own;
        }
        ensure!(
            (measured / truth - 1.0).abs() < 0.1,
            "together {measured} J, truly {truth} J"
        );
        Ok(())
    });
}
