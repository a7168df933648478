//! From a network's `config.json` to its work.

use super::work::Work;
use super::{
    auraflow, autoencoder, cogview4, dit, flux2, mmdit, single_stream, text, unet, unet_cascade,
    unet_kandinsky3, unet_motion, video,
};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::cell::Cell;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("_class_name is missing; it says which network the file configures")]
    NoClass,
    #[error("_class_name {0:?} is none of the networks that can be counted: {known}", known = CLASSES.join(", "))]
    UnknownClass(String),
    #[error("{class}: {why}")]
    Fields { class: String, why: String },
    #[error("{class}: {field} is no field of it; did you mean {meant}?")]
    Misspelt {
        class: String,
        field: String,
        meant: &'static str,
    },
    #[error("{class}: {field} is {value}; {allowed}")]
    Value {
        class: String,
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
}

/// A walker through a network, and what it needs to know besides its configuration.
type Walk = fn(&Value, f64) -> Result<Work, ConfigError>;

/// What can be counted, by `_class_name`.
const WALKS: &[(&str, Walk)] = &[
    ("UNet2DConditionModel", unet::walk),
    ("ControlNetModel", unet::walk_controlnet),
    ("Kandinsky3UNet", unet_kandinsky3::walk),
    ("UNet3DConditionModel", unet_motion::walk_3d),
    ("I2VGenXLUNet", unet_motion::walk_3d),
    ("UNetMotionModel", unet_motion::walk_motion),
    (
        "UNetSpatioTemporalConditionModel",
        unet_motion::walk_spatio_temporal,
    ),
    ("StableCascadeUNet", unet_cascade::walk),
    ("SD3Transformer2DModel", mmdit::walk_sd3),
    ("FluxTransformer2DModel", mmdit::walk_flux),
    ("ChromaTransformer2DModel", mmdit::walk_flux),
    ("Flux2Transformer2DModel", flux2::walk),
    ("QwenImageTransformer2DModel", mmdit::walk_qwen),
    ("AuraFlowTransformer2DModel", auraflow::walk),
    ("HunyuanVideoTransformer3DModel", mmdit::walk_hunyuan_video),
    ("CogView4Transformer2DModel", cogview4::walk),
    ("ZImageTransformer2DModel", single_stream::walk_z_image),
    ("Lumina2Transformer2DModel", single_stream::walk_lumina2),
    ("PixArtTransformer2DModel", dit::walk_pixart),
    ("HunyuanDiT2DModel", dit::walk_hunyuan),
    ("SanaTransformer2DModel", dit::walk_sana),
    ("PriorTransformer", dit::walk_prior),
    ("WanTransformer3DModel", video::walk_wan),
    ("CogVideoXTransformer3DModel", video::walk_cogvideox),
    ("LTXVideoTransformer3DModel", video::walk_ltx),
    ("AutoencoderKL", autoencoder::walk_kl),
    ("AutoencoderKLTemporalDecoder", autoencoder::walk_temporal),
    ("VQModel", autoencoder::walk_vq),
    ("CLIPTextModel", text::walk_clip),
    ("CLIPTextModelWithProjection", text::walk_clip),
    ("CLIPVisionModelWithProjection", text::walk_vision),
    ("BertModel", text::walk_clip),
    ("T5EncoderModel", text::walk_t5),
    ("MT5EncoderModel", text::walk_t5),
    ("UMT5EncoderModel", text::walk_t5),
    ("Qwen2_5_VLForConditionalGeneration", text::walk_decoder),
    ("LlamaModel", text::walk_decoder),
    ("Gemma2Model", text::walk_decoder),
    ("Gemma2ForCausalLM", text::walk_decoder),
    ("Qwen3Model", text::walk_decoder),
    ("Qwen3ForCausalLM", text::walk_decoder),
    ("GlmModel", text::walk_decoder),
    ("Mistral3ForConditionalGeneration", text::walk_decoder),
];

/// Their names, for messages.
const CLASSES: &[&str] = &[
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "QwenImageTransformer2DModel",
    "PixArtTransformer2DModel",
    "WanTransformer3DModel",
    "AutoencoderKL",
    "CLIPTextModel",
    "T5EncoderModel and their relatives",
];

