//! `DiffusionModel`: what a company's own model costs in FLOPs.

use super::{Condition, InvalidSpec};
use crate::law::{Catalogue, Cfg, Denoiser, Flops, Model, Polynomial};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    pub guidance: Cfg,
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

fn batched() -> Cfg {
    Cfg::Batched
}

fn side() -> i64 {
    1024
}

fn steps() -> i64 {
    28
}

/// One of three shapes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.mmdit) ? 1 : 0) + (has(self.dit) ? 1 : 0) + (has(self.counted) ? 1 : 0) == 1").message("set exactly one of mmdit, dit or counted, for example mmdit: {blocks: 57, width: 3072, textTokens: 512}"))]
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
        catalogue.insert(model);
        for alias in &self.aliases {
            catalogue.alias(alias, name);
        }
        Ok(())
    }

    fn model(&self, name: &str, denoiser: &DenoiserSpec) -> Result<Model, InvalidSpec> {
        let small = |value: i64, fallback: u32| u32::try_from(value).unwrap_or(fallback);
        Ok(Model {
            name: name.to_owned(),
            denoiser: denoiser.denoiser()?,
            pixel_multiple: 16,
            text: Flops(self.text_gigaflops as f64 * 1e9),
            prior: Flops(0.0),
            prior_passes: 0.0,
            decoder: Polynomial {
                constant: 0.0,
                per_token: self.decoder_megaflops_per_token as f64 * 1e6,
                per_token_squared: 0.0,
            },
            cfg: self.guidance,
            default_size: small(self.default_size, 1024),
            default_steps: small(self.default_steps, 28),
            default_guidance: if self.guidance == Cfg::Batched {
                7.0
            } else {
                1.0
            },
        })
    }
}

impl DenoiserSpec {
    fn denoiser(&self) -> Result<Denoiser, InvalidSpec> {
        match (&self.mmdit, &self.dit, &self.counted) {
            (Some(t), None, None) => Ok(Denoiser::MmDit {
                blocks: t.blocks as f64,
                width: t.width as f64,
                text_tokens: t.text_tokens as f64,
            }),
            (None, Some(t), None) => Ok(Denoiser::Dit {
                blocks: t.blocks as f64,
                width: t.width as f64,
                text_tokens: t.text_tokens as f64,
                ffn_ratio: 4.0,
            }),
            (None, None, Some(c)) => Ok(Denoiser::Counted(Polynomial {
                constant: c.constant_megaflops as f64 * 1e6,
                per_token: c.per_token_megaflops as f64 * 1e6,
                per_token_squared: c.per_token_squared_flops as f64,
            })),
            _ => Err(InvalidSpec {
                field: "spec.denoiser",
                problem: "set exactly one of mmdit, dit or counted".to_owned(),
            }),
        }
    }
}
