//! Records of settled jobs: how long they are kept, where they go, and what becomes of one that
//! somebody deletes.

use crate::support::{Shared, alone, on_plane};
use anyhow::{Context, ensure};
use harness::jobs::{self, Generate};
use harness::{NodeOptions, eventually};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(1);

async fn budgeted(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    let client = &shared.stack.client;
    jobs::namespace(client, namespace).await?;
    budget(shared, namespace).await
}

async fn budget(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    let spec = json!({ "limit": "10kg", "mode": "Enforce", "period": { "type": "Year" } });
    jobs::budget(&shared.stack.client, namespace, "images", spec).await
}

/// A budget's figure once it says this.
async fn consumed(shared: &Shared, namespace: &str, wanted: i64) -> anyhow::Result<()> {
    let api = jobs::budgets(&shared.stack.client, namespace);
    let what = format!("{namespace} has consumed {wanted} mg");
    eventually(&what, PATIENCE, || async {
        let said = api.get("images").await?.data["status"]["consumedMilligrams"].clone();
        Ok((said == json!(wanted)).then_some(()))
    })
    .await
}

/// Runs a job to its settlement; its UID and what it was charged.
async fn settled(shared: &Shared, namespace: &str, job: &Value) -> anyhow::Result<(String, i64)> {
    let client = &shared.stack.client;
    let job = jobs::create_job(client, namespace, job).await?;
    let uid = job.uid().context("a UID")?;
    let record = jobs::settled(client, namespace, &uid).await?;
    let charged = record.data["status"]["chargedMilligrams"].as_i64();
    let charged = charged.filter(|mg| *mg > 0).context("it was charged")?;
    Ok((uid, charged))
}

fn lines(statement: &Value) -> Vec<Value> {
    statement["lines"].as_array().cloned().unwrap_or_default()
}

#[test]
fn records_of_jobs_that_are_gone_are_handed_on_counted_and_deleted_and_nothing_is_spent_anew() {
    alone(|shared| async move {
        let client = &shared.stack.client;
        budgeted(shared, "archive").await?;
        let product = "NVIDIA RTX 4500 Ada Generation".to_owned();
        let options = NodeOptions {
            product,
            gpus: 1,
            ..NodeOptions::default()
        };
        let mut node = shared.stack.start_node("gpu-short", 171, &options).await?;
        // One that forgets its pods sooner than after an hour.
        node.exporter.kill();
        let soon = ["--hold-after-end-seconds=4", "--keep-final-seconds=6"];
        node.exporter = shared
            .stack
            .exporter("gpu-short", 171, &node.state, &soon, &[])?;
        shared.stack.ready(171, 9402).await?;
        shared.stop_controller();
        let folder = shared.stack.plane.folder.join("records");
        std::fs::create_dir_all(&folder)?;
        let to = format!("--records-folder={}", folder.display());
        let keeps = ["--keep-records-seconds=2", to.as_str()];
        let mut controller = shared.stack.controller(4, &keeps, &[])?;

        let on = json!({ "kubernetes.io/hostname": "gpu-short" });
        let (mut uids, mut sum) = (BTreeSet::new(), 0);
        for name in ["one", "two", "three"] {
            let job = Generate::SMALL.job_on(name, &on);
            let (uid, charged) = settled(shared, "archive", &job).await?;
            uids.insert(uid);
            sum += charged;
        }
        consumed(shared, "archive", sum).await?;
        // As long as its job is there a record is needed.
        let records = jobs::reservations(client, "archive");
        let everything = ListParams::default();
        tokio::time::sleep(Duration::from_secs(4)).await;
        ensure!(records.list(&everything).await?.items.len() == 3);
        for name in ["one", "two", "three"] {
            jobs::jobs(client, "archive")
                .delete(name, &DeleteParams::background())
                .await?;
        }
        eventually("the records are put away", PATIENCE, || async {
            let left = records.list(&everything).await?.items;
            Ok(left.is_empty().then_some(()))
        })
        .await?;

        let statement = jobs::statements(client).get("archive").await?.data["status"].clone();
        let counted: i64 = lines(&statement)
            .iter()
            .filter_map(|l| l["milligrams"].as_i64())
            .sum();
        ensure!(counted == sum, "{statement}");
        ensure!(
            statement["jobs"] == 3 && statement["chargedMilligrams"] == sum,
            "{statement}"
        );
        let mut handed = BTreeSet::new();
        for file in std::fs::read_dir(&folder)? {
            for line in std::fs::read_to_string(file?.path())?.lines() {
                let record: Value = serde_json::from_str(line)?;
                if record["metadata"]["namespace"] == "archive" {
                    let uid = record["spec"]["workload"]["uid"].as_str();
                    handed.insert(uid.context("a UID")?.to_owned());
                }
            }
        }
        ensure!(handed == uids, "{handed:?}");

        // What is spent stays spent: for a while, for another leader, for a budget made anew.
        tokio::time::sleep(Duration::from_secs(2)).await;
        consumed(shared, "archive", sum).await?;
        let statements = jobs::statements(client);
        statements
            .delete("archive", &DeleteParams::default())
            .await?;
        eventually("the statement is made anew", PATIENCE, || async {
            let there = statements.get_opt("archive").await?;
            Ok(there.filter(|s| lines(&s.data["status"]) == lines(&statement)))
        })
        .await?;
        consumed(shared, "archive", sum).await?;
        controller.kill();
        let _next = shared.stack.controller(5, &keeps, &[])?;
        jobs::budgets(client, "archive")
            .delete("images", &DeleteParams::default())
            .await?;
        budget(shared, "archive").await?;
        consumed(shared, "archive", sum).await?;
        let (_, more) = settled(shared, "archive", &Generate::SMALL.job_on("four", &on)).await?;
        consumed(shared, "archive", sum + more).await?;
        Ok(())
    });
}

