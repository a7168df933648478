//! Two that fit only singly: never both, whatever the timing, whoever leads.

use crate::support::{Shared, alone, on_plane};
use anyhow::{bail, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use std::time::Duration;

/// Rounds, spread over namespaces that run side by side.
const NAMESPACES: usize = 10;
const ROUNDS: usize = 20;

/// A namespace whose budgets each have room for one job and not for two.
async fn room_for_one(shared: &Shared, namespace: &str, budgets: usize) -> anyhow::Result<()> {
    let client = &shared.stack.client;
    let price = jobs::room_for(client, namespace, &Generate::BIG, 6).await?;
    for number in 1..budgets {
        let limit = format!("{}mg", price * 3 / 2 + i64::try_from(number)?);
        let spec = json!({ "limit": limit, "mode": "Enforce" });
        jobs::budget(client, namespace, &format!("more-{number}"), spec).await?;
    }
    Ok(())
}

/// What every budget of a namespace says of itself.
async fn statuses(shared: &Shared, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let budgets = jobs::budgets(&shared.stack.client, namespace);
    let list = budgets.list(&ListParams::default()).await?;
    Ok(list
        .items
        .into_iter()
        .map(|b| b.data["status"].clone())
        .collect())
}

/// Those of the two that have a reservation: released or about to be.
async fn granted(
    shared: &Shared,
    namespace: &str,
    uids: &[String; 2],
) -> anyhow::Result<Vec<String>> {
    let api = jobs::reservations(&shared.stack.client, namespace);
    let list = api.list(&ListParams::default()).await?.items;
    let records = list
        .iter()
        .filter_map(|r| r.data["spec"]["workload"]["uid"].as_str());
    let mine = records.filter(|uid| uids.iter().any(|mine| mine == uid));
    Ok(mine.map(str::to_owned).collect())
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
        if !jobs::is_suspended(&a) && !jobs::is_suspended(&b) {
            let records = jobs::reservations(client, namespace);
            let records = records.list(&ListParams::default()).await?.items;
            let records: Vec<&Value> = records.iter().map(|r| &r.data).collect();
            let all = statuses(shared, namespace).await?;
            bail!(
                "{namespace}, round {number}: both were released: {:?} {:?}; {records:?}; {all:?}",
                a.metadata,
                b.metadata
            );
        }
        let granted = granted(shared, namespace, &uids).await?;
        ensure!(
            granted.len() == 1,
            "round {number}: both were granted: {granted:?}"
        );
        for now in statuses(shared, namespace).await? {
            let spent = now["reservedMilligrams"].as_i64().unwrap_or(0)
                + now["consumedMilligrams"].as_i64().unwrap_or(0);
            ensure!(
                Some(spent) <= now["limitMilligrams"].as_i64(),
                "round {number}: overdrawn: {now}"
            );
        }
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
    eventually("all is given back", Duration::from_secs(30), || async {
        let all = statuses(shared, namespace).await?;
        let back = |now: &Value| now["reservedMilligrams"] == 0 && now["granting"] == json!([]);
        Ok(all.iter().all(back).then_some(()))
    })
    .await
}

async fn rounds(
    shared: &'static Shared,
    prefix: &str,
    namespaces: usize,
    rounds: usize,
    budgets: usize,
) -> anyhow::Result<()> {
    let work = (0..namespaces).map(|n| {
        let namespace = format!("{prefix}-{n}");
        async move {
            room_for_one(shared, &namespace, budgets).await?;
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
    on_plane(|shared| async move { rounds(shared, "race", NAMESPACES, ROUNDS, 1).await });
}

#[test]
fn two_leaders_forced_at_once_never_both_grant() {
    alone(|shared| async move {
        shared.stop_controller();
        let first = shared.stack.controller(1, &["--ignore-lease"], &[])?;
        let second = shared.stack.controller(2, &["--ignore-lease"], &[])?;
        shared.stack.ready(11, 9403).await?;
        shared.stack.ready(12, 9403).await?;
        shared.led_by(&["controller-1", "controller-2"]).await?;
        let result = tokio::try_join!(
            rounds(shared, "split", 4, 8, 1),
            rounds(shared, "split-budgets", 4, 8, 3)
        )
        .map(|_| ());
        drop((first, second));
        result
    });
}
