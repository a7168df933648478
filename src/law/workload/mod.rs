//! What a diffusion job generates, in the names that `diffusers` uses.

mod annotations;

pub use annotations::*;

use super::catalogue::Model;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Number format of the weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    Tf32,
    Fp16,
    Bf16,
    Fp8,
    Int8,
    Fp4,
}

impl Precision {
    pub const ALL: [Self; 7] = [
        Self::Fp32,
        Self::Tf32,
        Self::Fp16,
        Self::Bf16,
        Self::Fp8,
        Self::Int8,
        Self::Fp4,
    ];

    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_lowercase();
        match text.as_str() {
            "float32" => Some(Self::Fp32),
            "float16" => Some(Self::Fp16),
            "bfloat16" => Some(Self::Bf16),
            _ => Self::ALL.into_iter().find(|p| p.as_str() == text),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp4 => "fp4",
        }
    }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// How often a scheduler calls the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Scheduler {
    /// Once a step.
    #[default]
    FirstOrder,
    /// 2·N − 1 calls for N steps: Heun, KDPM2, DPM-SDE.
    SecondOrder,
    /// N + 1 calls: PNDM as Stable Diffusion 1 uses it.
    Pndm,
}

impl Scheduler {
    /// By the class name that `diffusers` gives it.
    pub fn parse(name: &str) -> Option<Self> {
        const SECOND: [&str; 5] = [
            "HeunDiscreteScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverSDEScheduler",
        ];
        match name {
            name if SECOND.contains(&name) => Some(Self::SecondOrder),
            "PNDMScheduler" => Some(Self::Pndm),
            name if name.ends_with("Scheduler") => Some(Self::FirstOrder),
            _ => None,
        }
    }
}

/// What one pod generates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub model: String,
    /// Pixels.
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub guidance_scale: f64,
    pub true_cfg_scale: f64,
    pub precision: Precision,
    /// Pictures or videos.
    pub images: u64,
    pub batch: u32,
    /// Of a video; 1 for pictures.
    #[serde(default = "one")]
    pub frames: u32,
    /// True where guidance has a negative prompt to run with.
    #[serde(default = "yes")]
    pub negative_prompt: bool,
    /// Of image-to-image: the part of the steps that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Calls of the denoiser that the scheduler makes for a number of steps.
    #[serde(default)]
    pub scheduler: Scheduler,
    #[serde(default)]
    pub controlnets: u32,
    /// Rank of a LoRA that is not fused into the weights; 0 for none.
    #[serde(default)]
    pub lora_rank: u32,
    #[serde(default)]
    pub vae_tiling: bool,
    /// Of pipelines that make one of a few sizes and scale it: true by default.
    pub use_resolution_binning: bool,
    /// A model of the catalogue that runs the last steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoising_end: Option<f64>,
    /// What the pipeline runs on, in its author's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
    /// Annotations that were absent and took the pipeline's own default.
    #[serde(default)]
    pub assumed: Vec<Cow<'static, str>>,
}

impl Workload {
    /// One picture or video as a model's pipeline makes it where nothing is said.
    pub fn of(model: &Model) -> Self {
        let defaults = &model.defaults;
        Self {
            model: model.name.clone(),
            width: defaults.width,
            height: defaults.height,
            steps: defaults.steps,
            guidance_scale: defaults.guidance,
            true_cfg_scale: defaults.true_cfg,
            precision: Precision::Fp16,
            images: 1,
            batch: 1,
            frames: if model.frames.is_some() {
                defaults.frames
            } else {
                1
            },
            negative_prompt: false,
            strength: None,
            scheduler: Scheduler::FirstOrder,
            controlnets: 0,
            lora_rank: 0,
            vae_tiling: false,
            use_resolution_binning: true,
            refiner: None,
            denoising_end: None,
            software: None,
            assumed: Vec::new(),
        }
    }

    /// True where it is not known how many pictures are generated together: more than one are
    /// made, and nobody says.
    pub fn is_batch_unknown(&self) -> bool {
        self.images > 1 && self.assumed.iter().any(|name| name == BATCH.name)
    }

    /// Calls of the denoiser for one picture, each of one or two rows as guidance has it.
    pub fn model_calls(&self) -> f64 {
        let steps = f64::from(self.steps);
        let steps = match self.strength {
            // Some pipelines round down, some up: at most a step apart.
            Some(strength) => (steps * strength.clamp(0.0, 1.0) - 1e-6).ceil().max(1.0),
            None => steps,
        };
        match self.scheduler {
            Scheduler::FirstOrder => steps,
            Scheduler::SecondOrder => 2.0 * steps - 1.0,
            Scheduler::Pndm => steps + 1.0,
        }
    }

    /// What a LoRA that is not fused adds to a pass: `rank·(a + b)/(a·b)` of a layer from a to
    /// b features, at widths of about 1,500.
    pub fn surcharge(&self) -> f64 {
        1.0 + f64::from(self.lora_rank) * 2.0 / 1500.0
    }

    /// What overlapping tiles add to decoding: tiles of the size the autoencoder was trained
    /// at, three quarters of a tile apart.
    pub fn tiling(&self, model: &Model) -> f64 {
        if !self.vae_tiling {
            return 1.0;
        }
        let side = |pixels: u32, tile: u32| {
            let (length, tile) = (f64::from(pixels), f64::from(tile.max(64)));
            if length <= tile {
                return 1.0;
            }
            let stride = tile * 0.75;
            let tiles = (length / stride).ceil();
            let covered = |n: f64| tile.min(length - n * stride);
            let mut sum = 0.0;
            let mut n = 0.0;
            while n < tiles {
                sum += covered(n);
                n += 1.0;
            }
            sum / length
        };
        let tile = model.defaults.width.min(model.defaults.height);
        side(self.width, tile) * side(self.height, tile)
    }
}
