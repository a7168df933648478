//! The work of a workload, by phase: text encoding, prior, picture encoding, denoising,
//! decoding.

use super::catalogue::{Model, Negative, Runs, Scale};
use super::network::{Amount, Extent};
use super::units::Flops;
use super::workload::Workload;
use serde::Serialize;

/// Work of one picture or video, by phase. Launches are of a call for the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Count {
    /// Text encoders.
    pub text: Amount,
    /// A network before the denoiser (unCLIP).
    pub prior: Amount,
    /// A picture to start from, encoded.
    pub encoding: Amount,
    pub denoising: Amount,
    pub decoding: Amount,
    /// Rows of the batch that one picture takes in a step: 2 with guidance.
    pub rows: f64,
    /// Calls of the denoiser in a step, one after the other.
    pub calls: f64,
    /// Steps that really run: fewer from a picture, more with a second-order scheduler.
    pub steps: f64,
}

impl Count {
    /// All phases.
    pub fn total(&self) -> Amount {
        self.text + self.prior + self.encoding + self.denoising + self.decoding
    }

    /// FLOPs of one picture, all phases.
    pub fn flops(&self) -> Flops {
        self.total().flops()
    }

    /// Phases with their names, for people.
    pub fn phases(&self) -> [(&'static str, Amount); 5] {
        [
            ("text encoding", self.text),
            ("prior", self.prior),
            ("image encoding", self.encoding),
            ("denoising", self.denoising),
            ("decoding", self.decoding),
        ]
    }
}

/// Counts one picture or video of a workload; `refiner` runs the last steps where the
/// workload names one.
pub fn count(model: &Model, workload: &Workload, refiner: Option<&Model>) -> Count {
    let passes = Passes::of(model, workload);
    let extent = extent(model, workload, model.pixel_multiple);
    let exact = self::extent(model, workload, 1);
    let steps = workload.model_calls();
    let own = match refiner {
        Some(_) => workload.denoising_end.unwrap_or(0.8).clamp(0.0, 1.0),
        None => 1.0,
    };
    let mut denoising = passes.of_call(model, workload, extent) * (steps * own);
    let mut text = model.text.at(exact) * passes.prompts;
    if let Some(refiner) = refiner {
        let passes = Passes::of(refiner, workload);
        let extent = self::extent(refiner, workload, refiner.pixel_multiple);
        denoising = denoising + passes.of_call(refiner, workload, extent) * (steps * (1.0 - own));
        text = text + refiner.text.at(exact) * passes.prompts;
    }
    let mut decoding = model.decoder.work.at(exact) * workload.tiling(model);
    decoding.launches = model.decoder.work.launches;
    let encodes = model.decoder.encodes || workload.strength.is_some();
    let one = Extent {
        frames: 1.0,
        ..exact
    };
    Count {
        text,
        prior: model.prior.as_ref().map_or_else(Amount::default, |prior| {
            let mut work = prior.work.at(extent) * (prior.calls * prior.rows);
            work.launches = prior.work.launches * prior.calls;
            work
        }),
        encoding: if encodes {
            model.decoder.work.at(one) * model.decoder.encoder_share
        } else {
            Amount::default()
        },
        denoising,
        decoding,
        rows: passes.rows,
        calls: passes.calls,
        steps,
    }
}

/// How guidance makes a step run.
struct Passes {
    rows: f64,
    calls: f64,
    prompts: f64,
}

impl Passes {
    fn of(model: &Model, workload: &Workload) -> Self {
        let guidance = model.guidance;
        let scale = match guidance.scale {
            Scale::Guidance => workload.guidance_scale,
            Scale::TrueCfg => workload.true_cfg_scale,
        };
        let negative = match guidance.negative {
            Negative::Optional => true,
            Negative::Needed => workload.negative_prompt,
        };
        let on = scale > guidance.above && negative && guidance.runs != Runs::Never;
        let (rows, calls) = match (on, guidance.runs) {
            (false, _) | (_, Runs::Never) => (1.0, 1.0),
            (true, Runs::Batched) => (2.0, 1.0),
            (true, Runs::Sequential) => (2.0, 2.0),
        };
        Self {
            rows,
            calls,
            prompts: rows,
        }
    }

    /// One step: all its rows, and the launches of all its calls.
    fn of_call(&self, model: &Model, workload: &Workload, extent: Extent) -> Amount {
        let mut work = model.denoiser.at(extent) * (self.rows * workload.surcharge());
        work.launches = model.denoiser.launches * self.calls;
        if workload.controlnets > 0 {
            let net = model.controlnet.unwrap_or(model.denoiser);
            let share = if model.controlnet.is_some() {
                1.0
            } else {
                UNKNOWN_CONTROLNET
            };
            let nets = f64::from(workload.controlnets) * share;
            let mut beside = net.at(extent) * (self.rows * nets);
            beside.launches = net.launches * self.calls * nets;
            work = work + beside;
        }
        work
    }
}

/// Share of a pass that a ControlNet takes where its shape is not known: the half of a U-Net
/// that it copies.
const UNKNOWN_CONTROLNET: f64 = 0.4;

fn extent(model: &Model, workload: &Workload, multiple: u32) -> Extent {
    let multiple = multiple.max(1);
    let (width, height) = if workload.use_resolution_binning {
        let (width, height) = (workload.width, workload.height);
        model.binned.size(width, height, model.defaults.width)
    } else {
        (workload.width, workload.height)
    };
    let pad = |side: u32| f64::from(side.div_ceil(multiple) * multiple);
    let frames = match &model.frames {
        Some(frames) => f64::from(frames.latent(workload.frames)),
        None => 1.0,
    };
    let tokens = pad(width) * pad(height) / 256.0;
    Extent { tokens, frames }
}
