//! What a budget does to jobs, by mode and policy.

use crate::support::{Shared, on_plane};
use anyhow::{Context, ensure};
use harness::jobs::{self, Generate};
use harness::{eventually, plane::Said};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

async fn namespace(shared: &Shared, name: &str, spec: Value) -> anyhow::Result<()> {
    jobs::namespace(&shared.stack.client, name).await?;
    jobs::budget(&shared.stack.client, name, "images", spec).await
}

fn create(
    shared: &Shared,
    namespace: &str,
    object: &Value,
    extra: &[&str],
) -> anyhow::Result<Said> {
    let args = [&["create", "--namespace", namespace, "-f", "-"], extra].concat();
    shared
        .stack
        .plane
        .kubectl("author", &args, Some(&object.to_string()))
}

async fn status(shared: &Shared, namespace: &str) -> anyhow::Result<Value> {
    Ok(jobs::budgets(&shared.stack.client, namespace)
        .get("images")
        .await?
        .data["status"]
        .clone())
}

#[test]
fn a_job_over_budget_is_refused_with_numbers_and_a_dry_run_says_the_same_and_changes_nothing() {
    on_plane(|shared| async move {
        namespace(
            shared,
            "refused",
            json!({ "limit": "400mg", "mode": "Enforce", "onExceed": "Reject" }),
        )
        .await?;
        let before = status(shared, "refused").await?;
        // No other test runs anything on this product, so its law stands still meanwhile.
        let h200 = json!({ "nvidia.com/gpu.product": "NVIDIA-H200" });
        let job = Generate::BIG.job_on("too-much", &h200);
        let dry = create(shared, "refused", &job, &["--dry-run=server"])?;
        let real = create(shared, "refused", &job, &[])?;
        for said in [&dry, &real] {
            ensure!(!said.ok, "it is refused: {said:?}");
            for part in [
                "budget refused/images: needs ",
                "CO2e (p90), 400 mg of 400 mg left until ",
                "law ±",
                "400 g/kWh",
                "Fits: ",
            ] {
                ensure!(
                    said.err.contains(part),
                    "{part:?} is missing in {}",
                    said.err
                );
            }
        }
        ensure!(dry.err == real.err, "{} / {}", dry.err, real.err);
        ensure!(
            jobs::jobs(&shared.stack.client, "refused")
                .list(&ListParams::default())
                .await?
                .items
                .is_empty()
        );
        ensure!(
            status(shared, "refused").await? == before,
            "nothing changed"
        );
        Ok(())
    });
}

#[test]
fn a_deferred_job_waits_until_the_budget_has_room() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::filled(client, "deferred", &Generate::SMALL).await?;
        let second = create(shared, "deferred", &Generate::SMALL.job("second"), &[])?;
        ensure!(second.ok, "{second:?}");
        eventually("it waits", SOON, || async {
            Ok((status(shared, "deferred").await?["heldJobs"] == 1).then_some(()))
        })
        .await?;
        let events = shared.stack.plane.kubectl(
            "author",
            &["events", "-n", "deferred", "--for", "job/second"],
            None,
        )?;
        ensure!(events.out.contains("WaitingForBudget"), "{events:?}");
        ensure!(jobs::is_held(
            &jobs::jobs(client, "deferred").get("second").await?
        ));
        jobs::remove_job(client, "deferred", "filler").await?;
        let job = jobs::released(client, "deferred", "second").await?;
        jobs::settled(client, "deferred", &job.uid().unwrap_or_default()).await?;
        Ok(())
    });
}

#[test]
fn under_audit_and_warn_nothing_is_delayed_and_everything_is_recorded() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        for (name, mode, warned) in [("audit", "Audit", false), ("warn", "Warn", true)] {
            namespace(
                shared,
                name,
                json!({ "limit": "1mg", "mode": mode, "onExceed": "Reject" }),
            )
            .await?;
            let said = create(shared, name, &Generate::SMALL.job("pictures"), &[])?;
            ensure!(said.ok, "{said:?}");
            ensure!(said.err.contains("needs") == warned, "{mode}: {said:?}");
            let job = jobs::jobs(client, name).get("pictures").await?;
            ensure!(!jobs::is_suspended(&job), "{mode} never holds");
            let record = jobs::settled(client, name, &job.uid().unwrap_or_default()).await?;
            ensure!(
                record.data["status"]["chargedMilligrams"].as_i64() > Some(0),
                "{}",
                record.data
            );
        }
        eventually("the budget is exceeded, and says so", SOON, || async {
            let conditions = status(shared, "audit").await?["conditions"].clone();
            let exceeded = conditions
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Exceeded" && c["status"] == "True");
            Ok(exceeded.then_some(()))
        })
        .await
    });
}

