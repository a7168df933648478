//! `jouleward queue`: who waits for which budget, behind what, and by when each is promised to start.

use super::budgets::BudgetArguments;
use super::output::{Format, columns, print};
use crate::api::{CarbonBudget, QueuedJob};
use crate::carbon::Milligrams;
use clap::Args;
use kube::ResourceExt;
use serde::Serialize;

/// Shows the jobs that wait for a budget, who waits longest first: what each asks for, what those before
/// it ask for, and by when it is promised to start.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward queue --namespace team-a
  jouleward queue --all-namespaces -o json
  kubectl get carbonbudgets -A -o yaml > budgets.yaml; jouleward queue -f budgets.yaml
A start is promised as if all that runs burned what is set aside for it, and is put off only with a
reason, which is told here and in an Event. A budget tells of the first 20.")]
pub(super) struct Queue {
    #[command(flatten)]
    budgets: BudgetArguments,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// One budget's line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    budget: String,
    remaining_milligrams: i64,
    /// When the period ends, or a day falls out of the window.
    until: String,
    /// All that are held; the first of them are in `queue`.
    held: i64,
    queue: Vec<QueuedJob>,
}

impl Queue {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (budgets, _) = self.budgets.read(false, "nothing waits for one").await?;
        let lines: Vec<Line> = budgets.into_iter().map(line).collect();
        print(self.output, &lines, |lines| table(lines))
    }
}

fn line(budget: CarbonBudget) -> Line {
    let (namespace, name) = (budget.namespace().unwrap_or_default(), budget.name_any());
    let status = budget.status.unwrap_or_default();
    Line {
        namespace,
        budget: name,
        remaining_milligrams: status.remaining_milligrams,
        until: status.period.end,
        held: status.held_jobs,
        queue: status.queue,
    }
}

fn table(lines: &[Line]) -> String {
    let header = [
        "NAMESPACE",
        "BUDGET",
        "PLACE",
        "JOB",
        "WAITS SINCE",
        "NEEDS",
        "AHEAD",
        "STARTS BY",
        "WHY",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for line in lines {
        rows.extend(line.queue.iter().map(|job| row(line, job)));
    }
    if rows.len() == 1 {
        return "nothing waits\n".to_owned();
    }
    let mut text = columns(&rows);
    for line in lines {
        let named = format!("{}/{}", line.namespace, line.budget);
        for job in line.queue.iter().filter(|job| !job.put_off.is_empty()) {
            let kind = job.kind.to_lowercase();
            text += &format!(
                "{named}: {kind}/{} was put off; {}\n",
                job.name, job.put_off
            );
        }
        let shown = i64::try_from(line.queue.len()).unwrap_or(i64::MAX);
        if line.held > shown {
            text += &format!("{named}: and {} more are held\n", line.held - shown);
        }
    }
    text
}

fn row(line: &Line, job: &QueuedJob) -> Vec<String> {
    let starts = match (job.starts.as_str(), job.refused.as_str()) {
        ("", "") => "-".to_owned(),
        ("", refused) => format!("refused {refused}"),
        (starts, _) => starts.to_owned(),
    };
    vec![
        line.namespace.clone(),
        line.budget.clone(),
        job.position.to_string(),
        format!("{}/{}", job.kind.to_lowercase(), job.name),
        job.since.clone(),
        Milligrams(job.milligrams).to_string(),
        Milligrams(job.ahead_milligrams).to_string(),
        starts,
        job.reason.clone(),
    ]
}
