//! `CarbonBudget`: a limit on a namespace's CO2e for a period.

use super::{Condition, InvalidSpec};
use crate::budget::{
    AtDeadline, Fiscal, Granting, Mode, OnExceed, OnOverrun, OnUnknown, Period, Policy,
    WhenUnavailable,
};
use crate::carbon::Milligrams;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Terms of a carbon budget.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "CarbonBudget",
    namespaced,
    status = "BudgetStatus",
    shortname = "cb",
    category = "carbon",
    doc = "A limit on the CO2e of a namespace's GPU jobs for a period.",
    selectable = ".spec.mode",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Limit", type_ = "string", json_path = ".spec.limit"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Reserved", type_ = "string", json_path = ".status.reserved"),
    printcolumn(name = "Remaining", type_ = "string", json_path = ".status.remaining"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.heldJobs"),
    printcolumn(name = "Period", type_ = "string", json_path = ".status.period.id"),
    printcolumn(
        name = "Ends",
        type_ = "string",
        json_path = ".status.period.end",
        priority = "1"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CarbonBudgetSpec {
    /// Mass of CO2e that the namespace's GPU jobs may emit in a period: a number and mg, g,
    /// kg or t, for example 5kg.
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,12}([.][0-9]{1,3})? ?(mg|g|kg|t)$')").message("write a number and mg, g, kg or t, for example 5kg"))]
    #[schemars(length(max = 20))]
    pub limit: String,
    /// The stretch of time the limit is for; a calendar month in UTC by default.
    #[serde(default)]
    pub period: BudgetPeriod,
    /// What a verdict does to a job. Only Enforce ever delays or refuses. Default Audit.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of a job that does not fit now. Default Defer.
    #[serde(default)]
    pub on_exceed: OnExceed,
    /// How long a job may be held, in seconds. Default 86400, one day.
    #[serde(default = "one_day")]
    #[schemars(range(min = 0, max = 31_622_400))]
    pub longest_delay_seconds: i64,
    /// What becomes of a held job when its longest delay is over. Default Reject.
    #[serde(default)]
    pub at_deadline: AtDeadline,
    /// Percentile of the predicted energy that is set aside. Default 90.
    #[serde(default = "ninety")]
    #[schemars(range(min = 50, max = 99))]
    pub charged_percentile: i32,
    /// Mass of CO2e that one job may be predicted to emit at most, as limit is written; absent
    /// for none, 0g for no job at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,12}([.][0-9]{1,3})? ?(mg|g|kg|t)$')").message("write a number and mg, g, kg or t, for example 200g"))]
    #[schemars(length(max = 20))]
    pub per_job_limit: Option<String>,
    /// Percent of the limit by which a job may go beyond it that begins while there is room
    /// left. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub grace_percent: i32,
    /// Whether what a whole period left of the limit, as the limit stands now, is added to the
    /// next one's, once. Default false.
    #[serde(default)]
    pub carry_over: bool,
    /// Percent of the limit, what is set aside included, from which on the budget's condition
    /// NearLimit is True. Default 90.
    #[serde(default = "ninety")]
    #[schemars(range(min = 1, max = 100))]
    pub warn_at_percent: i32,
    /// What becomes of a running job that has burned more than was set aside for it, under
    /// Enforce. Default Allow.
    #[serde(default)]
    pub on_overrun: OnOverrun,
    /// Percent beyond what was set aside that a job may burn before onOverrun is done.
    /// Default 20.
    #[serde(default = "twenty")]
    #[schemars(range(min = 0, max = 1000))]
    pub overrun_tolerance_percent: i32,
    /// What becomes of a GPU job whose parameters are missing or wrong. Default Warn.
    #[serde(default)]
    pub on_unknown: OnUnknown,
    /// What the webhook does while no controller leads. Default Admit.
    #[serde(default)]
    pub when_unavailable: WhenUnavailable,
}

fn one_day() -> i64 {
    86_400
}

fn twenty() -> i32 {
    20
}

fn ninety() -> i32 {
    90
}

/// The stretch of time a limit is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type != 'Rolling' || has(self.days)").message("a Rolling period needs its days, for example days: 7"))]
#[x_kube(validation = Rule::new("!has(self.firstDay) || self.type in ['Month', 'Quarter', 'Year']").message("firstDay is of a Month, Quarter or Year"))]
#[x_kube(validation = Rule::new("!has(self.firstMonth) || self.type in ['Quarter', 'Year']").message("firstMonth is of a Quarter or Year"))]
pub struct BudgetPeriod {
    /// Calendar period, or a window of days that ends today. Default Month.
    #[serde(rename = "type", default)]
    pub kind: PeriodKind,
    /// IANA time zone of midnight, for example Europe/Berlin. Default UTC.
    #[serde(default = "utc")]
    #[schemars(length(max = 64))]
    pub time_zone: String,
    /// Days of a Rolling period, today included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 366))]
    pub days: Option<i32>,
    /// Month that the fiscal year begins in, of a Quarter or Year. Default 1, January.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 12))]
    pub first_month: Option<i32>,
    /// Day of the month that a Month, Quarter or Year begins on. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 28))]
    pub first_day: Option<i32>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Default for BudgetPeriod {
    fn default() -> Self {
        Self {
            kind: PeriodKind::default(),
            time_zone: utc(),
            days: None,
            first_month: None,
            first_day: None,
        }
    }
}

/// Kinds of periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum PeriodKind {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first to the first.
    #[default]
    Month,
    /// Three months, from the fiscal year's first.
    Quarter,
    /// Twelve months, from the fiscal year's first.
    Year,
    /// The last days, today included.
    Rolling,
}

/// Where a budget stands. Recomputed from reservations; the guarded write of a grant is a
/// write of this status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetStatus {
    /// Generation of the spec this status is for.
    pub observed_generation: i64,
    /// The period that the figures are of.
    pub period: PeriodStatus,
    /// Limit in milligrams of CO2e.
    pub limit_milligrams: i64,
    /// Of that, what the period before left.
    pub carried_milligrams: i64,
    /// Measured in this period.
    pub consumed_milligrams: i64,
    /// Set aside for jobs granted and not settled.
    pub reserved_milligrams: i64,
    /// What can still be granted.
    pub remaining_milligrams: i64,
    /// Given back by jobs that were settled below their reservation in this period.
    pub refunded_milligrams: i64,
    /// Burned beyond reservations.
    pub overrun_milligrams: i64,
    /// `consumedMilligrams` for people.
    pub used: String,
    /// `reservedMilligrams` for people.
    pub reserved: String,
    /// `remainingMilligrams` for people.
    pub remaining: String,
    /// Jobs that wait for this budget.
    pub held_jobs: i64,
    /// The first of those that wait for room, who waits longest first.
    #[schemars(length(max = 64))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<QueuedJob>,
    /// From when on this namespace's energy was measured, RFC 3339.
    pub measured_since: String,
    /// Number of the leader that wrote last: a leader with a lower one must not write.
    pub lease_epoch: i64,
    /// Counts the writes that took grants back: each makes a write begun before it fail.
    pub revision: i64,
    /// Grants that are committed here and whose reservations may not exist yet.
    #[schemars(length(max = 256))]
    pub granting: Vec<GrantInFlight>,
    /// Ready, Exceeded, NearLimit.
    pub conditions: Vec<Condition>,
}