/// Scheduling gates of the pod called `gated`.
async fn gates(pods: &Api<Pod>) -> anyhow::Result<usize> {
    let spec = pods.get("gated").await?.spec.unwrap_or_default();
    Ok(spec.scheduling_gates.unwrap_or_default().len())
}

#[test]
fn leaving_enforce_lifts_every_hold_of_ours_and_none_of_the_authors() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        for (name, left) in [
            ("leave-audit", Some("Audit")),
            ("leave-warn", Some("Warn")),
            ("leave-budget", None),
        ] {
            jobs::filled(client, name, &Generate::BIG).await?;
            let mut suspended = Generate::BIG.placeholder("authors-own");
            suspended["spec"]["suspend"] = json!(true);
            jobs::create_job(client, name, &suspended).await?;
            jobs::create_job(client, name, &Generate::BIG.placeholder("ours")).await?;
            let pods: Api<Pod> = Api::namespaced(client.clone(), name);
            let mut pod = Generate::BIG.pod("gated");
            pod["spec"]["nodeSelector"]["no-such"] = json!("node");
            let said = create(shared, name, &pod, &[])?;
            ensure!(said.ok, "{said:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            ensure!(
                jobs::is_held(&jobs::jobs(client, name).get("ours").await?),
                "it is held"
            );
            ensure!(gates(&pods).await? == 1, "and the pod");
            if let Some(mode) = left {
                jobs::amend(client, name, "images", json!({ "mode": mode })).await?;
            } else {
                jobs::budgets(client, name)
                    .delete("images", &DeleteParams::default())
                    .await?;
            }
            let ours = jobs::released(client, name, "ours").await?;
            ensure!(
                !ours.annotations().contains_key("jouleward.dev/hold"),
                "no mark of the hold remains"
            );
            eventually("the pod's gate is lifted", SOON, || async {
                Ok((gates(&pods).await? == 0).then_some(()))
            })
            .await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let own = jobs::jobs(client, name).get("authors-own").await?;
            ensure!(
                jobs::is_suspended(&own),
                "what its author suspended stays suspended"
            );
        }
        Ok(())
    });
}

#[test]
fn a_job_that_its_author_suspended_is_held_when_it_asks_to_run() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(
            shared,
            "resumed",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let mut job = Generate::SMALL.job("later");
        job["spec"]["suspend"] = json!(true);
        let created = jobs::create_job(client, "resumed", &job).await?;
        ensure!(!jobs::is_held(&created), "a hold of ours is not needed yet");
        let resume = [
            "patch",
            "job",
            "later",
            "-n",
            "resumed",
            "--type=merge",
            "-p",
            r#"{"spec":{"suspend":false}}"#,
        ];
        let said = shared.stack.plane.kubectl("author", &resume, None)?;
        ensure!(said.ok, "{said:?}");
        jobs::settled(client, "resumed", &created.uid().unwrap_or_default()).await?;
        Ok(())
    });
}

#[test]
fn a_namespace_with_held_jobs_can_be_deleted() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::room_for(client, "deleted", &Generate::SMALL, 5).await?;
        for name in ["first", "second"] {
            jobs::create_job(client, "deleted", &Generate::SMALL.placeholder(name)).await?;
        }
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        api.delete("deleted", &DeleteParams::default()).await?;
        eventually("the namespace is gone", Duration::from_mins(1), || async {
            Ok(api.get_opt("deleted").await?.is_none().then_some(()))
        })
        .await
    });
}

