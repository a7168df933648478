//! Stamps are ours: who has not the verb cannot lift a hold or change one, also while
//! every process of ours is down.

use crate::support::{Shared, alone, on_plane};
use anyhow::ensure;
use harness::jobs::{self, Generate};
use harness::plane::Said;
use serde_json::{Value, json};

/// A job that waits for a budget that has no room.
async fn held(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    let client = &shared.stack.client;
    jobs::filled(client, namespace, &Generate::SMALL).await?;
    jobs::create_job(client, namespace, &Generate::SMALL.job("second")).await?;
    ensure!(jobs::is_held(
        &jobs::jobs(client, namespace).get("second").await?
    ));
    Ok(())
}

fn tamper(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    for (patch, word) in [
        (r#"{"spec":{"suspend":false}}"#, "holds this job"),
        (
            r#"{"metadata":{"annotations":{"jouleward.dev/hold":null}}}"#,
            "holds this job",
        ),
        (
            r#"{"metadata":{"annotations":{"jouleward.dev/hold":null}},"spec":{"suspend":false}}"#,
            "holds this job",
        ),
        (
            r#"{"metadata":{"annotations":{"jouleward.dev/granted":"job-x"}},"spec":{"suspend":false}}"#,
            "jouleward",
        ),
        (
            r#"{"metadata":{"annotations":{"jouleward.dev/prediction":"nothing"}}}"#,
            "written by Jouleward alone",
        ),
        (
            r#"{"metadata":{"annotations":{"jouleward.dev/granted":"job-x"}}}"#,
            "written by Jouleward alone",
        ),
    ] {
        let said = patch_as_author(shared, namespace, "job/second", patch)?;
        ensure!(!said.ok && said.err.contains(word), "{patch}: {said:?}");
    }
    let innocent = [
        "label",
        "job",
        "second",
        "-n",
        namespace,
        "team=blue",
        "--overwrite",
    ];
    let said = shared.stack.plane.kubectl("author", &innocent, None)?;
    ensure!(said.ok, "other changes pass: {said:?}");
    Ok(())
}

#[test]
fn the_author_cannot_lift_a_hold_or_change_a_stamp() {
    on_plane(|shared| async move {
        held(shared, "guarded").await?;
        tamper(shared, "guarded")
    });
}

#[test]
fn nor_while_webhook_and_controller_are_stopped() {
    alone(|shared| async move {
        held(shared, "guarded-alone").await?;
        shared.stop_controller();
        shared.stop_webhook();
        tamper(shared, "guarded-alone")
    });
}

#[test]
fn a_pods_gate_and_stamps_are_guarded_too() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::filled(client, "guarded-pods", &Generate::SMALL).await?;
        let said = create(shared, "guarded-pods", &Generate::SMALL.pod("bare"))?;
        ensure!(said.ok, "{said:?}");
        for (patch, word) in [
            (r#"{"spec":{"schedulingGates":null}}"#, "holds this pod"),
            (
                r#"{"metadata":{"annotations":{"jouleward.dev/granted":"pod-x"}}}"#,
                "written by Jouleward alone",
            ),
            (
                r#"{"metadata":{"annotations":{"jouleward.dev/prediction":null}}}"#,
                "written by Jouleward alone",
            ),
        ] {
            let said = patch_as_author(shared, "guarded-pods", "pod/bare", patch)?;
            ensure!(!said.ok && said.err.contains(word), "{patch}: {said:?}");
        }
        let innocent = r#"{"metadata":{"labels":{"team":"blue"}}}"#;
        let said = patch_as_author(shared, "guarded-pods", "pod/bare", innocent)?;
        ensure!(said.ok, "other changes pass: {said:?}");
        Ok(())
    });
}

