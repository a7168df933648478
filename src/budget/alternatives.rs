//! What would fit instead: one change to a job, found by predicting it.

use super::estimate::{Oracle, Request};
use super::placement::Placement;
use crate::carbon::Milligrams;
use crate::law::{Precision, Workload};
use std::fmt;

/// One change that makes a job fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// The parameter, without the annotation's prefix.
    pub parameter: String,
    /// `≤ 18`, or `512x512`.
    pub value: String,
    pub needs: Milligrams,
}

impl fmt::Display for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.parameter, self.value, self.needs)
    }
}

/// Smaller sizes that are tried, largest first, in px of the longer side.
const SIDES: [u32; 5] = [1024, 768, 640, 512, 256];

/// Single changes that bring the charged mass to `room` or below.
pub fn alternatives(
    oracle: &Oracle,
    request: &Request,
    quantile: f64,
    room: Milligrams,
) -> Vec<Alternative> {
    let try_with = |change: &dyn Fn(&mut Workload)| -> Option<Milligrams> {
        let mut changed = request.clone();
        change(&mut changed.workload);
        let needs = oracle.estimate(&changed, quantile).ok()?.footprint.charged;
        (needs <= room).then_some(needs)
    };
    let mut found = Vec::new();
    let mut push = |parameter: &str, value: String, needs| {
        found.push(Alternative {
            parameter: parameter.to_owned(),
            value,
            needs,
        });
    };
    let workload = &request.workload;
    let steps = |n: u64| try_with(&|w| w.steps = u32::try_from(n).unwrap_or(1));
    if let Some((n, needs)) = largest(u64::from(workload.steps), steps) {
        push("num-inference-steps", format!("≤ {n}"), needs);
    }
    if let Some((n, needs)) = largest(workload.images, |n| try_with(&|w| w.images = n)) {
        push("num-images", format!("≤ {n}"), needs);
    }
    for side in SIDES
        .into_iter()
        .filter(|side| *side < workload.width.max(workload.height))
    {
        let (width, height) = scaled(workload, side);
        let size = try_with(&|w| (w.width, w.height) = (width, height));
        if let Some(needs) = size {
            push("size", format!("{width}x{height}"), needs);
            break;
        }
    }
    if matches!(workload.precision, Precision::Fp32 | Precision::Tf32)
        && let Some(needs) = try_with(&|w| w.precision = Precision::Fp16)
    {
        push("precision", "fp16".to_owned(), needs);
    }
    if let Some(gpu) = cheapest_gpu(oracle, request, quantile, room) {
        push("GPU", gpu.0, gpu.1);
    }
    found
}

/// The largest n below `now` that fits, by bisection: a smaller job never costs more.
fn largest(now: u64, fits: impl Fn(u64) -> Option<Milligrams>) -> Option<(u64, Milligrams)> {
    let mut best = None;
    let (mut low, mut high) = (1, now.checked_sub(1)?);
    while low <= high {
        let middle = low + (high - low) / 2;
        if let Some(needs) = fits(middle) {
            best = Some((middle, needs));
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
    best
}

/// Width and height with the longer side at `side`, each a multiple of 64 px.
fn scaled(workload: &Workload, side: u32) -> (u32, u32) {
    let longer = workload.width.max(workload.height);
    let scale = |x: u32| (x * side / longer / 64 * 64).max(64);
    (scale(workload.width), scale(workload.height))
}

fn cheapest_gpu(
    oracle: &Oracle,
    request: &Request,
    quantile: f64,
    room: Milligrams,
) -> Option<(String, Milligrams)> {
    oracle
        .sites
        .iter()
        .filter_map(|site| {
            let mut changed = request.clone();
            changed.eligible = vec![site.gpu.clone()];
            changed.placement = Placement::default();
            let needs = oracle.estimate(&changed, quantile).ok()?.footprint.charged;
            (needs <= room).then(|| (site.gpu.to_string(), needs))
        })
        .min_by_key(|(_, needs)| *needs)
}