#[test]
fn wrong_parameters_are_named_and_refused_or_warned_of_by_policy() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let mut wrong = Generate::SMALL.job("wrong");
        for annotations in [
            "/metadata/annotations",
            "/spec/template/metadata/annotations",
        ] {
            let at = wrong.pointer_mut(annotations).context("annotations")?;
            at["jouleward.dev/num-inference-steps"] = json!("many");
        }
        let named = "jouleward.dev/num-inference-steps: \"many\" is not 1 to 1000";
        namespace(
            shared,
            "strict",
            json!({ "limit": "1kg", "mode": "Enforce", "onUnknown": "Reject" }),
        )
        .await?;
        let refused = create(shared, "strict", &wrong, &[])?;
        ensure!(!refused.ok && refused.err.contains(named), "{refused:?}");
        namespace(
            shared,
            "lenient",
            json!({ "limit": "1kg", "mode": "Enforce", "onUnknown": "Warn" }),
        )
        .await?;
        let warned = create(shared, "lenient", &wrong, &[])?;
        ensure!(warned.ok && warned.err.contains(named), "{warned:?}");
        let job = jobs::released(client, "lenient", "wrong").await?;
        let record = jobs::settled(client, "lenient", &job.uid().unwrap_or_default()).await?;
        ensure!(
            record.data["status"]["chargedMilligrams"].as_i64() > Some(0),
            "charged as measured"
        );
        Ok(())
    });
}

#[test]
fn after_the_longest_delay_a_job_is_refused_or_run_and_a_smaller_question_is_answered_anew() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        for (name, at_deadline) in [("late-refused", "Reject"), ("late-run", "Run")] {
            let spec = json!({ "limit": "1kg", "mode": "Enforce", "atDeadline": at_deadline });
            namespace(shared, name, spec).await?;
            let price = jobs::price(client, name, &Generate::BIG).await?;
            let short =
                json!({ "limit": format!("{}mg", price * 5 / 4), "longestDelaySeconds": 2 });
            jobs::amend(client, name, "images", short).await?;
            jobs::create_job(client, name, &Generate::BIG.placeholder("first")).await?;
            jobs::released(client, name, "first").await?;
            jobs::create_job(client, name, &Generate::BIG.job("second")).await?;
        }
        jobs::released(client, "late-run", "second").await?;
        let refused = eventually("the refusal is in a condition", SOON, || async {
            let job = jobs::jobs(client, "late-refused").get("second").await?;
            let conditions = job
                .status
                .clone()
                .and_then(|s| s.conditions)
                .unwrap_or_default();
            let found = conditions
                .into_iter()
                .find(|c| c.type_ == "jouleward.dev/Refused");
            Ok(found.and_then(|c| c.message).map(|message| (job, message)))
        })
        .await?;
        ensure!(jobs::is_suspended(&refused.0), "it stays suspended");
        ensure!(
            refused.1.contains("Fits: num-inference-steps ≤"),
            "{}",
            refused.1
        );
        let fewer =
            json!({ "metadata": { "annotations": { "jouleward.dev/num-inference-steps": "2" } } });
        let author = shared.stack.plane.client("author").await?;
        let jobs_of_author = jobs::jobs(&author, "late-refused");
        // The template wins and cannot be changed: ask with the job's own annotations only.
        let mut again = Generate::BIG.job("third");
        again["spec"]["template"]["metadata"] = json!({});
        jobs::create_job(&author, "late-refused", &again).await?;
        eventually("it is refused too", SOON, || async {
            let job = jobs_of_author.get("third").await?;
            Ok(job.annotations().get("jouleward.dev/refused").cloned())
        })
        .await?;
        jobs_of_author
            .patch("third", &PatchParams::default(), &Patch::Merge(&fewer))
            .await?;
        jobs::released(client, "late-refused", "third").await?;
        Ok(())
    });
}

#[test]
fn a_bare_pod_is_gated_released_and_settled() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(shared, "pods", json!({ "limit": "1kg", "mode": "Enforce" })).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), "pods");
        let said = create(shared, "pods", &Generate::SMALL.pod("bare"), &[])?;
        ensure!(said.ok, "{said:?}");
        let uid = pods.get("bare").await?.uid().unwrap_or_default();
        let record = jobs::settled(client, "pods", &uid).await?;
        ensure!(
            record.data["spec"]["adopted"] == false,
            "it was granted, not found: {}",
            record.data
        );
        ensure!(record.data["status"]["measuredMillijoules"].as_i64() > Some(0));
        Ok(())
    });
}

