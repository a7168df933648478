//! What a budget would have done, told before it is enforced.

use crate::support::on_plane;
use anyhow::ensure;
use harness::jobs::{self, Generate};
use serde_json::{Value, json};
use std::process::{Command, Output};

fn jouleward(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jouleward"));
    command.args(args);
    command
}

fn out(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Three jobs of a month: what was set aside, what they burned.
fn records() -> Value {
    let record = |number: usize, day: &str, reserved: i64, charged: i64| {
        json!({
            "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonReservation",
            "metadata": { "name": format!("job-{number}"), "namespace": "team-a",
                          "creationTimestamp": format!("{day}T12:00:00Z") },
            "spec": {
                "workload": { "kind": "Job", "name": format!("posters-{number}"), "uid": number.to_string() },
                "budgets": [{ "name": "images", "milligrams": reserved }],
                "reservedMilligrams": reserved, "predictedMillijoules": 1, "predictedUncertaintyPermille": 200,
                "parameters": {}, "pods": 1, "gpus": 1, "puePermille": 1200, "adopted": true, "verdict": "",
                "law": { "gpu": "", "form": "", "observations": 0 },
                "intensity": { "zone": "", "milligramsPerKwh": 1, "source": "", "signal": "", "basis": "", "kind": "" },
            },
            "status": { "settled": true, "settledAt": format!("{day}T13:00:00Z"), "chargedMilligrams": charged,
                        "charges": [{ "budget": "images", "day": day, "milligrams": charged }] },
        })
    };
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
          "metadata": { "name": "images", "namespace": "team-a" },
          "spec": { "limit": "100g", "mode": "Audit", "onExceed": "Reject" } },
        record(1, "2026-10-05", 60_000, 45_000),
        record(2, "2026-10-06", 60_000, 52_000),
        record(3, "2026-10-07", 30_000, 20_000),
    ] })
}

