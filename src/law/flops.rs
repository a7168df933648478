//! FLOPs of a workload, split into text, denoising and decoding.

use super::catalogue::{Cfg, Model};
use super::units::Flops;
use super::workload::Workload;
use serde::Serialize;

/// FLOPs of one image, by part, and how the denoiser is called.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FlopCount {
    /// Text encoders and, for unCLIP models, the prior.
    pub text: Flops,
    pub denoising: Flops,
    pub decoding: Flops,
    /// 2 with classifier-free guidance, else 1.
    pub passes: f64,
    /// 2 where the guidance passes run one after the other, so that the cost of a step
    /// doubles too; else 1.
    pub sequential: f64,
}

impl FlopCount {
    /// FLOPs of one image, all parts.
    pub fn total(&self) -> Flops {
        self.text + self.denoising + self.decoding
    }
}

/// Counts one image: `steps·p·denoiser + p·text + decode (+ prior)`, p = 2 with guidance.
pub fn count(model: &Model, workload: &Workload) -> FlopCount {
    let guided = match model.cfg {
        Cfg::Batched => workload.guidance_scale > 1.0,
        Cfg::Sequential => workload.true_cfg_scale > 1.0,
    };
    let passes = if guided { 2.0 } else { 1.0 };
    let sequential = if guided && model.cfg == Cfg::Sequential {
        2.0
    } else {
        1.0
    };
    let tokens = tokens(workload.width, workload.height, model.pixel_multiple);
    let decoded = tokens_exact(workload.width, workload.height);
    FlopCount {
        text: Flops(passes * (model.text.0 + model.prior_passes * model.prior.0)),
        denoising: Flops(f64::from(workload.steps) * passes * model.denoiser.pass(tokens).0),
        decoding: model.decoder.at(decoded),
        passes,
        sequential,
    }
}

fn tokens(width: u32, height: u32, multiple: u32) -> f64 {
    let pad = |side: u32| f64::from(side.div_ceil(multiple) * multiple);
    pad(width) * pad(height) / 256.0
}

fn tokens_exact(width: u32, height: u32) -> f64 {
    f64::from(width) * f64::from(height) / 256.0
}
