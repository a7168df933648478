//! Transformers in which picture and text attend to each other: SD3, FLUX, Qwen-Image,
//! HunyuanVideo.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

/// Rotary embeddings: products with cosine and sine, and their sum.
const ROTARY: f64 = 6.0;
const ROTARY_KERNELS: usize = 6;

/// How a feed-forward layer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// An activation between two layers.
    Plain,
    /// The activation gates a second product: GEGLU, SwiGLU.
    Gated,
}

/// Width and heads of the streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: f64,
    pub(super) head: f64,
    pub(super) qk_norm: bool,
    pub(super) rotary: bool,
    /// Width of the feed-forward layer, in widths.
    pub(super) mlp: f64,
    pub(super) feed_forward: FeedForward,
    /// Scale, shift and gate come of a linear layer in each block.
    pub(super) modulated: bool,
}

impl Shape {
    pub(super) fn width(&self) -> f64 {
        self.heads * self.head
    }
}

/// Norm with scale and shift of a linear layer over the time embedding.
pub(super) fn adaptive_norm(c: &mut Counter, shape: &Shape, at: Tokens, chunks: f64) {
    let d = shape.width();
    if shape.modulated && chunks > 0.0 {
        c.elementwise(Tokens::ONE, d, UNARY);
        c.linear(Tokens::ONE, d, chunks * d);
    }
    c.elementwise_times(3, at, d, UNARY);
}

/// Query, key and value of one stream, normed and rotated where the model does so.
pub(super) fn queries(c: &mut Counter, shape: &Shape, at: Tokens) {
    let d = shape.width();
    for _ in 0..3 {
        c.linear(at, d, d);
    }
    prepare(c, shape, at);
}

/// Norms and rotary embeddings of query and key.
pub(super) fn prepare(c: &mut Counter, shape: &Shape, at: Tokens) {
    let d = shape.width();
    if shape.qk_norm {
        c.elementwise_times(2, at, d, BINARY);
    }
    if shape.rotary {
        c.elementwise_times(ROTARY_KERNELS, at, 2.0 * d, ROTARY / 6.0);
    }
}

/// Projection of what was attended to, gate, residual, norm, feed-forward, residual.
pub(super) fn rest_of_block(c: &mut Counter, shape: &Shape, at: Tokens) {
    let d = shape.width();
    c.linear(at, d, d);
    c.elementwise(at, d, UNARY);
    c.elementwise(at, d, BINARY);
    c.elementwise_times(3, at, d, UNARY);
    match shape.feed_forward {
        FeedForward::Plain => c.mlp(at, d, shape.mlp * d, d),
        FeedForward::Gated => c.gated_mlp(at, d, shape.mlp * d),
    }
    c.elementwise(at, d, UNARY);
    c.elementwise(at, d, BINARY);
}

/// Two streams with weights of their own, one attention over both.
pub(super) fn double_block(
    c: &mut Counter,
    shape: &Shape,
    image: Tokens,
    text: Tokens,
    last: bool,
) {
    for at in [image, text] {
        let chunks = if last && at == text { 2.0 } else { 6.0 };
        adaptive_norm(c, shape, at, chunks);
        queries(c, shape, at);
        c.elementwise_times(3, at, shape.width(), UNARY);
    }
    c.attention(
        Scope::All,
        image + text,
        image + text,
        shape.heads,
        shape.head,
    );
    rest_of_block(c, shape, image);
    if !last {
        rest_of_block(c, shape, text);
    }
}

/// One stream, attention and feed-forward side by side.
fn single_block(c: &mut Counter, shape: &Shape, at: Tokens) {
    let d = shape.width();
    adaptive_norm(c, shape, at, 3.0);
    queries(c, shape, at);
    c.attention(Scope::All, at, at, shape.heads, shape.head);
    let hidden = shape.mlp * d;
    c.linear(at, d, hidden);
    c.elementwise(at, hidden, UNARY);
    c.elementwise(at, hidden + d, UNARY);
    c.linear(at, hidden + d, d);
    c.elementwise(at, d, UNARY);
    c.elementwise(at, d, BINARY);
}