#[test]
fn nobody_makes_more_pods_of_a_grant_than_were_asked_for() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::room_for(client, "raised", &Generate::SMALL, 80).await?;
        let mut job = Generate::SMALL.placeholder("many");
        job["spec"]["parallelism"] = json!(2);
        jobs::create_job(client, "raised", &job).await?;
        jobs::released(client, "raised", "many").await?;
        let more = r#"{"spec":{"parallelism":100}}"#;
        let said = patch_as_author(shared, "raised", "job/many", more)?;
        ensure!(
            !said.ok && said.err.contains("was asked for fewer pods"),
            "{said:?}"
        );
        // A pause and its end ask for nothing new.
        for pods in [1, 0, 2] {
            let patch = format!(r#"{{"spec":{{"parallelism":{pods}}}}}"#);
            let said = patch_as_author(shared, "raised", "job/many", &patch)?;
            ensure!(said.ok, "{pods}: {said:?}");
        }
        Ok(())
    });
}

#[test]
fn stamps_brought_along_are_refused_where_no_webhook_takes_them_off() {
    alone(|shared| async move {
        let client = &shared.stack.client;
        jobs::room_for(client, "forged-alone", &Generate::SMALL, 8).await?;
        shared.stop_controller();
        shared.stop_webhook();
        let mut job = Generate::SMALL.placeholder("forged");
        job["metadata"]["annotations"]["jouleward.dev/granted"] = json!("job-x");
        let mut template = Generate::SMALL.placeholder("template");
        template["spec"]["template"]["metadata"]["annotations"]["jouleward.dev/granted"] =
            json!("job-x");
        let mut pod = Generate::SMALL.pod("forged");
        pod["metadata"]["annotations"]["jouleward.dev/refused"] = json!("no");
        for object in [job, template, pod] {
            let said = create(shared, "forged-alone", &object)?;
            ensure!(
                !said.ok && said.err.contains("written by Jouleward alone"),
                "{object}: {said:?}"
            );
        }
        let said = create(
            shared,
            "forged-alone",
            &Generate::SMALL.placeholder("honest"),
        )?;
        ensure!(said.ok, "{said:?}");
        Ok(())
    });
}

fn create(shared: &Shared, namespace: &str, object: &Value) -> anyhow::Result<Said> {
    let args = ["create", "--namespace", namespace, "-f", "-"];
    let object = object.to_string();
    shared.stack.plane.kubectl("author", &args, Some(&object))
}

fn patch_as_author(
    shared: &Shared,
    namespace: &str,
    object: &str,
    patch: &str,
) -> anyhow::Result<Said> {
    let args = [
        "patch",
        object,
        "-n",
        namespace,
        "--type=merge",
        "-p",
        patch,
    ];
    shared.stack.plane.kubectl("author", &args, None)
}

#[test]
fn stamps_that_an_author_brings_along_are_overwritten() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "forged").await?;
        jobs::budget(
            client,
            "forged",
            "images",
            json!({ "limit": "1kg", "mode": "Enforce" }),
        )
        .await?;
        let mut job = Generate::SMALL.placeholder("forged");
        job["metadata"]["annotations"]["jouleward.dev/granted"] = json!("job-x");
        job["metadata"]["annotations"]["jouleward.dev/prediction"] = json!("1 J");
        let author = shared.stack.plane.client("author").await?;
        let created = jobs::create_job(&author, "forged", &job).await?;
        ensure!(jobs::is_held(&created), "{:?}", created.metadata);
        let annotations = created.metadata.annotations.unwrap_or_default();
        ensure!(!annotations.contains_key("jouleward.dev/granted"));
        ensure!(annotations["jouleward.dev/prediction"] != "1 J");
        Ok(())
    });
}

