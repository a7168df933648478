//! What a budget's owner may decide beside the limit: a limit for each job, grace, periods of
//! a fiscal year, when to be warned.

use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::jobs::{self, Generate};
use harness::{eventually, plane::Said};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// No other test runs anything on this product, so its law stands still.
fn on_h200(ask: &Generate, name: &str) -> Value {
    let labels = json!({ "nvidia.com/gpu.product": "NVIDIA-H200", "no-such": "node" });
    ask.job_on(name, &labels)
}

fn refused(said: &Said, parts: &[&str]) -> anyhow::Result<()> {
    ensure!(!said.ok, "it is refused: {said:?}");
    let text = format!("{said:?}");
    for part in parts {
        ensure!(text.contains(part), "{part:?} in {text}");
    }
    Ok(())
}

#[test]
fn a_job_above_the_limit_of_one_is_refused_and_what_is_said_to_fit_does() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "each").await?;
        let spec = json!({ "limit": "10kg", "mode": "Enforce", "perJobLimit": "300mg" });
        jobs::budget(client, "each", "images", spec).await?;
        let create = |job: &Value| {
            let args = ["create", "--namespace", "each", "-f", "-"];
            shared
                .stack
                .plane
                .kubectl("author", &args, Some(&job.to_string()))
        };
        let ask = Generate {
            images: 40,
            ..Generate::BIG
        };
        let said = create(&on_h200(&ask, "too-much"))?;
        refused(
            &said,
            &["one job may emit 300 mg", "of 10 kg left", "Fits: "],
        )?;
        let text = format!("{said:?}");
        let fits = text
            .split("num-images ≤ ")
            .nth(1)
            .context("a number of images")?;
        let images = fits.split(' ').next().and_then(|n| n.parse().ok());
        let smaller = Generate {
            images: images.context("a number")?,
            ..ask
        };
        let said = create(&on_h200(&smaller, "as-said"))?;
        ensure!(said.ok, "{said:?}");
        let one_more = Generate {
            images: smaller.images + 1,
            ..smaller
        };
        refused(
            &create(&on_h200(&one_more, "one-more"))?,
            &["one job may emit"],
        )
    });
}

#[test]
fn grace_lets_the_job_begin_that_goes_over_and_none_after_it() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "grace").await?;
        let spec = json!({ "limit": "10kg", "mode": "Enforce" });
        jobs::budget(client, "grace", "images", spec).await?;
        let first = on_h200(&Generate::BIG, "first");
        let first = jobs::create_job(client, "grace", &first).await?;
        let uid = first.metadata.uid.unwrap_or_default();
        let record = eventually("it is granted", SOON, || async {
            jobs::reservation_of(client, "grace", &uid).await
        })
        .await?;
        let needs = record.data["spec"]["reservedMilligrams"]
            .as_i64()
            .context("its need")?;
        // Room for half of another, and the limit once more of grace.
        let limit = format!("{}mg", needs + needs / 2);
        let terms = json!({ "spec": { "limit": limit, "gracePercent": 100, "warnAtPercent": 50 } });
        let budgets = jobs::budgets(client, "grace");
        budgets
            .patch("images", &PatchParams::default(), &Patch::Merge(&terms))
            .await?;
        let near = |budget: &Value| {
            let conditions = budget["status"]["conditions"].as_array().cloned();
            let near = conditions
                .into_iter()
                .flatten()
                .find(|c| c["type"] == "NearLimit");
            near.is_some_and(|c| c["status"] == "True")
        };
        eventually("the new terms are seen", SOON, || async {
            let budget = budgets.get("images").await?;
            let seen =
                budget.data["status"]["observedGeneration"].as_i64() == budget.metadata.generation;
            Ok((seen && near(&budget.data)).then_some(()))
        })
        .await?;
        jobs::create_job(client, "grace", &on_h200(&Generate::BIG, "over")).await?;
        jobs::released(client, "grace", "over").await?;
        jobs::create_job(client, "grace", &on_h200(&Generate::BIG, "after")).await?;
        eventually("the third waits", SOON, || async {
            let status = budgets.get("images").await?.data["status"].clone();
            Ok((status["heldJobs"] == 1 && status["remainingMilligrams"] == 0).then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_fiscal_year_begins_where_it_is_said_to_and_periods_that_make_no_sense_are_refused() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "fiscal").await?;
        let period =
            json!({ "type": "Year", "firstMonth": 4, "firstDay": 6, "timeZone": "Europe/London" });
        let spec = json!({ "limit": "10t", "period": period, "carryOver": true });
        jobs::budget(client, "fiscal", "images", spec).await?;
        let status = eventually("its status", SOON, || async {
            let status =
                jobs::budgets(client, "fiscal").get("images").await?.data["status"].clone();
            Ok(status["period"]["id"].is_string().then_some(status))
        })
        .await?;
        let id = status["period"]["id"].as_str().unwrap_or_default();
        ensure!(id.ends_with("-04-06/P12M"), "{id}");
        // Nothing is carried over of a year that was not measured.
        ensure!(
            status["carriedMilligrams"] == 0 && status["limitMilligrams"] == 10_000_000_000_i64,
            "{status}"
        );
        for (period, why) in [
            (
                json!({ "type": "Week", "firstDay": 2 }),
                "firstDay is of a Month, Quarter or Year",
            ),
            (
                json!({ "type": "Month", "firstMonth": 2 }),
                "firstMonth is of a Quarter or Year",
            ),
            (
                json!({ "type": "Year", "firstDay": 31 }),
                "less than or equal to 28",
            ),
            (
                json!({ "type": "Quarter", "firstMonth": 13 }),
                "less than or equal to 12",
            ),
        ] {
            let budget = json!({
                "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
                "metadata": { "name": "senseless", "namespace": "fiscal" },
                "spec": { "limit": "5kg", "period": period },
            });
            let args = ["create", "-f", "-"];
            let said = shared
                .stack
                .plane
                .kubectl("admin", &args, Some(&budget.to_string()))?;
            refused(&said, &[why])?;
        }
        for (field, value, why) in [
            ("perJobLimit", json!("200"), "for example 200g"),
            ("gracePercent", json!(101), "less than or equal to 100"),
            ("warnAtPercent", json!(0), "greater than or equal to 1"),
        ] {
            let mut budget = json!({
                "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
                "metadata": { "name": "senseless", "namespace": "fiscal" },
                "spec": { "limit": "5kg" },
            });
            budget["spec"][field] = value;
            let args = ["create", "-f", "-"];
            let said = shared
                .stack
                .plane
                .kubectl("admin", &args, Some(&budget.to_string()))?;
            refused(&said, &[why])?;
        }
        Ok(())
    });
}

