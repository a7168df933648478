//! GPU products: one name for the many ways NVML, GPU feature discovery and clouds
//! spell them, and the prior of the energy law for each family.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A GPU product in its canonical spelling, such as `a100-sxm4-40gb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gpu(String);

/// What is believed of a GPU before anything was measured on it: medians of a step's
/// and a teraFLOP's energy in joules, and how many natural logarithms they may be off
/// (one standard deviation).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    pub step_joules: f64,
    pub step_sd: f64,
    pub tera_flop_joules: f64,
    pub tera_flop_sd: f64,
    /// Where the figures are from, for people.
    pub source: &'static str,
}

/// (name begins with, J a step, J a TFLOP): additive fits to public measurements with
/// the NVML counter, idle power not subtracted (ML.ENERGY leaderboard v2; DiT runs on
/// B200). They are gross figures, as the exporter's are.
const KNOWN: &[(&str, f64, f64, &str)] = &[
    ("a100", 5.2, 3.03, "ML.ENERGY v2, A100"),
    ("h100", 6.8, 2.39, "ML.ENERGY v2, H100"),
    ("h200", 6.8, 2.39, "as H100, of one architecture"),
    ("gh200", 6.8, 2.39, "as H100, of one architecture"),
    ("b200", 3.8, 2.23, "public DiT runs, B200"),
];

/// The products a cluster is likeliest to hold, for messages that list what is allowed.
pub const EXAMPLES: &str = "NVIDIA-A100-SXM4-40GB, NVIDIA-H100-80GB-HBM3, NVIDIA-L40S";

/// How canonical names of NVIDIA's data centre, workstation and consumer products begin.
const PRODUCTS: &[&str] = &[
    "a10",
    "a100",
    "a10g",
    "a4000",
    "a5000",
    "a6000",
    "a16",
    "a2",
    "a30",
    "a40",
    "a800",
    "b100",
    "b200",
    "b300",
    "dgx-spark",
    "gb10",
    "gb200",
    "gb300",
    "geforce",
    "gh200",
    "gtx",
    "h100",
    "h20",
    "h200",
    "h800",
    "jetson",
    "l2",
    "l20",
    "l4",
    "l40",
    "l40g",
    "l40s",
    "orin",
    "p100",
    "p4",
    "p40",
    "quadro",
    "rtx",
    "t1000",
    "t4",
    "t400",
    "t4g",
    "t600",
    "thor",
    "titan",
    "v100",
    "v100s",
];

impl Gpu {
    /// Canonical form of a product name: `-SHARED` and `-MIG-…` stripped, then a leading
    /// `NVIDIA`, blanks to `-`, lower case. `None` for an empty name.
    pub fn parse(name: &str) -> Option<Self> {
        let dashed = name.trim().replace(' ', "-").to_lowercase();
        let dashed = dashed.strip_suffix("-shared").unwrap_or(&dashed);
        let dashed = dashed.split("-mig-").next().unwrap_or_default();
        let bare = ["nvidia-", "tesla-"].iter().fold(dashed, |rest, prefix| {
            rest.strip_prefix(prefix).unwrap_or(rest)
        });
        (!bare.is_empty()).then(|| Self(bare.to_owned()))
    }

    /// A product of no measured family: its prior leaks nothing of any measurement.
    pub fn unmeasured() -> Self {
        Self("unmeasured".to_owned())
    }

    /// True where the name begins as one of NVIDIA's products does: a typing error in a node
    /// selector should not be priced.
    pub fn is_product(&self) -> bool {
        let begins = |product: &str| {
            let rest = self.0.strip_prefix(product);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
        };
        PRODUCTS.iter().any(|product| begins(product))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the `EnergyLaw` for this product: a valid Kubernetes object name.
    pub fn law_name(&self) -> String {
        let name: String = self
            .0
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        name.trim_matches(['-', '.']).to_owned()
    }

    /// The prior of the law on this product: measured where the family was, else wide.
    pub fn prior(&self) -> Prior {
        KNOWN
            .iter()
            .find(|(family, ..)| self.0.starts_with(family))
            .map_or(
                Prior {
                    step_joules: 4.0,
                    step_sd: 0.75,
                    tera_flop_joules: 2.4,
                    tera_flop_sd: 0.5,
                    source: "no measurement of this family: all families, widened",
                },
                |&(_, step_joules, tera_flop_joules, source)| Prior {
                    step_joules,
                    step_sd: 0.4,
                    tera_flop_joules,
                    tera_flop_sd: 0.25,
                    source,
                },
            )
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_one_product_are_one_name() {
        for name in [
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA-A100-SXM4-40GB",
            "A100-SXM4-40GB",
            "NVIDIA-A100-SXM4-40GB-SHARED",
            "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
            "nvidia-a100-sxm4-40gb",
        ] {
            assert_eq!(
                Gpu::parse(name).unwrap().as_str(),
                "a100-sxm4-40gb",
                "{name}"
            );
        }
        assert_eq!(Gpu::parse("Tesla-T4").unwrap().as_str(), "t4");
        assert_eq!(Gpu::parse("  "), None);
    }

    #[test]
    fn a_typing_error_is_no_product() {
        for name in [
            "NVIDIA-A100-SXM4-40GB",
            "NVIDIA-H100-80GB-HBM3",
            "NVIDIA-L40S-SHARED",
            "Tesla-T4",
            "NVIDIA-GeForce-RTX-4090",
            "NVIDIA-RTX-A6000",
            "NVIDIA GH200 480GB",
            "Tesla V100-SXM2-16GB",
        ] {
            assert!(Gpu::parse(name).unwrap().is_product(), "{name}");
        }
        for name in ["NVIDIA-A1000-SXM", "XYZ", "NVIDIA-H10O-80GB", "AMD-MI300X"] {
            assert!(!Gpu::parse(name).unwrap().is_product(), "{name}");
        }
    }

    #[test]
    fn a_family_never_measured_gets_a_wider_prior() {
        let known = Gpu::parse("NVIDIA-H100-80GB-HBM3").unwrap().prior();
        let unknown = Gpu::parse("NVIDIA-L40S").unwrap().prior();
        assert!(unknown.tera_flop_sd > known.tera_flop_sd);
    }
}