/// The period at hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeriodStatus {
    /// For example 2026-11.
    pub id: String,
    /// RFC 3339.
    pub start: String,
    /// RFC 3339.
    pub end: String,
}

/// A job that waits for room, and what it may expect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueuedJob {
    /// Job or Pod.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its place in line; 1 is the first.
    pub position: i64,
    /// When it began to wait, RFC 3339.
    pub since: String,
    /// Milligrams of CO2e that it asks for.
    pub milligrams: i64,
    /// Milligrams of CO2e that those before it ask for.
    pub ahead_milligrams: i64,
    /// WaitingForBudget, or WaitingForTurn where it would fit and room is kept for a job that has
    /// waited for long.
    pub reason: String,
    /// By when it is promised to start, RFC 3339: revised to an earlier moment, or with a reason.
    /// Absent where it is not expected to start in time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub starts: String,
    /// When it is refused unless room comes sooner, RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// Why the last promise that could not be kept was put off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub put_off: String,
}

/// A grant that is committed, on its way to a reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantInFlight {
    /// UID of the job or pod.
    pub uid: String,
    /// Job or Pod.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Milligrams of CO2e set aside.
    pub milligrams: i64,
    /// Names of the budgets that must all carry this grant before it stands.
    #[serde(default)]
    pub budgets: Vec<String>,
}

impl CarbonBudget {
    /// From when on this namespace's energy was measured; `None` before the first look.
    pub fn measured_since(&self) -> Option<Timestamp> {
        self.status.as_ref()?.measured_since.parse().ok()
    }
}

impl From<&GrantInFlight> for Granting {
    fn from(grant: &GrantInFlight) -> Self {
        Self {
            uid: grant.uid.clone(),
            mass: Milligrams(grant.milligrams),
        }
    }
}

impl TryFrom<&CarbonBudgetSpec> for Policy {
    type Error = InvalidSpec;

