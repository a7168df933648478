//! Transformers over the picture alone that look at the text by cross-attention: PixArt,
//! HunyuanDiT, Sana; and the prior of Kandinsky 2.2.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

/// Attention of `at` to `keys`, with its projections and residual.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    pub(super) at: Tokens,
    pub(super) keys: Tokens,
    pub(super) width: f64,
    pub(super) key_width: f64,
    pub(super) head: f64,
    pub(super) normed: bool,
    pub(super) rotary: bool,
}

impl Attention {
    /// Of a stream to itself.
    pub(super) fn own(at: Tokens, width: f64, head: f64) -> Self {
        Self {
            at,
            keys: at,
            width,
            key_width: width,
            head,
            normed: false,
            rotary: false,
        }
    }

    /// Of a stream to a text of another width.
    pub(super) fn to(self, keys: Tokens, key_width: f64) -> Self {
        Self {
            keys,
            key_width,
            ..self
        }
    }

    pub(super) fn count(&self, c: &mut Counter) {
        c.linear(self.at, self.width, self.width);
        c.linear(self.keys, self.key_width, self.width);
        c.linear(self.keys, self.key_width, self.width);
        if self.normed {
            c.elementwise(self.at, self.width, BINARY);
            c.elementwise(self.keys, self.width, BINARY);
        }
        if self.rotary {
            c.elementwise_times(6, self.at, 2.0 * self.width, 1.0);
        }
        let heads = self.width / self.head;
        c.attention(Scope::All, self.at, self.keys, heads, self.head);
        c.linear(self.at, self.width, self.width);
        c.elementwise(self.at, self.width, UNARY);
        c.elementwise(self.at, self.width, BINARY);
    }
}

/// Scale, shift and gate from a table: norm, two products, a gate.
pub(super) fn table_norm(c: &mut Counter, at: Tokens, width: f64) {
    c.elementwise_times(4, at, width, UNARY);
}

