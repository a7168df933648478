//! `jouleward model import`: a catalogue entry out of a model's own configuration on disk:
//! `model_index.json` with the `config.json` of each component, or one `config.json`.

use crate::api::{DenoiserSpec, DiffusionModel, DiffusionModelSpec};
use crate::cli::arguments::{read, wrong};
use crate::law::{
    Binning, Catalogue, CatalogueFile, Component, DefaultsEntry, Entry, Guidance, Runs, TextEntry,
    Workload, object_name,
};
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Derives a catalogue entry from a model's configuration on disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward model import ./stable-diffusion-xl-base-1.0 > ours.yaml
  jouleward model import ./my-model/transformer/config.json --name my-model --text-tokens 512
  jouleward model import ./my-model --manifest | kubectl apply -f -")]
pub(super) struct Import {
    /// Folder with model_index.json, that file itself, or one network's config.json.
    path: PathBuf,
    /// Name of the model; else that of the folder.
    #[arg(long)]
    name: Option<String>,
    /// Text tokens that the denoiser attends to; else what its pipeline usually has.
    #[arg(long)]
    text_tokens: Option<f64>,
    /// Write a DiffusionModel object instead.
    #[arg(long)]
    manifest: bool,
}

/// Decoders that are counted and not walked through, by class.
const DECODERS: &[(&str, &str)] = &[
    ("AutoencoderKLQwenImage", "autoencoder-qwen"),
    ("AutoencoderDC", "autoencoder-dc"),
    ("AutoencoderKLWan", "autoencoder-wan"),
    ("AutoencoderKLCogVideoX", "autoencoder-cogvideox"),
    ("AutoencoderKLHunyuanVideo", "autoencoder-hunyuanvideo"),
    ("AutoencoderKLLTXVideo", "autoencoder-ltx"),
    ("AutoencoderKLFlux2", "autoencoder-kl-16"),
    ("PaellaVQModel", "autoencoder-paella"),
];

/// What a pipeline calls its denoiser: Stable Cascade's is its decoder.
const DENOISERS: [&str; 3] = ["transformer", "unet", "decoder"];

/// Components of a pipeline that run no network of weight.
const LIGHT: [&str; 6] = [
    "scheduler",
    "tokenizer",
    "feature_extractor",
    "safety_checker",
    "image_processor",
    "processor",
];

