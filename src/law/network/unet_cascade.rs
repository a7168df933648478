//! `StableCascadeUNet`: prior and decoder of Stable Cascade.

use super::config::{ConfigError, fields};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY};
use super::unet_cascade_levels::{Config, Kind, Level, Side, Step};
use super::work::Work;
use serde_json::Value;

/// Zeros that stand for pixels to look at: 8×8.
const PIXELS: Tokens = Tokens::text(64.0);

struct Walker<'a> {
    counter: Counter,
    unet: &'a Config,
    /// What attention looks at besides the picture.
    clip: Tokens,
}

impl Walker<'_> {
    /// The pooled text makes tokens; where the model takes text and picture, these join it.
    fn embed_clip(&mut self, text_tokens: f64) {
        let (c, unet) = (&mut self.counter, self.unet);
        let (d, tokens) = (unet.conditioning_dim, unet.clip_seq);
        c.linear(Tokens::ONE, unet.clip_text_pooled_in_channels, d * tokens);
        self.clip = Tokens::text(tokens);
        if let (Some(words), Some(picture)) =
            (unet.clip_text_in_channels, unet.clip_image_in_channels)
        {
            c.linear(Tokens::text(text_tokens), words, d);
            c.linear(Tokens::ONE, picture, d * tokens);
            self.clip = Tokens::text(text_tokens + 2.0 * tokens);
        }
        c.elementwise(self.clip, d, UNARY);
    }

    /// The prior's latents, or pixels, resized and added to the picture.
    fn embed_map(&mut self, from: Option<f64>, place: Tokens, at: Tokens, width: f64) {
        let Some(from) = from else { return };
        let c = &mut self.counter;
        c.convolution(place, from, 4.0 * width, 1.0);
        c.elementwise(place, 4.0 * width, UNARY);
        c.convolution(place, 4.0 * width, width, 1.0);
        self.norm(place, width);
        let c = &mut self.counter;
        c.elementwise(at, width, UNARY);
        c.elementwise(at, width, BINARY);
    }

    /// A layer norm, and the copy that brings the channels last.
    fn norm(&mut self, at: Tokens, width: f64) {
        self.counter.elementwise_times(2, at, width, UNARY);
    }

    /// A depthwise convolution, then a feed-forward layer with a global response norm.
    fn residual(&mut self, at: Tokens, width: f64, skip: f64) {
        let hidden = 4.0 * width;
        let volume = self.unet.kernel_size.powi(2);
        self.counter.convolution(at, 1.0, width, volume);
        self.norm(at, width);
        let c = &mut self.counter;
        if skip > 0.0 {
            c.elementwise(at, width + skip, UNARY);
        }
        c.linear(at, width + skip, hidden);
        c.elementwise(at, hidden, UNARY);
        // The response norm: read once, its mean, then scales, a shift and a residual.
        c.elementwise(at, hidden, 1.0);
        c.elementwise_times(3, Tokens::ONE, hidden, UNARY);
        c.elementwise_times(3, at, hidden, UNARY);
        c.elementwise(at, hidden, BINARY);
        c.work.weights += 2.0 * hidden;
        c.linear(at, hidden, width);
        c.elementwise(at, width, BINARY);
    }

    fn timestep(&mut self, at: Tokens, width: f64) {
        let c = &mut self.counter;
        for _ in 0..=self.unet.timestep_conditioning_type.len() {
            c.linear(
                Tokens::ONE,
                self.unet.timestep_ratio_embedding_dim,
                2.0 * width,
            );
            c.elementwise(Tokens::ONE, 2.0 * width, UNARY);
        }
        c.elementwise_times(2, at, width, UNARY);
    }

    fn attention(&mut self, at: Tokens, level: &Level) {
        let (clip, width) = (self.clip, level.width);
        let conditioning = self.unet.conditioning_dim;
        self.counter.elementwise(clip, conditioning, UNARY);
        self.counter.linear(clip, conditioning, width);
        self.norm(at, width);
        let keys = if level.own { at + clip } else { clip };
        let c = &mut self.counter;
        if level.own {
            c.elementwise(keys, width, UNARY);
        }
        c.linear(at, width, width);
        c.linear(keys, width, width);
        c.linear(keys, width, width);
        let heads = level.heads;
        c.attention(Scope::Frame, at, keys, heads, width / heads);
        c.linear(at, width, width);
        c.elementwise(at, width, UNARY);
        c.elementwise(at, width, BINARY);
    }

    /// One side of a level; `skip` channels of the way down join its first block.
    fn blocks(&mut self, at: Tokens, level: &Level, side: Side, skip: f64) {
        for run in 0..side.runs {
            if run > 0 {
                self.counter.convolution(at, level.width, level.width, 1.0);
            }
            let weights = self.counter.work.weights;
            for layer in 0..side.layers {
                for (place, kind) in level.kinds.iter().enumerate() {
                    match kind {
                        Kind::Residual if layer + place == 0 => {
                            self.residual(at, level.width, skip);
                        }
                        Kind::Residual => self.residual(at, level.width, 0.0),
                        Kind::Timestep => self.timestep(at, level.width),
                        Kind::Attention => self.attention(at, level),
                    }
                }
            }
            if run > 0 {
                // The same weights once more.
                self.counter.work.weights = weights;
            }
        }
    }

    /// To the next level; gives where that is.
    fn down(&mut self, at: Tokens, from: f64, level: &Level) -> Tokens {
        self.norm(at, from);
        let (c, to, smaller) = (&mut self.counter, level.width, at * 0.25);
        match level.step {
            Step::Strided => {
                c.convolution(smaller, from, to, 4.0);
                smaller
            }
            Step::Resized => {
                c.convolution(at, from, to, 1.0);
                c.elementwise(at, to, UNARY);
                smaller
            }
            Step::Level => {
                c.convolution(at, from, to, 1.0);
                at
            }
        }
    }

    /// Back from a level to `above`, of `to` channels.
    fn up(&mut self, at: Tokens, level: &Level, above: Tokens, to: f64) {
        self.norm(at, level.width);
        let (c, from) = (&mut self.counter, level.width);
        match level.step {
            Step::Strided => c.convolution(at, from, to, 4.0),
            Step::Resized => {
                c.elementwise(above, from, UNARY);
                c.convolution(above, from, to, 1.0);
            }
            Step::Level => c.convolution(at, from, to, 1.0),
        }
    }
}