#[test]
fn a_pod_that_names_its_node_is_refused_under_enforce_and_charged_elsewhere() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let mut pod = Generate::SMALL.pod("bound");
        pod["spec"]["nodeName"] = json!("gpu-a");
        namespace(
            shared,
            "bound",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let said = create(shared, "bound", &pod, &[])?;
        ensure!(
            !said.ok
                && said
                    .err
                    .contains("a pod that names its node cannot be held"),
            "{said:?}"
        );
        namespace(shared, "bound-audit", json!({ "limit": "1kg" })).await?;
        let said = create(shared, "bound-audit", &pod, &[])?;
        ensure!(said.ok, "{said:?}");
        let pods: Api<Pod> = Api::namespaced(client.clone(), "bound-audit");
        let uid = pods.get("bound").await?.uid().unwrap_or_default();
        let record = jobs::settled(client, "bound-audit", &uid).await?;
        ensure!(record.data["spec"]["adopted"] == true, "{}", record.data);
        ensure!(record.data["status"]["chargedMilligrams"].as_i64() > Some(0));
        Ok(())
    });
}

#[test]
fn a_pod_of_another_kind_of_job_is_gated_released_and_charged_by_itself() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(
            shared,
            "other-jobs",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let mut pod = Generate::SMALL.pod("task-0");
        pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "batch.example.org/v1",
            "kind": "Job", "name": "task", "uid": "6c7d4f1e-0000-4000-8000-000000000001",
            "controller": true }]);
        let said = create(shared, "other-jobs", &pod, &[])?;
        ensure!(said.ok, "{said:?}");
        let pods: Api<Pod> = Api::namespaced(client.clone(), "other-jobs");
        let uid = pods.get("task-0").await?.uid().unwrap_or_default();
        let record = jobs::settled(client, "other-jobs", &uid).await?;
        ensure!(record.data["spec"]["adopted"] == false, "{}", record.data);
        ensure!(record.data["status"]["measuredMillijoules"].as_i64() > Some(0));
        Ok(())
    });
}

#[test]
fn gpus_of_init_containers_make_a_job_gpu_work() {
    on_plane(|shared| async move {
        let spec = json!({ "limit": "1mg", "mode": "Enforce", "onExceed": "Reject" });
        namespace(shared, "init", spec).await?;
        let mut job = Generate::SMALL.placeholder("prepare");
        let container = job["spec"]["template"]["spec"]["containers"][0].clone();
        job["spec"]["template"]["spec"]["initContainers"] = json!([container]);
        job["spec"]["template"]["spec"]["containers"] =
            json!([{ "name": "upload", "image": "example.org/upload:1" }]);
        let said = create(shared, "init", &job, &[])?;
        ensure!(!said.ok && said.err.contains("needs "), "{said:?}");
        Ok(())
    });
}