#[test]
fn the_mode_of_a_namespace_follows_its_budgets_alone() {
    on_plane(|shared| async move {
        jobs::namespace(&shared.stack.client, "labelled").await?;
        let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "namespace-editor" },
            "rules": [{ "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "patch", "update"] }] });
        let binding = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "namespace-editor" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "namespace-editor" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "authors" }] });
        shared
            .stack
            .plane
            .apply(&format!("{role}\n---\n{binding}\n"))?;
        let label = [
            "label",
            "namespace",
            "labelled",
            "jouleward.dev/mode=enforce",
        ];
        let said = harness::eventually(
            "RBAC has taken the role in",
            std::time::Duration::from_secs(10),
            || async {
                let said = shared.stack.plane.kubectl("author", &label, None)?;
                Ok((!said.err.contains("cannot patch")).then_some(said))
            },
        )
        .await?;
        ensure!(
            !said.ok && said.err.contains("set by Jouleward alone"),
            "{said:?}"
        );
        Ok(())
    });
}

/// What a user does who is bound to the role of budgets' owners, and may edit.
fn as_owner(shared: &Shared, args: &[&str], input: Option<&str>) -> anyhow::Result<Said> {
    let args = [&["--as=owner", "--as-group=owners"], args].concat();
    shared.stack.plane.kubectl("admin", &args, input)
}

/// Binds the user that [`as_owner`] acts for.
fn owned(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    for role in ["edit", "jouleward-budget-owner"] {
        let role = format!("--clusterrole={role}");
        let name = role.rsplit('=').next().unwrap_or_default();
        let bind = [
            "create",
            "rolebinding",
            name,
            "-n",
            namespace,
            "--user=owner",
            &role,
        ];
        let said = shared.stack.plane.kubectl("admin", &bind, None)?;
        ensure!(said.ok, "{said:?}");
    }
    Ok(())
}

#[test]
fn a_broken_glass_is_for_as_many_pods_as_the_job_had_also_after_a_pause() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let namespace = "glass-pods";
        jobs::filled(client, namespace, &Generate::SMALL).await?;
        owned(shared, namespace)?;
        let mut job = Generate::SMALL.placeholder("one");
        job["metadata"]["annotations"]["jouleward.dev/break-glass"] = json!("tonight");
        job["spec"]["parallelism"] = json!(1);
        let args = ["create", "--namespace", namespace, "-f", "-"];
        let said = as_owner(shared, &args, Some(&job.to_string()))?;
        ensure!(said.ok, "{said:?}");
        let patch = |patch: &str| patch_as_author(shared, namespace, "job/one", patch);
        let pause = patch(r#"{"spec":{"suspend":true}}"#)?;
        ensure!(pause.ok, "{pause:?}");
        let said = patch(r#"{"spec":{"suspend":false,"parallelism":500}}"#)?;
        ensure!(
            !said.ok && said.err.contains("was asked for fewer pods"),
            "{said:?}"
        );
        let resumed = patch(r#"{"spec":{"suspend":false}}"#)?;
        ensure!(resumed.ok, "{resumed:?}");
        ensure!(!jobs::is_suspended(
            &jobs::jobs(client, namespace).get("one").await?
        ));
        jobs::remove_job(client, namespace, "one").await?;
        Ok(())
    });
}

