//! `CarbonStatement`: what a namespace's jobs came to whose records are put away. Cluster scoped,
//! so that it outlives budget and namespace.

use crate::budget::DaySum;
use crate::carbon::Milligrams;
use jiff::civil::Date;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose statement it is; its name is the namespace's.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "CarbonStatement",
    status = "StatementStatus",
    shortname = "cst",
    category = "carbon",
    doc = "What a namespace's jobs emitted whose records are put away, by budget and day.",
    printcolumn(name = "Jobs", type_ = "integer", json_path = ".status.jobs"),
    printcolumn(name = "Charged", type_ = "string", json_path = ".status.charged"),
    printcolumn(name = "Last day", type_ = "string", json_path = ".status.lastDay"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CarbonStatementSpec {
    /// Name of the namespace.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a statement is of one namespace for ever"))]
    pub namespace: String,
}

/// The sums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatementStatus {
    /// Sums by budget and day, the oldest first.
    #[schemars(length(max = 5000))]
    pub lines: Vec<StatementLine>,
    /// UIDs of the workloads whose records were put away last: their records, where they are
    /// still there, count no more.
    #[schemars(length(max = 4096))]
    pub put_away: Vec<String>,
    /// Jobs in all.
    pub jobs: i64,
    /// What they were charged for people; where several budgets charged one job, the most.
    pub charged: String,
    /// The same in milligrams of CO2e.
    pub charged_milligrams: i64,
    /// The newest line's day.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_day: String,
    /// Number of the leader that wrote last: a leader with a lower one must not write.
    pub lease_epoch: i64,
}

/// What the jobs of one budget came to on one day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatementLine {
    /// UID of the namespace that the jobs were in; empty where it was not known any more.
    pub namespace_uid: String,
    /// Name of the budget.
    pub budget: String,
    /// Day in the budget's time zone, for example 2026-11-23.
    #[schemars(regex(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    pub day: String,
    /// Jobs that burned last on this day.
    pub jobs: i64,
    /// Milligrams of CO2e booked to this day.
    pub milligrams: i64,
    /// Given back by jobs that burned last on this day.
    pub refunded_milligrams: i64,
    /// Burned beyond reservations by jobs that burned last on this day.
    pub overrun_milligrams: i64,
}

impl StatementStatus {
    /// The sums of one budget's days, whichever namespace of this name the jobs were in.
    pub fn of(&self, budget: &str) -> Vec<(Date, DaySum)> {
        let own = self.lines.iter().filter(|line| line.budget == budget);
        let sums = own.map(|line| {
            let sum = DaySum {
                jobs: line.jobs,
                charged: Milligrams(line.milligrams),
                refunded: Milligrams(line.refunded_milligrams),
                overrun: Milligrams(line.overrun_milligrams),
            };
            // The schema lets nothing but a date through.
            (line.day.parse().unwrap_or(Date::MAX), sum)
        });
        sums.collect()
    }

    /// Adds to the line of a budget's day.
    pub fn add(&mut self, namespace_uid: &str, budget: &str, day: Date, sum: DaySum) {
        let day = day.to_string();
        let place = self.lines.binary_search_by(|line| {
            let known = (&*line.day, &*line.budget, &*line.namespace_uid);
            known.cmp(&(&*day, budget, namespace_uid))
        });
        let place = place.unwrap_or_else(|place| {
            let line = StatementLine {
                namespace_uid: namespace_uid.to_owned(),
                budget: budget.to_owned(),
                day,
                ..StatementLine::default()
            };
            self.lines.insert(place, line);
            place
        });
        let line = &mut self.lines[place];
        line.jobs += sum.jobs;
        line.milligrams += sum.charged.0;
        line.refunded_milligrams += sum.refunded.0;
        line.overrun_milligrams += sum.overrun.0;
    }
}

impl CarbonStatement {
    /// True where a workload's record was put away of late.
    pub fn has(&self, uid: &str) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|status| status.put_away.iter().any(|known| known == uid))
    }
}