#[test]
fn a_job_that_burns_beyond_what_was_set_aside_is_suspended_or_deleted_as_its_budget_says() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        for (namespace, wish) in [("overrun-suspend", "Suspend"), ("overrun-delete", "Delete")] {
            jobs::namespace(client, namespace).await?;
            let spec = json!({ "limit": "10kg", "mode": "Enforce", "onOverrun": wish });
            jobs::budget(client, namespace, "images", spec).await?;
        }
        // It says two images, and makes forty.
        let mut job = Generate::SMALL.job("says-two");
        job["spec"]["template"]["metadata"]["annotations"]["simnode/makes"] = json!("40");
        let suspended = jobs::create_job(client, "overrun-suspend", &job).await?;
        let deleted = jobs::create_job(client, "overrun-delete", &job).await?;
        let uid =
            |job: &k8s_openapi::api::batch::v1::Job| job.metadata.uid.clone().unwrap_or_default();

        let of = jobs::jobs(client, "overrun-suspend");
        let job = eventually("it is suspended", Duration::from_mins(1), || async {
            let job = of.get("says-two").await?;
            let stamped = job
                .metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get("jouleward.dev/refused"));
            let stamped = stamped.is_some_and(|stamp| stamp.contains("\"Overrun\""));
            Ok((stamped && jobs::is_suspended(&job)).then_some(job))
        })
        .await?;
        let stamp = &job.metadata.annotations.unwrap_or_default()["jouleward.dev/refused"];
        ensure!(
            stamp.contains("set aside") && stamp.contains("20 % over"),
            "{stamp}"
        );
        let record = jobs::reservation_of(client, "overrun-suspend", &uid(&suspended)).await?;
        let record = record.context("its record")?;
        let charged = record.data["status"]["chargedMilligrams"]
            .as_i64()
            .unwrap_or(0);
        let reserved = record.data["spec"]["reservedMilligrams"]
            .as_i64()
            .unwrap_or(0);
        ensure!(charged * 10 > reserved * 12, "{charged} of {reserved} mg");

        let record = jobs::settled(client, "overrun-delete", &uid(&deleted)).await?;
        ensure!(
            jobs::jobs(client, "overrun-delete")
                .get_opt("says-two")
                .await?
                .is_none()
        );
        let refund = record.data["status"]["refundMilligrams"]
            .as_i64()
            .unwrap_or(0);
        ensure!(
            refund < 0,
            "it burned more than was set aside: {}",
            record.data["status"]
        );
        eventually("the overrun is shown", SOON, || async {
            let budget = jobs::budgets(client, "overrun-delete")
                .get("images")
                .await?;
            Ok(
                (budget.data["status"]["overrunMilligrams"].as_i64() == Some(-refund))
                    .then_some(()),
            )
        })
        .await?;
        let controller = format!("{}:9403", shared.stack.address(10));
        let (_, text) = harness::stack::get(&controller, "/metrics", "text/plain").await?;
        for (namespace, action) in [
            ("overrun-suspend", "suspended"),
            ("overrun-delete", "deleted"),
        ] {
            let counted = text.lines().any(|line| {
                line.starts_with("jouleward_overruns_total")
                    && line.contains(namespace)
                    && line.contains(action)
            });
            ensure!(counted, "{action} is counted");
        }
        Ok(())
    });
}