/// Works out one pass of the network that `config` describes; `text_tokens` is the length of
/// the text that a denoiser attends to, or that a text encoder reads.
///
/// # Errors
/// A class that cannot be counted, or a field that makes no sense, by name.
pub fn measure(config: &Value, text_tokens: f64) -> Result<Work, ConfigError> {
    let name = class(config).ok_or(ConfigError::NoClass)?;
    let walk = WALKS.iter().find(|(known, _)| *known == name);
    let Some((_, walk)) = walk else {
        return Err(ConfigError::UnknownClass(name.to_owned()));
    };
    let work = walk(config, text_tokens)?;
    if work.weights.is_finite() {
        return Ok(work);
    }
    Err(ConfigError::Fields {
        class: name.to_owned(),
        why: "a width, a number of heads or of channels is not positive".to_owned(),
    })
}

/// The network's class: `_class_name` of `diffusers`, else the first of `architectures` of
/// `transformers`.
pub fn class(config: &Value) -> Option<&str> {
    let own = config.get("_class_name").and_then(Value::as_str);
    own.or_else(|| config.get("architectures")?.get(0)?.as_str())
}

/// Fields that are nowhere nought.
const SIZES: [&str; 1] = ["patch_size"];

/// Reads the fields that a walker needs; all others are ignored, as `diffusers` has many.
pub(super) fn fields<T: DeserializeOwned>(config: &Value) -> Result<T, ConfigError> {
    if let Some((field, meant)) = misspelt(config, names::<T>()) {
        return Err(ConfigError::Misspelt {
            class: class(config).unwrap_or_default().to_owned(),
            field,
            meant,
        });
    }
    for field in SIZES {
        let value = config.get(field).unwrap_or(&Value::Null);
        let each = value
            .as_array()
            .map_or(std::slice::from_ref(value), Vec::as_slice);
        let wrong = |value: &&Value| value.as_f64().is_some_and(|n| n <= 0.0);
        if let Some(wrong) = each.iter().find(wrong) {
            return Err(ConfigError::Value {
                class: class(config).unwrap_or_default().to_owned(),
                field,
                value: wrong.to_string(),
                allowed: "it must be positive",
            });
        }
    }
    T::deserialize(config).map_err(|error| ConfigError::Fields {
        class: class(config).unwrap_or_default().to_owned(),
        why: error.to_string(),
    })
}

/// A field that nobody reads, and one that it nearly is and that is missing: a typing error would
/// make a network another, in silence.
fn misspelt(config: &Value, known: &'static [&'static str]) -> Option<(String, &'static str)> {
    const SHORT: usize = 8;
    let given = config.as_object()?;
    let unknown = given
        .keys()
        .filter(|name| name.len() >= SHORT && !known.contains(&name.as_str()));
    for name in unknown {
        let missing = known.iter().filter(|known| !given.contains_key(**known));
        let near = missing.filter(|known| known.len() >= SHORT);
        if let Some(meant) = near.copied().find(|known| is_near(name, known)) {
            return Some((name.clone(), meant));
        }
    }
    None
}

/// True of two words that one letter less, more or other, or two swapped, tells apart.
pub(in crate::law) fn is_near(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..], &b[start..]);
    let ends = a.iter().rev().zip(b.iter().rev());
    let end = ends.take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    match (a, b) {
        ([_], [] | [_]) | ([], [_]) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

/// The fields that a walker reads, by name.
fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    let names = Cell::new([].as_slice());
    let _ = T::deserialize(Names(&names));
    names.get()
}

/// Gives no value: it only hears which fields are asked for.
struct Names<'a>(&'a Cell<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("there is no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.set(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Refuses a count that would make a walk endless or empty.
pub(super) fn within(
    config: &Value,
    field: &'static str,
    value: usize,
    most: usize,
) -> Result<usize, ConfigError> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value {
        class: class(config).unwrap_or_default().to_owned(),
        field,
        value: value.to_string(),
        allowed: "it must be positive and no more than networks have",
    })
}

/// A number, or one for each level.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum PerLevel<T> {
    One(T),
    Each(Vec<T>),
}

impl<T: Clone> PerLevel<T> {
    pub(super) fn at(&self, level: usize) -> Option<T> {
        match self {
            Self::One(value) => Some(value.clone()),
            Self::Each(values) => values.get(level).or(values.last()).cloned(),
        }
    }
}
