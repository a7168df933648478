//! `UNet2DConditionModel`: the U-Nets of Stable Diffusion, SDXL, SSD-1B and Kandinsky 2.2.

use super::config::{ConfigError, PerLevel, class, fields, within};
use super::counter::{BINARY, Counter, GROUP_NORM, Scope, Tokens, UNARY, differ};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

/// Latent positions in 16×16 px, where the autoencoder shrinks each side by 8.
pub(super) const LATENT: f64 = 4.0;
/// Positions of a resized tensor read for one that is written, nearest neighbour.
const RESIZE: f64 = 1.25;

/// The fields of the configuration, with the defaults of the class.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    in_channels: f64,
    out_channels: f64,
    block_out_channels: Vec<f64>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    mid_block_type: Option<String>,
    layers_per_block: PerLevel<usize>,
    cross_attention_dim: PerLevel<f64>,
    attention_head_dim: PerLevel<f64>,
    num_attention_heads: Option<PerLevel<f64>>,
    transformer_layers_per_block: Depths,
    reverse_transformer_layers_per_block: Option<Depths>,
    resnet_time_scale_shift: String,
    addition_embed_type: Option<String>,
    projection_class_embeddings_input_dim: Option<f64>,
    encoder_hid_dim: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            in_channels: 4.0,
            out_channels: 4.0,
            block_out_channels: vec![320.0, 640.0, 1280.0, 1280.0],
            down_block_types: names(&[
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ]),
            up_block_types: names(&[
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
            ]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".to_owned()),
            layers_per_block: PerLevel::One(2),
            cross_attention_dim: PerLevel::One(1280.0),
            attention_head_dim: PerLevel::One(8.0),
            num_attention_heads: None,
            transformer_layers_per_block: Depths::One(1),
            reverse_transformer_layers_per_block: None,
            resnet_time_scale_shift: "default".to_owned(),
            addition_embed_type: None,
            projection_class_embeddings_input_dim: None,
            encoder_hid_dim: None,
        }
    }
}

/// Transformer blocks: everywhere alike, by level, or by level and layer.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Depths {
    One(usize),
    Each(Vec<PerLevel<usize>>),
}

impl Depths {
    fn at(&self, level: usize, layer: usize) -> usize {
        match self {
            Self::One(depth) => *depth,
            Self::Each(levels) => levels.get(level).and_then(|l| l.at(layer)).unwrap_or(1),
        }
    }

    fn of_middle(&self) -> usize {
        match self {
            Self::One(depth) => *depth,
            Self::Each(levels) => levels.last().and_then(|l| l.at(0)).unwrap_or(1),
        }
    }
}

/// One walk through a U-Net, with what its blocks share.
pub(super) struct Walker {
    pub(super) counter: Counter,
    /// Width of the time embedding.
    pub(super) time: f64,
    pub(super) text: Tokens,
    pub(super) context: f64,
    /// Scale and shift of the time embedding after the second norm.
    scale_shift: bool,
}

impl Walker {
    pub(super) fn new(time: f64, text: Tokens, context: f64) -> Self {
        Self {
            counter: Counter::default(),
            time,
            text,
            context,
            scale_shift: false,
        }
    }

    /// A residual block of two 3×3 convolutions.
    pub(super) fn resnet(&mut self, at: Tokens, from: f64, to: f64) {
        self.resized_resnet(at, at, from, to);
    }

    /// One that changes resolution on its way, from `at` to `out`.
    fn resized_resnet(&mut self, at: Tokens, out: Tokens, from: f64, to: f64) {
        let c = &mut self.counter;
        c.elementwise(at, from, GROUP_NORM);
        c.elementwise(at, from, UNARY);
        if at != out {
            let larger = if at.per_token > out.per_token {
                at
            } else {
                out
            };
            c.elementwise_times(2, larger, from, RESIZE);
        }
        c.convolution(out, from, to, 9.0);
        c.elementwise(Tokens::ONE, self.time, UNARY);
        c.linear(
            Tokens::ONE,
            self.time,
            if self.scale_shift { 2.0 * to } else { to },
        );
        c.elementwise(out, to, UNARY);
        c.elementwise(out, to, GROUP_NORM);
        if self.scale_shift {
            c.elementwise(out, to, UNARY);
        }
        c.elementwise(out, to, UNARY);
        c.convolution(out, to, to, 9.0);
        if differ(from, to) {
            c.convolution(out, from, to, 1.0);
        }
        c.elementwise(out, to, BINARY);
        c.elementwise(out, to, UNARY);
    }

