//! What the laws look at: a workload reduced to the few numbers that carry its energy.

use super::count::Count;
use super::network::Amount;
use super::units::{Flops, Joules};
use super::workload::{Precision, Workload};
use serde::{Deserialize, Serialize};

/// One run, as the laws see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// The model's name: its own level in the law.
    pub model: String,
    /// Class of its denoiser: where a model never run takes its level from.
    pub architecture: String,
    pub precision: Precision,
    /// Processes that load the model once each; 0 where start-up was left out of the
    /// measurement, as in public data sets.
    pub starts: f64,
    pub images: f64,
    /// Denoiser calls an image: `steps · q / batch`.
    pub calls: f64,
    /// FLOPs of one image.
    pub flops: Flops,
    /// Work of one image by kind; launches are shared by the images of a batch.
    pub work: Amount,
    /// Pixels of one image / 256: 16×16 px tokens, for the paper's form.
    pub tokens: f64,
    /// True where guidance doubles the work.
    pub guided: bool,
    /// GPUs that share one image's work.
    pub gpus: f64,
    pub batch: f64,
    pub stack: Stack,
}

/// What a run ran on, as far as the pod or the node tells; what is not told is taken to be as
/// in the runs before.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stack {
    /// The pipeline's own, as its author names it, for example `diffusers-0.35-compile`.
    pub software: Option<String>,
    /// Branch of the NVIDIA driver, for example `550`.
    pub driver: Option<String>,
    /// The board's enforced power limit as a fraction of its default limit.
    pub power: Option<f64>,
}

/// The branch of a driver's version: `550` of `550.54.15`.
pub fn driver_branch(version: &str) -> String {
    version
        .chars()
        .take_while(|c| *c != '.')
        .filter(char::is_ascii_alphanumeric)
        .take(8)
        .collect()
}

impl Features {
    /// Features of a job of `pods` equal pods on `gpus` GPUs each.
    pub fn of_job(
        workload: &Workload,
        architecture: &str,
        count: &Count,
        pods: u32,
        gpus: u32,
    ) -> Self {
        let pods = f64::from(pods.max(1));
        Self {
            starts: pods,
            images: workload.images as f64 * pods,
            ..Self::of_image(workload, architecture, count, gpus)
        }
    }

    /// Features of one image with no start-up.
    pub fn of_image(workload: &Workload, architecture: &str, count: &Count, gpus: u32) -> Self {
        let batch = f64::from(workload.batch.max(1));
        // A last batch that is not full launches as much as a full one.
        let images = workload.images.max(1) as f64;
        let batch = (images / (images / batch).ceil()).min(batch);
        let mut work = count.total();
        work.launches /= batch;
        Self {
            model: workload.model.clone(),
            architecture: architecture.to_owned(),
            precision: workload.precision,
            starts: 0.0,
            images: 1.0,
            calls: count.steps * count.calls / batch,
            flops: count.flops(),
            work,
            tokens: f64::from(workload.width) * f64::from(workload.height) / 256.0
                * f64::from(workload.frames),
            guided: count.rows > 1.0,
            gpus: f64::from(gpus.max(1)),
            batch,
            stack: Stack {
                software: workload.software.clone(),
                ..Stack::default()
            },
        }
    }
}

/// Whether the power of an idle GPU is part of a measured energy.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
pub enum Basis {
    /// All that the board drew, as the exporter and the energy counter have it.
    #[default]
    Gross,
    /// Idle power subtracted, as in arXiv 2511.17031.
    Net,
}

impl Basis {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gross => "gross",
            Self::Net => "net of idle",
        }
    }
}

/// Joules of a FLOP that no GPU is near yet: a tenth of what the best need at 16 bits
/// (1,000 W at 2.2 PFLOP/s), for four-bit formats and what may come.
const LEAST_JOULES_A_FLOP: f64 = 4.5e-14;

/// Nor does any need as much, 32-bit arithmetic on a board of 2016 included: a hundred times what
/// is usual; with joules of a call's launches, and of a start.
const MOST_JOULES_A_FLOP: f64 = 5e-10;
const MOST_JOULES_A_CALL: f64 = 500.0;
const MOST_JOULES_A_START: f64 = 1e6;

impl Observation {
    /// Why so much arithmetic cannot have taken so much energy; `None` where it can.
    pub fn impossible(&self) -> Option<&'static str> {
        let f = &self.features;
        let flops = f.images * f.flops.0;
        if self.energy.0 < flops * LEAST_JOULES_A_FLOP {
            return Some("less than any GPU needs");
        }
        let most = flops * MOST_JOULES_A_FLOP
            + f.images * f.calls.max(1.0) * MOST_JOULES_A_CALL
            + f.starts * MOST_JOULES_A_START;
        (self.energy.0 > most * f.gpus.max(1.0)).then_some("more than any GPU uses")
    }
}

/// One run and what it was measured to cost, start-up included where `starts` > 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub features: Features,
    pub energy: Joules,
    pub basis: Basis,
}
