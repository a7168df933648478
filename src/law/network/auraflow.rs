//! AuraFlow: a few blocks of two streams as in SD3, then many of one stream.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens};
use super::mmdit::{
    FeedForward, Shape, adaptive_norm, double_block, output, queries, rest_of_block,
};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

/// Learnt tokens that stand before the text.
const REGISTERS: f64 = 8.0;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct AuraFlow {
    patch_size: f64,
    in_channels: f64,
    num_mmdit_layers: usize,
    num_single_dit_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    joint_attention_dim: f64,
    caption_projection_dim: f64,
    out_channels: f64,
    pos_embed_max_size: f64,
}

impl Default for AuraFlow {
    fn default() -> Self {
        Self {
            patch_size: 2.0,
            in_channels: 4.0,
            num_mmdit_layers: 4,
            num_single_dit_layers: 32,
            attention_head_dim: 256.0,
            num_attention_heads: 12.0,
            joint_attention_dim: 2048.0,
            caption_projection_dim: 3072.0,
            out_channels: 4.0,
            pos_embed_max_size: 1024.0,
        }
    }
}

/// Two thirds of four widths, up to a multiple of 256.
fn hidden(width: f64) -> f64 {
    let exact = (2.0 * 4.0 * width / 3.0).floor();
    (exact / 256.0).ceil() * 256.0
}

/// `AuraFlowTransformer2DModel`; the text's length is without the registers.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: AuraFlow = fields(config)?;
    let (double, single) = (model.num_mmdit_layers, model.num_single_dit_layers);
    within(
        config,
        "num_single_dit_layers",
        double.saturating_add(single),
        1000,
    )?;
    let d = model.num_attention_heads * model.attention_head_dim;
    let shape = Shape {
        heads: model.num_attention_heads,
        head: model.attention_head_dim,
        qk_norm: true,
        rotary: false,
        mlp: hidden(d) / d,
        feed_forward: FeedForward::Gated,
        modulated: true,
    };
    let mut c = Counter::default();
    let volume = model.patch_size.powi(2);
    let image = Tokens::image(4.0 / volume);
    let text = Tokens::text(text_tokens + REGISTERS);
    c.linear(image, volume * model.in_channels, d);
    // Positions are learnt, and added.
    c.elementwise(image, d, BINARY);
    c.work.weights += (model.pos_embed_max_size.max(0.0) + REGISTERS) * d;
    c.time_embedding(256.0, d);
    c.linear(
        Tokens::text(text_tokens),
        model.joint_attention_dim,
        model.caption_projection_dim,
    );
    for _ in 0..double {
        double_block(&mut c, &shape, image, text, false);
    }
    let all = image + text;
    for _ in 0..single {
        adaptive_norm(&mut c, &shape, all, 6.0);
        queries(&mut c, &shape, all);
        c.attention(Scope::All, all, all, shape.heads, shape.head);
        rest_of_block(&mut c, &shape, all);
    }
    output(&mut c, &shape, image, volume * model.out_channels);
    Ok(c.work)
}
