//! A catalogue file: YAML or JSON, in the form that `jouleward model import` writes.

use super::binning::Binning;
use super::model::{Decoding, Defaults, Frames, Guidance, Model, Prior};
use crate::law::network::{ConfigError, Polynomial, Work, class, measure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatalogueFile {
    /// Networks by name, for models to share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, Value>,
    pub models: Vec<Entry>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Pipelines that run it, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipelines: Vec<String>,
    pub denoiser: Component,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controlnet: Option<Component>,
    /// Text tokens that the denoiser attends to.
    #[serde(default)]
    pub tokens: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextEntry>,
    /// Text encoders counted as one figure, TFLOPs a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_teraflops: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorEntry>,
    pub decoder: Component,
    /// True where the pipeline always encodes a picture first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encodes: bool,
    #[serde(default = "eight")]
    pub multiple: u32,
    /// Which size is made for one that is asked: that one (none), one of about the default's
    /// area by aspect, or one of HunyuanDiT's shapes.
    #[serde(default, skip_serializing_if = "Binning::is_none")]
    pub binned: Binning,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    #[serde(default)]
    pub guidance: Guidance,
    pub defaults: DefaultsEntry,
    #[serde(default = "yes")]
    pub certain: bool,
}

fn eight() -> u32 {
    8
}

fn yes() -> bool {
    true
}

/// A network: the name of a component, or its configuration in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Component {
    Named(String),
    Own(Value),
}

/// A text encoder and the length of what it reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEntry {
    pub network: Component,
    pub tokens: f64,
}

/// A prior, its calls and its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorEntry {
    pub network: Component,
    pub calls: f64,
    #[serde(default = "two")]
    pub rows: f64,
}

fn two() -> f64 {
    2.0
}

/// The pipeline's own defaults; `size` sets both sides.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultsEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_cfg: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<u32>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("the catalogue cannot be read: {0}")]
    Syntax(serde_yaml::Error),
    #[error(
        "model {model}: {field} names the component {name:?}, which is not there; known are {known}"
    )]
    NoComponent {
        model: String,
        field: &'static str,
        name: String,
        known: String,
    },
    #[error("model {model}: {field}: {why}")]
    Config {
        model: String,
        field: &'static str,
        why: ConfigError,
    },
    #[error("model {model}: {field}: counted: {why}")]
    Counted {
        model: String,
        field: &'static str,
        why: serde_json::Error,
    },
    #[error("model {model}: {field} is {value}; {allowed}")]
    Value {
        model: String,
        field: &'static str,
        value: String,
        allowed: &'static str,
    },
}

/// Of counted text encoders: as language models of their size, FLOPs to an element and to
/// a launch.
const TEXT_FLOPS_PER_ELEMENT: f64 = 2000.0;
const TEXT_LAUNCHES: f64 = 500.0;
/// Encoding a picture takes this share of decoding one: two residual blocks a level
/// against three.
const ENCODER_SHARE: f64 = 0.45;

impl CatalogueFile {
    /// The built-in catalogue as a file.
    #[expect(clippy::expect_used, reason = "a test reads the file that is built in")]
    pub fn built_in() -> Self {
        serde_yaml::from_str(super::BUILT_IN).expect("the built-in catalogue is sound")
    }

    /// All models with their aliases.
    ///
    /// # Errors
    /// What is wrong with the first that cannot be used, by model and field.
    pub fn models(&self) -> Result<Vec<(Model, Vec<String>)>, CatalogueError> {
        let mut seen = std::collections::BTreeSet::new();
        for entry in &self.models {
            for name in std::iter::once(&entry.name).chain(&entry.aliases) {
                if !seen.insert(name.trim().to_lowercase()) {
                    return Err(CatalogueError::Value {
                        model: entry.name.clone(),
                        field: "aliases",
                        value: format!("{name:?}, which stands in the file twice"),
                        allowed: "each name may stand for one model",
                    });
                }
            }
        }
        let made = self.models.iter().map(|entry| {
            let model = self.model(entry)?;
            Ok((model, entry.aliases.clone()))
        });
        made.collect()
    }

