//! The built-in catalogue of models: what one pass of each costs, as a polynomial in
//! the number of 16×16 px image tokens.
//!
//! A U-Net or a transformer costs `constant + per_token·S + per_token_squared·S²`
//! exactly: convolutions, projections and text cross-attention are linear in the
//! number of tokens, self-attention is quadratic, time embedding and text keys are
//! constant. The coefficients are solved from passes counted operation by operation
//! on the published configurations (1 MAC = 2 FLOPs); they give back every counted
//! size within 1e-6.

use super::units::Flops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// FLOPs as a polynomial in S, the number of 16×16 px image tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Polynomial {
    pub constant: f64,
    pub per_token: f64,
    pub per_token_squared: f64,
}

impl Polynomial {
    const fn new(constant: f64, per_token: f64, per_token_squared: f64) -> Self {
        Self {
            constant,
            per_token,
            per_token_squared,
        }
    }

    pub fn at(&self, tokens: f64) -> Flops {
        Flops(self.constant + self.per_token * tokens + self.per_token_squared * tokens * tokens)
    }
}

/// The network that is called once a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denoiser {
    /// Coefficients counted on the published configuration.
    Counted(Polynomial),
    /// MMDiT: `L·(24·d²·(S+T) + 4·(S+T)²·d)`, L blocks of width d, T text tokens.
    MmDit {
        blocks: f64,
        width: f64,
        text_tokens: f64,
    },
    /// DiT with cross-attention and FFN ratio r:
    /// `L·(2(4+2r)·d²·S + 4·S²·d + 4·d²·(S+T) + 4·S·T·d)`.
    Dit {
        blocks: f64,
        width: f64,
        text_tokens: f64,
        ffn_ratio: f64,
    },
}

impl Denoiser {
    /// FLOPs of one pass over `tokens` image tokens, one image.
    pub fn pass(&self, tokens: f64) -> Flops {
        match *self {
            Self::Counted(polynomial) => polynomial.at(tokens),
            Self::MmDit {
                blocks,
                width,
                text_tokens,
            } => {
                let all = tokens + text_tokens;
                Flops(blocks * (24.0 * width * width * all + 4.0 * all * all * width))
            }
            Self::Dit {
                blocks,
                width,
                text_tokens,
                ffn_ratio,
            } => Flops(
                blocks
                    * (2.0 * (4.0 + 2.0 * ffn_ratio) * width * width * tokens
                        + 4.0 * tokens * tokens * width
                        + 4.0 * width * width * (tokens + text_tokens)
                        + 4.0 * tokens * text_tokens * width),
            ),
        }
    }
}

/// How `diffusers` runs classifier-free guidance for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Cfg {
    /// One doubled batch a step when `guidance_scale > 1`.
    Batched,
    /// Two passes in sequence when `true_cfg_scale > 1`; `guidance_scale` is an embedded
    /// input and costs nothing.
    Sequential,
}

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub name: String,
    pub denoiser: Denoiser,
    /// Width and height are padded to a multiple of this inside the denoiser, in px.
    pub pixel_multiple: u32,
    /// Text encoders, one prompt.
    pub text: Flops,
    /// A prior run before the denoiser (unCLIP): FLOPs a pass and passes.
    pub prior: Flops,
    pub prior_passes: f64,
    pub decoder: Polynomial,
    pub cfg: Cfg,
    /// Pipeline defaults of `diffusers`: what runs where the author says nothing.
    pub default_size: u32,
    pub default_steps: u32,
    pub default_guidance: f64,
}

/// All models known: the built-in ones, and a company's own on top.
#[derive(Debug, Clone)]
pub struct Catalogue {
    models: BTreeMap<String, Model>,
    aliases: BTreeMap<String, String>,
}

/// AutoencoderKL with factor 8 (4 and 16 latent channels differ by less than 0.02 %).
const VAE: Polynomial = Polynomial::new(0.0, 2.422_03e9, 3.276_8e4);
const VAE16: Polynomial = Polynomial::new(0.0, 2.422_473e9, 3.276_8e4);
const MOVQ: Polynomial = Polynomial::new(0.0, 1.818_444e9, 1.310_72e5);
const QWEN_VAE: Polynomial = Polynomial::new(0.0, 2.751_531e9, 2.457_6e4);