/// One pass: down, and up again with what each level left.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let unet: Config = fields(config)?;
    let volume = unet.patch_size.powi(2);
    let start = Tokens::image(unet.latents(config)? / volume);
    let levels = unet.levels(config)?;
    let first = levels.first().map_or(0.0, |level| level.width);
    let mut walker = Walker {
        counter: Counter::default(),
        unet: &unet,
        clip: Tokens::default(),
    };
    walker.embed_clip(text_tokens);
    let from = unet.in_channels * volume;
    walker.counter.convolution(start, from, first, 1.0);
    walker.norm(start, first);
    walker.embed_map(unet.effnet_in_channels, start, start, first);
    walker.embed_map(unet.pixel_mapper_in_channels, PIXELS, start, first);
    let mut path: Vec<(Tokens, &Level)> = Vec::with_capacity(levels.len());
    for level in &levels {
        let at = match path.last() {
            Some((at, above)) => walker.down(*at, above.width, level),
            None => start,
        };
        walker.blocks(at, level, level.down, 0.0);
        path.push((at, level));
    }
    let mut deepest = true;
    while let Some((at, level)) = path.pop() {
        let skip = if deepest { 0.0 } else { level.width };
        deepest = false;
        walker.blocks(at, level, level.up, skip);
        if let Some((place, above)) = path.last() {
            walker.up(at, level, *place, above.width);
        }
    }
    walker.norm(start, first);
    let to = unet.out_channels * volume;
    walker.counter.convolution(start, first, to, 1.0);
    Ok(walker.counter.work)
}
