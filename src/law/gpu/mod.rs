//! GPU products: one name for the many ways NVML, GPU feature discovery and clouds
//! spell them, and the prior of the energy law for each family.

mod specs;

pub use specs::{Generation, Sheet};

use serde::{Deserialize, Serialize};
use std::fmt;

/// A GPU product in its canonical spelling, such as `a100-sxm4-40gb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gpu(String);

/// What is believed of a GPU before anything was measured on it: medians in joules, and how
/// many natural logarithms they may be off (one standard deviation).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// Of the additive and the paper's form: a step, a TFLOP.
    pub step_joules: f64,
    pub step_sd: f64,
    pub tera_flop_joules: f64,
    pub tera_flop_sd: f64,
    /// Of the roofline form: a TFLOP of plain products, 10⁹ elements moved by memory-bound
    /// kernels at 16 bits, a thousand launches.
    pub product_joules: f64,
    pub product_sd: f64,
    pub element_joules: f64,
    pub element_sd: f64,
    pub launch_joules: f64,
    pub launch_sd: f64,
    /// Where the figures are from, for people.
    pub source: &'static str,
}

/// Fits to public measurements with the NVML counter, idle power not subtracted; gross
/// figures, as the exporter's are: (name begins with; additive J a step, J a TFLOP; roofline
/// J a TFLOP, J for 10⁹ elements, J for 1,000 launches).
type Known = (&'static str, (f64, f64), (f64, f64, f64), &'static str);

const KNOWN: &[Known] = &[
    ("a100", (5.2, 3.03), (2.1, 0.6, 4.6), "ML.ENERGY v2, A100"),
    ("h100", (6.8, 2.39), (1.4, 0.7, 5.9), "ML.ENERGY v2, H100"),
    (
        "h200",
        (6.8, 2.39),
        (1.4, 0.6, 5.9),
        "as H100, of one architecture",
    ),
    (
        "gh200",
        (6.8, 2.39),
        (1.4, 0.6, 5.9),
        "as H100, of one architecture",
    ),
    (
        "b200",
        (3.8, 2.23),
        (1.3, 0.5, 5.0),
        "public DiT runs, B200",
    ),
];

/// A product of the middle, for names without a data sheet: W, TFLOPS, GB/s.
const MIDDLE: (f64, f64, f64) = (350.0, 300.0, 1200.0);
/// Data-sheet figures follow into the prior by the square root, about this product: an A100,
/// of which 1.28 W for a TFLOPS and 0.257 W for a GB/s are known.
const SHEET_PRODUCT: (f64, f64) = (1.282, 1.9);

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

/// A valid Kubernetes object name out of any other.
pub fn object_name(name: &str) -> String {
    let plain = |c: char| {
        let kept = c.is_ascii_alphanumeric() || c == '.';
        if kept { c.to_ascii_lowercase() } else { '-' }
    };
    let name: String = name.chars().map(plain).collect();
    name.trim_matches(['-', '.']).to_owned()
}

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

    /// A product of no measured family: its prior has none of its runs, and a middle that public fits lie about.
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
        object_name(&self.0)
    }

    /// The data sheet, where there is one.
    pub fn sheet(&self) -> Option<&'static Sheet> {
        specs::of(&self.0)
    }

    /// The prior of the law on this product: measured where the family was, else from the
    /// data sheet, else wide.
    pub fn prior(&self) -> Prior {
        let Some(&(_, additive, roofline, source)) =
            KNOWN.iter().find(|(family, ..)| self.0.starts_with(family))
        else {
            return self.prior_of_sheet();
        };
        Prior {
            step_joules: additive.0,
            step_sd: 0.4,
            tera_flop_joules: additive.1,
            tera_flop_sd: 0.25,
            product_joules: roofline.0,
            product_sd: 0.25,
            element_joules: roofline.1,
            element_sd: 0.25,
            launch_joules: roofline.2,
            launch_sd: 0.4,
            source,
        }
    }

    /// The prior that a data sheet alone gives: no run of this product, scaled from one anchor by power and rate.
    pub fn prior_of_sheet(&self) -> Prior {
        let sheet = self.sheet();
        let (power, throughput, bandwidth) =
            sheet.map_or(MIDDLE, |s| (s.power, s.throughput, s.bandwidth));
        let product = SHEET_PRODUCT.1 * (power / throughput / SHEET_PRODUCT.0).sqrt();
        // Two bytes an element at the board's full power, a little below full bandwidth.
        let element = 1.25 * 2.0 * power / bandwidth;
        let known = sheet.is_some();
        Prior {
            step_joules: 4.0,
            step_sd: 0.75,
            tera_flop_joules: if known { 1.4 * product } else { 2.4 },
            tera_flop_sd: 0.5,
            product_joules: if known { product } else { 1.8 },
            product_sd: if known { 0.4 } else { 0.5 },
            element_joules: if known { element } else { 0.5 },
            element_sd: 0.35,
            launch_joules: 4.5,
            launch_sd: 0.6,
            source: if known {
                "data sheet, widened: nothing measured of this family"
            } else {
                "no data sheet and no measurement of this product: all products, widened"
            },
        }
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
