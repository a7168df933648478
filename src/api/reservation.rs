//! `CarbonReservation`: the durable record of one job. It has no owner reference, so that
//! it outlives the job.

use crate::budget::{Charge, Entry};
use crate::carbon::Milligrams;
use jiff::civil::Date;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was decided for one job; never changed after it was written.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "CarbonReservation",
    namespaced,
    status = "ReservationStatus",
    shortname = "cres",
    category = "carbon",
    doc = "The record of one job: predicted, reserved, measured, settled, and the arithmetic.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.workload.kind"),
    printcolumn(name = "Workload", type_ = "string", json_path = ".spec.workload.name"),
    printcolumn(name = "Predicted mJ", type_ = "integer", json_path = ".spec.predictedMillijoules"),
    printcolumn(name = "Measured mJ", type_ = "integer", json_path = ".status.measuredMillijoules"),
    printcolumn(name = "Reserved mg", type_ = "integer", json_path = ".spec.reservedMilligrams"),
    printcolumn(name = "Charged mg", type_ = "integer", json_path = ".status.chargedMilligrams"),
    printcolumn(name = "Settled", type_ = "boolean", json_path = ".status.settled"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("a reservation's spec is a record and cannot be changed")
)]
#[serde(rename_all = "camelCase")]
pub struct CarbonReservationSpec {
    /// Whose record it is.
    pub workload: WorkloadRef,
    /// What each budget set aside.
    pub budgets: Vec<ReservedFor>,
    /// The largest of those, in milligrams of CO2e.
    pub reserved_milligrams: i64,
    /// Median of the predicted energy in millijoules; 0 where nothing could be predicted.
    pub predicted_millijoules: i64,
    /// Half the width of the prediction's 90 % interval, in parts per thousand of the median.
    pub predicted_uncertainty_permille: i64,
    /// The job's parameters at the time, by annotation without prefix.
    pub parameters: BTreeMap<String, String>,
    /// Pods that each generate the images.
    pub pods: i64,
    /// GPUs of each pod.
    pub gpus: i64,
    /// The law that predicted.
    pub law: LawUsed,
    /// The intensity that predicted, and with which the job is settled.
    pub intensity: IntensityUsed,
    /// Power usage effectiveness in parts per thousand.
    pub pue_permille: i64,
    /// True where the job was found running, not granted before.
    pub adopted: bool,
    /// The verdict in words, with the arithmetic.
    pub verdict: String,
}

/// A workload by kind, name and UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// Job or Pod.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID: names are used again, UIDs never.
    pub uid: String,
}

/// One budget's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservedFor {
    /// Name of the budget.
    pub name: String,
    /// Milligrams of CO2e.
    pub milligrams: i64,
}

/// Which law, and how much it had seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LawUsed {
    /// GPU product; empty where none was known.
    pub gpu: String,
    /// Additive or Paper.
    pub form: String,
    /// Jobs it had learnt from.
    pub observations: i64,
}

/// Which intensity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntensityUsed {
    /// Grid zone.
    pub zone: String,
    /// Milligrams of CO2e a kilowatt-hour.
    pub milligrams_per_kwh: i64,
    /// Who says so.
    pub source: String,
    /// Average or Marginal.
    pub signal: String,
    /// Lifecycle or Direct.
    pub basis: String,
    /// Measured, Estimated, Forecast or Static.
    pub kind: String,
}

/// What the job has burned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReservationStatus {
    /// Measured so far, in millijoules.
    pub measured_millijoules: i64,
    /// The same as CO2e, all periods.
    pub charged_milligrams: i64,
    /// The same by budget and day.
    pub charges: Vec<BookedCharge>,
    /// Energy by pod, as the exporters gave it.
    pub pods: Vec<PodCharge>,
    /// Budgets that came after the reservation was made.
    pub joined: Vec<JoinedBudget>,
    /// True once the job has ended and its energy is known.
    pub settled: bool,
    /// True where the node was lost before its exporter told the end: then the reservation
    /// stands for what was not measured.
    pub estimated: bool,
    /// Reserved less charged; negative where it burned more.
    pub refund_milligrams: i64,
    /// When it was settled, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<String>,
    /// What became of it as an observation: Learnt, or why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observation: Option<String>,
    /// What a law learnt from it: the next leader learns it again where the law was not
    /// written in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lesson: Option<Lesson>,
}

