//! `Kandinsky3UNet`: bottleneck residual blocks with conditional norms.

use super::config::{ConfigError, PerLevel, fields, within};
use super::counter::{BINARY, Counter, GROUP_NORM, Scope, Tokens, UNARY, differ};
use super::unet::LATENT;
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    in_channels: f64,
    time_embedding_dim: f64,
    attention_head_dim: f64,
    layers_per_block: PerLevel<usize>,
    block_out_channels: Vec<f64>,
    cross_attention_dim: f64,
    encoder_hid_dim: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 4.0,
            time_embedding_dim: 1536.0,
            attention_head_dim: 64.0,
            layers_per_block: PerLevel::One(3),
            block_out_channels: vec![384.0, 768.0, 1536.0, 3072.0],
            cross_attention_dim: 4096.0,
            encoder_hid_dim: 4096.0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    None,
    Down,
    Up,
}

struct Walker {
    counter: Counter,
    time: f64,
    head: f64,
    text: Tokens,
    context: f64,
}

impl Walker {
    /// Group norm whose scale and shift come of the time embedding.
    fn norm(&mut self, at: Tokens, width: f64) {
        let c = &mut self.counter;
        c.elementwise(Tokens::ONE, self.time, UNARY);
        c.linear(Tokens::ONE, self.time, 2.0 * width);
        c.elementwise(at, width, GROUP_NORM);
        c.elementwise(at, width, UNARY);
        c.elementwise(at, width, UNARY);
    }

    /// Convolutions of 1, 3, 3, 1 with half the channels in the middle; gives where it ends.
    fn resnet(&mut self, start: Tokens, from: f64, to: f64, resize: Resize) -> Tokens {
        let hidden = from.max(to) / 2.0;
        let layers = [
            (from, hidden, 1.0),
            (hidden, hidden, 9.0),
            (hidden, hidden, 9.0),
            (hidden, to, 1.0),
        ];
        let mut at = start;
        for (number, (a, b, taps)) in layers.into_iter().enumerate() {
            self.norm(at, a);
            self.counter.elementwise(at, a, UNARY);
            if number == 1 && resize == Resize::Up {
                // A transposed convolution: each output position is one product.
                at = at * 4.0;
                self.counter.convolution(at, a, a, 1.0);
            }
            self.counter.convolution(at, a, b, taps);
            if number == 2 && resize == Resize::Down {
                at = at * 0.25;
                self.counter.convolution(at, b, b, 4.0);
            }
        }
        if resize == Resize::Up {
            self.counter.convolution(at, from, from, 1.0);
        }
        if differ(from, to) {
            let place = if resize == Resize::Down { start } else { at };
            self.counter.convolution(place, from, to, 1.0);
        }
        if resize == Resize::Down {
            self.counter.convolution(at, to, to, 4.0);
        }
        self.counter.elementwise(at, to, BINARY);
        at
    }

    fn attention(&mut self, at: Tokens, width: f64, to_text: bool) {
        self.norm(at, width);
        let (keys, from) = if to_text {
            (self.text, self.context)
        } else {
            (at, width)
        };
        let head = self.head;
        let c = &mut self.counter;
        c.linear(at, width, width);
        c.linear(keys, from, width);
        c.linear(keys, from, width);
        c.attention(Scope::Frame, at, keys, width / head, head);
        c.linear(at, width, width);
        c.elementwise(at, width, BINARY);
        self.norm(at, width);
        let c = &mut self.counter;
        c.convolution(at, width, 4.0 * width, 1.0);
        c.elementwise(at, 4.0 * width, UNARY);
        c.convolution(at, 4.0 * width, width, 1.0);
        c.elementwise(at, width, BINARY);
    }
}

/// One pass. Attention stands on every level but the first.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let unet: Config = fields(config)?;
    let widths = &unet.block_out_channels;
    let levels = within(config, "block_out_channels", widths.len(), 12)?;
    let first = widths[0] / 2.0;
    let mut walker = Walker {
        counter: Counter::default(),
        time: unet.time_embedding_dim,
        head: unet.attention_head_dim.max(1.0),
        text: Tokens::text(text_tokens),
        context: unet.cross_attention_dim,
    };
    walker
        .counter
        .time_embedding(first, unet.time_embedding_dim);
    walker
        .counter
        .linear(walker.text, unet.encoder_hid_dim, unet.cross_attention_dim);
    // The text is pooled into the time embedding by an attention of one query.
    let time = unet.time_embedding_dim;
    walker
        .counter
        .linear(Tokens::ONE, unet.cross_attention_dim, time);
    walker
        .counter
        .linear(walker.text, unet.cross_attention_dim, time);
    walker
        .counter
        .linear(walker.text, unet.cross_attention_dim, time);
    walker.counter.linear(Tokens::ONE, time, time);
    let mut at = Tokens::image(LATENT);
    walker.counter.convolution(at, unet.in_channels, first, 9.0);
    let from = |level: usize| if level == 0 { first } else { widths[level - 1] };
    let layers = |level: usize| unet.layers_per_block.at(level).unwrap_or(3).clamp(2, 64);
    for (level, out) in widths.iter().copied().enumerate() {
        let start = from(level);
        if level > 0 {
            walker.attention(at, start, false);
        }
        for layer in 0..layers(level) {
            walker.resnet(at, if layer == 0 { start } else { out }, out, Resize::None);
            if level > 0 {
                walker.attention(at, out, true);
            }
            let last = layer + 1 == layers(level) && level + 1 < levels;
            at = walker.resnet(at, out, out, if last { Resize::Down } else { Resize::None });
        }
    }
    for level in (0..levels).rev() {
        let (inner, out) = (widths[level], from(level));
        let skip = if level + 1 < levels { inner } else { 0.0 };
        if skip > 0.0 {
            walker.counter.elementwise(at, inner + skip, UNARY);
        }
        for layer in 0..layers(level) {
            let start = if layer == 0 { inner + skip } else { inner };
            let end = if layer + 1 == layers(level) {
                out
            } else {
                inner
            };
            let up = layer == 0 && level + 1 < levels;
            at = walker.resnet(at, start, start, if up { Resize::Up } else { Resize::None });
            if level > 0 {
                walker.attention(at, start, true);
            }
            walker.resnet(at, start, end, Resize::None);
        }
        if level > 0 {
            walker.attention(at, out, false);
        }
    }
    walker.counter.elementwise(at, first, GROUP_NORM);
    walker.counter.elementwise(at, first, UNARY);
    walker.counter.convolution(at, first, unet.in_channels, 9.0);
    Ok(walker.counter.work)
}
