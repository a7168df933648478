//! U-Nets over videos: text-to-video (`UNet3DConditionModel`), I2VGen-XL, Stable Video
//! Diffusion, and AnimateDiff's motion modules on a U-Net for pictures.

use super::config::{ConfigError, PerLevel, fields, within};
use super::counter::{BINARY, GROUP_NORM, Scope, Tokens, UNARY};
use super::unet::{LATENT, Walker};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    in_channels: f64,
    out_channels: f64,
    block_out_channels: Vec<f64>,
    down_block_types: Vec<String>,
    layers_per_block: PerLevel<usize>,
    cross_attention_dim: PerLevel<f64>,
    attention_head_dim: Option<PerLevel<f64>>,
    num_attention_heads: Option<PerLevel<f64>>,
    motion_num_attention_heads: PerLevel<f64>,
    use_motion_mid_block: bool,
    projection_class_embeddings_input_dim: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 4.0,
            out_channels: 4.0,
            block_out_channels: vec![320.0, 640.0, 1280.0, 1280.0],
            down_block_types: Vec::new(),
            layers_per_block: PerLevel::One(2),
            cross_attention_dim: PerLevel::One(1024.0),
            attention_head_dim: None,
            num_attention_heads: None,
            motion_num_attention_heads: PerLevel::One(8.0),
            use_motion_mid_block: true,
            projection_class_embeddings_input_dim: 768.0,
        }
    }
}

/// How a U-Net sees time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Convolutions along time and a transformer along time after each for a frame.
    Full,
    /// Residual blocks of 2 and of 1 dimension, blended; each transformer followed by one
    /// along time.
    Blended,
    /// A motion module after each layer; the U-Net itself knows no time.
    Motion,
}

struct Video {
    walker: Walker,
    kind: Kind,
    config: Config,
}

pub(super) fn walk_3d(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let tokens = if super::class(config) == Some("I2VGenXLUNet") {
        // The text, the first frame's 64 pooled tokens and its embedding's 4.
        text_tokens + 64.0 + 4.0
    } else {
        text_tokens
    };
    walk(config, Kind::Full, tokens)
}

pub(super) fn walk_spatio_temporal(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    // One token: the embedding of the first frame.
    walk(config, Kind::Blended, 1.0)
}

pub(super) fn walk_motion(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    walk(config, Kind::Motion, text_tokens)
}

fn walk(config: &Value, kind: Kind, text_tokens: f64) -> Result<Work, ConfigError> {
    let unet: Config = fields(config)?;
    let levels = within(
        config,
        "block_out_channels",
        unet.block_out_channels.len(),
        12,
    )?;
    let widths = unet.block_out_channels.clone();
    let first = widths[0];
    let context = unet.cross_attention_dim.at(0).unwrap_or(1024.0);
    // Text keys are projected anew for each frame.
    let text = Tokens::each_frame(text_tokens);
    let mut video = Video {
        walker: Walker::new(4.0 * first, text, context),
        kind,
        config: unet,
    };
    let mut at = Tokens::image(LATENT);
    video.begin(at, first);
    let (mut width, mut skips) = (first, vec![first]);
    for (level, out) in widths.iter().copied().enumerate() {
        for _ in 0..video.layers(level) {
            video.layer(at, width, out, level);
            width = out;
            skips.push(out);
        }
        if level + 1 < levels {
            at = video.walker.downsample(at, out);
            skips.push(out);
        }
    }
    video.middle(at, width, levels - 1);
    for level in (0..levels).rev() {
        let out = widths[level];
        for _ in 0..=video.layers(level) {
            let skip = skips.pop().unwrap_or(width);
            video.walker.counter.elementwise(at, width + skip, UNARY);
            video.layer(at, width + skip, out, level);
            width = out;
        }
        if level > 0 {
            at = video.walker.upsample(at, width);
        }
    }
    let channels = video.config.out_channels;
    video.walker.output(at, width, channels);
    Ok(video.walker.counter.work)
}

impl Video {
    fn layers(&self, level: usize) -> usize {
        self.config.layers_per_block.at(level).unwrap_or(2).min(64)
    }

    fn heads(&self, level: usize, width: f64) -> f64 {
        let of = |field: &Option<PerLevel<f64>>| field.as_ref().and_then(|f| f.at(level));
        let number = of(&self.config.num_attention_heads);
        match (self.kind, number, of(&self.config.attention_head_dim)) {
            (Kind::Full, None, Some(head)) => width / head.max(1.0),
            (_, Some(heads), _) => heads.max(1.0),
            _ => (width / 64.0).max(1.0),
        }
    }