struct Row(
    &'static str,
    (f64, f64, f64),
    u32,
    f64,
    Polynomial,
    Cfg,
    (u32, u32, f64),
);

#[rustfmt::skip]
const BUILT_IN: &[Row] = &[
    // name, denoiser (constant, per token, per token²), px multiple, text, decoder, guidance, (size, steps, scale)
    Row("sd1.5",          (3.007_788e9,  6.618_856e8,  1.168_201e5), 64, 1.329_85e10,  VAE,      Cfg::Batched,    (512, 50, 7.5)),
    Row("sd2",            (3.991_879e9,  6.618_856e8,  1.168_201e5), 64, 4.512_723e10, VAE,      Cfg::Batched,    (768, 50, 7.5)),
    Row("sdxl",           (5.253_101e10, 1.454_366_9e9, 4.479_993e4), 64, 1.111_583e11, VAE,     Cfg::Batched,    (1024, 50, 5.0)),
    Row("sdxl-turbo",     (5.253_101e10, 1.454_366_9e9, 4.479_993e4), 64, 1.111_583e11, VAE,     Cfg::Batched,    (512, 50, 5.0)),
    Row("ssd-1b",         (2.426_869e10, 9.033_956e8,  2.880_006e4), 64, 1.111_583e11, VAE,      Cfg::Batched,    (1024, 50, 5.0)),
    Row("sd3-medium",     (4.602_977e11, 1.457_553e9,  1.474_56e5),  16, 2.507_75e12,  VAE16,    Cfg::Batched,    (1024, 28, 7.0)),
    Row("sd3.5-medium",   (4.604_816e11, 1.702_921e9,  2.273_28e5),  16, 2.507_75e12,  VAE16,    Cfg::Batched,    (1024, 28, 7.0)),
    Row("sd3.5-large",    (1.813_827e12, 5.640_954e9,  3.696_64e5),  16, 2.507_75e12,  VAE16,    Cfg::Batched,    (1024, 28, 7.0)),
    Row("flux.1-dev",     (6.813_009e12, 1.362_808e10, 7.004_16e5),  16, 4.858_022e12, VAE16,    Cfg::Sequential, (1024, 28, 3.5)),
    Row("flux.1-schnell", (3.363_859e12, 1.326_947e10, 7.004_16e5),  16, 2.409_89e12,  VAE16,    Cfg::Sequential, (1024, 4, 0.0)),
    Row("qwen-image",     (1.066_109e12, 1.370_387e10, 7.372_8e5),   16, 1.453_56e12,  QWEN_VAE, Cfg::Sequential, (1024, 50, 4.0)),
    Row("pixart-sigma",   (4.823_726e10, 1.079_267e9,  1.290_24e5),  16, 2.813_696e12, VAE,      Cfg::Batched,    (1024, 20, 4.5)),
    Row("hunyuandit-1.2", (9.422_851e10, 2.561_524e9,  2.252_798e5), 16, 6.526_797e11, VAE,      Cfg::Batched,    (1024, 50, 5.0)),
    Row("kandinsky-2.2",  (2.821_328e9,  8.089_558e8,  2.371_202e4), 64, 9.785_983e10, MOVQ,     Cfg::Batched,    (512, 100, 4.0)),
    Row("kandinsky-3",    (8.163_449e10, 7.587_718e8,  3.503_992e3), 64, 2.207_613e12, MOVQ,     Cfg::Batched,    (1024, 25, 3.0)),
];

