//! What the laws look at: a workload reduced to the few numbers that carry its energy.

use super::flops::FlopCount;
use super::units::{Flops, Joules};
use super::workload::{Precision, Workload};

/// One run, as the laws see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// The model's name: its own level in the law.
    pub model: String,
    pub precision: Precision,
    /// Processes that load the model once each; 0 where start-up was left out of the
    /// measurement, as in public data sets.
    pub starts: f64,
    pub images: f64,
    /// Denoiser calls an image: `steps · q / batch`.
    pub calls: f64,
    /// FLOPs of one image.
    pub flops: Flops,
    /// Pixels of one image / 256: 16×16 px tokens, for the paper's form.
    pub tokens: f64,
    /// True where guidance doubles the work.
    pub guided: bool,
    /// GPUs that share one image's work.
    pub gpus: f64,
    pub batch: f64,
}

impl Features {
    /// Features of a job of `pods` equal pods on `gpus` GPUs each.
    pub fn of_job(workload: &Workload, count: &FlopCount, pods: u32, gpus: u32) -> Self {
        let pods = f64::from(pods.max(1));
        Self {
            starts: pods,
            images: workload.images as f64 * pods,
            ..Self::of_image(workload, count, gpus)
        }
    }

    /// Features of one image with no start-up.
    pub fn of_image(workload: &Workload, count: &FlopCount, gpus: u32) -> Self {
        let batch = f64::from(workload.batch.max(1));
        Self {
            model: workload.model.clone(),
            precision: workload.precision,
            starts: 0.0,
            images: 1.0,
            calls: f64::from(workload.steps) * count.sequential / batch,
            flops: count.total(),
            tokens: f64::from(workload.width) * f64::from(workload.height) / 256.0,
            guided: count.passes > 1.0,
            gpus: f64::from(gpus.max(1)),
            batch,
        }
    }
}

/// One run and what it was measured to cost, start-up included where `starts` > 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub features: Features,
    pub energy: Joules,
}
