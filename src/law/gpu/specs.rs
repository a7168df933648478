//! Data sheets of NVIDIA's GPUs: what a product never measured is first believed to be like.
//!
//! Figures are NVIDIA's published ones: memory in GB, memory bandwidth in GB/s, board power in
//! watts, dense 16-bit tensor throughput in TFLOPS. They are beliefs only: peaks overstate what
//! a product does, so the law's prior follows them by the square root and stays wide.

/// Generation of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    Pascal,
    Volta,
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

/// One product's data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sheet {
    /// Canonical name.
    pub name: &'static str,
    pub generation: Generation,
    /// GB.
    pub memory: f64,
    /// GB/s.
    pub bandwidth: f64,
    /// W.
    pub power: f64,
    /// TFLOPS, dense, 16 bits.
    pub throughput: f64,
}

const fn sheet(
    name: &'static str,
    generation: Generation,
    memory: f64,
    bandwidth: f64,
    power: f64,
    throughput: f64,
) -> Sheet {
    Sheet {
        name,
        generation,
        memory,
        bandwidth,
        power,
        throughput,
    }
}

use Generation::{Ada, Ampere, Blackwell, Hopper, Pascal, Turing, Volta};

#[rustfmt::skip]
pub(super) const SHEETS: &[Sheet] = &[
    sheet("p100-pcie-16gb", Pascal, 16.0, 732.0, 250.0, 18.7),
    sheet("p100-sxm2-16gb", Pascal, 16.0, 732.0, 300.0, 21.2),
    sheet("v100-pcie-16gb", Volta, 32.0, 900.0, 250.0, 112.0),
    sheet("v100-pcie-32gb", Volta, 32.0, 900.0, 250.0, 112.0),
    sheet("v100-sxm2-16gb", Volta, 32.0, 900.0, 300.0, 125.0),
    sheet("v100-sxm2-32gb", Volta, 32.0, 900.0, 300.0, 125.0),
    sheet("v100s-pcie-32gb", Volta, 32.0, 1134.0, 250.0, 130.0),
    sheet("t4", Turing, 16.0, 320.0, 70.0, 65.0),
    sheet("quadro-rtx-6000", Turing, 24.0, 672.0, 260.0, 130.5),
    sheet("quadro-rtx-8000", Turing, 48.0, 672.0, 260.0, 130.5),
    sheet("titan-rtx", Turing, 24.0, 672.0, 280.0, 130.5),
    sheet("geforce-rtx-2080-ti", Turing, 11.0, 616.0, 250.0, 56.9),
    sheet("a2", Ampere, 16.0, 200.0, 60.0, 18.0),
    sheet("a10", Ampere, 24.0, 600.0, 150.0, 125.0),
    sheet("a10g", Ampere, 24.0, 600.0, 300.0, 70.0),
    sheet("a16", Ampere, 16.0, 200.0, 62.5, 17.9),
    sheet("a30", Ampere, 24.0, 933.0, 165.0, 165.0),
    sheet("a40", Ampere, 48.0, 696.0, 300.0, 149.7),
    sheet("a100-pcie-40gb", Ampere, 40.0, 1555.0, 250.0, 312.0),
    sheet("a100-80gb-pcie", Ampere, 80.0, 1935.0, 300.0, 312.0),
    sheet("a100-sxm4-40gb", Ampere, 40.0, 1555.0, 400.0, 312.0),
    sheet("a100-sxm4-80gb", Ampere, 80.0, 2039.0, 400.0, 312.0),
    sheet("a100-sxm-64gb", Ampere, 64.0, 1640.0, 400.0, 312.0),
    sheet("a800-sxm4-80gb", Ampere, 80.0, 2039.0, 400.0, 312.0),
    sheet("a800-80gb-pcie", Ampere, 80.0, 1935.0, 300.0, 312.0),
    sheet("rtx-a2000", Ampere, 12.0, 288.0, 70.0, 31.9),
    sheet("rtx-a2000-12gb", Ampere, 12.0, 288.0, 70.0, 31.9),
    sheet("rtx-a4000", Ampere, 16.0, 448.0, 140.0, 76.7),
    sheet("rtx-a4500", Ampere, 20.0, 640.0, 200.0, 94.6),
    sheet("rtx-a5000", Ampere, 24.0, 768.0, 230.0, 111.1),
    sheet("rtx-a5500", Ampere, 24.0, 768.0, 230.0, 136.4),
    sheet("rtx-a6000", Ampere, 48.0, 768.0, 300.0, 154.8),
    sheet("geforce-rtx-3080", Ampere, 10.0, 760.0, 320.0, 59.5),
    sheet("geforce-rtx-3090", Ampere, 24.0, 936.0, 350.0, 71.0),
    sheet("geforce-rtx-3090-ti", Ampere, 24.0, 1008.0, 450.0, 80.0),
    sheet("l2", Ada, 24.0, 300.0, 72.0, 96.5),
    sheet("l4", Ada, 24.0, 300.0, 72.0, 121.0),
    sheet("l20", Ada, 48.0, 864.0, 275.0, 119.5),
    sheet("l40", Ada, 48.0, 864.0, 300.0, 181.0),
    sheet("l40s", Ada, 48.0, 864.0, 350.0, 362.0),
    sheet("rtx-2000-ada-generation", Ada, 16.0, 224.0, 70.0, 48.0),
    sheet("rtx-4000-ada-generation", Ada, 20.0, 360.0, 130.0, 106.9),
    sheet("rtx-4000-sff-ada-generation", Ada, 20.0, 280.0, 70.0, 76.7),
    sheet("rtx-4500-ada-generation", Ada, 24.0, 432.0, 210.0, 158.5),
    sheet("rtx-5000-ada-generation", Ada, 32.0, 576.0, 250.0, 261.1),
    sheet("rtx-5880-ada-generation", Ada, 48.0, 960.0, 285.0, 277.2),
    sheet("rtx-6000-ada-generation", Ada, 48.0, 960.0, 300.0, 364.2),
    sheet("geforce-rtx-4080", Ada, 16.0, 717.0, 320.0, 97.5),
    sheet("geforce-rtx-4090", Ada, 24.0, 1008.0, 450.0, 165.2),
    sheet("h100-pcie", Hopper, 80.0, 2000.0, 350.0, 756.0),
    sheet("h100-80gb-hbm3", Hopper, 80.0, 3350.0, 700.0, 989.4),
    sheet("h100-nvl", Hopper, 94.0, 3938.0, 400.0, 835.4),
    sheet("h200", Hopper, 141.0, 4800.0, 700.0, 989.4),
    sheet("h200-nvl", Hopper, 141.0, 4800.0, 600.0, 835.4),
    sheet("h20", Hopper, 96.0, 4000.0, 400.0, 148.0),
    sheet("h20-3e", Hopper, 141.0, 4800.0, 500.0, 148.0),
    sheet("h800", Hopper, 80.0, 3350.0, 700.0, 989.4),
    sheet("h800-pcie", Hopper, 80.0, 2000.0, 350.0, 756.0),
    sheet("gh200-480gb", Hopper, 96.0, 4000.0, 700.0, 989.4),
    sheet("gh200-120gb", Hopper, 96.0, 4000.0, 700.0, 989.4),
    sheet("gh200-144g-hbm3e", Hopper, 144.0, 4900.0, 700.0, 989.4),
    sheet("b100", Blackwell, 192.0, 8000.0, 700.0, 1750.0),
    sheet("b200", Blackwell, 180.0, 7700.0, 1000.0, 2250.0),
    sheet("gb200", Blackwell, 186.0, 8000.0, 1200.0, 2500.0),
    sheet("b300-sxm6-ac", Blackwell, 268.0, 7700.0, 1100.0, 2250.0),
    sheet("gb300", Blackwell, 278.0, 8000.0, 1400.0, 2500.0),
    sheet("rtx-pro-6000-blackwell-server-edition", Blackwell, 96.0, 1597.0, 600.0, 480.0),
    sheet("rtx-pro-6000-blackwell-workstation-edition", Blackwell, 96.0, 1792.0, 600.0, 503.8),
    sheet("rtx-pro-6000-blackwell-max-q-workstation-edition", Blackwell, 96.0, 1792.0, 300.0, 438.9),
    sheet("rtx-pro-5000-blackwell", Blackwell, 72.0, 1344.0, 300.0, 267.8),
    sheet("rtx-pro-5000-72gb-blackwell", Blackwell, 72.0, 1344.0, 300.0, 267.8),
    sheet("rtx-pro-4500-blackwell", Blackwell, 32.0, 896.0, 200.0, 202.0),
    sheet("rtx-pro-4000-blackwell", Blackwell, 24.0, 672.0, 140.0, 147.3),
    sheet("geforce-rtx-5080", Blackwell, 16.0, 960.0, 360.0, 112.6),
    sheet("geforce-rtx-5090", Blackwell, 32.0, 1792.0, 575.0, 209.5),
    sheet("gb10", Blackwell, 128.0, 273.0, 140.0, 118.0),
];

