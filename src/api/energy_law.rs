//! `EnergyLaw`: the law of one GPU product, with its whole state.

use super::Condition;
use crate::law::{Form, Standing, Standings};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which product, which form.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "EnergyLaw",
    status = "EnergyLawStatus",
    shortname = "elaw",
    category = "carbon",
    doc = "The energy law of one GPU product: refitted with every finished job.",
    printcolumn(name = "GPU", type_ = "string", json_path = ".spec.gpu"),
    printcolumn(name = "Form", type_ = "string", json_path = ".spec.form"),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error"),
    printcolumn(
        name = "Observations",
        type_ = "integer",
        json_path = ".status.observations"
    ),
    printcolumn(name = "Last fit", type_ = "date", json_path = ".status.lastFit"),
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
pub struct EnergyLawSpec {
    /// GPU product as NVML or the node label nvidia.com/gpu.product writes it, for example
    /// NVIDIA-A100-SXM4-40GB.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the product of a law cannot be changed: make another law, for example for NVIDIA-H100-80GB-HBM3"))]
    pub gpu: String,
    /// The law's form. Default Roofline. Changing it starts the law anew.
    #[serde(default)]
    pub form: Form,
}

/// What the law has learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnergyLawStatus {
    /// Generation of the spec this status is for.
    pub observed_generation: i64,
    /// Jobs learnt from.
    pub observations: i64,
    /// Gross: idle power is part of the energies, as boards draw it; empty before the first.
    pub basis: String,
    /// Running mean of |predicted − measured| / measured, in parts per thousand.
    pub error_permille: i64,
    /// The same for people, for example 6.2 %.
    pub error: String,
    /// Parameters for people: joules a start, a step, a TFLOP; exponents as they are.
    pub parameters: Vec<NamedValue>,
    /// The whole state, versioned, for the next leader.
    #[schemars(length(max = 65_536))]
    pub state: String,
    /// UIDs of the jobs learnt from last.
    pub learnt: Vec<String>,
    /// Lessons taken, those of namespaces that are suspect among them: later ones are still
    /// to be taken out of the reservations' statuses.
    pub lessons: i64,
    /// When the law last learnt, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_fit: Option<String>,
    /// How each namespace's jobs compare with the law.
    #[schemars(length(max = 64))]
    pub namespaces: Vec<NamespaceStanding>,
    /// Ready, LevelMoved, AnnotationSuspect.
    pub conditions: Vec<Condition>,
}

/// One namespace's jobs beside the law.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceStanding {
    /// Name of the namespace.
    pub namespace: String,
    /// Its jobs that were compared.
    pub runs: i64,
    /// Mean of what they burned beside what was predicted, in parts per thousand of ln.
    pub off_permille: i64,
    /// Its newest jobs on end that stood far from other namespaces'.
    #[serde(default)]
    pub far: i64,
    /// Number of its newest job, over all namespaces.
    #[serde(default)]
    pub at: i64,
}

impl EnergyLawStatus {
    /// The standings in the law's own terms.
    pub fn standings(&self) -> Standings {
        let standing = |s: &NamespaceStanding| Standing {
            namespace: s.namespace.clone(),
            off: s.off_permille as f64 / 1000.0,
            runs: u64::try_from(s.runs).unwrap_or(0),
            far: u64::try_from(s.far).unwrap_or(0),
            at: u64::try_from(s.at).unwrap_or(0),
        };
        Standings(self.namespaces.iter().map(standing).collect())
    }

    /// Writes them back.
    pub fn set_standings(&mut self, standings: &Standings) {
        let written = |s: &Standing| NamespaceStanding {
            namespace: s.namespace.clone(),
            runs: i64::try_from(s.runs).unwrap_or(i64::MAX),
            far: i64::try_from(s.far).unwrap_or(i64::MAX),
            at: i64::try_from(s.at).unwrap_or(i64::MAX),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a logarithm in thousandths"
            )]
            off_permille: (s.off * 1000.0).round() as i64,
        };
        self.namespaces = standings.0.iter().map(written).collect();
    }
}

/// A figure with its name, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedValue {
    /// Name of the parameter.
    pub name: String,
    /// Its value.
    pub value: String,
}