    /// `depth` transformer blocks between two projections.
    pub(super) fn transformer(&mut self, at: Tokens, width: f64, depth: usize, heads: f64) {
        if depth == 0 {
            return;
        }
        let c = &mut self.counter;
        c.elementwise(at, width, GROUP_NORM);
        c.elementwise(at, width, UNARY);
        c.linear(at, width, width);
        for _ in 0..depth {
            self.attend(at, width, heads, Scope::Frame, None);
            self.attend(
                at,
                width,
                heads,
                Scope::Frame,
                Some((self.text, self.context)),
            );
            self.feed_forward(at, width);
        }
        let c = &mut self.counter;
        c.linear(at, width, width);
        c.elementwise(at, width, UNARY);
        c.elementwise(at, width, BINARY);
    }

    /// Norm, attention to itself or to a text, residual.
    pub(super) fn attend(
        &mut self,
        at: Tokens,
        width: f64,
        heads: f64,
        scope: Scope,
        text: Option<(Tokens, f64)>,
    ) {
        let c = &mut self.counter;
        let (keys, key_width) = text.unwrap_or((at, width));
        c.elementwise(at, width, UNARY);
        c.linear(at, width, width);
        c.linear(keys, key_width, width);
        c.linear(keys, key_width, width);
        c.attention(scope, at, keys, heads, width / heads);
        c.linear(at, width, width);
        c.elementwise(at, width, UNARY);
        c.elementwise(at, width, BINARY);
    }

    /// Norm, GEGLU of four times the width, residual.
    pub(super) fn feed_forward(&mut self, at: Tokens, width: f64) {
        self.counter.elementwise(at, width, UNARY);
        self.counter.gated_mlp(at, width, 4.0 * width);
        self.counter.elementwise(at, width, BINARY);
    }

    /// Kandinsky's attention: the text's keys stand beside the picture's own.
    fn added_attention(&mut self, at: Tokens, width: f64, heads: f64) {
        let c = &mut self.counter;
        c.elementwise(at, width, GROUP_NORM);
        for _ in 0..3 {
            c.linear(at, width, width);
        }
        c.linear(self.text, self.context, width);
        c.linear(self.text, self.context, width);
        c.elementwise_times(2, at, 2.0 * width, UNARY);
        c.attention(Scope::Frame, at, at + self.text, heads, width / heads);
        c.linear(at, width, width);
        c.elementwise(at, width, BINARY);
        c.elementwise(at, width, UNARY);
    }

    /// A 3×3 convolution at half the resolution.
    pub(super) fn downsample(&mut self, at: Tokens, width: f64) -> Tokens {
        let down = at * 0.25;
        self.counter.convolution(down, width, width, 9.0);
        down
    }

    /// Nearest neighbour, then a 3×3 convolution at twice the resolution.
    pub(super) fn upsample(&mut self, at: Tokens, width: f64) -> Tokens {
        let up = at * 4.0;
        self.counter.elementwise(up, width, RESIZE);
        self.counter.convolution(up, width, width, 9.0);
        up
    }

    /// Norm, activation and convolution at the end.
    pub(super) fn output(&mut self, at: Tokens, width: f64, channels: f64) {
        self.counter.elementwise(at, width, GROUP_NORM);
        self.counter.elementwise(at, width, UNARY);
        self.counter.convolution(at, width, channels, 9.0);
    }
}

impl Config {
    fn heads(&self, level: usize, width: f64) -> f64 {
        // In these configurations attention_head_dim means the number of heads, except in
        // blocks of the simple kind.
        let simple = self.is_simple(level);
        let number = self
            .num_attention_heads
            .as_ref()
            .unwrap_or(&self.attention_head_dim);
        let number = number.at(level).unwrap_or(8.0).max(1.0);
        if simple { width / number } else { number }
    }

