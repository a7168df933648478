//! What an author sees while a job waits: its place, what is ahead, by when it starts, and why that
//! was put off. And nobody waits for ever because others are smaller.

use crate::support::{Shared, on_plane};
use anyhow::{Context, ensure};
use harness::eventually;
use harness::jobs::{self, Generate};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// The queue that a namespace's budget tells of, once it is as it should be.
async fn queue(
    shared: &Shared,
    namespace: &str,
    what: &str,
    check: impl Fn(&[Value]) -> bool,
) -> anyhow::Result<Vec<Value>> {
    let budgets = jobs::budgets(&shared.stack.client, namespace);
    eventually(what, SOON, || async {
        let status = budgets.get("images").await?.data["status"].clone();
        let queue = status["queue"].as_array().cloned().unwrap_or_default();
        ensure!(check(&queue), "the queue is {}", json!(queue));
        Ok(Some(queue))
    })
    .await
}

fn names(queue: &[Value]) -> Vec<&str> {
    queue
        .iter()
        .filter_map(|job| job["name"].as_str())
        .collect()
}

/// The day, UTC, that a job in a queue is promised to start on.
fn day(job: &Value) -> Option<i64> {
    let starts: Timestamp = job["starts"].as_str()?.parse().ok()?;
    Some(starts.as_second().div_euclid(86_400))
}

fn events(shared: &Shared, namespace: &str, job: &str) -> anyhow::Result<String> {
    let name = format!("job/{job}");
    let args = ["events", "-n", namespace, "--for", &name];
    Ok(shared.stack.plane.kubectl("author", &args, None)?.out)
}

#[test]
fn a_job_that_waits_is_told_its_place_and_by_when_it_starts_and_why_that_is_put_off() {
    on_plane(|shared| async move {
        let (client, namespace) = (&shared.stack.client, "in-line");
        let ask = Generate::SMALL;
        let price = jobs::room_for(client, namespace, &ask, 9).await?;
        let terms = json!({
            "period": { "type": "Day", "timeZone": "UTC" }, "longestDelaySeconds": 250_000,
        });
        jobs::amend(client, namespace, "images", terms).await?;
        for filler in ["one", "two"] {
            jobs::create_job(client, namespace, &ask.placeholder(filler)).await?;
            jobs::released(client, namespace, filler).await?;
        }
        for name in ["first", "second"] {
            jobs::create_job(client, namespace, &ask.job(name)).await?;
            queue(shared, namespace, name, |q| names(q).contains(&name)).await?;
            // Who came in one second goes by UID.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let both = queue(shared, namespace, "both are promised a day", |q| {
            names(q) == ["first", "second"] && q.iter().all(|job| day(job).is_some())
        })
        .await?;
        ensure!(day(&both[0]) == day(&both[1]), "{both:?}");
        ensure!(both[0]["position"] == 1 && both[1]["position"] == 2);
        ensure!(
            both.iter().all(|job| job.get("putOff").is_none()),
            "{both:?}"
        );
        ensure!(
            both[1]["aheadMilligrams"] == both[0]["milligrams"],
            "{both:?}"
        );
        let said = events(shared, namespace, "second")?;
        ensure!(said.contains("Number 2 in line, behind"), "{said}");

        // What the budget's owner takes away cannot be kept, and is not put off in silence.
        let limit = json!({ "limit": format!("{}mg", price * 5 / 4) });
        jobs::amend(client, namespace, "images", limit).await?;
        let later = queue(shared, namespace, "the second is put off", |q| {
            q.len() == 2 && day(&q[1]) > day(&q[0])
        })
        .await?;
        let why = later[1]["putOff"].as_str().context("a reason")?;
        ensure!(why.contains("the limit was lowered from"), "{later:?}");
        ensure!(later[0].get("putOff").is_none(), "{later:?}");
        eventually("the author is told", SOON, || async {
            let said = events(shared, namespace, "second")?;
            Ok((said.contains("StartPutOff") && said.contains("was lowered")).then_some(()))
        })
        .await?;
        let kubeconfig = shared.stack.plane.kubeconfig("admin");
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_jouleward"))
            .args(["queue", "-n", namespace])
            .env("KUBECONFIG", kubeconfig)
            .output()
            .await?;
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let is = |line: &&str| line.contains("job/second") && line.contains("  2  ");
        ensure!(table.lines().any(|line| is(&line)), "{output:?}");
        ensure!(
            table.contains("job/second was put off; promised for"),
            "{table}"
        );

        for filler in ["one", "two"] {
            jobs::remove_job(client, namespace, filler).await?;
        }
        jobs::released(client, namespace, "first").await?;
        queue(shared, namespace, "the second is the first in line", |q| {
            names(q) == ["second"] && q[0]["position"] == 1
        })
        .await?;
        Ok(())
    });
}