    fn attends(&self, level: usize) -> bool {
        let kinds = &self.config.down_block_types;
        let last = level + 1 == self.config.block_out_channels.len();
        kinds
            .get(level)
            .map_or(!last, |kind| kind.contains("CrossAttn"))
    }

    fn begin(&mut self, at: Tokens, first: f64) {
        let c = &mut self.walker.counter;
        c.time_embedding(first, 4.0 * first);
        if self.kind == Kind::Blended {
            c.time_embedding(
                self.config.projection_class_embeddings_input_dim,
                4.0 * first,
            );
        }
        c.convolution(at, self.config.in_channels, first, 9.0);
        if self.kind == Kind::Full {
            // Eight heads along time, before the first level.
            self.temporal_transformer(at, first, 8.0, 512.0);
        }
    }

    /// A residual block with what its level adds.
    fn layer(&mut self, at: Tokens, from: f64, to: f64, level: usize) {
        self.residual(at, from, to);
        if self.attends(level) {
            self.transform(at, to, level);
        }
        if self.kind == Kind::Motion {
            let heads = self
                .config
                .motion_num_attention_heads
                .at(level)
                .unwrap_or(8.0);
            self.temporal_transformer(at, to, heads, to);
        }
    }

    fn residual(&mut self, at: Tokens, from: f64, to: f64) {
        self.walker.resnet(at, from, to);
        match self.kind {
            Kind::Full => {
                let c = &mut self.walker.counter;
                for _ in 0..4 {
                    c.elementwise(at, to, GROUP_NORM);
                    c.elementwise(at, to, UNARY);
                    c.convolution(at, to, to, 3.0);
                }
                c.elementwise(at, to, BINARY);
            }
            Kind::Blended => {
                let time = self.walker.time;
                let c = &mut self.walker.counter;
                c.linear(Tokens::each_frame(1.0), time, to);
                for _ in 0..2 {
                    c.elementwise(at, to, GROUP_NORM);
                    c.elementwise(at, to, UNARY);
                    c.convolution(at, to, to, 3.0);
                    c.elementwise(at, to, UNARY);
                }
                c.elementwise_times(2, at, to, BINARY);
            }
            Kind::Motion => {}
        }
    }

    fn transform(&mut self, at: Tokens, width: f64, level: usize) {
        let heads = self.heads(level, width);
        self.walker.transformer(at, width, 1, heads);
        match self.kind {
            Kind::Full => self.temporal_transformer(at, width, heads, width),
            Kind::Blended => {
                let c = &mut self.walker.counter;
                c.mlp(Tokens::each_frame(1.0), width, 4.0 * width, width);
                self.walker.feed_forward(at, width);
                self.walker.attend(at, width, heads, Scope::Time, None);
                let (text, context) = (self.walker.text, self.walker.context);
                self.walker
                    .attend(at, width, heads, Scope::Frame, Some((text, context)));
                self.walker.feed_forward(at, width);
                self.walker.counter.elementwise_times(2, at, width, BINARY);
            }
            Kind::Motion => {}
        }
    }

    /// Two attentions along time and a feed-forward, between projections.
    fn temporal_transformer(&mut self, at: Tokens, width: f64, heads: f64, inner: f64) {
        let c = &mut self.walker.counter;
        c.elementwise(at, width, GROUP_NORM);
        c.elementwise(at, width, UNARY);
        c.linear(at, width, inner);
        for _ in 0..2 {
            self.walker.attend(at, inner, heads, Scope::Time, None);
        }
        self.walker.feed_forward(at, inner);
        let c = &mut self.walker.counter;
        c.linear(at, inner, width);
        c.elementwise_times(2, at, width, UNARY);
        c.elementwise(at, width, BINARY);
    }

    fn middle(&mut self, at: Tokens, width: f64, level: usize) {
        self.residual(at, width, width);
        self.transform(at, width, level);
        if self.kind == Kind::Motion && self.config.use_motion_mid_block {
            let heads = self
                .config
                .motion_num_attention_heads
                .at(level)
                .unwrap_or(8.0);
            self.temporal_transformer(at, width, heads, width);
        }
        self.residual(at, width, width);
    }
}