fn caption(c: &mut Counter, text: Tokens, from: f64, hidden: f64, to: f64) {
    c.mlp(text, from, hidden, to);
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct PixArt {
    num_attention_heads: f64,
    attention_head_dim: f64,
    in_channels: f64,
    out_channels: f64,
    num_layers: usize,
    cross_attention_dim: f64,
    caption_channels: f64,
    patch_size: f64,
}

impl Default for PixArt {
    fn default() -> Self {
        Self {
            num_attention_heads: 16.0,
            attention_head_dim: 72.0,
            in_channels: 4.0,
            out_channels: 8.0,
            num_layers: 28,
            cross_attention_dim: 1152.0,
            caption_channels: 4096.0,
            patch_size: 2.0,
        }
    }
}

/// `PixArtTransformer2DModel`.
pub(super) fn walk_pixart(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: PixArt = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume = model.patch_size.powi(2);
    let (image, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    c.convolution(image, model.in_channels, d, volume);
    c.time_embedding(256.0, d);
    c.linear(Tokens::ONE, d, 6.0 * d);
    caption(&mut c, text, model.caption_channels, d, d);
    for _ in 0..layers {
        table_norm(&mut c, image, d);
        let own = Attention::own(image, d, head);
        own.count(&mut c);
        own.to(text, model.cross_attention_dim).count(&mut c);
        table_norm(&mut c, image, d);
        c.mlp(image, d, 4.0 * d, d);
        c.elementwise(image, d, BINARY);
    }
    table_norm(&mut c, image, d);
    c.linear(image, d, volume * model.out_channels);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Hunyuan {
    num_attention_heads: f64,
    attention_head_dim: f64,
    in_channels: f64,
    patch_size: f64,
    num_layers: usize,
    mlp_ratio: f64,
    learn_sigma: bool,
    cross_attention_dim: f64,
    cross_attention_dim_t5: f64,
    pooled_projection_dim: f64,
    text_len: f64,
    text_len_t5: f64,
}

impl Default for Hunyuan {
    fn default() -> Self {
        Self {
            num_attention_heads: 16.0,
            attention_head_dim: 88.0,
            in_channels: 4.0,
            patch_size: 2.0,
            num_layers: 28,
            mlp_ratio: 4.0,
            learn_sigma: true,
            cross_attention_dim: 1024.0,
            cross_attention_dim_t5: 2048.0,
            pooled_projection_dim: 1024.0,
            text_len: 77.0,
            text_len_t5: 256.0,
        }
    }
}

/// `HunyuanDiT2DModel`: its second half takes skips from the first.
pub(super) fn walk_hunyuan(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Hunyuan = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume = model.patch_size.powi(2);
    let image = Tokens::image(4.0 / volume);
    let text = Tokens::text(model.text_len + model.text_len_t5);
    c.convolution(image, model.in_channels, d, volume);
    let t5 = model.cross_attention_dim_t5;
    let long = Tokens::text(model.text_len_t5);
    caption(&mut c, long, t5, 4.0 * t5, model.cross_attention_dim);
    c.time_embedding(256.0, d);
    // The T5 text is pooled by an attention whose keys and values are projected.
    c.linear(long, t5, t5);
    c.linear(long, t5, t5);
    c.mlp(Tokens::ONE, model.pooled_projection_dim, 4.0 * d, d);
    for layer in 0..layers {
        if layer > layers / 2 {
            c.elementwise(image, 2.0 * d, UNARY);
            c.elementwise(image, 2.0 * d, UNARY);
            c.linear(image, 2.0 * d, d);
        }
        c.elementwise(Tokens::ONE, d, UNARY);
        c.linear(Tokens::ONE, d, d);
        c.elementwise_times(3, image, d, UNARY);
        let own = Attention {
            normed: true,
            rotary: true,
            ..Attention::own(image, d, head)
        };
        own.count(&mut c);
        c.elementwise(image, d, UNARY);
        own.to(text, model.cross_attention_dim).count(&mut c);
        c.elementwise(image, d, UNARY);
        c.mlp(image, d, (model.mlp_ratio * d).floor(), d);
        c.elementwise(image, d, BINARY);
    }
    c.linear(Tokens::ONE, d, 2.0 * d);
    c.elementwise_times(3, image, d, UNARY);
    let channels = model.in_channels * if model.learn_sigma { 2.0 } else { 1.0 };
    c.linear(image, d, volume * channels);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Sana {
    in_channels: f64,
    out_channels: f64,
    num_attention_heads: f64,
    attention_head_dim: f64,
    num_layers: usize,
    cross_attention_head_dim: f64,
    cross_attention_dim: f64,
    caption_channels: f64,
    mlp_ratio: f64,
    patch_size: f64,
    qk_norm: Option<String>,
}

impl Default for Sana {
    fn default() -> Self {
        Self {
            in_channels: 32.0,
            out_channels: 32.0,
            num_attention_heads: 70.0,
            attention_head_dim: 32.0,
            num_layers: 20,
            cross_attention_head_dim: 112.0,
            cross_attention_dim: 2240.0,
            caption_channels: 2304.0,
            mlp_ratio: 2.5,
            patch_size: 1.0,
            qk_norm: None,
        }
    }
}

/// `SanaTransformer2DModel`: linear attention and a gated convolution, over latents that are
/// 32 times smaller each way.
pub(super) fn walk_sana(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Sana = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let volume = model.patch_size.powi(2);
    let (image, text) = (Tokens::image(0.25 / volume), Tokens::text(text_tokens));
    c.convolution(image, model.in_channels, d, volume);
    c.time_embedding(256.0, d);
    c.linear(Tokens::ONE, d, 6.0 * d);
    caption(&mut c, text, model.caption_channels, d, d);
    let hidden = (model.mlp_ratio * d).floor();
    for _ in 0..layers {
        table_norm(&mut c, image, d);
        for _ in 0..3 {
            c.linear(image, d, d);
        }
        if model.qk_norm.is_some() {
            c.elementwise_times(2, image, d, BINARY);
        }
        c.elementwise_times(2, image, d, UNARY);
        // Keys times values once, then queries times that: 2·d·(head + 1) each.
        c.linear(image, d, 2.0 * head + 1.0);
        c.elementwise(image, d, BINARY);
        c.linear(image, d, d);
        c.elementwise_times(2, image, d, BINARY);
        let cross = Attention {
            normed: model.qk_norm.is_some(),
            ..Attention::own(image, d, model.cross_attention_head_dim)
        };
        cross.to(text, model.cross_attention_dim).count(&mut c);
        table_norm(&mut c, image, d);
        c.convolution(image, d, 2.0 * hidden, 1.0);
        c.elementwise(image, 2.0 * hidden, UNARY);
        // Depthwise: each channel for itself; memory-bound.
        c.convolution(image, 1.0, 2.0 * hidden, 9.0);
        c.elementwise(image, 2.0 * hidden, UNARY);
        c.elementwise_times(2, image, hidden, BINARY);
        c.convolution(image, hidden, d, 1.0);
        c.elementwise(image, d, BINARY);
    }
    table_norm(&mut c, image, d);
    c.linear(image, d, volume * model.out_channels);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Prior {
    num_attention_heads: f64,
    attention_head_dim: f64,
    num_layers: usize,
    embedding_dim: f64,
    num_embeddings: f64,
    additional_embeddings: f64,
}

impl Default for Prior {
    fn default() -> Self {
        Self {
            num_attention_heads: 32.0,
            attention_head_dim: 64.0,
            num_layers: 20,
            embedding_dim: 768.0,
            num_embeddings: 77.0,
            additional_embeddings: 4.0,
        }
    }
}

/// `PriorTransformer`: from the text's embedding to the picture's, whatever the size.
pub(super) fn walk_prior(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Prior = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let (head, mut c) = (model.attention_head_dim, Counter::default());
    let d = model.num_attention_heads * head;
    let all = Tokens::text(model.num_embeddings + model.additional_embeddings);
    c.time_embedding(d, d);
    c.linear(Tokens::ONE, model.embedding_dim, d);
    c.linear(Tokens::ONE, model.embedding_dim, d);
    c.linear(Tokens::text(model.num_embeddings), model.embedding_dim, d);
    for _ in 0..layers {
        c.elementwise(all, d, UNARY);
        Attention::own(all, d, head).count(&mut c);
        c.elementwise(all, d, UNARY);
        c.mlp(all, d, 4.0 * d, d);
        c.elementwise(all, d, BINARY);
    }
    c.elementwise(all, d, UNARY);
    c.linear(Tokens::ONE, d, model.embedding_dim);
    Ok(c.work)
}