    fn is_simple(&self, level: usize) -> bool {
        let simple = |name: &String| name.starts_with("Simple");
        self.down_block_types.get(level).is_some_and(simple)
            || self
                .mid_block_type
                .as_ref()
                .is_some_and(|name| name.ends_with("SimpleCrossAttn"))
    }

    fn layers(&self, level: usize) -> usize {
        self.layers_per_block.at(level).unwrap_or(2)
    }

    /// Depths that would make a walk endless.
    fn check_depths(&self, config: &Value, levels: usize) -> Result<(), ConfigError> {
        let own = Some(&self.transformer_layers_per_block);
        for (field, depths) in [
            ("transformer_layers_per_block", own),
            (
                "reverse_transformer_layers_per_block",
                self.reverse_transformer_layers_per_block.as_ref(),
            ),
        ] {
            if let Some(Depths::Each(list)) = depths
                && list.len() != levels
            {
                return Err(ConfigError::Value {
                    class: class(config).unwrap_or_default().to_owned(),
                    field,
                    value: format!("{} long", list.len()),
                    allowed: "it needs one entry for each of block_out_channels",
                });
            }
        }
        for level in 0..levels {
            let layers = within(config, "layers_per_block", self.layers(level), 64)?;
            for layer in 0..=layers {
                let depth = self.transformer_layers_per_block.at(level, layer);
                within(
                    config,
                    "transformer_layers_per_block",
                    depth.saturating_add(1),
                    129,
                )?;
                if let Some(reverse) = &self.reverse_transformer_layers_per_block {
                    let depth = reverse.at(level, layer);
                    within(
                        config,
                        "reverse_transformer_layers_per_block",
                        depth.saturating_add(1),
                        129,
                    )?;
                }
            }
        }
        Ok(())
    }

    fn check(&self, config: &Value) -> Result<usize, ConfigError> {
        let levels = within(
            config,
            "block_out_channels",
            self.block_out_channels.len(),
            12,
        )?;
        let named = self.down_block_types.len().min(self.up_block_types.len());
        if named < levels {
            return Err(ConfigError::Value {
                class: "UNet2DConditionModel".to_owned(),
                field: "down_block_types",
                value: format!("{named} long"),
                allowed: "down_block_types and up_block_types need one name for each of block_out_channels",
            });
        }
        self.check_depths(config, levels)?;
        Ok(levels)
    }
}

/// One pass of the whole U-Net.
pub(super) fn walk(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let unet: Config = fields(config)?;
    let levels = unet.check(config)?;
    let (mut walker, mut at, mut width, mut skips) = down(&unet, levels, text_tokens);
    for level in (0..levels).rev() {
        let out = unet.block_out_channels[level];
        let turn = levels - 1 - level;
        let kind = unet.up_block_types[turn].as_str();
        for layer in 0..=unet.layers(level) {
            let skip = skips.pop().unwrap_or(width);
            walker.counter.elementwise(at, width + skip, UNARY);
            walker.resnet(at, width + skip, out);
            width = out;
            let depth = match &unet.reverse_transformer_layers_per_block {
                Some(reverse) => reverse.at(turn, layer),
                None => unet.transformer_layers_per_block.at(level, layer),
            };
            attention(&mut walker, &unet, kind, level, at, depth);
        }
        if level > 0 {
            let up = at * 4.0;
            if kind == "ResnetUpsampleBlock2D" || kind.starts_with("Simple") {
                walker.resized_resnet(at, up, width, width);
            } else {
                walker.upsample(at, width);
            }
            at = up;
        }
    }
    walker.output(at, width, unet.out_channels);
    Ok(walker.counter.work)
}

