//! CogView4: picture and text in one stream with shared weights, each modulated for itself.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Tokens, UNARY};
use super::dit::Attention;
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct CogView4 {
    patch_size: f64,
    in_channels: f64,
    out_channels: f64,
    num_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    text_embed_dim: f64,
    time_embed_dim: f64,
    condition_dim: f64,
}

impl Default for CogView4 {
    fn default() -> Self {
        Self {
            patch_size: 2.0,
            in_channels: 16.0,
            out_channels: 16.0,
            num_layers: 30,
            attention_head_dim: 40.0,
            num_attention_heads: 64.0,
            text_embed_dim: 4096.0,
            time_embed_dim: 512.0,
            condition_dim: 256.0,
        }
    }
}

/// `CogView4Transformer2DModel`.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: CogView4 = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume = model.patch_size.powi(2);
    let (image, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    let (all, time) = (image + text, model.time_embed_dim);
    c.linear(image, volume * model.in_channels, d);
    c.linear(text, model.text_embed_dim, d);
    c.time_embedding(d, time);
    // Original size, target size and crop: two numbers each.
    c.time_embedding(6.0 * model.condition_dim, time);
    let attention = Attention {
        normed: true,
        ..Attention::own(all, d, head)
    };
    for _ in 0..layers {
        c.linear(Tokens::ONE, time, 12.0 * d);
        for at in [image, text] {
            c.elementwise_times(3, at, d, UNARY);
        }
        c.elementwise(all, d, UNARY);
        // Rotary embeddings: of the picture alone.
        c.elementwise_times(6, image, 2.0 * d, 1.0);
        attention.count(&mut c);
        for at in [image, text] {
            c.elementwise_times(3, at, d, UNARY);
        }
        c.mlp(all, d, 4.0 * d, d);
        for at in [image, text] {
            c.elementwise(at, d, UNARY);
            c.elementwise(at, d, BINARY);
        }
    }
    c.linear(Tokens::ONE, time, 2.0 * d);
    c.elementwise_times(3, image, d, UNARY);
    c.linear(image, d, volume * model.out_channels);
    Ok(c.work)
}
