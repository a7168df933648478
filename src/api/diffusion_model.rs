//! `DiffusionModel`: what a company's own model costs in FLOPs.

use super::{Condition, InvalidSpec};
use crate::law::network::Polynomial;
use crate::law::{
    Binning, Catalogue, CatalogueFile, Component, DefaultsEntry, Entry, Guidance, Model, Negative,
    Runs, Scale,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A model's cost in FLOPs, as formula parameters. 1 MAC = 2 FLOPs.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "DiffusionModel",
    status = "DiffusionModelStatus",
    shortname = "dm",
    category = "carbon",
    doc = "What a diffusion model costs in FLOPs; adds to the built-in catalogue.",
    printcolumn(name = "Base", type_ = "string", json_path = ".spec.base"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.base) != has(self.denoiser)").message("set either base, for example base: sdxl, or denoiser, for example denoiser: {mmdit: {blocks: 57, width: 3072, textTokens: 512}}"))]
pub struct DiffusionModelSpec {
    /// A model of the catalogue with the same shape: a fine-tune needs no more than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub base: Option<String>,
    /// Other names that authors may write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub aliases: Vec<String>,
    /// The network that is called once a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoiser: Option<DenoiserSpec>,
    /// Text encoders in gigaFLOPs for one prompt. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub text_gigaflops: i64,
    /// Decoder in megaFLOPs for each 16×16 px of the picture. Default 2422: AutoencoderKL.
    #[serde(default = "vae")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub decoder_megaflops_per_token: i64,
    /// How classifier-free guidance runs. Default Batched.
    #[serde(default = "batched")]
    pub guidance: Runs,
    /// Which parameter switches guidance. Default guidance, or trueCfg where it runs in sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<Scale>,
    /// Whether guidance runs without a negative prompt. Default Optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<Negative>,
    /// Side of the picture in px where the author says nothing. Default 1024.
    #[serde(default = "side")]
    #[schemars(range(min = 64, max = 8192))]
    pub default_size: i64,
    /// Steps where the author says nothing. Default 28.
    #[serde(default = "steps")]
    #[schemars(range(min = 1, max = 1000))]
    pub default_steps: i64,
}

fn vae() -> i64 {
    2422
}

fn batched() -> Runs {
    Runs::Batched
}

fn side() -> i64 {
    1024
}

fn steps() -> i64 {
    28
}

/// One of four shapes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.mmdit) ? 1 : 0) + (has(self.dit) ? 1 : 0) + (has(self.counted) ? 1 : 0) + (has(self.config) ? 1 : 0) == 1").message("set exactly one of mmdit, dit, counted or config, for example mmdit: {blocks: 57, width: 3072, textTokens: 512}"))]
pub struct DenoiserSpec {
    /// Transformer with joint attention over picture and text, as FLUX and SD 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmdit: Option<Transformer>,
    /// Transformer with cross-attention to the text, as PixArt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dit: Option<Transformer>,
    /// Counted FLOPs of one pass, as a polynomial in 16×16 px tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
    /// The network's own config.json, or the fields of it that matter, as `jouleward model
    /// import` writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub config: Option<Value>,
    /// Text tokens that the network of `config` attends to. Default 77.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub text_tokens: Option<i64>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true
    })
}

/// A transformer's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transformer {
    /// Blocks.
    #[schemars(range(min = 1, max = 1000))]
    pub blocks: i64,
    /// Width: heads times head dimension.
    #[schemars(range(min = 1, max = 100_000))]
    pub width: i64,
    /// Text tokens.
    #[schemars(range(min = 0, max = 100_000))]
    pub text_tokens: i64,
}

/// A counted pass: constant + perToken·S + perTokenSquared·S².
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// MegaFLOPs whatever the size.
    #[schemars(range(min = 0))]
    pub constant_megaflops: i64,
    /// MegaFLOPs for each token.
    #[schemars(range(min = 1))]
    pub per_token_megaflops: i64,
    /// FLOPs for each pair of tokens.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub per_token_squared_flops: i64,
}

/// Whether the model can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DiffusionModelStatus {
    /// Generation of the spec this status is for.
    pub observed_generation: i64,
    /// Ready.
    pub conditions: Vec<Condition>,
}

impl DiffusionModelSpec {
    /// Adds the model to a catalogue under its object's name.
    pub fn add_to(&self, name: &str, catalogue: &mut Catalogue) -> Result<(), InvalidSpec> {
        let model = match (&self.base, &self.denoiser) {
            (Some(base), None) => {
                let known = catalogue.names().collect::<Vec<_>>().join(", ");
                let base = catalogue.get(base).ok_or_else(|| InvalidSpec {
                    field: "spec.base",
                    problem: format!("{base:?} is not in the catalogue; known are {known}"),
                })?;
                Model {
                    name: name.to_owned(),
                    ..base.clone()
                }
            }
            (None, Some(denoiser)) => self.model(name, denoiser)?,
            _ => {
                let problem = "set either base or denoiser, for example base: sdxl".to_owned();
                return Err(InvalidSpec {
                    field: "spec",
                    problem,
                });
            }
        };
        for alias in &self.aliases {
            if let Some(taken) = catalogue.get(alias).filter(|taken| taken.name != name) {
                return Err(InvalidSpec {
                    field: "spec.aliases",
                    problem: format!("{alias:?} is a name of {}: choose another", taken.name),
                });
            }
        }
        catalogue.insert(model);
        for alias in &self.aliases {
            catalogue.alias(alias, name);
        }
        Ok(())
    }