impl Import {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let index = if self.path.is_dir() {
            self.path.join("model_index.json")
        } else {
            self.path.clone()
        };
        let entry = if index.ends_with("model_index.json") {
            self.pipeline(&index)?
        } else {
            self.network(&index)?
        };
        let file = CatalogueFile {
            components: BTreeMap::new(),
            models: vec![entry],
        };
        let text = serde_yaml::to_string(&file)?;
        let mut catalogue = Catalogue::built_in();
        catalogue
            .read(&text)
            .map_err(|error| wrong(error.to_string()))?;
        let entry = &file.models[0];
        if let Some(model) = catalogue.get(&entry.name) {
            let workload = Workload::of(model);
            let pass = super::pass(model, &workload);
            eprintln!(
                "{}: {:.3} TFLOP a pass at {}x{}, {:.2}e9 weights",
                entry.name,
                pass,
                workload.width,
                workload.height,
                model.denoiser.weights / 1e9
            );
        }
        let text = if self.manifest {
            manifest(entry)?
        } else {
            text
        };
        Ok(std::io::stdout().write_all(text.as_bytes())?)
    }

    fn name_of(&self, folder: Option<&Path>) -> anyhow::Result<String> {
        let folder = folder.and_then(|folder| folder.canonicalize().ok());
        let folder = folder.as_deref().and_then(Path::file_name);
        let folder = folder.map(|name| name.to_string_lossy().to_lowercase());
        self.name.clone().or(folder).ok_or_else(|| {
            wrong("--name is missing: the folder has none, for example --name my-model".to_owned())
        })
    }

    /// One network alone: the rest is believed to be as usual.
    fn network(&self, path: &PathBuf) -> anyhow::Result<Entry> {
        let config = config(path)?;
        let folder = path.parent();
        let mut entry = blank(self.name_of(folder)?, Component::Own(config.clone()));
        entry.tokens = self.text_tokens.unwrap_or(77.0);
        entry.defaults.size = size(&config);
        Ok(entry)
    }

    fn pipeline(&self, path: &PathBuf) -> anyhow::Result<Entry> {
        let index = config(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let class = index
            .get("_class_name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let has = |name: &str| index.get(name).is_some_and(|part| !part[1].is_null());
        let of = |name: &str| config(&folder.join(name).join("config.json"));
        let denoiser = DENOISERS
            .into_iter()
            .find(|name| has(name))
            .ok_or_else(|| {
                wrong(format!(
                    "{}: it has none of {}; a prior alone makes no picture",
                    path.display(),
                    DENOISERS.join(", ")
                ))
            })?;
        let denoiser = of(denoiser)?;
        let mut entry = blank(
            self.name_of(Some(folder))?,
            Component::Own(denoiser.clone()),
        );
        entry.pipelines = vec![class.to_owned()];
        let network = crate::law::network::class(&denoiser).unwrap_or_default();
        let same = alike(class);
        let guessed = same.is_none();
        let like = same.or_else(|| alike_network(network));
        if let Some(like) = &like {
            entry.tokens = like.tokens;
            entry.guidance = like.guidance;
            entry.multiple = like.multiple;
            entry.frames = like.frames;
            entry.defaults = like.defaults.clone();
            entry.encodes = like.encodes;
            entry.binned = like.binned;
            // A pipeline of its own, whose folder is another.
            entry.prior.clone_from(&like.prior);
        }
        if guessed {
            entry.certain = false;
            let by = like
                .as_ref()
                .map_or("what most run", |like| like.name.as_str());
            eprintln!(
                "{class}: no pipeline of the catalogue; guidance, text length and defaults are taken from {by}: look at them"
            );
        }
        // A latent consistency model is told its guidance as an embedding.
        if denoiser
            .get("time_cond_proj_dim")
            .is_some_and(Value::is_number)
        {
            entry.guidance.runs = Runs::Never;
            entry.defaults.steps = Some(4);
        }
        if let Some(tokens) = self.text_tokens {
            entry.tokens = tokens;
        }
        // The pipeline's own default, where it is known, is what runs.
        let sized = entry.defaults.size.is_some() || entry.defaults.width.is_some();
        let own = ["StableDiffusionPipeline", "PixArt"];
        if !sized || own.iter().any(|own| class.starts_with(own)) {
            entry.defaults.size = size(&denoiser).or(entry.defaults.size);
        }
        if let Some(decoder) = ["vae", "movq", "vqgan"].into_iter().find(|name| has(name)) {
            entry.decoder = decoder_of(of(decoder)?);
        }
        for name in [
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
            "image_encoder",
        ] {
            if has(name) {
                let config = of(name)?;
                let tokens = text_length(&config, entry.tokens);
                entry.text.push(TextEntry {
                    network: Component::Own(config),
                    tokens,
                });
            }
        }
        let known = |name: &String| {
            let roots = ["vae", "movq", "vqgan", "text_encoder", "image_encoder"];
            name.starts_with('_')
                || roots
                    .iter()
                    .chain(&LIGHT)
                    .chain(&DENOISERS)
                    .any(|root| name.starts_with(root))
        };
        let unknown = index
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name);
        for name in unknown.filter(|name| !known(name) && has(name)) {
            eprintln!("{name}: not counted");
        }
        Ok(entry)
    }
}

/// The entry of the built-in catalogue that the same pipeline runs.
fn alike(class: &str) -> Option<Entry> {
    let file = CatalogueFile::built_in();
    let runs = |entry: &Entry| entry.pipelines.iter().any(|name| name == class);
    file.models.into_iter().find(runs)
}

/// The entry of the built-in catalogue whose denoiser is of the same class.
fn alike_network(network: &str) -> Option<Entry> {
    let file = CatalogueFile::built_in();
    let of = |entry: &Entry| {
        let config = match &entry.denoiser {
            Component::Named(name) => file.components.get(name),
            Component::Own(config) => Some(config),
        };
        config.and_then(crate::law::network::class) == Some(network)
    };
    file.models.iter().find(|entry| of(entry)).cloned()
}

fn blank(name: String, denoiser: Component) -> Entry {
    Entry {
        name,
        aliases: Vec::new(),
        pipelines: Vec::new(),
        denoiser,
        controlnet: None,
        tokens: 77.0,
        text: Vec::new(),
        text_teraflops: None,
        prior: None,
        decoder: Component::Named("autoencoder-kl".to_owned()),
        encodes: false,
        binned: Binning::None,
        multiple: 8,
        frames: None,
        guidance: Guidance::default(),
        defaults: DefaultsEntry::default(),
        certain: true,
    }
}