/// Other names of the same weights' shape: Hugging Face repositories and short names.
const ALIASES: &[(&str, &str)] = &[
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1.5"),
    ("runwayml/stable-diffusion-v1-5", "sd1.5"),
    ("prompthero/openjourney-v4", "sd1.5"),
    ("sd2.1", "sd2"),
    ("stabilityai/stable-diffusion-2-1", "sd2"),
    ("stabilityai/stable-diffusion-2", "sd2"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
    ("stabilityai/sdxl-turbo", "sdxl-turbo"),
    ("segmind/ssd-1b", "ssd-1b"),
    ("sd3", "sd3-medium"),
    (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "sd3-medium",
    ),
    ("sd3.5", "sd3.5-large"),
    ("stabilityai/stable-diffusion-3.5-medium", "sd3.5-medium"),
    ("stabilityai/stable-diffusion-3.5-large", "sd3.5-large"),
    ("flux", "flux.1-dev"),
    ("black-forest-labs/flux.1-dev", "flux.1-dev"),
    ("black-forest-labs/flux.1-schnell", "flux.1-schnell"),
    ("qwen/qwen-image", "qwen-image"),
    ("pixart-alpha/pixart-sigma-xl-2-1024-ms", "pixart-sigma"),
    (
        "tencent-hunyuan/hunyuandit-v1.2-diffusers",
        "hunyuandit-1.2",
    ),
    ("hunyuandit", "hunyuandit-1.2"),
    ("hunyuandit-v1.2", "hunyuandit-1.2"),
    ("kandinsky2.2", "kandinsky-2.2"),
    ("kandinsky3", "kandinsky-3"),
    ("kandinsky-community/kandinsky-2-2-decoder", "kandinsky-2.2"),
    ("kandinsky-community/kandinsky-3", "kandinsky-3"),
];

impl Catalogue {
    /// The models that Jouleward knows without being told.
    pub fn built_in() -> Self {
        let mut catalogue = Self {
            models: BTreeMap::new(),
            aliases: BTreeMap::new(),
        };
        for Row(name, (constant, per_token, squared), multiple, text, decoder, cfg, defaults) in
            BUILT_IN
        {
            let unclip = *name == "kandinsky-2.2";
            catalogue.insert(Model {
                name: (*name).to_owned(),
                denoiser: Denoiser::Counted(Polynomial::new(*constant, *per_token, *squared)),
                pixel_multiple: *multiple,
                text: Flops(*text),
                // The combined pipeline runs 25 prior steps, with guidance.
                prior: Flops(if unclip { 1.645_857e11 } else { 0.0 }),
                prior_passes: if unclip { 25.0 } else { 0.0 },
                decoder: *decoder,
                cfg: *cfg,
                default_size: defaults.0,
                default_steps: defaults.1,
                default_guidance: defaults.2,
            });
        }
        for (alias, name) in ALIASES {
            catalogue.alias(alias, name);
        }
        catalogue
    }

    /// Adds a model, or replaces the one of that name.
    pub fn insert(&mut self, model: Model) {
        self.models.insert(model.name.to_lowercase(), model);
    }

    /// Makes `alias` another name of `name`.
    pub fn alias(&mut self, alias: &str, name: &str) {
        self.aliases
            .insert(alias.to_lowercase(), name.to_lowercase());
    }

    /// Finds a model by name or alias, without case.
    pub fn get(&self, name: &str) -> Option<&Model> {
        let key = name.trim().to_lowercase();
        let key = self.aliases.get(&key).unwrap_or(&key);
        self.models.get(key)
    }

    /// The names of all models, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.values().map(|model| model.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_names_a_model_that_is_there() {
        let catalogue = Catalogue::built_in();
        for (alias, name) in ALIASES {
            assert_eq!(
                catalogue.get(alias).map(|m| m.name.as_str()),
                Some(*name),
                "{alias}"
            );
        }
    }

    #[test]
    fn the_formulas_for_transformers_give_what_was_counted() {
        let tokens = 64.0 * 64.0;
        let flux = Denoiser::MmDit {
            blocks: 57.0,
            width: 3072.0,
            text_tokens: 512.0,
        };
        assert!((flux.pass(tokens).tera() - 74.36).abs() < 0.01);
        let pixart = Denoiser::Dit {
            blocks: 28.0,
            width: 1152.0,
            text_tokens: 300.0,
            ffn_ratio: 4.0,
        };
        assert!((pixart.pass(tokens).tera() - 6.63).abs() < 0.01);
    }
}