/// What people mean by a family's bare name.
const USUAL: [(&str, &str); 6] = [
    ("a100", "a100-sxm4-80gb"),
    ("a100-sxm", "a100-sxm4-80gb"),
    ("a100-pcie", "a100-pcie-40gb"),
    ("h100", "h100-80gb-hbm3"),
    ("v100", "v100-sxm2-32gb"),
    ("rtx-6000-ada", "rtx-6000-ada-generation"),
];

/// The data sheet of a canonical name: its own, or that of the longest known name that it begins
/// with, whole words alone; else what the longest such family's name usually means.
pub(super) fn of(name: &str) -> Option<&'static Sheet> {
    let begins = |whole: &str, part: &str| {
        let rest = whole.strip_prefix(part);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let own = SHEETS
        .iter()
        .filter(|sheet| begins(name, sheet.name) && sheet.name != "h100")
        .max_by_key(|sheet| sheet.name.len());
    let usual = || {
        let family = USUAL.iter().filter(|(family, _)| begins(name, family));
        let (_, meant) = family.max_by_key(|(family, _)| family.len())?;
        SHEETS.iter().find(|sheet| sheet.name == *meant)
    };
    // A5000 is written without its RTX, L40 with more behind it.
    let longer = || {
        let with_rtx = format!("rtx-{name}");
        let of = |name: &str| {
            let longer = SHEETS.iter().filter(|sheet| begins(sheet.name, name));
            longer.min_by_key(|sheet| sheet.name.len())
        };
        of(name).or_else(|| of(&with_rtx))
    };
    own.or_else(usual).or_else(longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them_find_their_own_sheet() {
        for (name, sheet) in [
            ("a100", "a100-sxm4-80gb"),
            ("a100-sxm-80gb", "a100-sxm4-80gb"),
            ("a100-80gb-pcie", "a100-80gb-pcie"),
            ("a100-pg509-200", "a100-sxm4-80gb"),
            ("h100", "h100-80gb-hbm3"),
            ("h100-80gb-hbm3", "h100-80gb-hbm3"),
            ("a4000", "rtx-a4000"),
            ("a10", "a10"),
            ("a10g", "a10g"),
            ("l40s", "l40s"),
            ("t4", "t4"),
            ("gh200-480gb", "gh200-480gb"),
        ] {
            assert_eq!(of(name).map(|s| s.name), Some(sheet), "{name}");
        }
        for name in ["t400", "abacus", "a1000", "unmeasured", ""] {
            assert_eq!(of(name).map(|s| s.name), None, "{name}");
        }
    }
}
