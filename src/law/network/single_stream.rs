//! Transformers of one stream, after a few blocks that refine picture and text apart: Z-Image,
//! Lumina 2.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY, differ};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

/// Attention and a gated feed-forward layer, each between two norms.
#[derive(Debug, Clone, Copy)]
struct Block {
    width: f64,
    heads: f64,
    head: f64,
    /// Width of the keys, and of the values: several heads may share them.
    keys: f64,
    qk_norm: bool,
    hidden: f64,
    /// Width of the time embedding, of which scales and gates come.
    time: f64,
}

impl Block {
    /// The blocks that refine the text are not modulated.
    fn count(&self, c: &mut Counter, at: Tokens, modulated: bool) {
        let d = self.width;
        if modulated {
            c.linear(Tokens::ONE, self.time, 4.0 * d);
            // One added to the scales, gates squashed.
            c.elementwise_times(4, Tokens::ONE, d, UNARY);
        }
        self.norm(c, at, modulated);
        for width in [d, self.keys, self.keys] {
            c.linear(at, d, width);
        }
        for width in [d, self.keys] {
            if self.qk_norm {
                rms_norm(c, at, width);
            }
            // Rotary embedding: to complex numbers, a product, and back.
            c.elementwise_times(3, at, width, UNARY);
        }
        if differ(self.keys, d) {
            // Keys and values are repeated for the heads that share them.
            c.elementwise_times(2, at, d, UNARY);
        }
        c.attention(Scope::All, at, at, self.heads, self.head);
        c.linear(at, d, d);
        self.norm(c, at, modulated);
        c.elementwise(at, d, BINARY);
        self.norm(c, at, modulated);
        c.gated_mlp(at, d, self.hidden);
        self.norm(c, at, modulated);
        c.elementwise(at, d, BINARY);
    }

    /// Norm, and a product with a scale or a gate.
    fn norm(&self, c: &mut Counter, at: Tokens, modulated: bool) {
        rms_norm(c, at, self.width);
        if modulated {
            c.elementwise(at, self.width, UNARY);
        }
    }
}

/// A norm whose statistics have kernels of their own: mean square, addition, root.
fn rms_norm(c: &mut Counter, at: Tokens, width: f64) {
    c.elementwise_times(3, at, 1.0, UNARY);
    c.elementwise(at, width, UNARY);
}

/// Blocks that refine the picture, as many for the text, then both in one stream.
#[derive(Debug, Clone, Copy)]
struct Stream {
    block: Block,
    image: Tokens,
    text: Tokens,
    refiners: usize,
    layers: usize,
    channels: f64,
}

impl Stream {
    fn count(&self, c: &mut Counter) {
        let (block, all) = (&self.block, self.image + self.text);
        for _ in 0..self.refiners {
            block.count(c, self.image, true);
            block.count(c, self.text, false);
        }
        for _ in 0..self.layers {
            block.count(c, all, true);
        }
        c.elementwise(Tokens::ONE, block.time, UNARY);
        c.linear(Tokens::ONE, block.time, block.width);
        c.elementwise_times(2, all, block.width, UNARY);
        c.linear(all, block.width, self.channels);
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct ZImage {
    all_patch_size: Vec<f64>,
    all_f_patch_size: Vec<f64>,
    in_channels: f64,
    dim: f64,
    n_layers: usize,
    n_refiner_layers: usize,
    n_heads: f64,
    qk_norm: bool,
    cap_feat_dim: f64,
}

impl Default for ZImage {
    fn default() -> Self {
        Self {
            all_patch_size: vec![2.0],
            all_f_patch_size: vec![1.0],
            in_channels: 16.0,
            dim: 3840.0,
            n_layers: 30,
            n_refiner_layers: 2,
            n_heads: 30.0,
            qk_norm: true,
            cap_feat_dim: 2560.0,
        }
    }
}

/// `ZImageTransformer2DModel`: Z-Image and Z-Image-Turbo, without a picture to edit.
pub(super) fn walk_z_image(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: ZImage = fields(config)?;
    let layers = within(config, "n_layers", model.n_layers, 1000)?;
    let refiners = model.n_refiner_layers;
    within(config, "n_refiner_layers", refiners.max(1), 100)?;
    let first = |sizes: &[f64], usual: f64| sizes.first().copied().unwrap_or(usual);
    let side = first(&model.all_patch_size, 2.0);
    let volume = side.powi(2) * first(&model.all_f_patch_size, 1.0);
    let (d, mut c) = (model.dim, Counter::default());
    let (image, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    let (time, channels) = (d.min(256.0), volume * model.in_channels);
    c.mlp(Tokens::ONE, 256.0, 1024.0, time);
    c.linear(image, channels, d);
    rms_norm(&mut c, text, model.cap_feat_dim);
    c.linear(text, model.cap_feat_dim, d);
    let block = Block {
        width: d,
        heads: model.n_heads,
        head: d / model.n_heads,
        // n_kv_heads is in the configuration and not in use.
        keys: d,
        qk_norm: model.qk_norm,
        hidden: (d / 3.0 * 8.0).floor(),
        time,
    };
    let stream = Stream {
        block,
        image,
        text,
        refiners,
        layers,
        channels,
    };
    stream.count(&mut c);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Lumina2 {
    patch_size: f64,
    in_channels: f64,
    out_channels: Option<f64>,
    hidden_size: f64,
    num_layers: usize,
    num_refiner_layers: usize,
    num_attention_heads: f64,
    num_kv_heads: f64,
    multiple_of: f64,
    ffn_dim_multiplier: Option<f64>,
    cap_feat_dim: f64,
}

impl Default for Lumina2 {
    fn default() -> Self {
        Self {
            patch_size: 2.0,
            in_channels: 16.0,
            out_channels: None,
            hidden_size: 2304.0,
            num_layers: 26,
            num_refiner_layers: 2,
            num_attention_heads: 24.0,
            num_kv_heads: 8.0,
            multiple_of: 256.0,
            ffn_dim_multiplier: None,
            cap_feat_dim: 1024.0,
        }
    }
}

/// `Lumina2Transformer2DModel`: Lumina-Image 2.0.
pub(super) fn walk_lumina2(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let model: Lumina2 = fields(config)?;
    let layers = within(config, "num_layers", model.num_layers, 1000)?;
    let refiners = model.num_refiner_layers;
    within(config, "num_refiner_layers", refiners.max(1), 100)?;
    let (d, mut c) = (model.hidden_size, Counter::default());
    let volume = model.patch_size.powi(2);
    let (image, text) = (Tokens::image(4.0 / volume), Tokens::text(text_tokens));
    let (time, head) = (d.min(1024.0), d / model.num_attention_heads);
    c.time_embedding(256.0, time);
    rms_norm(&mut c, text, model.cap_feat_dim);
    c.linear(text, model.cap_feat_dim, d);
    c.linear(image, volume * model.in_channels, d);
    let hidden = (4.0 * d * model.ffn_dim_multiplier.unwrap_or(1.0)).floor();
    let block = Block {
        width: d,
        heads: model.num_attention_heads,
        head,
        keys: model.num_kv_heads * head,
        qk_norm: true,
        hidden: (hidden / model.multiple_of).ceil() * model.multiple_of,
        time,
    };
    let stream = Stream {
        block,
        image,
        text,
        refiners,
        layers,
        channels: volume * model.out_channels.unwrap_or(model.in_channels),
    };
    stream.count(&mut c);
    Ok(c.work)
}