/// A `config.json` without what says nothing of the cost.
fn config(path: &PathBuf) -> anyhow::Result<Value> {
    let text = read(
        path,
        "model import:",
        "give a folder as `diffusers` saves a pipeline",
    )?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| wrong(format!("{} is no JSON: {error}", path.display())))?;
    let Value::Object(fields) = value else {
        return Err(wrong(format!("{} is no JSON object", path.display())));
    };
    let class = crate::law::network::class(&Value::Object(fields.clone())).map(str::to_owned);
    let kept = fields.into_iter().filter(|(name, value)| {
        let said = !name.starts_with('_') || name == "_class_name";
        said && !value.is_null() && name != "architectures"
    });
    let mut kept: serde_json::Map<String, Value> = kept.collect();
    if let Some(class) = class {
        kept.insert("_class_name".to_owned(), Value::String(class));
    }
    Ok(Value::Object(kept))
}

fn decoder_of(config: Value) -> Component {
    let class = crate::law::network::class(&config)
        .unwrap_or_default()
        .to_owned();
    let counted = DECODERS.iter().find(|(known, _)| *known == class);
    match counted {
        Some((_, component)) => Component::Named((*component).to_owned()),
        None => Component::Own(config),
    }
}

/// Side of the picture that a denoiser was made for: eight pixels to a latent.
fn size(config: &Value) -> Option<u32> {
    let side = config.get("sample_size")?.as_u64()?.checked_mul(8)?;
    u32::try_from(side)
        .ok()
        .filter(|side| (64..=8192).contains(side))
}

/// CLIP reads 77 tokens; others what the denoiser attends to.
fn text_length(config: &Value, tokens: f64) -> f64 {
    let class = crate::law::network::class(config).unwrap_or_default();
    let own = config
        .get("max_position_embeddings")
        .and_then(Value::as_f64);
    match class {
        clip if clip.starts_with("CLIP") => own.unwrap_or(77.0).min(512.0),
        _ => tokens.max(77.0),
    }
}

/// The entry as an object of the cluster; its text encoders become one figure.
fn manifest(entry: &Entry) -> anyhow::Result<String> {
    let Component::Own(denoiser) = &entry.denoiser else {
        return Err(wrong("the denoiser is named, not described".to_owned()));
    };
    if entry.frames.is_some() || entry.prior.is_some() {
        return Err(wrong(
            "--manifest: a DiffusionModel holds pictures without a prior alone; give the catalogue entry to --catalogue, and in a cluster name the built-in model as base"
                .to_owned(),
        ));
    }
    let mut catalogue = Catalogue::built_in();
    let file = CatalogueFile {
        components: BTreeMap::new(),
        models: vec![entry.clone()],
    };
    catalogue
        .read(&serde_yaml::to_string(&file)?)
        .map_err(|error| wrong(error.to_string()))?;
    let model = catalogue.get(&entry.name);
    let extent = crate::law::network::Extent {
        tokens: 4096.0,
        frames: 1.0,
    };
    #[expect(clippy::cast_possible_truncation, reason = "FLOPs of a text encoder")]
    let whole = |x: f64| x.round() as i64;
    let text = model.map_or(0.0, |model| model.text.flops(extent).0);
    let decoder = model.map_or(0.0, |model| model.decoder.work.flops(extent).0);
    let spec = DiffusionModelSpec {
        base: None,
        aliases: entry.aliases.clone(),
        denoiser: Some(DenoiserSpec {
            mmdit: None,
            dit: None,
            counted: None,
            config: Some(denoiser.clone()),
            text_tokens: Some(whole(entry.tokens)),
        }),
        text_gigaflops: whole(text / 1e9),
        decoder_megaflops_per_token: whole(decoder / extent.tokens / 1e6),
        guidance: entry.guidance.runs,
        guidance_scale: Some(entry.guidance.scale),
        negative_prompt: Some(entry.guidance.negative),
        default_size: i64::from(entry.defaults.size.unwrap_or(1024)),
        default_steps: i64::from(entry.defaults.steps.unwrap_or(28)),
    };
    if entry.guidance.runs == Runs::Never {
        eprintln!("guidance is embedded and costs nothing");
    }
    let name = object_name(&entry.name);
    Ok(serde_yaml::to_string(&DiffusionModel::new(&name, spec))?)
}
