//! Text and picture encoders: CLIP, T5, and language models used as encoders.

use super::config::{ConfigError, fields, within};
use super::counter::{BINARY, Counter, Scope, Tokens, UNARY};
use super::work::Work;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Clip {
    hidden_size: f64,
    intermediate_size: f64,
    num_hidden_layers: usize,
    num_attention_heads: f64,
    projection_dim: f64,
    image_size: f64,
    patch_size: f64,
}

impl Default for Clip {
    fn default() -> Self {
        Self {
            hidden_size: 768.0,
            intermediate_size: 3072.0,
            num_hidden_layers: 12,
            num_attention_heads: 12.0,
            projection_dim: 768.0,
            image_size: 224.0,
            patch_size: 14.0,
        }
    }
}

fn encoder(c: &mut Counter, clip: &Clip, at: Tokens, layers: usize) {
    let d = clip.hidden_size;
    for _ in 0..layers {
        c.elementwise(at, d, UNARY);
        for _ in 0..4 {
            c.linear(at, d, d);
        }
        let heads = clip.num_attention_heads.max(1.0);
        c.attention(Scope::All, at, at, heads, d / heads);
        c.elementwise(at, d, BINARY);
        c.elementwise(at, d, UNARY);
        c.mlp(at, d, clip.intermediate_size, d);
        c.elementwise(at, d, BINARY);
    }
}

/// `CLIPTextModel` and alike: also BERT.
pub(super) fn walk_clip(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let clip: Clip = fields(config)?;
    let layers = within(config, "num_hidden_layers", clip.num_hidden_layers, 1000)?;
    let mut c = Counter::default();
    encoder(&mut c, &clip, Tokens::text(text_tokens), layers);
    if super::class(config).is_some_and(|class| class.ends_with("WithProjection")) {
        c.linear(Tokens::ONE, clip.hidden_size, clip.projection_dim);
    }
    Ok(c.work)
}

/// `CLIPVisionModelWithProjection`: reads a picture of its own size.
pub(super) fn walk_vision(config: &Value, _text_tokens: f64) -> Result<Work, ConfigError> {
    let clip: Clip = fields(config)?;
    let layers = within(config, "num_hidden_layers", clip.num_hidden_layers, 1000)?;
    let patches = (clip.image_size / clip.patch_size.max(1.0)).floor().powi(2);
    let mut c = Counter::default();
    let volume = clip.patch_size.powi(2);
    c.convolution(Tokens::text(patches), 3.0, clip.hidden_size, volume);
    encoder(&mut c, &clip, Tokens::text(patches + 1.0), layers);
    c.linear(Tokens::ONE, clip.hidden_size, clip.projection_dim);
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct T5 {
    d_model: f64,
    d_ff: f64,
    d_kv: f64,
    num_heads: f64,
    num_layers: usize,
    feed_forward_proj: String,
}

impl Default for T5 {
    fn default() -> Self {
        Self {
            d_model: 4096.0,
            d_ff: 10240.0,
            d_kv: 64.0,
            num_heads: 64.0,
            num_layers: 24,
            feed_forward_proj: "gated-gelu".to_owned(),
        }
    }
}

/// `T5EncoderModel` and its multilingual siblings.
pub(super) fn walk_t5(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let t5: T5 = fields(config)?;
    let layers = within(config, "num_layers", t5.num_layers, 1000)?;
    let (d, inner) = (t5.d_model, t5.num_heads * t5.d_kv);
    let at = Tokens::text(text_tokens);
    let mut c = Counter::default();
    for _ in 0..layers {
        c.elementwise(at, d, UNARY);
        for _ in 0..3 {
            c.linear(at, d, inner);
        }
        c.attention(Scope::All, at, at, t5.num_heads, t5.d_kv);
        c.linear(at, inner, d);
        c.elementwise(at, d, BINARY);
        c.elementwise(at, d, UNARY);
        if t5.feed_forward_proj.starts_with("gated") {
            c.gated_mlp(at, d, t5.d_ff);
        } else {
            c.mlp(at, d, t5.d_ff, d);
        }
        c.elementwise(at, d, BINARY);
    }
    Ok(c.work)
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Decoder {
    hidden_size: f64,
    intermediate_size: f64,
    num_hidden_layers: usize,
    num_attention_heads: f64,
    num_key_value_heads: f64,
    head_dim: Option<f64>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            hidden_size: 3584.0,
            intermediate_size: 18944.0,
            num_hidden_layers: 28,
            num_attention_heads: 28.0,
            num_key_value_heads: 4.0,
            head_dim: None,
        }
    }
}

/// A language model that reads the prompt once: Qwen, Llama, Gemma, GLM, Mistral. One that also
/// looks at pictures keeps the fields of its text in `text_config`.
pub(super) fn walk_decoder(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let text = config.get("text_config").filter(|text| text.is_object());
    let model: Decoder = fields(text.unwrap_or(config))?;
    let layers = within(config, "num_hidden_layers", model.num_hidden_layers, 1000)?;
    let (d, heads) = (model.hidden_size, model.num_attention_heads.max(1.0));
    let head = model.head_dim.unwrap_or(d / heads);
    let at = Tokens::text(text_tokens);
    let mut c = Counter::default();
    for _ in 0..layers {
        c.elementwise(at, d, UNARY);
        c.linear(at, d, heads * head);
        c.linear(at, d, model.num_key_value_heads * head);
        c.linear(at, d, model.num_key_value_heads * head);
        c.elementwise_times(2, at, heads * head, UNARY);
        c.attention(Scope::All, at, at, heads, head);
        c.linear(at, heads * head, d);
        c.elementwise(at, d, BINARY);
        c.elementwise(at, d, UNARY);
        c.gated_mlp(at, d, model.intermediate_size);
        c.elementwise(at, d, BINARY);
    }
    Ok(c.work)
}