    fn try_from(spec: &CarbonBudgetSpec) -> Result<Self, InvalidSpec> {
        let mass = |text: &str, field| {
            let parsed: Result<Milligrams, crate::carbon::MassError> = text.parse();
            parsed.map_err(|error| InvalidSpec {
                field,
                problem: error.to_string(),
            })
        };
        let limit = mass(&spec.limit, "spec.limit")?;
        // One that is less than can be counted lets no job in, one that is more any.
        let per_job = spec.per_job_limit.as_deref().and_then(|text| {
            let small = text.starts_with('0');
            text.parse().ok().or(small.then_some(Milligrams(0)))
        });
        let grace = i128::from(limit.0) * i128::from(spec.grace_percent.clamp(0, 100)) / 100;
        Ok(Self {
            limit,
            per_job,
            grace: Milligrams(i64::try_from(grace).unwrap_or(i64::MAX)),
            carry_over: spec.carry_over,
            on_overrun: spec.on_overrun,
            overrun_tolerance: u16::try_from(spec.overrun_tolerance_percent.clamp(0, 1000))
                .unwrap_or(20),
            warn_at: u8::try_from(spec.warn_at_percent.clamp(1, 100)).unwrap_or(90),
            period: period(&spec.period)?,
            mode: spec.mode,
            on_exceed: spec.on_exceed,
            longest_delay: SignedDuration::from_secs(spec.longest_delay_seconds.max(0)),
            at_deadline: spec.at_deadline,
            quantile: f64::from(spec.charged_percentile.clamp(50, 99)) / 100.0,
            on_unknown: spec.on_unknown,
            when_unavailable: spec.when_unavailable,
        })
    }
}

fn period(spec: &BudgetPeriod) -> Result<Period, InvalidSpec> {
    let zone = TimeZone::get(&spec.time_zone).map_err(|_| InvalidSpec {
        field: "spec.period.timeZone",
        problem: format!(
            "{:?} is no IANA time zone, for example Europe/Berlin",
            spec.time_zone
        ),
    })?;
    Ok(match spec.kind {
        PeriodKind::Day => Period::Day(zone),
        PeriodKind::Week => Period::Week(zone),
        PeriodKind::Month if spec.first_day.is_none_or(|day| day == 1) => Period::Month(zone),
        PeriodKind::Month => Period::Fiscal(zone, fiscal(spec, 1)),
        PeriodKind::Quarter => Period::Fiscal(zone, fiscal(spec, 3)),
        PeriodKind::Year => Period::Fiscal(zone, fiscal(spec, 12)),
        PeriodKind::Rolling => {
            let days = spec
                .days
                .and_then(|days| u16::try_from(days).ok())
                .filter(|days| *days > 0);
            Period::Rolling(
                zone,
                days.ok_or_else(|| InvalidSpec {
                    field: "spec.period.days",
                    problem: "a Rolling period needs its days, for example 7".to_owned(),
                })?,
            )
        }
    })
}

fn fiscal(spec: &BudgetPeriod, months: i16) -> Fiscal {
    let within =
        |n: Option<i32>, most: i32| i8::try_from(n.unwrap_or(1).clamp(1, most)).unwrap_or(1);
    Fiscal {
        months,
        first_month: within(spec.first_month, 12),
        first_day: within(spec.first_day, 28),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_with_only_a_limit_has_the_documented_defaults() {
        let spec: CarbonBudgetSpec = serde_json::from_str(r#"{"limit":"5kg"}"#).unwrap();
        let policy = Policy::try_from(&spec).unwrap();
        assert_eq!(policy.limit, Milligrams(5_000_000));
        assert_eq!(
            (policy.mode, policy.on_exceed),
            (Mode::Audit, OnExceed::Defer)
        );
        assert_eq!(policy.period, Period::Month(TimeZone::get("UTC").unwrap()));
    }

    #[test]
    fn a_limit_for_each_job_that_cannot_be_counted_stops_every_job_or_none_and_no_budget() {
        let per_job = |text: &str| {
            let spec = format!(r#"{{"limit":"5kg","mode":"Enforce","perJobLimit":"{text}"}}"#);
            let spec: CarbonBudgetSpec = serde_json::from_str(&spec).unwrap();
            Policy::try_from(&spec).unwrap().per_job
        };
        assert_eq!(per_job("200g"), Some(Milligrams(200_000)));
        assert_eq!(per_job("0g"), Some(Milligrams(0)));
        assert_eq!(per_job("0.4mg"), Some(Milligrams(0)));
        assert_eq!(per_job("999999999999t"), None);
    }

    #[test]
    fn what_the_schema_lets_through_but_makes_no_sense_is_named() {
        let spec: CarbonBudgetSpec =
            serde_json::from_str(r#"{"limit":"5kg","period":{"timeZone":"Mars/Base"}}"#).unwrap();
        let error = Policy::try_from(&spec).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("spec.period.timeZone: \"Mars/Base\""),
            "{error}"
        );
    }
}