#[test]
fn a_gpu_product_that_is_a_typing_error_is_named_and_refused_or_warned_of_by_policy() {
    on_plane(|shared| async move {
        let wrong = json!({ "nvidia.com/gpu.product": "NVIDIA-H10O-80GB-HBM3" });
        let job = Generate::SMALL.job_on("typo", &wrong);
        let named = "nvidia.com/gpu.product: \"h10o-80gb-hbm3\" is neither";
        for (name, policy, passes) in [
            ("gpu-strict", "Reject", false),
            ("gpu-lenient", "Warn", true),
        ] {
            let spec = json!({ "limit": "1kg", "mode": "Enforce", "onUnknown": policy });
            namespace(shared, name, spec).await?;
            let said = create(shared, name, &job, &[])?;
            ensure!(said.ok == passes, "{said:?}");
            for part in [named, "h100-80gb-hbm3"] {
                ensure!(said.err.contains(part), "{part:?} is missing in {said:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn two_budgets_of_a_namespace_are_charged_alike() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(shared, "two", json!({ "limit": "1kg", "mode": "Enforce" })).await?;
        let weekly = json!({ "limit": "2kg", "mode": "Enforce", "period": { "type": "Week" } });
        jobs::budget(client, "two", "weekly", weekly).await?;
        let job = jobs::create_job(client, "two", &Generate::SMALL.job("pictures")).await?;
        let record = jobs::settled(client, "two", &job.uid().unwrap_or_default()).await?;
        let charged = record.data["status"]["chargedMilligrams"].as_i64();
        ensure!(charged > Some(0), "{}", record.data);
        for name in ["images", "weekly"] {
            eventually("both are charged", SOON, || async {
                let budget = jobs::budgets(client, "two").get(name).await?;
                let used = budget.data["status"]["consumedMilligrams"].as_i64();
                Ok((used == charged).then_some(()))
            })
            .await?;
        }
        Ok(())
    });
}

#[test]
fn gpu_pods_that_ran_before_the_budget_are_charged_from_then_on() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "before").await?;
        let long = Generate {
            images: 20,
            ..Generate::SMALL
        };
        let job = jobs::create_job(client, "before", &long.job("running")).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        jobs::budget(client, "before", "images", json!({ "limit": "1kg" })).await?;
        let record = jobs::settled(client, "before", &job.uid().unwrap_or_default()).await?;
        let status = &record.data["status"];
        let before = status["pods"][0]["beforeMillijoules"].as_i64();
        ensure!(record.data["spec"]["adopted"] == true);
        ensure!(
            status["chargedMilligrams"].as_i64() > Some(0) && before > Some(0),
            "{status}"
        );
        ensure!(status["observation"] == "BeganBeforeTheBudget", "{status}");
        let pod = status["pods"][0]["uid"].as_str().unwrap_or_default();
        let line = shared.stack.line_of(pod).await?.context("its line")?;
        let all = (line["microjoules"].as_f64().unwrap_or(0.0) / 1000.0).ceil() as i64;
        ensure!(
            status["measuredMillijoules"].as_i64() == before.map(|before| all - before),
            "{status} of {all} mJ"
        );
        Ok(())
    });
}

#[test]
fn a_budget_that_comes_while_a_job_runs_counts_what_is_left_of_it() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(
            shared,
            "joined",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let long = Generate {
            images: 20,
            ..Generate::SMALL
        };
        let job = jobs::create_job(client, "joined", &long.job("running")).await?;
        let uid = job.uid().unwrap_or_default();
        eventually("it burns", SOON, || async {
            let record = jobs::reservation_of(client, "joined", &uid).await?;
            let charged = record.and_then(|r| r.data["status"]["chargedMilligrams"].as_i64());
            Ok((charged > Some(0)).then_some(()))
        })
        .await?;
        let spec = json!({ "limit": "1kg", "mode": "Enforce" });
        jobs::budget(client, "joined", "late", spec).await?;
        let late = jobs::budgets(client, "joined").get("late").await?;
        ensure!(
            late.data["status"]["reservedMilligrams"].as_i64() > Some(0),
            "what is left is set aside at once: {}",
            late.data
        );
        let record = jobs::settled(client, "joined", &uid).await?;
        let status = &record.data["status"];
        let charged = status["chargedMilligrams"].as_i64().unwrap_or(0);
        let before = status["joined"][0]["chargedBeforeMilligrams"].as_i64();
        let expected = before.map(|before| charged - before);
        eventually("it is charged from then on", SOON, || async {
            let late = jobs::budgets(client, "joined").get("late").await?;
            let used = late.data["status"]["consumedMilligrams"].as_i64();
            Ok((used == expected && used > Some(0)).then_some(()))
        })
        .await
        .with_context(|| format!("{status}"))
    });
}

