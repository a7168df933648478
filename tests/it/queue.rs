//! How fast a long queue is decided and released, beside what the API server can do at all.
//! `make queue` runs it; its figures go to docs/benchmarks.md.

use crate::support::{Shared, alone};
use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use harness::jobs::{self, Generate};
use jouleward::api::CarbonBudget;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

const NAMESPACES: usize = 50;
const AT_ONCE: usize = 16;

/// Jobs in the queue: `JOULEWARD_QUEUE`.
fn size() -> usize {
    let set = std::env::vars().find(|(key, _)| key == "JOULEWARD_QUEUE");
    set.and_then(|(_, text)| text.parse().ok()).unwrap_or(2_000)
}

fn namespace(number: usize) -> String {
    format!("queue-{}", number % NAMESPACES)
}

/// Seconds since the run's first moment.
fn seconds(since: tokio::time::Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// Bare writes of one status, each guarded by the version of the last: a second.
async fn bare_writes(shared: &Shared) -> anyhow::Result<f64> {
    let api = jobs::budgets(&shared.stack.client, "queue-0");
    let mut budget = api.get("images").await?;
    let began = tokio::time::Instant::now();
    let writes = 500;
    for number in 0..writes {
        budget.data["status"]["heldJobs"] = json!(number);
        budget = api
            .replace_status("images", &PostParams::default(), &budget)
            .await?;
    }
    Ok(f64::from(writes) / seconds(began))
}

/// What became of the queue, in seconds since the leader came.
#[derive(Default)]
struct Told {
    decided: HashMap<String, f64>,
    released: HashMap<String, f64>,
}

/// Follows budgets and jobs until all are released.
async fn follow(shared: &Shared, all: usize, since: tokio::time::Instant) -> anyhow::Result<Told> {
    let client = &shared.stack.client;
    let budgets: Api<CarbonBudget> = Api::all(client.clone());
    let held: Api<Job> = Api::all(client.clone());
    let params = watcher::Config::default;
    let mut budgets = watcher(budgets, params()).applied_objects().boxed();
    let mut held = watcher(held, params()).applied_objects().boxed();
    let mut told = Told::default();
    while told.released.len() < all {
        tokio::select! {
            event = budgets.try_next() => {
                let status = event?.and_then(|budget| budget.status).unwrap_or_default();
                for grant in status.granting {
                    told.decided.entry(grant.uid).or_insert_with(|| seconds(since));
                }
            }
            event = held.try_next() => {
                let Some(job) = event? else { continue };
                let ours = job.metadata.namespace.is_some_and(|name| name.starts_with("queue-"));
                let runs = job.spec.is_some_and(|spec| spec.suspend != Some(true));
                if ours && runs {
                    let uid = job.metadata.uid.unwrap_or_default();
                    told.released.entry(uid).or_insert_with(|| seconds(since));
                }
            }
            () = tokio::time::sleep(Duration::from_mins(1)) => {
                anyhow::bail!("nothing for a minute: {} of {all} are released", told.released.len());
            }
        }
    }
    Ok(told)
}

fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let below = values.iter().enumerate();
    let count = values.len() as f64;
    let at = below.take_while(|(n, _)| *n as f64 <= (count - 1.0) * p);
    at.last().map_or(0.0, |(_, value)| *value)
}

#[test]
#[ignore = "minutes, and figures of this machine: make queue"]
fn a_long_queue_is_decided_and_released() {
    alone(|shared| async move {
        let client = &shared.stack.client;
        let all = size();
        let terms = json!({
            "limit": "900000kg", "mode": "Enforce", "whenUnavailable": "Hold",
        });
        for number in 0..NAMESPACES {
            jobs::namespace(client, &namespace(number)).await?;
            jobs::budget(client, &namespace(number), "images", terms.clone()).await?;
        }
        shared.stop_controller();
        let bare = bare_writes(shared).await?;
        println!("queue: {bare:.0} bare guarded writes a second");
        let began = tokio::time::Instant::now();
        // Of these no pods are made: that is another controller's work.
        let created = stream::iter(0..all).map(|number| async move {
            let mut job = Generate::SMALL.placeholder(&format!("j{number}"));
            job["spec"]["parallelism"] = json!(0);
            let job = jobs::create_job(client, &namespace(number), &job).await?;
            let held = job.spec.and_then(|spec| spec.suspend) == Some(true);
            ensure!(held, "it was not held");
            anyhow::Ok(())
        });
        created
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        println!("queue: {all} jobs held after {:.0} s", seconds(began));

        let since = tokio::time::Instant::now();
        let _leader = shared.stack.controller(6, &[], &[])?;
        let told = follow(shared, all, since).await?;
        let first = told.decided.values().copied().fold(f64::MAX, f64::min);
        let last = told.released.values().copied().fold(0.0, f64::max);
        let rate = all as f64 / (last - first);
        println!(
            "queue: the first decision {first:.1} s after the leader came, the last release {last:.1} s: \
             {rate:.0} a second, {:.2} of the bare writes",
            rate / bare
        );
        let waits = told.released.iter().map(|(uid, released)| {
            let decided = told.decided.get(uid).context("it was decided")?;
            Ok((released - decided).max(0.0))
        });
        let mut waits: Vec<f64> = waits.collect::<anyhow::Result<_>>()?;
        println!(
            "queue: from decision to release {:.2} s (median), {:.2} s (p99)",
            percentile(&mut waits, 0.5),
            percentile(&mut waits, 0.99)
        );
        Ok(())
    });
}
