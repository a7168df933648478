//! Two that fit only singly: never both, whatever the timing, whoever leads.

use crate::support::{Shared, alone, on_plane};
use anyhow::ensure;
use harness::eventually;
use harness::jobs::{self, Generate};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::time::Duration;

/// Rounds, spread over namespaces that run side by side.
const NAMESPACES: usize = 10;
const ROUNDS: usize = 20;

async fn status(shared: &Shared, namespace: &str) -> anyhow::Result<Value> {
    Ok(jobs::budgets(&shared.stack.client, namespace)
        .get("images")
        .await?
        .data["status"]
        .clone())
}

/// Fills a namespace's budget so that one job fits and two do not.
async fn room_for_one(shared: &Shared, namespace: &str) -> anyhow::Result<()> {
    let client = &shared.stack.client;
    jobs::namespace(client, namespace).await?;
    jobs::budget(
        client,
        namespace,
        "images",
        json!({ "limit": "1kg", "mode": "Enforce" }),
    )
    .await?;
    let price = jobs::price(client, namespace, &Generate::BIG).await?;
    jobs::amend(
        client,
        namespace,
        "images",
        json!({ "limit": format!("{}mg", price * 4 / 3) }),
    )
    .await
}

/// Creates two at once; one is released, the other is not; then both go and all is given
/// back.
async fn round(shared: &Shared, namespace: &str, number: usize) -> anyhow::Result<()> {
    let client = &shared.stack.client;
    let names = [format!("a{number}"), format!("b{number}")];
    let (a, b) = (
        Generate::BIG.placeholder(&names[0]),
        Generate::BIG.placeholder(&names[1]),
    );
    let (a, b) = tokio::join!(
        jobs::create_job(client, namespace, &a),
        jobs::create_job(client, namespace, &b)
    );
    let uids = [a?.uid().unwrap_or_default(), b?.uid().unwrap_or_default()];
    let api = jobs::jobs(client, namespace);
    eventually("one is released", Duration::from_secs(30), || async {
        let (a, b) = tokio::try_join!(api.get(&names[0]), api.get(&names[1]))?;
        Ok((!jobs::is_suspended(&a) || !jobs::is_suspended(&b)).then_some(()))
    })
    .await?;
    for _ in 0..4 {
        let (a, b) = tokio::try_join!(api.get(&names[0]), api.get(&names[1]))?;
        ensure!(
            jobs::is_suspended(&a) || jobs::is_suspended(&b),
            "round {number}: both were released"
        );
        let now = status(shared, namespace).await?;
        let spent = now["reservedMilligrams"].as_i64().unwrap_or(0)
            + now["consumedMilligrams"].as_i64().unwrap_or(0);
        ensure!(
            Some(spent) <= now["limitMilligrams"].as_i64(),
            "round {number}: overdrawn: {now}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The held one first, or it would be released when the other's grams come back.
    let held_first = if jobs::is_suspended(&api.get(&names[0]).await?) {
        [0, 1]
    } else {
        [1, 0]
    };
    for index in held_first {
        jobs::remove_job(client, namespace, &names[index]).await?;
    }
    let _ = uids;
    eventually("all is given back", Duration::from_secs(30), || async {
        let now = status(shared, namespace).await?;
        Ok((now["reservedMilligrams"] == 0 && now["granting"] == json!([])).then_some(()))
    })
    .await
}

async fn rounds(
    shared: &'static Shared,
    prefix: &str,
    namespaces: usize,
    rounds: usize,
) -> anyhow::Result<()> {
    let work = (0..namespaces).map(|n| {
        let namespace = format!("{prefix}-{n}");
        async move {
            room_for_one(shared, &namespace).await?;
            for number in 0..rounds {
                round(shared, &namespace, number).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(work).await?;
    Ok(())
}

#[test]
fn of_two_jobs_that_fit_only_singly_never_both_are_released_in_200_rounds() {
    on_plane(|shared| async move { rounds(shared, "race", NAMESPACES, ROUNDS).await });
}

#[test]
fn two_leaders_forced_at_once_never_both_grant() {
    alone(|shared| async move {
        shared.stop_controller();
        let first = shared.stack.controller(1, &["--ignore-lease"], &[])?;
        let second = shared.stack.controller(2, &["--ignore-lease"], &[])?;
        shared.stack.ready(11, 9403).await?;
        shared.stack.ready(12, 9403).await?;
        shared.leader().await?;
        let result = rounds(shared, "split", 4, 8).await;
        drop((first, second));
        result
    });
}
