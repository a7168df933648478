//! The configuration of `StableCascadeUNet`, as levels.

use super::config::{ConfigError, PerLevel, class, within};
use super::counter::differ;
use serde::Deserialize;
use serde_json::Value;

/// Latents in 16×16 px, by the number of their channels: no field says how far they are
/// compressed. The prior's 16 channels are 42.67 times smaller than the picture each way, the
/// decoder's 4 channels 4 times.
const LATENTS: [(f64, f64); 2] = [(16.0, 9.0 / 64.0), (4.0, 16.0)];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    #[serde(rename = "SDCascadeResBlock")]
    Residual,
    #[serde(rename = "SDCascadeTimestepBlock")]
    Timestep,
    #[serde(rename = "SDCascadeAttnBlock")]
    Attention,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) in_channels: f64,
    pub(super) out_channels: f64,
    pub(super) timestep_ratio_embedding_dim: f64,
    pub(super) patch_size: f64,
    pub(super) conditioning_dim: f64,
    block_out_channels: Vec<f64>,
    num_attention_heads: Vec<f64>,
    down_num_layers_per_block: Vec<usize>,
    up_num_layers_per_block: Vec<usize>,
    down_blocks_repeat_mappers: Vec<usize>,
    up_blocks_repeat_mappers: Vec<usize>,
    block_types_per_layer: Vec<Vec<Kind>>,
    pub(super) clip_text_in_channels: Option<f64>,
    pub(super) clip_text_pooled_in_channels: f64,
    pub(super) clip_image_in_channels: Option<f64>,
    pub(super) clip_seq: f64,
    pub(super) effnet_in_channels: Option<f64>,
    pub(super) pixel_mapper_in_channels: Option<f64>,
    pub(super) kernel_size: f64,
    self_attn: PerLevel<bool>,
    pub(super) timestep_conditioning_type: Vec<String>,
    switch_level: Option<Vec<bool>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 16.0,
            out_channels: 16.0,
            timestep_ratio_embedding_dim: 64.0,
            patch_size: 1.0,
            conditioning_dim: 2048.0,
            block_out_channels: vec![2048.0; 2],
            num_attention_heads: vec![32.0; 2],
            down_num_layers_per_block: vec![8, 24],
            up_num_layers_per_block: vec![24, 8],
            down_blocks_repeat_mappers: vec![1; 2],
            up_blocks_repeat_mappers: vec![1; 2],
            block_types_per_layer: vec![vec![Kind::Residual, Kind::Timestep, Kind::Attention]; 2],
            clip_text_in_channels: None,
            clip_text_pooled_in_channels: 1280.0,
            clip_image_in_channels: None,
            clip_seq: 4.0,
            effnet_in_channels: None,
            pixel_mapper_in_channels: None,
            kernel_size: 3.0,
            self_attn: PerLevel::One(true),
            timestep_conditioning_type: vec!["sca".to_owned(), "crp".to_owned()],
            switch_level: None,
        }
    }
}

/// Layers of one side of a level, and how often they all run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    pub(super) layers: usize,
    pub(super) runs: usize,
}

/// The step from one level to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A 2×2 convolution that moves by two positions.
    Strided,
    /// A 1×1 convolution where the level is larger, and a resize.
    Resized,
    /// A 1×1 convolution alone: both levels are of one size.
    Level,
}

#[derive(Debug)]
pub(super) struct Level {
    pub(super) width: f64,
    pub(super) heads: f64,
    pub(super) kinds: Vec<Kind>,
    /// Attention looks at the picture besides the text.
    pub(super) own: bool,
    pub(super) down: Side,
    pub(super) up: Side,
    /// From the level above.
    pub(super) step: Step,
}

/// What a list says of one level.
fn entry<T: Clone>(
    config: &Value,
    field: &'static str,
    list: &[T],
    level: usize,
) -> Result<T, ConfigError> {
    list.get(level).cloned().ok_or_else(|| ConfigError::Value {
        class: class(config).unwrap_or_default().to_owned(),
        field,
        value: format!("{} long", list.len()),
        allowed: "it needs one entry for each of block_out_channels",
    })
}

/// One side of a level, out of its two lists.
fn side(
    config: &Value,
    names: [&'static str; 2],
    layers: &[usize],
    runs: &[usize],
    level: usize,
) -> Result<Side, ConfigError> {
    let [layers_name, runs_name] = names;
    let layers = entry(config, layers_name, layers, level)?;
    let runs = entry(config, runs_name, runs, level)?;
    Ok(Side {
        layers: within(config, layers_name, layers, 128)?,
        runs: within(config, runs_name, runs, 16)?,
    })
}

impl Config {
    /// Latents in 16×16 px.
    pub(super) fn latents(&self, config: &Value) -> Result<f64, ConfigError> {
        let known = LATENTS
            .iter()
            .find(|(channels, _)| !differ(*channels, self.in_channels));
        known
            .map(|(_, latents)| *latents)
            .ok_or_else(|| ConfigError::Value {
                class: class(config).unwrap_or_default().to_owned(),
                field: "in_channels",
                value: self.in_channels.to_string(),
                allowed: "16 is Stable Cascade's prior and 4 its decoder; nothing else says how far the latents are compressed",
            })
    }

    /// Its levels, from the largest.
    pub(super) fn levels(&self, config: &Value) -> Result<Vec<Level>, ConfigError> {
        let count = self.block_out_channels.len();
        let count = within(config, "block_out_channels", count, 12)?;
        let conditions = self.timestep_conditioning_type.len();
        within(config, "timestep_conditioning_type", conditions.max(1), 8)?;
        let mut levels = Vec::with_capacity(count);
        for level in 0..count {
            let kinds = &self.block_types_per_layer;
            let kinds = entry(config, "block_types_per_layer", kinds, level)?;
            within(config, "block_types_per_layer", kinds.len(), 8)?;
            let step = match &self.switch_level {
                None => Step::Strided,
                Some(list) if level > 0 => {
                    if entry(config, "switch_level", list, level - 1)? {
                        Step::Resized
                    } else {
                        Step::Level
                    }
                }
                // Nothing stands above the first.
                Some(_) => Step::Level,
            };
            levels.push(Level {
                width: entry(
                    config,
                    "block_out_channels",
                    &self.block_out_channels,
                    level,
                )?,
                heads: entry(
                    config,
                    "num_attention_heads",
                    &self.num_attention_heads,
                    level,
                )?,
                kinds,
                own: self.self_attn.at(level).unwrap_or(true),
                down: side(
                    config,
                    ["down_num_layers_per_block", "down_blocks_repeat_mappers"],
                    &self.down_num_layers_per_block,
                    &self.down_blocks_repeat_mappers,
                    level,
                )?,
                // The way up begins with the deepest level.
                up: side(
                    config,
                    ["up_num_layers_per_block", "up_blocks_repeat_mappers"],
                    &self.up_num_layers_per_block,
                    &self.up_blocks_repeat_mappers,
                    count - 1 - level,
                )?,
                step,
            });
        }
        Ok(levels)
    }
}
