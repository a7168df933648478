//! One model: its networks' work and how its pipeline runs them.

use super::binning::Binning;
use crate::law::network::Work;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pipeline with its weights' shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub name: String,
    /// Class of the denoiser: what a model never run inherits its level from.
    pub architecture: String,
    /// One call of the network that runs every step, one picture.
    pub denoiser: Work,
    /// One call of a ControlNet beside it, where its shape is known.
    pub controlnet: Option<Work>,
    /// Text and picture encoders, one prompt.
    pub text: Work,
    /// A network before the denoiser (unCLIP).
    pub prior: Option<Prior>,
    pub decoder: Decoding,
    /// Width and height are padded up to a multiple of this, in px.
    pub pixel_multiple: u32,
    /// Which size the pipeline makes for one that is asked.
    pub binned: Binning,
    /// Of videos; pictures have none.
    pub frames: Option<Frames>,
    pub guidance: Guidance,
    pub defaults: Defaults,
    /// False where the published configuration was not at hand and was recalled.
    pub certain: bool,
}

/// A network that runs before the denoiser.
#[derive(Debug, Clone, PartialEq)]
pub struct Prior {
    pub work: Work,
    pub calls: f64,
    /// Rows of a call: 2 with its own guidance.
    pub rows: f64,
}

/// From latents to pixels, and back where the pipeline starts from a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoding {
    pub work: Work,
    /// Share of the decoder's work that encoding one picture takes.
    pub encoder_share: f64,
    /// True where the pipeline always encodes a picture first.
    pub encodes: bool,
}

/// Frames of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Frames {
    /// Frames to a latent frame: 1, or c where f frames make (f − 1)/c + 1.
    pub compression: u32,
    /// Latent frames are padded up to a multiple of this.
    #[serde(default = "one")]
    pub multiple: u32,
    /// True where the pipeline makes a frame more of as many as c divides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rounded: bool,
}

fn one() -> u32 {
    1
}

impl Frames {
    /// Latent frames of a video of so many frames.
    pub fn latent(&self, frames: u32) -> u32 {
        let asked = frames.saturating_sub(u32::from(!self.rounded));
        let latent = asked / self.compression.max(1) + 1;
        latent.div_ceil(self.multiple.max(1)) * self.multiple.max(1)
    }
}

/// How classifier-free guidance runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Guidance {
    pub runs: Runs,
    /// Which parameter switches it.
    pub scale: Scale,
    /// It is on above this.
    pub above: f64,
    pub negative: Negative,
}

impl Default for Guidance {
    fn default() -> Self {
        Self {
            runs: Runs::Batched,
            scale: Scale::Guidance,
            above: 1.0,
            negative: Negative::Optional,
        }
    }
}

/// The two predictions of a guided step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Runs {
    /// In one call with a doubled batch.
    Batched,
    /// In two calls, one after the other.
    Sequential,
    /// Guidance is distilled into the model, or embedded: it costs nothing.
    Never,
}

/// The parameter that switches guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scale {
    /// `guidance_scale`.
    Guidance,
    /// `true_cfg_scale`; `guidance_scale` is an embedded input.
    TrueCfg,
}

/// Whether guidance runs without a negative prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Negative {
    /// An empty one is encoded.
    Optional,
    /// Without one there is no guidance, whatever the scale.
    Needed,
}

/// What runs where the author says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub guidance: f64,
    pub true_cfg: f64,
    pub frames: u32,
}