/// The down half with the middle, and a 1×1 convolution for every skip: a ControlNet.
pub(super) fn walk_controlnet(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let unet: Config = fields(config)?;
    let levels = within(
        config,
        "block_out_channels",
        unet.block_out_channels.len(),
        12,
    )?;
    if unet.down_block_types.len() < levels {
        unet.check(config)?;
    }
    unet.check_depths(config, levels)?;
    let (mut walker, at, width, skips) = down(&unet, levels, text_tokens);
    let mut place = Tokens::image(LATENT);
    for (number, skip) in skips.iter().enumerate() {
        walker.counter.convolution(place, *skip, *skip, 1.0);
        if number > 0 && number % (unet.layers(0) + 1) == 0 && number + 1 < skips.len() {
            place = place * 0.25;
        }
    }
    walker.counter.convolution(at, width, width, 1.0);
    // The hint is read at the picture's own size, by a small stack of convolutions.
    let hint = [
        (256.0, 3.0, 16.0),
        (256.0, 16.0, 16.0),
        (64.0, 16.0, 32.0),
        (64.0, 32.0, 32.0),
    ];
    for (tokens, from, to) in hint {
        walker
            .counter
            .convolution(Tokens::image(tokens), from, to, 9.0);
    }
    for (tokens, from, to) in [(16.0, 32.0, 96.0), (16.0, 96.0, 96.0), (4.0, 96.0, 256.0)] {
        walker
            .counter
            .convolution(Tokens::image(tokens), from, to, 9.0);
    }
    walker.counter.convolution(
        Tokens::image(LATENT),
        256.0,
        unet.block_out_channels[0],
        9.0,
    );
    Ok(walker.counter.work)
}

/// Embeddings, the way down, the middle; gives where it stands, its width and the skips.
fn down(unet: &Config, levels: usize, text_tokens: f64) -> (Walker, Tokens, f64, Vec<f64>) {
    let first = unet.block_out_channels[0];
    let time = 4.0 * first;
    let context = unet.cross_attention_dim.at(0).unwrap_or(1280.0);
    // An embedded picture stands for the text: 32 tokens.
    let text = if unet.encoder_hid_dim.is_some() {
        32.0
    } else {
        text_tokens
    };
    let mut walker = Walker::new(time, Tokens::text(text), context);
    walker.scale_shift = unet.resnet_time_scale_shift == "scale_shift";
    walker.counter.time_embedding(first, time);
    if unet.addition_embed_type.is_some() {
        let from = unet.projection_class_embeddings_input_dim;
        walker
            .counter
            .time_embedding(from.or(unet.encoder_hid_dim).unwrap_or(1280.0), time);
    }
    if let Some(from) = unet.encoder_hid_dim {
        walker.counter.linear(Tokens::ONE, from, 32.0 * context);
    }
    let mut at = Tokens::image(LATENT);
    walker.counter.convolution(at, unet.in_channels, first, 9.0);
    let (mut width, mut skips) = (first, vec![first]);
    for level in 0..levels {
        let out = unet.block_out_channels[level];
        let kind = unet.down_block_types[level].as_str();
        for layer in 0..unet.layers(level) {
            walker.resnet(at, width, out);
            width = out;
            let depth = unet.transformer_layers_per_block.at(level, layer);
            attention(&mut walker, unet, kind, level, at, depth);
            skips.push(out);
        }
        if level + 1 < levels {
            if kind == "ResnetDownsampleBlock2D" || kind.starts_with("Simple") {
                walker.resized_resnet(at, at * 0.25, out, out);
                at = at * 0.25;
            } else {
                at = walker.downsample(at, out);
            }
            skips.push(out);
        }
    }
    let level = levels - 1;
    walker.resnet(at, width, width);
    match unet.mid_block_type.as_deref() {
        Some("UNetMidBlock2DCrossAttn") => {
            let depth = unet.transformer_layers_per_block.of_middle();
            walker.transformer(at, width, depth, unet.heads(level, width));
            walker.resnet(at, width, width);
        }
        Some("UNetMidBlock2DSimpleCrossAttn") => {
            walker.added_attention(at, width, unet.heads(level, width));
            walker.resnet(at, width, width);
        }
        // One residual block alone.
        _ => {}
    }
    (walker, at, width, skips)
}

fn attention(
    walker: &mut Walker,
    unet: &Config,
    kind: &str,
    level: usize,
    at: Tokens,
    depth: usize,
) {
    let width = unet.block_out_channels[level];
    if kind.starts_with("SimpleCrossAttn") {
        walker.added_attention(at, width, unet.heads(level, width));
    } else if kind.starts_with("CrossAttn") {
        walker.transformer(at, width, depth, unet.heads(level, width));
    }
}