#[test]
fn a_job_that_is_deleted_alone_leaves_its_pod_on_its_own_record() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(
            shared,
            "orphaned",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let long = Generate {
            images: 14,
            ..Generate::SMALL
        };
        let job = jobs::create_job(client, "orphaned", &long.job("pictures")).await?;
        let uid = job.uid().unwrap_or_default();
        eventually("it burns", SOON, || async {
            let record = jobs::reservation_of(client, "orphaned", &uid).await?;
            let charged = record.and_then(|r| r.data["status"]["chargedMilligrams"].as_i64());
            Ok((charged > Some(0)).then_some(()))
        })
        .await?;
        let args = [
            "delete",
            "job",
            "pictures",
            "-n",
            "orphaned",
            "--cascade=orphan",
        ];
        let said = shared.stack.plane.kubectl("author", &args, None)?;
        ensure!(said.ok, "{said:?}");
        let record = jobs::settled(client, "orphaned", &uid).await?;
        let pod = record.data["status"]["pods"][0]["uid"]
            .as_str()
            .unwrap_or_default();
        let line = shared.stack.line_of(pod).await?.context("its line")?;
        let all = (line["microjoules"].as_f64().unwrap_or(0.0) / 1000.0).ceil();
        ensure!(
            record.data["status"]["measuredMillijoules"].as_f64() == Some(all),
            "{} of {all} mJ",
            record.data["status"]
        );
        let api = jobs::reservations(client, "orphaned");
        let records = api.list(&ListParams::default()).await?.items;
        ensure!(records.len() == 1, "one record pays: {}", records.len());
        Ok(())
    });
}

#[test]
fn jobs_without_a_gpu_pass_untouched() {
    on_plane(|shared| async move {
        namespace(
            shared,
            "plain",
            json!({ "limit": "1mg", "mode": "Enforce", "onExceed": "Reject" }),
        )
        .await?;
        shared.stack.plane.kwok_node("kwok-0").await?;
        let client = &shared.stack.client;
        let mut work = jobs::plain_job("work");
        work["spec"]["template"]["spec"]["nodeSelector"] = json!({ "type": "kwok" });
        let job = jobs::create_job(client, "plain", &work).await?;
        ensure!(
            !jobs::is_suspended(&job) && job.annotations().is_empty(),
            "{:?}",
            job.metadata
        );
        eventually("it has run", SOON, || async {
            let job = jobs::jobs(client, "plain").get("work").await?;
            let done = job.status.and_then(|status| status.succeeded);
            Ok((done == Some(1)).then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_budget_that_makes_no_sense_is_not_ready_and_the_rest_goes_on() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        namespace(
            shared,
            "nonsense",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget", "metadata": { "name": "mars" },
            "spec": { "limit": "1kg", "period": { "timeZone": "Mars/Base" } },
        }))?;
        jobs::budgets(client, "nonsense")
            .create(&PostParams::default(), &object)
            .await?;
        eventually("it is not ready", SOON, || async {
            let budget = jobs::budgets(client, "nonsense").get("mars").await?;
            let conditions = budget.data["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let told = conditions.iter().any(|c| {
                c["type"] == "Ready"
                    && c["status"] == "False"
                    && c["message"]
                        .as_str()
                        .is_some_and(|m| m.contains("Mars/Base"))
            });
            Ok(told.then_some(()))
        })
        .await?;
        let job = jobs::create_job(client, "nonsense", &Generate::SMALL.job("goes-on")).await?;
        jobs::settled(client, "nonsense", &job.uid().unwrap_or_default()).await?;
        Ok(())
    });
}

#[test]
fn the_schema_refuses_a_limit_without_a_unit_and_shows_a_right_one() {
    on_plane(|shared| async move {
        let budget = |spec: Value| {
            json!({ "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
                    "metadata": { "name": "x", "namespace": "default" }, "spec": spec })
        };
        let apply = |object: &Value| {
            shared.stack.plane.kubectl(
                "admin",
                &["create", "--dry-run=server", "-f", "-"],
                Some(&object.to_string()),
            )
        };
        for (spec, hint) in [
            (json!({ "limit": "5" }), "for example 5kg"),
            (
                json!({ "limit": "5kg", "period": { "type": "Rolling" } }),
                "for example days: 7",
            ),
            (json!({ "limit": "5kg", "chargedPercentile": 100 }), "99"),
            (json!({ "limit": "5kg", "mode": "Enforced" }), "Enforce"),
        ] {
            let said = apply(&budget(spec.clone()))?;
            ensure!(!said.ok && said.err.contains(hint), "{spec}: {said:?}");
        }
        let said = apply(&budget(json!({ "limit": "5kg" })))?;
        ensure!(said.ok, "{said:?}");
        let explained =
            shared
                .stack
                .plane
                .kubectl("viewer", &["explain", "carbonbudget.spec.limit"], None)?;
        ensure!(explained.out.contains("for example 5kg"), "{explained:?}");
        Ok(())
    });
}