#[test]
fn the_glass_is_broken_by_whom_the_verb_allows_and_what_runs_is_charged_beyond_the_limit() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let namespace = "glass";
        jobs::filled(client, namespace, &Generate::SMALL).await?;
        owned(shared, namespace)?;
        let why = "a demonstration tonight";
        let urgent = |name: &str| {
            let mut job = Generate::SMALL.job(name);
            job["metadata"]["annotations"]["jouleward.dev/break-glass"] = json!(why);
            job
        };
        let said = create(shared, namespace, &urgent("authors"))?;
        ensure!(
            !said.ok && said.err.contains("jouleward-break-glass"),
            "{said:?}"
        );
        let mut template = Generate::SMALL.job("template");
        template["spec"]["template"]["metadata"]["annotations"]["jouleward.dev/break-glass"] =
            json!(why);
        let said = create(shared, namespace, &template)?;
        ensure!(!said.ok && said.err.contains("spec.template"), "{said:?}");

        let args = ["create", "--namespace", namespace, "-f", "-"];
        let mut empty = urgent("empty");
        empty["metadata"]["annotations"]["jouleward.dev/break-glass"] = json!(" ");
        let said = as_owner(shared, &args, Some(&empty.to_string()))?;
        ensure!(!said.ok && said.err.contains("says why"), "{said:?}");
        let said = as_owner(shared, &args, Some(&urgent("urgent").to_string()))?;
        ensure!(said.ok && said.err.contains("break-glass"), "{said:?}");
        let job = jobs::jobs(client, namespace).get("urgent").await?;
        ensure!(!jobs::is_suspended(&job), "it never waits");
        let record =
            jobs::settled(client, namespace, &job.metadata.uid.unwrap_or_default()).await?;
        ensure!(
            record.data["spec"]["adopted"] == true,
            "{:?}",
            record.data["spec"]
        );
        let verdict = record.data["spec"]["verdict"].as_str().unwrap_or_default();
        ensure!(verdict.contains(why), "{verdict}");

        // One that waits is let go the same way, and by nobody else.
        jobs::create_job(client, namespace, &Generate::SMALL.job("second")).await?;
        ensure!(jobs::is_held(
            &jobs::jobs(client, namespace).get("second").await?
        ));
        let glass =
            format!(r#"{{"metadata":{{"annotations":{{"jouleward.dev/break-glass":"{why}"}}}}}}"#);
        let said = patch_as_author(shared, namespace, "job/second", &glass)?;
        ensure!(
            !said.ok && said.err.contains("jouleward-break-glass"),
            "{said:?}"
        );
        let patch = [
            "patch",
            "-n",
            namespace,
            "job/second",
            "--type=merge",
            "-p",
            &glass,
        ];
        let said = as_owner(shared, &patch, None)?;
        ensure!(said.ok, "{said:?}");
        jobs::released(client, namespace, "second").await?;
        let events: kube::Api<k8s_openapi::api::core::v1::Event> =
            kube::Api::namespaced(client.clone(), namespace);
        let told = kube::api::ListParams::default().fields("reason=BreakGlass");
        harness::eventually(
            "both are told of",
            std::time::Duration::from_secs(20),
            || async {
                let told = events.list(&told).await?.items;
                let of = |name: &str| {
                    told.iter()
                        .any(|event| event.involved_object.name.as_deref() == Some(name))
                };
                Ok((of("urgent") && of("second")).then_some(()))
            },
        )
        .await?;
        // What they burned counts for all others.
        jobs::create_job(client, namespace, &Generate::SMALL.job("third")).await?;
        ensure!(jobs::is_held(
            &jobs::jobs(client, namespace).get("third").await?
        ));
        Ok(())
    });
}

#[test]
fn who_spends_a_budget_sees_it_and_does_not_write_it() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        let namespace = "roles";
        jobs::room_for(client, namespace, &Generate::SMALL, 5).await?;
        let raise = r#"{"spec":{"limit":"900kg"}}"#;
        let patch = [
            "patch",
            "-n",
            namespace,
            "carbonbudget/images",
            "--type=merge",
            "-p",
            raise,
        ];
        let plane = &shared.stack.plane;
        let said = plane.kubectl("author", &patch, None)?;
        ensure!(!said.ok && said.err.contains("forbidden"), "{said:?}");
        let said = plane.kubectl("author", &["get", "-n", namespace, "carbonbudgets"], None)?;
        ensure!(said.ok && said.out.contains("images"), "{said:?}");
        let bind = [
            "create",
            "rolebinding",
            "owns",
            "-n",
            namespace,
            "--user=owner",
            "--clusterrole=jouleward-budget-owner",
        ];
        let said = plane.kubectl("admin", &bind, None)?;
        ensure!(said.ok, "{said:?}");
        let said = as_owner(shared, &patch, None)?;
        ensure!(said.ok, "{said:?}");
        Ok(())
    });
}
