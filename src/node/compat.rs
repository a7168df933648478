//! Two fields of dcgm-exporter, energy and power, under its names and labels, for nodes on
//! which it does not run. By GPU alone: who burned it is in our own series.

use super::meter::GpuTotals;
use super::nvml::GpuInfo;
use crate::serve::exposition::braces;
use std::fmt::Write;

/// Names under which figures are shown besides our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// `DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION` (mJ) and `DCGM_FI_DEV_POWER_USAGE` (W).
    Dcgm,
}

impl Compat {
    /// Families in the text format, to go behind ours.
    pub(super) fn text(self, node: &str, gpus: &[(GpuInfo, GpuTotals)]) -> String {
        match self {
            Self::Dcgm => dcgm(node, gpus),
        }
    }
}

fn dcgm(node: &str, gpus: &[(GpuInfo, GpuTotals)]) -> String {
    let mut text = String::new();
    let energy = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION";
    let _ = writeln!(
        text,
        "# HELP {energy} Energy since the exporter began to count, in mJ\n# TYPE {energy} counter"
    );
    for (gpu, totals) in gpus {
        let millijoules = totals.energy.0 / 1000;
        let _ = writeln!(text, "{energy}{} {millijoules}", labels(node, gpu));
    }
    let power = "DCGM_FI_DEV_POWER_USAGE";
    let _ = writeln!(text, "# HELP {power} Power draw in W\n# TYPE {power} gauge");
    for (gpu, totals) in gpus {
        if let Some(milliwatts) = totals.power_milliwatts {
            let watts = milliwatts as f64 / 1000.0;
            let _ = writeln!(text, "{power}{} {watts}", labels(node, gpu));
        }
    }
    text
}

fn labels(node: &str, gpu: &GpuInfo) -> String {
    let labels = [
        ("gpu", gpu.index.to_string()),
        ("UUID", gpu.uuid.clone()),
        ("pci_bus_id", gpu.pci_bus_id.clone()),
        ("device", format!("nvidia{}", gpu.index)),
        ("modelName", gpu.model.clone()),
        ("hostname", node.to_owned()),
    ];
    let mut text = String::new();
    braces(&mut text, &labels.to_vec(), None);
    text
}