#[test]
fn of_jobs_that_come_together_those_that_wait_are_promised_what_the_others_leave() {
    on_plane(|shared| async move {
        let (client, namespace) = (&shared.stack.client, "together");
        let ask = Generate::SMALL;
        jobs::room_for(client, namespace, &ask, 5).await?;
        let terms = json!({
            "period": { "type": "Day", "timeZone": "UTC" }, "longestDelaySeconds": 250_000,
        });
        jobs::amend(client, namespace, "images", terms).await?;
        let jobs = ["a", "b", "c"].map(|name| ask.placeholder(name));
        let created = jobs
            .iter()
            .map(|job| jobs::create_job(client, namespace, job));
        futures::future::try_join_all(created).await?;
        let two = queue(shared, namespace, "two wait", |q| q.len() == 2).await?;
        // A placeholder holds its place: what is promised now stands.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let later = queue(shared, namespace, "they wait on", |q| q.len() == 2).await?;
        for (now, before) in later.iter().zip(&two) {
            ensure!(now.get("putOff").is_none(), "{later:?}");
            ensure!(
                now["starts"] == before["starts"] && day(now).is_some(),
                "{later:?}"
            );
        }
        ensure!(
            day(&later[1]) == day(&later[0]).map(|day| day + 1),
            "{later:?}"
        );
        Ok(())
    });
}

#[test]
fn a_big_job_that_has_waited_for_long_is_not_passed_by_small_ones_any_more() {
    on_plane(|shared| async move {
        let (client, namespace) = (&shared.stack.client, "patient");
        let big = jobs::room_for(client, namespace, &Generate::BIG, 5).await?;
        let small = jobs::price(client, namespace, &Generate::SMALL).await?;
        let terms = json!({
            "limit": format!("{}mg", big + small / 2), "longestDelaySeconds": 120,
        });
        jobs::amend(client, namespace, "images", terms).await?;
        let ask = Generate::SMALL;
        jobs::create_job(client, namespace, &ask.placeholder("filler")).await?;
        jobs::released(client, namespace, "filler").await?;
        jobs::create_job(client, namespace, &Generate::BIG.job("big")).await?;
        queue(shared, namespace, "the big one waits", |q| {
            names(q) == ["big"]
        })
        .await?;
        // As long as it is young it lets smaller ones pass.
        jobs::create_job(client, namespace, &ask.placeholder("passes")).await?;
        jobs::released(client, namespace, "passes").await?;
        jobs::remove_job(client, namespace, "passes").await?;
        tokio::time::sleep(Duration::from_secs(31)).await;
        jobs::create_job(client, namespace, &ask.job("waits")).await?;
        let both = queue(shared, namespace, "both wait", |q| {
            names(q) == ["big", "waits"]
        })
        .await?;
        ensure!(both[0]["reason"] == "WaitingForBudget", "{both:?}");
        ensure!(both[1]["reason"] == "WaitingForTurn", "{both:?}");
        let said = events(shared, namespace, "waits")?;
        ensure!(said.contains("kept for jobs that wait longer"), "{said}");
        jobs::remove_job(client, namespace, "filler").await?;
        jobs::released(client, namespace, "big").await?;
        Ok(())
    });
}