#[test]
fn a_record_that_somebody_deletes_is_made_anew_as_it_was() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(shared, "tidied").await?;
        let (uid, charged) = settled(shared, "tidied", &Generate::SMALL.job("one")).await?;
        consumed(shared, "tidied", charged).await?;
        let records = jobs::reservations(client, "tidied");
        let name = format!("job-{uid}");
        let before = records.get(&name).await?;
        records.delete(&name, &DeleteParams::default()).await?;
        let budgets = jobs::budgets(client, "tidied");
        let after = eventually("the record is there again", PATIENCE, || async {
            let said = budgets.get("images").await?.data["status"]["consumedMilligrams"].clone();
            ensure!(
                said == json!(charged),
                "what was charged stays charged: {said}"
            );
            let record = records.get_opt(&name).await?;
            Ok(record.filter(|record| record.data["status"]["settled"] == true))
        })
        .await?;
        ensure!(after.uid() != before.uid());
        ensure!(after.data == before.data, "{} {}", after.data, before.data);
        let controller = format!("{}:9403", shared.stack.address(10));
        let (_, text) = harness::stack::get(&controller, "/metrics", "text/plain").await?;
        let counted = text.lines().find(|line| {
            line.starts_with("jouleward_records_restored_total") && line.contains("tidied")
        });
        ensure!(
            counted.is_some_and(|line| line.ends_with(" 1")),
            "{counted:?}"
        );
        Ok(())
    });
}

#[test]
fn a_namespace_that_is_deleted_and_made_anew_has_spent_what_it_had_spent() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        budgeted(shared, "again").await?;
        let (_, charged) = settled(shared, "again", &Generate::SMALL.job("one")).await?;
        consumed(shared, "again", charged).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let first = namespaces.get("again").await?;
        namespaces
            .delete("again", &DeleteParams::background())
            .await?;
        eventually("the namespace is gone", PATIENCE, || async {
            Ok(namespaces.get_opt("again").await?.is_none().then_some(()))
        })
        .await?;
        let statement = eventually("a statement has what was charged", PATIENCE, || async {
            let statement = jobs::statements(client).get_opt("again").await?;
            Ok(statement.filter(|s| s.data["status"]["chargedMilligrams"] == charged))
        })
        .await?;
        let line = lines(&statement.data["status"]).pop().context("a line")?;
        ensure!(
            line["namespaceUid"] == json!(first.uid()) && line["budget"] == "images",
            "{line}"
        );
        budgeted(shared, "again").await?;
        consumed(shared, "again", charged).await?;
        let (_, more) = settled(shared, "again", &Generate::SMALL.job("one")).await?;
        consumed(shared, "again", charged + more).await?;
        Ok(())
    });
}
