//! Transformers over videos: Wan, CogVideoX, LTX.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Tokens, UNARY};
use super::dit::{Attention, table_norm};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Wan {
    patch_size: Vec<f64>,
    num_attention_heads: f64,
    attention_head_dim: f64,
    in_channels: f64,
    out_channels: f64,
    text_dim: f64,
    freq_dim: f64,
    ffn_dim: f64,
    num_layers: usize,
    image_dim: Option<f64>,
}

impl Default for Wan {
    fn default() -> Self {
        Self {
            patch_size: vec![1.0, 2.0, 2.0],
            num_attention_heads: 40.0,
            attention_head_dim: 128.0,
            in_channels: 16.0,
            out_channels: 16.0,
            text_dim: 4096.0,
            freq_dim: 256.0,
            ffn_dim: 13824.0,
            num_layers: 40,
            image_dim: None,
        }
    }
}

/// `WanTransformer3DModel`: attention over all frames, and to the text.
pub(super) fn walk_wan(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Wan = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume: f64 = model.patch_size.iter().product();
    let (video, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    c.convolution(video, model.in_channels, d, volume);
    c.time_embedding(model.freq_dim, d);
    c.linear(Tokens::ONE, d, 6.0 * d);
    c.mlp(text, model.text_dim, d, d);
    // CLIP's tokens of the first frame.
    let seen = Tokens::text(257.0);
    if let Some(from) = model.image_dim {
        c.mlp(seen, from, from, d);
    }
    let own = Attention {
        normed: true,
        rotary: true,
        ..Attention::own(video, d, head)
    };
    let cross = Attention {
        rotary: false,
        ..own.to(text, d)
    };
    for _ in 0..layers {
        table_norm(&mut c, video, d);
        own.count(&mut c);
        c.elementwise(video, d, UNARY);
        cross.count(&mut c);
        if model.image_dim.is_some() {
            c.linear(seen, d, d);
            c.linear(seen, d, d);
            let heads = model.num_attention_heads;
            c.attention(super::Scope::All, video, seen, heads, head);
            c.elementwise(video, d, BINARY);
        }
        table_norm(&mut c, video, d);
        c.mlp(video, d, model.ffn_dim, d);
        c.elementwise(video, d, BINARY);
    }
    table_norm(&mut c, video, d);
    c.linear(video, d, volume * model.out_channels);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct CogVideoX {
    num_attention_heads: f64,
    attention_head_dim: f64,
    in_channels: f64,
    out_channels: f64,
    time_embed_dim: f64,
    text_embed_dim: f64,
    num_layers: usize,
    patch_size: f64,
    patch_size_t: Option<f64>,
    use_rotary_positional_embeddings: bool,
}

impl Default for CogVideoX {
    fn default() -> Self {
        Self {
            num_attention_heads: 30.0,
            attention_head_dim: 64.0,
            in_channels: 16.0,
            out_channels: 16.0,
            time_embed_dim: 512.0,
            text_embed_dim: 4096.0,
            num_layers: 30,
            patch_size: 2.0,
            patch_size_t: None,
            use_rotary_positional_embeddings: false,
        }
    }
}

/// `CogVideoXTransformer3DModel`: text and video in one stream with shared weights.
pub(super) fn walk_cogvideox(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: CogVideoX = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume = model.patch_size.powi(2) * model.patch_size_t.unwrap_or(1.0);
    let (video, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    let all = video + text;
    c.linear(video, volume * model.in_channels, d);
    c.linear(text, model.text_embed_dim, d);
    c.time_embedding(d, model.time_embed_dim);
    for _ in 0..layers {
        for _ in 0..2 {
            c.elementwise(Tokens::ONE, model.time_embed_dim, UNARY);
            c.linear(Tokens::ONE, model.time_embed_dim, 6.0 * d);
            c.elementwise_times(4, all, d, UNARY);
        }
        let attention = Attention {
            normed: true,
            rotary: model.use_rotary_positional_embeddings,
            ..Attention::own(all, d, head)
        };
        attention.count(&mut c);
        c.mlp(all, d, 4.0 * d, d);
        c.elementwise(all, d, BINARY);
    }
    c.linear(Tokens::ONE, model.time_embed_dim, 2.0 * d);
    c.elementwise_times(4, all, d, UNARY);
    c.linear(video, d, volume * model.out_channels);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Ltx {
    in_channels: f64,
    out_channels: f64,
    num_attention_heads: f64,
    attention_head_dim: f64,
    cross_attention_dim: f64,
    num_layers: usize,
    caption_channels: f64,
}

impl Default for Ltx {
    fn default() -> Self {
        Self {
            in_channels: 128.0,
            out_channels: 128.0,
            num_attention_heads: 32.0,
            attention_head_dim: 64.0,
            cross_attention_dim: 2048.0,
            num_layers: 28,
            caption_channels: 4096.0,
        }
    }
}

/// `LTXVideoTransformer3DModel`: latents are 32 times smaller each way.
pub(super) fn walk_ltx(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Ltx = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let (video, text) = (Tokens::image(0.25), Tokens::text(text_tokens));
    c.linear(video, model.in_channels, d);
    c.time_embedding(256.0, d);
    c.linear(Tokens::ONE, d, 6.0 * d);
    c.mlp(text, model.caption_channels, d, d);
    let own = Attention {
        normed: true,
        rotary: true,
        ..Attention::own(video, d, head)
    };
    let cross = Attention {
        rotary: false,
        ..own.to(text, model.cross_attention_dim)
    };
    for _ in 0..layers {
        table_norm(&mut c, video, d);
        own.count(&mut c);
        cross.count(&mut c);
        table_norm(&mut c, video, d);
        c.mlp(video, d, 4.0 * d, d);
        c.elementwise(video, d, BINARY);
    }
    table_norm(&mut c, video, d);
    c.linear(video, d, model.out_channels);
    Ok(c.work)
}