    fn model(&self, entry: &Entry) -> Result<Model, CatalogueError> {
        let name = entry.name.trim();
        let refuse = |field, value: String, allowed| CatalogueError::Value {
            model: entry.name.clone(),
            field,
            value,
            allowed,
        };
        if name.is_empty() || name.len() > 128 {
            return Err(refuse(
                "name",
                format!("{name:?}"),
                "1 to 128 characters are needed",
            ));
        }
        if !(0.0..=100_000.0).contains(&entry.tokens) {
            return Err(refuse(
                "tokens",
                entry.tokens.to_string(),
                "0 to 100000 are allowed",
            ));
        }
        if !(1..=256).contains(&entry.multiple) {
            return Err(refuse(
                "multiple",
                entry.multiple.to_string(),
                "1 to 256 px are allowed",
            ));
        }
        entry.check(&refuse)?;
        let denoiser = self.work(entry, "denoiser", &entry.denoiser, entry.tokens)?;
        let controlnet = entry.controlnet.as_ref();
        let prior = entry.prior.as_ref();
        Ok(Model {
            name: name.to_owned(),
            architecture: self.architecture(&entry.denoiser),
            denoiser,
            controlnet: controlnet
                .map(|network| self.work(entry, "controlnet", network, entry.tokens))
                .transpose()?,
            text: self.text(entry)?,
            prior: prior
                .map(|prior| {
                    Ok(Prior {
                        work: self.work(entry, "prior", &prior.network, entry.tokens)?,
                        calls: prior.calls,
                        rows: prior.rows,
                    })
                })
                .transpose()?,
            decoder: Decoding {
                work: self.work(entry, "decoder", &entry.decoder, entry.tokens)?,
                encoder_share: ENCODER_SHARE,
                encodes: entry.encodes,
            },
            pixel_multiple: entry.multiple,
            binned: entry.binned,
            frames: entry.frames,
            guidance: entry.guidance,
            defaults: entry.defaults.resolve(),
            certain: entry.certain,
        })
    }

    fn text(&self, entry: &Entry) -> Result<Work, CatalogueError> {
        let mut text = Work::default();
        for encoder in &entry.text {
            text += self.work(entry, "text", &encoder.network, encoder.tokens)?;
        }
        if let Some(tera) = entry.text_teraflops {
            let flops = tera * 1e12;
            text.linear += Polynomial::constant(flops);
            text.elements += Polynomial::constant(flops / TEXT_FLOPS_PER_ELEMENT);
            text.launches += TEXT_LAUNCHES;
        }
        Ok(text)
    }

    fn config<'a>(&'a self, component: &'a Component) -> Option<&'a Value> {
        match component {
            Component::Named(name) => self.components.get(name).or_else(|| built_in(name)),
            Component::Own(config) => Some(config),
        }
    }

    fn architecture(&self, component: &Component) -> String {
        let config = self.config(component);
        let name = match component {
            Component::Named(name) => name.as_str(),
            Component::Own(_) => "counted",
        };
        config.and_then(class).unwrap_or(name).to_owned()
    }

    fn work(
        &self,
        entry: &Entry,
        field: &'static str,
        component: &Component,
        tokens: f64,
    ) -> Result<Work, CatalogueError> {
        let model = || entry.name.clone();
        let Some(config) = self.config(component) else {
            let known: Vec<&str> = self.components.keys().map(String::as_str).collect();
            return Err(CatalogueError::NoComponent {
                model: model(),
                field,
                name: match component {
                    Component::Named(name) => name.clone(),
                    Component::Own(value) => value.to_string(),
                },
                known: if known.is_empty() {
                    "those of the built-in catalogue".to_owned()
                } else {
                    known.join(", ")
                },
            });
        };
        let work = match config.get("counted") {
            Some(counted) => Work::deserialize(counted).map_err(|why| CatalogueError::Counted {
                model: model(),
                field,
                why,
            })?,
            None => measure(config, tokens).map_err(|why| CatalogueError::Config {
                model: model(),
                field,
                why,
            })?,
        };
        let extent = crate::law::network::Extent {
            tokens: 1024.0,
            frames: 1.0,
        };
        let flops = work.flops(extent).0;
        if !work.is_possible() {
            return Err(CatalogueError::Value {
                model: model(),
                field,
                value: "negative, or no number, in a part".to_owned(),
                allowed: "every coefficient, weights and launches must be 0 or more",
            });
        }
        if flops > 0.0 && flops < 1e18 {
            return Ok(work);
        }
        Err(CatalogueError::Value {
            model: model(),
            field,
            value: format!("{flops:.3e} FLOPs for a picture of 512x512"),
            allowed: "it must be positive and possible: look at the widths and layers",
        })
    }
}

