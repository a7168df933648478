//! The loop, closed: predicted, reserved, released, run, measured, settled, learnt.

use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

#[test]
fn an_enforced_job_is_predicted_reserved_released_run_measured_settled_and_learnt() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "loop").await?;
        jobs::budget(client, "loop", "images", json!({ "limit": "10kg", "mode": "Enforce" })).await?;
        let before = observations(client).await?;
        let author = shared.stack.plane.client("author").await?;
        let created = jobs::create_job(&author, "loop", &Generate::SMALL.job("pictures")).await?;
        let uid = created.uid().context("a job has a UID")?;
        ensure!(created.spec.as_ref().and_then(|s| s.suspend) == Some(true), "it is suspended at create");
        ensure!(created.annotations().contains_key("jouleward.dev/prediction"), "it is stamped");

        let reservation = eventually("a reservation", Duration::from_secs(10), || async {
            jobs::reservation_of(client, "loop", &uid).await
        })
        .await?;
        ensure!(reservation.data["spec"]["reservedMilligrams"].as_i64() > Some(0), "predicted mg: {}", reservation.data);
        let settled = jobs::settled(client, "loop", &uid).await?;
        let measured = settled.data["status"]["measuredMillijoules"].as_f64().unwrap_or(0.0) / 1000.0;
        let pod = settled.data["status"]["pods"][0]["uid"].as_str().unwrap_or_default().to_owned();
        let truth = *shared.stack.truth().get(&pod).context("the node knows what the pod burned")?;
        // One counter step of 100 ms at the start and one at the end.
        let step = 0.1 * 400.0;
        ensure!((measured - truth).abs() <= 2.0 * step, "measured {measured} J, truly {truth} J");

        let budget = jobs::budgets(client, "loop").get("images").await?;
        let status = &budget.data["status"];
        let charged = settled.data["status"]["chargedMilligrams"].as_i64();
        eventually("the budget's figures", Duration::from_secs(5), || async {
            let budget = jobs::budgets(client, "loop").get("images").await?;
            let status = &budget.data["status"];
            let settled = status["reservedMilligrams"] == 0 && status["consumedMilligrams"].as_i64() == charged;
            Ok((settled && status["refundedMilligrams"].as_i64() > Some(0)).then_some(()))
        })
        .await
        .with_context(|| format!("status {status}"))?;
        ensure!(observations(client).await? > before, "the law has learnt: {}", settled.data["status"]);
        Ok(())
    });
}

async fn observations(client: &kube::Client) -> anyhow::Result<i64> {
    let law = jobs::laws(client).get("a100-sxm4-40gb").await?;
    Ok(law.data["status"]["observations"].as_i64().unwrap_or(0))
}