/// A job as a law learnt from it, beside its parameters and its measured energy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Lesson {
    /// Name of the `EnergyLaw`.
    pub law: String,
    /// Its UID: a law made anew begins anew.
    pub law_uid: String,
    /// Number of this lesson among the law's.
    pub number: i64,
    /// Images that were made, all pods together; absent where as many as asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_done: Option<i64>,
    /// Pods that each started once; 0 for as many as asked.
    pub starts: i64,
    /// Branch of the driver; empty where the exporters did not say.
    pub driver: String,
    /// Power limit in thousandths of the boards' default; 0 where they did not say.
    pub power_limit_permille: i64,
}

/// Milligrams booked to one day of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BookedCharge {
    /// Name of the budget.
    pub budget: String,
    /// Day in the budget's time zone, for example 2026-11-23.
    #[schemars(regex(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    pub day: String,
    /// Milligrams of CO2e.
    pub milligrams: i64,
}

/// A budget that was created while the job ran: it counts from then on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinedBudget {
    /// Name of the budget.
    pub name: String,
    /// What had been charged elsewhere before.
    pub charged_before_milligrams: i64,
    /// What was left of the reservation, and is set aside here.
    pub reserved_milligrams: i64,
}

/// One pod's energy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCharge {
    /// UID of the pod.
    pub uid: String,
    /// The node it is on.
    pub node: String,
    /// What each run of the node's exporter measured: it starts at zero each time.
    pub runs: Vec<RunCharge>,
    /// Part of it that was burned before there was a budget, and is not charged.
    pub before_millijoules: i64,
    /// True once it holds no GPU any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// True where its exporter cannot say whether some energy is its: it was away.
    pub incomplete: bool,
    /// Images that it says it made, in a container's termination message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_done: Option<i64>,
}

/// What one run of an exporter measured of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunCharge {
    /// Names the run.
    pub epoch: String,
    /// Its energy so far.
    pub millijoules: i64,
}

impl PodCharge {
    /// All its energy that is charged, in millijoules.
    pub fn millijoules(&self) -> i64 {
        let all: i64 = self.runs.iter().map(|run| run.millijoules).sum();
        (all - self.before_millijoules).max(0)
    }
}

impl CarbonReservation {
    /// What a budget sets aside for this job: its part, or what was left when it came.
    pub fn reserved_for(&self, budget: &str) -> Option<Milligrams> {
        let status = self.status.as_ref();
        let part = self.spec.budgets.iter().find(|part| part.name == budget);
        let joined = status.and_then(|s| s.joined.iter().find(|j| j.name == budget));
        match (part, joined) {
            (Some(part), _) => Some(Milligrams(part.milligrams)),
            (None, Some(joined)) => Some(Milligrams(joined.reserved_milligrams)),
            (None, None) if !self.is_settled() => {
                let charged = status.map_or(0, |s| s.charged_milligrams);
                Some(Milligrams(self.spec.reserved_milligrams - charged).or_zero())
            }
            (None, None) => None,
        }
    }

    /// The line of this job in one budget's ledger; `None` where the budget has no part.
    pub fn entry(&self, budget: &str) -> Option<Entry> {
        let reserved = self.reserved_for(budget)?;
        let status = self.status.clone().unwrap_or_default();
        Some(Entry {
            uid: self.spec.workload.uid.clone(),
            reserved,
            charges: status
                .charges
                .into_iter()
                .filter(|charge| charge.budget == budget)
                .map(|charge| Charge {
                    // The schema lets nothing but a date through.
                    day: charge.day.parse().unwrap_or(Date::MAX),
                    mass: Milligrams(charge.milligrams),
                })
                .collect(),
            settled: status.settled,
        })
    }

    /// True once the job has ended and its energy is known.
    pub fn is_settled(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.settled)
    }

    /// The name of the reservation of a workload.
    pub fn name_of(kind: &str, uid: &str) -> String {
        // Of a pod whose UID no node could tell, `namespace/name` stands for it.
        format!("{}-{}", kind.to_lowercase(), uid.replace('/', "."))
    }
}