/// A network of the built-in catalogue, for a company's own models to name.
fn built_in(name: &str) -> Option<&'static Value> {
    use std::sync::LazyLock;
    static COMPONENTS: LazyLock<BTreeMap<String, Value>> =
        LazyLock::new(|| CatalogueFile::built_in().components);
    COMPONENTS.get(name)
}

/// Makes a refusal of a field, its value and what is allowed.
type Refuse<'a> = &'a dyn Fn(&'static str, String, &'static str) -> CatalogueError;

impl Entry {
    /// Refuses what no pipeline has.
    fn check(&self, refuse: Refuse<'_>) -> Result<(), CatalogueError> {
        let number = |field, value: Option<f64>, least: f64, most: f64, allowed| match value {
            Some(value) if !(least..=most).contains(&value) => {
                Err(refuse(field, value.to_string(), allowed))
            }
            _ => Ok(()),
        };
        let whole = |value: Option<u32>| value.map(f64::from);
        let d = &self.defaults;
        number(
            "textTeraflops",
            self.text_teraflops,
            0.0,
            1e6,
            "0 to 1000000 are allowed",
        )?;
        let prior = self.prior.as_ref();
        number(
            "prior.calls",
            prior.map(|p| p.calls),
            0.0,
            1e4,
            "0 to 10000 are allowed",
        )?;
        number(
            "prior.rows",
            prior.map(|p| p.rows),
            1.0,
            8.0,
            "1 to 8 are allowed",
        )?;
        number(
            "guidance.above",
            Some(self.guidance.above),
            0.0,
            100.0,
            "0 to 100 are allowed",
        )?;
        for text in &self.text {
            number(
                "text.tokens",
                Some(text.tokens),
                0.0,
                1e5,
                "0 to 100000 are allowed",
            )?;
        }
        for side in [d.size, d.width, d.height] {
            number(
                "defaults.size",
                whole(side),
                64.0,
                8192.0,
                "64 to 8192 px are allowed",
            )?;
        }
        number(
            "defaults.steps",
            whole(d.steps),
            1.0,
            1e3,
            "1 to 1000 are allowed",
        )?;
        number(
            "defaults.frames",
            whole(d.frames),
            1.0,
            1e4,
            "1 to 10000 are allowed",
        )?;
        number(
            "defaults.guidance",
            d.guidance,
            0.0,
            100.0,
            "0 to 100 are allowed",
        )?;
        number(
            "defaults.trueCfg",
            d.true_cfg,
            0.0,
            100.0,
            "0 to 100 are allowed",
        )?;
        let frames = self.frames.as_ref();
        let compression = frames.map(|f| f64::from(f.compression));
        number(
            "frames.compression",
            compression,
            1.0,
            64.0,
            "1 to 64 are allowed",
        )?;
        let multiple = frames.map(|f| f64::from(f.multiple));
        number(
            "frames.multiple",
            multiple,
            1.0,
            64.0,
            "1 to 64 are allowed",
        )
    }
}

impl DefaultsEntry {
    fn resolve(&self) -> Defaults {
        let side = |own: Option<u32>| own.or(self.size).unwrap_or(1024);
        Defaults {
            width: side(self.width),
            height: side(self.height),
            steps: self.steps.unwrap_or(28),
            guidance: self.guidance.unwrap_or(7.0),
            true_cfg: self.true_cfg.unwrap_or(1.0),
            frames: self.frames.unwrap_or(1),
        }
    }
}
