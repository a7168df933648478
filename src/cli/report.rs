//! `jouleward report`: what each budget would have refused or delayed, had it been enforced, from
//! the records of what ran.

use super::arguments::wrong;
use super::budgets::BudgetArguments;
use super::output::{Format, columns, print};
use crate::api::{CarbonBudget, CarbonReservation};
use crate::budget::{Fate, Need, Past, Policy, what_if};
use crate::carbon::Milligrams;
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde::Serialize;
use std::collections::HashSet;

/// Tells what budgets would have refused or delayed, had they been enforced: before a switch from
/// Audit or Warn to Enforce, or to another limit.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward report --all-namespaces
  jouleward report --namespace team-a --limit 3kg
  kubectl get carbonbudgets,carbonreservations -A -o yaml > records.yaml; jouleward report -f records.yaml -o csv
  jouleward report -f records.yaml -f carbonreservations-2026-11-28.jsonl
Each job is asked of its budget at the moment that it ran, with what it reserved then; what it emitted is as it
was measured. Where it would have waited, all after it see the room that it took later.")]
pub(super) struct Report {
    #[command(flatten)]
    budgets: BudgetArguments,
    /// Another limit than the budgets', for example 3kg.
    #[arg(long)]
    limit: Option<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// One budget's line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    budget: String,
    mode: String,
    limit_milligrams: i64,
    jobs: usize,
    milligrams: i64,
    at_once: usize,
    delayed: usize,
    longest_delay_seconds: i64,
    refused: usize,
    /// What those that would have been refused emitted.
    saved_milligrams: i64,
    /// Not settled yet, and not counted.
    running: usize,
    refusals: Vec<Refusal>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    workload: String,
    asked: String,
    milligrams: i64,
    reason: &'static str,
}

impl Report {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let limit = self.limit.as_deref().map(|text| {
            text.parse::<Milligrams>()
                .map_err(|error| wrong(format!("--limit: {error}")))
        });
        let limit = limit.transpose()?;
        let none = "create one under Audit, and let it record";
        let (budgets, mut records) = self.budgets.read(true, none).await?;
        // A record that a crash kept from being deleted is handed on again.
        let mut known = HashSet::new();
        records.retain(|record| known.insert(record.spec.workload.uid.clone()));
        let lines = budgets.iter().map(|budget| line(budget, &records, limit));
        let lines: Vec<Line> = lines.collect::<anyhow::Result<_>>()?;
        print(self.output, &lines, |lines| table(lines))
    }
}

fn line(
    budget: &CarbonBudget,
    records: &[CarbonReservation],
    limit: Option<Milligrams>,
) -> anyhow::Result<Line> {
    let (name, namespace) = (budget.name_any(), budget.namespace().unwrap_or_default());
    let mut policy = Policy::try_from(&budget.spec)
        .map_err(|error| wrong(format!("CarbonBudget {namespace}/{name}: {error}")))?;
    let mode = format!("{:?}", policy.mode);
    policy.limit = limit.unwrap_or(policy.limit);
    let own = records.iter().filter(|record| {
        record.namespace().as_deref() == Some(namespace.as_str())
            && record.reserved_for(&name).is_some()
    });
    let (settled, running): (Vec<&CarbonReservation>, Vec<_>) =
        own.partition(|record| record.is_settled());
    let past: Vec<Past> = settled
        .iter()
        .filter_map(|record| past(record, &name))
        .collect();
    let fates = what_if(&format!("{namespace}/{name}"), &policy, &past);
    let mut line = Line {
        namespace,
        budget: name,
        mode,
        limit_milligrams: policy.limit.0,
        jobs: past.len(),
        milligrams: past.iter().map(|job| job.charged.0).sum(),
        at_once: 0,
        delayed: 0,
        longest_delay_seconds: 0,
        refused: 0,
        saved_milligrams: 0,
        running: running.len(),
        refusals: Vec::new(),
    };
    for (job, fate) in past.iter().zip(fates) {
        count(&mut line, job, fate, &settled);
    }
    Ok(line)
}

fn count(line: &mut Line, job: &Past, fate: Fate, records: &[&CarbonReservation]) {
    let reason = match fate {
        Fate::AtOnce => {
            line.at_once += 1;
            return;
        }
        Fate::After(waited) => {
            line.delayed += 1;
            line.longest_delay_seconds = line.longest_delay_seconds.max(waited.as_secs());
            return;
        }
        Fate::Refused(reason) => reason.as_str(),
        Fate::Waiting => "StillWaiting",
    };
    line.refused += 1;
    line.saved_milligrams += job.charged.0;
    let record = records.iter().find(|r| r.spec.workload.uid == job.uid);
    line.refusals.push(Refusal {
        workload: record.map_or(String::new(), |record| {
            let workload = &record.spec.workload;
            format!("{}/{}", workload.kind.to_lowercase(), workload.name)
        }),
        asked: job.asked.to_string(),
        milligrams: job.charged.0,
        reason,
    });
}

/// A job as its record tells of it; `None` where it does not say when it was.
fn past(record: &CarbonReservation, budget: &str) -> Option<Past> {
    let status = record.status.as_ref()?;
    let created = record.metadata.creation_timestamp.as_ref()?;
    let asked: Timestamp = created.0.to_string().parse().ok()?;
    let settled: Timestamp = status.settled_at.as_deref()?.parse().ok()?;
    let charges = status.charges.iter().filter(|c| c.budget == budget);
    let reserved = record.reserved_for(budget)?;
    Some(Past {
        uid: record.spec.workload.uid.clone(),
        asked,
        ran: settled.duration_since(asked).max(SignedDuration::ZERO),
        need: if record.spec.predicted_millijoules > 0 {
            Need::Known(reserved)
        } else {
            Need::Unknown("it could not be predicted".to_owned())
        },
        charged: Milligrams(charges.map(|charge| charge.milligrams).sum()),
    })
}

/// Refusals that the table names.
const NAMED: usize = 10;

fn table(lines: &[Line]) -> String {
    let header = [
        "NAMESPACE",
        "BUDGET",
        "MODE",
        "LIMIT",
        "JOBS",
        "CO2E",
        "AT ONCE",
        "DELAYED",
        "LONGEST",
        "REFUSED",
        "SAVED",
        "RUNNING",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for line in lines {
        let delay = SignedDuration::from_secs(line.longest_delay_seconds);
        rows.push(vec![
            line.namespace.clone(),
            line.budget.clone(),
            line.mode.clone(),
            Milligrams(line.limit_milligrams).to_string(),
            line.jobs.to_string(),
            Milligrams(line.milligrams).to_string(),
            line.at_once.to_string(),
            line.delayed.to_string(),
            if line.delayed > 0 {
                format!("{delay:#}")
            } else {
                "-".to_owned()
            },
            line.refused.to_string(),
            Milligrams(line.saved_milligrams).to_string(),
            line.running.to_string(),
        ]);
    }
    let mut text = columns(&rows);
    for line in lines {
        for refusal in line.refusals.iter().take(NAMED) {
            text += &format!(
                "{}/{} would have refused {} ({}), asked {}, {}\n",
                line.namespace,
                line.budget,
                refusal.workload,
                Milligrams(refusal.milligrams),
                refusal.asked,
                refusal.reason
            );
        }
        if line.refusals.len() > NAMED {
            let more = line.refusals.len() - NAMED;
            text += &format!(
                "{}/{}: and {more} more; -o json has all\n",
                line.namespace, line.budget
            );
        }
    }
    text
}
