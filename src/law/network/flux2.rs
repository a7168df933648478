//! FLUX.2: as FLUX.1, with gated feed-forward layers and modulations that all blocks share.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY};
use super::mmdit::{FeedForward, Shape, adaptive_norm, double_block, output, prepare};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Flux2 {
    patch_size: f64,
    in_channels: f64,
    out_channels: Option<f64>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    joint_attention_dim: f64,
    timestep_guidance_channels: f64,
    mlp_ratio: f64,
    guidance_embeds: bool,
}

impl Default for Flux2 {
    fn default() -> Self {
        Self {
            patch_size: 1.0,
            in_channels: 128.0,
            out_channels: None,
            num_layers: 8,
            num_single_layers: 48,
            attention_head_dim: 128.0,
            num_attention_heads: 48.0,
            joint_attention_dim: 15360.0,
            timestep_guidance_channels: 256.0,
            mlp_ratio: 3.0,
            guidance_embeds: true,
        }
    }
}

/// One stream: a single layer makes queries, keys, values and what the feed-forward starts
/// with, another takes what was attended to and what the feed-forward ends with.
fn single_block(c: &mut Counter, shape: &Shape, at: Tokens) {
    let d = shape.width();
    let hidden = shape.mlp * d;
    adaptive_norm(c, shape, at, 3.0);
    c.linear(at, d, 3.0 * d + 2.0 * hidden);
    prepare(c, shape, at);
    c.attention(Scope::All, at, at, shape.heads, shape.head);
    c.elementwise(at, hidden, UNARY);
    c.elementwise(at, hidden, BINARY);
    c.elementwise(at, hidden + d, UNARY);
    c.linear(at, hidden + d, d);
    c.elementwise(at, d, UNARY);
    c.elementwise(at, d, BINARY);
}

/// `Flux2Transformer2DModel`: FLUX.2 dev and klein. Its autoencoder already packs 2×2 latents,
/// one position for 16×16 px.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Flux2 = fields(config)?;
    within(
        config,
        "num_layers",
        model.num_layers.saturating_add(model.num_single_layers),
        1000,
    )?;
    let shape = Shape {
        heads: model.num_attention_heads,
        head: model.attention_head_dim,
        qk_norm: true,
        rotary: true,
        mlp: model.mlp_ratio,
        feed_forward: FeedForward::Gated,
        modulated: false,
    };
    let (d, mut c) = (shape.width(), Counter::default());
    let (image, text) = (Tokens::image(1.0), Tokens::text(text_tokens));
    c.time_embedding(model.timestep_guidance_channels, d);
    if model.guidance_embeds {
        c.time_embedding(model.timestep_guidance_channels, d);
    }
    // Of the picture and of the text in double blocks; of single blocks.
    for chunks in [6.0, 6.0, 3.0] {
        c.elementwise(Tokens::ONE, d, UNARY);
        c.linear(Tokens::ONE, d, chunks * d);
    }
    c.linear(image, model.in_channels, d);
    c.linear(text, model.joint_attention_dim, d);
    for _ in 0..model.num_layers {
        double_block(&mut c, &shape, image, text, false);
    }
    for _ in 0..model.num_single_layers {
        single_block(&mut c, &shape, image + text);
    }
    let channels = model.out_channels.unwrap_or(model.in_channels);
    let last = Shape {
        modulated: true,
        ..shape
    };
    output(&mut c, &last, image, model.patch_size.powi(2) * channels);
    Ok(c.work)
}