    /// Through the same door as a catalogue file.
    fn model(&self, name: &str, denoiser: &DenoiserSpec) -> Result<Model, InvalidSpec> {
        let small = |value: i64| u32::try_from(value).ok();
        let per_token = self.decoder_megaflops_per_token as f64 * 1e6;
        let decoder = json!({"counted": {
            "convolution": Polynomial::of_picture(0.0, per_token, 0.0),
            "elements": Polynomial::of_picture(0.0, per_token / DECODER_FLOPS_PER_ELEMENT, 0.0),
            "launches": 130.0,
        }});
        let entry = Entry {
            name: name.to_owned(),
            aliases: Vec::new(),
            pipelines: Vec::new(),
            denoiser: Component::Own(denoiser.network()?),
            controlnet: None,
            tokens: denoiser.tokens() as f64,
            text: Vec::new(),
            text_teraflops: Some(self.text_gigaflops as f64 / 1e3),
            prior: None,
            decoder: Component::Own(decoder),
            encodes: false,
            multiple: 16,
            binned: Binning::None,
            frames: None,
            guidance: Guidance {
                runs: self.guidance,
                scale: self
                    .guidance_scale
                    .unwrap_or(if self.guidance == Runs::Sequential {
                        Scale::TrueCfg
                    } else {
                        Scale::Guidance
                    }),
                above: 1.0,
                negative: self.negative_prompt.unwrap_or(Negative::Optional),
            },
            defaults: DefaultsEntry {
                size: small(self.default_size),
                steps: small(self.default_steps),
                guidance: (self.guidance == Runs::Never
                    || self.guidance_scale.unwrap_or(Scale::TrueCfg) == Scale::TrueCfg
                        && self.guidance != Runs::Batched)
                    .then_some(1.0),
                ..DefaultsEntry::default()
            },
            certain: true,
        };
        let file = CatalogueFile {
            components: std::collections::BTreeMap::new(),
            models: vec![entry],
        };
        let mut made = file.models().map_err(|error| InvalidSpec {
            field: "spec.denoiser",
            problem: error.to_string(),
        })?;
        let made = made.pop().map(|(model, _)| model);
        made.ok_or_else(|| InvalidSpec {
            field: "spec.denoiser",
            problem: "it gives no model".to_owned(),
        })
    }
}

/// FLOPs for an element that an autoencoder's memory-bound kernels move.
const DECODER_FLOPS_PER_ELEMENT: f64 = 570.0;
/// The same of a denoiser of which nothing but its FLOPs is known, and its launches.
const COUNTED_FLOPS_PER_ELEMENT: f64 = 700.0;
const COUNTED_LAUNCHES: f64 = 1000.0;

impl DenoiserSpec {
    /// The network in the form that a catalogue file has it.
    fn network(&self) -> Result<Value, InvalidSpec> {
        let shape = |t: &Transformer| {
            let width = t.width as f64;
            let heads = [128.0, 64.0, 32.0]
                .into_iter()
                .find(|head| width % head == 0.0)
                .map_or(16.0, |head| width / head);
            (t.blocks, heads, width / heads)
        };
        match (&self.mmdit, &self.dit, &self.counted, &self.config) {
            (Some(t), None, None, None) => {
                let (blocks, heads, head) = shape(t);
                Ok(
                    json!({"_class_name": "FluxTransformer2DModel", "num_layers": blocks,
                    "num_single_layers": 0, "num_attention_heads": heads, "attention_head_dim": head}),
                )
            }
            (None, Some(t), None, None) => {
                let (blocks, heads, head) = shape(t);
                Ok(
                    json!({"_class_name": "PixArtTransformer2DModel", "num_layers": blocks,
                    "num_attention_heads": heads, "attention_head_dim": head,
                    "cross_attention_dim": t.width}),
                )
            }
            (None, None, Some(c), None) => {
                let (constant, token) = (
                    c.constant_megaflops as f64 * 1e6,
                    c.per_token_megaflops as f64 * 1e6,
                );
                let pair = c.per_token_squared_flops as f64;
                Ok(json!({"counted": {
                    "linear": Polynomial::of_picture(constant, token, 0.0),
                    "attention": Polynomial::of_picture(0.0, 0.0, pair),
                    "elements": Polynomial::of_picture(
                        constant / COUNTED_FLOPS_PER_ELEMENT,
                        token / COUNTED_FLOPS_PER_ELEMENT,
                        0.0,
                    ),
                    "launches": COUNTED_LAUNCHES,
                }}))
            }
            (None, None, None, Some(config)) => Ok(config.clone()),
            _ => Err(InvalidSpec {
                field: "spec.denoiser",
                problem: "set exactly one of mmdit, dit, counted or config".to_owned(),
            }),
        }
    }

    fn tokens(&self) -> i64 {
        let own = self.mmdit.as_ref().or(self.dit.as_ref());
        own.map(|t| t.text_tokens)
            .or(self.text_tokens)
            .unwrap_or(77)
    }
}