#[test]
fn a_report_reads_as_a_table_and_says_what_another_limit_would_do() {
    let folder = std::env::temp_dir().join(format!("jouleward-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("records.yaml");
    std::fs::write(&path, serde_yaml::to_string(&records()).unwrap()).unwrap();
    // The same as budgets and lines that were handed on, one of them twice.
    let all = records()["items"].as_array().cloned().unwrap();
    let of = |kind: &str| -> String {
        let own = all.iter().filter(|object| object["kind"] == kind);
        let lines: Vec<String> = own.map(ToString::to_string).collect();
        lines.join("\n")
    };
    let (budgets, lines) = (folder.join("budgets.jsonl"), folder.join("records.jsonl"));
    let handed = of("CarbonReservation");
    let again = handed.lines().next().unwrap();
    std::fs::write(&budgets, of("CarbonBudget")).unwrap();
    std::fs::write(&lines, format!("{handed}\n{again}\n")).unwrap();
    let file = path.to_str().unwrap();
    let table = out(&jouleward(&["report", "-f", file]).output().unwrap());
    let handed_on = [
        "report",
        "-f",
        budgets.to_str().unwrap(),
        "-f",
        lines.to_str().unwrap(),
    ];
    let same = out(&jouleward(&handed_on).output().unwrap());
    assert_eq!(same, table);
    insta::assert_snapshot!("report", table);
    let wide = ["report", "-f", file, "--limit", "1kg", "-o", "json"];
    let lines: Value = serde_json::from_str(&out(&jouleward(&wide).output().unwrap())).unwrap();
    assert_eq!(lines[0]["atOnce"], 3, "{lines}");
    assert_eq!(lines[0]["savedMilligrams"], 0, "{lines}");
    for (args, words) in [
        (vec!["report", "-f", file, "--limit", "much"], "--limit"),
        (
            vec!["report", "-f", file, "-n", "nobody"],
            "namespace nobody",
        ),
        (vec!["report", "-f", "/no/such"], "kubectl get -o yaml"),
    ] {
        let output = jouleward(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_ran_under_audit_is_what_enforcing_would_have_refused() {
    on_plane(|shared| async move {
        let client = &shared.stack.client;
        jobs::namespace(client, "saves").await?;
        let spec = json!({ "limit": "1kg", "mode": "Audit", "onExceed": "Reject" });
        jobs::budget(client, "saves", "images", spec).await?;
        let mut emitted = Vec::new();
        for name in ["first", "second"] {
            let job = jobs::create_job(client, "saves", &Generate::SMALL.job(name)).await?;
            let uid = job.metadata.uid.unwrap_or_default();
            let record = jobs::settled(client, "saves", &uid).await?;
            let reserved = record.data["spec"]["reservedMilligrams"]
                .as_i64()
                .unwrap_or(0);
            emitted.push((
                reserved,
                record.data["status"]["chargedMilligrams"]
                    .as_i64()
                    .unwrap_or(0),
            ));
        }
        // Room for the first, and for less than the second beside what the first burned.
        let limit = format!("{}mg", emitted[0].0.max(emitted[0].1 + emitted[1].0 - 1));
        let output = jouleward(&["report", "-n", "saves", "--limit", &limit, "-o", "json"])
            .env("KUBECONFIG", shared.stack.plane.kubeconfig("admin"))
            .output()?;
        let lines: Value = serde_json::from_str(&out(&output))?;
        let line = &lines[0];
        ensure!(line["jobs"] == 2 && line["mode"] == "Audit", "{line}");
        ensure!(line["refused"] == 1, "{line}");
        ensure!(line["refusals"][0]["workload"] == "job/second", "{line}");
        ensure!(
            line["savedMilligrams"] == emitted[1].1,
            "{line}, {emitted:?}"
        );
        Ok(())
    });
}

#[test]
fn a_queue_reads_as_a_table_with_why_a_start_was_put_off() {
    let folder = std::env::temp_dir().join(format!("jouleward-queue-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let job = |position: i64, name: &str, ahead: i64, more: Value| {
        let mut job = json!({ "kind": "Job", "name": name, "uid": name, "position": position,
            "since": "2026-11-28T12:00:00Z", "milligrams": 60_000, "aheadMilligrams": ahead,
            "reason": "WaitingForBudget" });
        job.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap());
        job
    };
    let budget = |namespace: &str, held: i64, queue: Value| {
        json!({ "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
            "metadata": { "name": "images", "namespace": namespace },
            "spec": { "limit": "100g", "mode": "Enforce" },
            "status": { "remainingMilligrams": 20_000, "heldJobs": held, "queue": queue,
                        "period": { "id": "2026-11", "start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z" } } })
    };
    let why = "promised for 2026-11-29T00:00:00Z: the limit was lowered from 200 g to 100 g";
    let queue = json!([
        job(
            1,
            "posters",
            0,
            json!({ "starts": "2026-12-01T00:00:00Z", "putOff": why })
        ),
        job(
            2,
            "banners",
            60_000,
            json!({ "refused": "2026-11-29T12:00:00Z" })
        ),
        job(3, "frames", 120_000, json!({ "reason": "WaitingForTurn" })),
    ]);
    let path = folder.join("budgets.json");
    let all = json!([budget("team-b", 0, json!([])), budget("team-a", 5, queue)]);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": all });
    std::fs::write(&path, list.to_string()).unwrap();
    let file = path.to_str().unwrap();
    let table = out(&jouleward(&["queue", "-f", file]).output().unwrap());
    insta::assert_snapshot!("queue", table);
    let none = out(&jouleward(&["queue", "-f", file, "-n", "team-b"])
        .output()
        .unwrap());
    assert_eq!(none, "nothing waits\n");
    let lines: Value = serde_json::from_str(&out(&jouleward(&["queue", "-f", file, "-o", "json"])
        .output()
        .unwrap()))
    .unwrap();
    assert_eq!(lines[0]["queue"][1]["refused"], "2026-11-29T12:00:00Z");
    let output = jouleward(&["queue", "-f", file, "-n", "nobody"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("namespace nobody"),
        "{said}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}
