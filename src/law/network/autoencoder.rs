//! Autoencoders' decoders: from latents to pixels.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, GROUP_NORM, Scope, Tokens, UNARY, differ};
use super::unet::LATENT;
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    out_channels: f64,
    block_out_channels: Vec<f64>,
    layers_per_block: usize,
    latent_channels: f64,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
    norm_type: String,
    up_block_types: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            out_channels: 3.0,
            block_out_channels: vec![128.0, 256.0, 512.0, 512.0],
            layers_per_block: 2,
            latent_channels: 4.0,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            norm_type: "group".to_owned(),
            up_block_types: Vec::new(),
        }
    }
}

/// What the norms and residual blocks of a decoder do besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// MoVQ: every norm is scaled and shifted by 1×1 convolutions of the latents.
    Spatial,
    /// Stable Video Diffusion: a residual block along time after each, blended.
    Temporal,
}

struct Decoder {
    counter: Counter,
    kind: Kind,
    latents: f64,
}

impl Decoder {
    fn norm(&mut self, at: Tokens, width: f64) {
        let c = &mut self.counter;
        c.elementwise(at, width, GROUP_NORM);
        if self.kind == Kind::Spatial {
            c.elementwise(at, self.latents, UNARY);
            c.convolution(at, self.latents, width, 1.0);
            c.convolution(at, self.latents, width, 1.0);
            c.elementwise_times(2, at, width, BINARY);
        }
    }

    fn resnet(&mut self, at: Tokens, from: f64, to: f64) {
        for (a, b) in [(from, to), (to, to)] {
            self.norm(at, a);
            self.counter.elementwise(at, a, UNARY);
            self.counter.convolution(at, a, b, 9.0);
        }
        let c = &mut self.counter;
        if differ(from, to) {
            c.convolution(at, from, to, 1.0);
        }
        c.elementwise(at, to, BINARY);
        c.elementwise(at, to, UNARY);
        if self.kind == Kind::Temporal {
            for _ in 0..2 {
                c.elementwise(at, to, GROUP_NORM);
                c.elementwise(at, to, UNARY);
                c.convolution(at, to, to, 3.0);
            }
            c.elementwise_times(2, at, to, BINARY);
        }
    }

    /// Attention within a frame with one head over all channels.
    fn attention(&mut self, at: Tokens, width: f64) {
        self.norm(at, width);
        let c = &mut self.counter;
        for _ in 0..3 {
            c.linear(at, width, width);
        }
        c.attention(Scope::Frame, at, at, 1.0, width);
        c.linear(at, width, width);
        c.elementwise(at, width, BINARY);
        c.elementwise(at, width, UNARY);
    }
}

/// `AutoencoderKL`.
pub(super) fn walk_kl(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    walk(config, Kind::Plain)
}

/// `VQModel`, as Kandinsky uses it.
pub(super) fn walk_vq(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    let vq: Config = fields(config)?;
    let spatial = vq.norm_type == "spatial";
    walk(config, if spatial { Kind::Spatial } else { Kind::Plain })
}

/// `AutoencoderKLTemporalDecoder`.
pub(super) fn walk_temporal(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    walk(config, Kind::Temporal)
}

fn walk(config: &Value, kind: Kind) -> Result<Work, ConfigError> {
    let vae: Config = fields(config)?;
    let levels = within(
        config,
        "block_out_channels",
        vae.block_out_channels.len(),
        12,
    )?;
    within(config, "layers_per_block", vae.layers_per_block, 64)?;
    let mut decoder = Decoder {
        counter: Counter::default(),
        kind,
        latents: vae.latent_channels,
    };
    // Each level but one doubles the sides: eight latents for a pixel's side with four.
    let mut at = Tokens::image(LATENT * 4_f64.powi(4 - i32::try_from(levels).unwrap_or(4)));
    let top = vae.block_out_channels[levels - 1];
    if vae.use_post_quant_conv && kind != Kind::Temporal {
        decoder
            .counter
            .convolution(at, vae.latent_channels, vae.latent_channels, 1.0);
    }
    decoder
        .counter
        .convolution(at, vae.latent_channels, top, 9.0);
    decoder.resnet(at, top, top);
    if vae.mid_block_add_attention {
        decoder.attention(at, top);
    }
    decoder.resnet(at, top, top);
    let mut width = top;
    for level in (0..levels).rev() {
        let out = vae.block_out_channels[level];
        let kind_of_block = vae.up_block_types.get(levels - 1 - level);
        let attends = kind_of_block.is_some_and(|kind| kind.starts_with("Attn"));
        for _ in 0..=vae.layers_per_block {
            decoder.resnet(at, width, out);
            width = out;
            if attends {
                decoder.attention(at, width);
            }
        }
        if level > 0 {
            at = at * 4.0;
            decoder.counter.elementwise(at, width, 1.25);
            decoder.counter.convolution(at, width, width, 9.0);
        }
    }
    decoder.norm(at, width);
    decoder.counter.elementwise(at, width, UNARY);
    decoder
        .counter
        .convolution(at, width, vae.out_channels, 9.0);
    if kind == Kind::Temporal {
        decoder
            .counter
            .convolution(at, vae.out_channels, vae.out_channels, 3.0);
    }
    Ok(decoder.counter.work)
}