pub(super) fn output(c: &mut Counter, shape: &Shape, at: Tokens, channels: f64) {
    adaptive_norm(c, shape, at, 2.0);
    c.linear(at, shape.width(), channels);
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Sd3 {
    patch_size: f64,
    in_channels: f64,
    num_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    joint_attention_dim: f64,
    pooled_projection_dim: f64,
    out_channels: f64,
    dual_attention_layers: Vec<usize>,
    qk_norm: Option<String>,
}

impl Default for Sd3 {
    fn default() -> Self {
        Self {
            patch_size: 2.0,
            in_channels: 16.0,
            num_layers: 18,
            attention_head_dim: 64.0,
            num_attention_heads: 18.0,
            joint_attention_dim: 4096.0,
            pooled_projection_dim: 2048.0,
            out_channels: 16.0,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

/// `SD3Transformer2DModel`: SD 3 and 3.5.
pub(super) fn walk_sd3(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Sd3 = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let shape = Shape {
        heads: model.num_attention_heads,
        head: model.attention_head_dim,
        qk_norm: model.qk_norm.is_some(),
        rotary: false,
        mlp: 4.0,
        feed_forward: FeedForward::Plain,
        modulated: true,
    };
    let (d, mut c) = (shape.width(), Counter::default());
    let image = Tokens::image(4.0 / model.patch_size.powi(2));
    let text = Tokens::text(text_tokens);
    c.convolution(image, model.in_channels, d, model.patch_size.powi(2));
    c.linear(text, model.joint_attention_dim, d);
    c.time_embedding(256.0, d);
    c.time_embedding(model.pooled_projection_dim, d);
    for layer in 0..layers {
        double_block(&mut c, &shape, image, text, layer + 1 == layers);
        if model.dual_attention_layers.contains(&layer) {
            // A second attention of the picture to itself, with its own three modulations.
            c.linear(Tokens::ONE, d, 3.0 * d);
            c.elementwise_times(2, image, d, UNARY);
            queries(&mut c, &shape, image);
            c.attention(Scope::All, image, image, shape.heads, shape.head);
            c.linear(image, d, d);
            c.elementwise(image, d, UNARY);
            c.elementwise(image, d, BINARY);
        }
    }
    output(
        &mut c,
        &shape,
        image,
        model.patch_size.powi(2) * model.out_channels,
    );
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Flux {
    in_channels: f64,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    joint_attention_dim: f64,
    pooled_projection_dim: f64,
    guidance_embeds: bool,
    out_channels: Option<f64>,
}

impl Default for Flux {
    fn default() -> Self {
        Self {
            in_channels: 64.0,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128.0,
            num_attention_heads: 24.0,
            joint_attention_dim: 4096.0,
            pooled_projection_dim: 768.0,
            guidance_embeds: false,
            out_channels: None,
        }
    }
}

/// `FluxTransformer2DModel`; `ChromaTransformer2DModel` is one whose modulations come of one
/// small network instead of a layer in each block.
pub(super) fn walk_flux(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Flux = fields(config)?;
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
        mlp: 4.0,
        feed_forward: FeedForward::Plain,
        modulated: super::class(config) != Some("ChromaTransformer2DModel"),
    };
    let (d, mut c) = (shape.width(), Counter::default());
    let (image, text) = (Tokens::image(1.0), Tokens::text(text_tokens));
    c.linear(image, model.in_channels, d);
    c.linear(text, model.joint_attention_dim, d);
    c.time_embedding(256.0, d);
    c.time_embedding(model.pooled_projection_dim, d);
    if model.guidance_embeds {
        c.time_embedding(256.0, d);
    }
    for _ in 0..model.num_layers {
        double_block(&mut c, &shape, image, text, false);
    }
    for _ in 0..model.num_single_layers {
        single_block(&mut c, &shape, image + text);
    }
    output(&mut c, &shape, image, model.out_channels.unwrap_or(64.0));
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Qwen {
    in_channels: f64,
    out_channels: f64,
    patch_size: f64,
    num_layers: usize,
    attention_head_dim: f64,
    num_attention_heads: f64,
    joint_attention_dim: f64,
}

impl Default for Qwen {
    fn default() -> Self {
        Self {
            in_channels: 64.0,
            out_channels: 16.0,
            patch_size: 2.0,
            num_layers: 60,
            attention_head_dim: 128.0,
            num_attention_heads: 24.0,
            joint_attention_dim: 3584.0,
        }
    }
}

/// `QwenImageTransformer2DModel`.
pub(super) fn walk_qwen(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Qwen = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let shape = Shape {
        heads: model.num_attention_heads,
        head: model.attention_head_dim,
        qk_norm: true,
        rotary: true,
        mlp: 4.0,
        feed_forward: FeedForward::Plain,
        modulated: true,
    };
    let (d, mut c) = (shape.width(), Counter::default());
    let (image, text) = (Tokens::image(1.0), Tokens::text(text_tokens));
    c.linear(image, model.in_channels, d);
    c.linear(text, model.joint_attention_dim, d);
    c.time_embedding(256.0, d);
    for _ in 0..layers {
        double_block(&mut c, &shape, image, text, false);
    }
    output(
        &mut c,
        &shape,
        image,
        model.patch_size.powi(2) * model.out_channels,
    );
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct HunyuanVideo {
    in_channels: f64,
    out_channels: f64,
    num_attention_heads: f64,
    attention_head_dim: f64,
    num_layers: usize,
    num_single_layers: usize,
    num_refiner_layers: usize,
    mlp_ratio: f64,
    patch_size: f64,
    patch_size_t: f64,
    text_embed_dim: f64,
    pooled_projection_dim: f64,
}

impl Default for HunyuanVideo {
    fn default() -> Self {
        Self {
            in_channels: 16.0,
            out_channels: 16.0,
            num_attention_heads: 24.0,
            attention_head_dim: 128.0,
            num_layers: 20,
            num_single_layers: 40,
            num_refiner_layers: 2,
            mlp_ratio: 4.0,
            patch_size: 2.0,
            patch_size_t: 1.0,
            text_embed_dim: 4096.0,
            pooled_projection_dim: 768.0,
        }
    }
}

/// `HunyuanVideoTransformer3DModel`: as FLUX, over all frames at once.
pub(super) fn walk_hunyuan_video(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: HunyuanVideo = fields(config)?;
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
        feed_forward: FeedForward::Plain,
        modulated: true,
    };
    let (d, mut c) = (shape.width(), Counter::default());
    let volume = model.patch_size.powi(2) * model.patch_size_t;
    let (image, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    c.convolution(image, model.in_channels, d, volume);
    c.linear(text, model.text_embed_dim, d);
    c.time_embedding(256.0, d);
    c.time_embedding(256.0, d);
    c.time_embedding(model.pooled_projection_dim, d);
    for _ in 0..model.num_refiner_layers.min(100) {
        queries(&mut c, &shape, text);
        c.attention(Scope::All, text, text, shape.heads, shape.head);
        rest_of_block(&mut c, &shape, text);
    }
    for _ in 0..model.num_layers {
        double_block(&mut c, &shape, image, text, false);
    }
    for _ in 0..model.num_single_layers {
        single_block(&mut c, &shape, image + text);
    }
    output(&mut c, &shape, image, volume * model.out_channels);
    Ok(c.work)
}
