//! What several subcommands ask for: a workload, a grid, laws and a catalogue.

use super::WrongInput;
use crate::budget::{EstimateError, Fleet, Oracle};
use crate::carbon::{Intensity, Place, Pue, embedded};
use crate::law::workload::{
    ALL, BATCH, BINNING, CONTROLNETS, DENOISING_END, FRAMES, GUIDANCE, HEIGHT, IMAGES, LORA, MODEL,
    NEGATIVE, PRECISION, REFINER, SCHEDULER, SOFTWARE, STEPS, STRENGTH, TILING, TRUE_CFG, WIDTH,
};
use crate::law::{Annotation, Catalogue, Gpu, Law, Stack, Workload, driver_branch};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) fn wrong(text: String) -> anyhow::Error {
    WrongInput(text).into()
}

/// Reads a file, or says which flag named it and what to give.
pub(super) fn read(path: &PathBuf, what: &str, hint: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        wrong(format!(
            "{what} cannot read {}: {error}; {hint}",
            path.display()
        ))
    })
}

/// The objects of a file in YAML or JSON: its documents, and what lists hold.
pub(super) fn objects(text: &str) -> Result<Vec<serde_json::Value>, serde_yaml::Error> {
    use serde::Deserialize;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines: Option<Vec<serde_json::Value>> = lines
        .map(|line| {
            serde_json::from_str(line)
                .ok()
                .filter(serde_json::Value::is_object)
        })
        .collect();
    let documents = match lines {
        Some(lines) => lines,
        None => serde_yaml::Deserializer::from_str(text)
            .map(serde_json::Value::deserialize)
            .collect::<Result<_, _>>()?,
    };
    let mut objects = Vec::new();
    for object in documents {
        match object.get("items").and_then(serde_json::Value::as_array) {
            Some(items) => objects.extend(items.iter().cloned()),
            None => objects.push(object),
        }
    }
    Ok(objects)
}

/// A workload, in the names of `diffusers`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Workload")]
pub(super) struct WorkloadArguments {
    /// Model: a name of the catalogue or a Hugging Face repository.
    #[arg(long)]
    pub(super) model: Option<String>,
    /// Pixels.
    #[arg(long)]
    pub(super) width: Option<String>,
    /// Pixels.
    #[arg(long)]
    pub(super) height: Option<String>,
    #[arg(long)]
    pub(super) num_inference_steps: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    guidance_scale: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    true_cfg_scale: Option<String>,
    /// true or false: whether there is one.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// fp32, tf32, fp16, bf16, fp8, int8 or fp4.
    #[arg(long)]
    pub(super) precision: Option<String>,
    /// Images, or videos, of one pod.
    #[arg(long)]
    num_images: Option<String>,
    #[arg(long)]
    pub(super) batch_size: Option<String>,
    /// Frames of a video.
    #[arg(long)]
    num_frames: Option<String>,
    /// Part of the steps that image-to-image runs, 0.01 to 1.
    #[arg(long)]
    strength: Option<String>,
    /// Scheduler class, for example HeunDiscreteScheduler.
    #[arg(long)]
    scheduler: Option<String>,
    /// ControlNets that run beside each step.
    #[arg(long)]
    controlnets: Option<String>,
    /// Rank of a LoRA that is not fused.
    #[arg(long)]
    lora_rank: Option<String>,
    /// true or false.
    #[arg(long)]
    vae_tiling: Option<String>,
    /// false where a pipeline that makes one of a few sizes is told to make the one that is asked.
    #[arg(long)]
    use_resolution_binning: Option<String>,
    /// Model that runs the last steps, for example sdxl-refiner.
    #[arg(long)]
    refiner: Option<String>,
    /// Part of the steps before the refiner's.
    #[arg(long, requires = "refiner")]
    denoising_end: Option<String>,
    /// Stack that the pipeline runs on, by the name that its runs are annotated with, for
    /// example diffusers-0.35-compile.
    #[arg(long)]
    software: Option<String>,
}

impl WorkloadArguments {
    fn given(&self) -> [(Annotation, &Option<String>); 20] {
        [
            (MODEL, &self.model),
            (WIDTH, &self.width),
            (HEIGHT, &self.height),
            (STEPS, &self.num_inference_steps),
            (GUIDANCE, &self.guidance_scale),
            (TRUE_CFG, &self.true_cfg_scale),
            (NEGATIVE, &self.negative_prompt),
            (PRECISION, &self.precision),
            (IMAGES, &self.num_images),
            (BATCH, &self.batch_size),
            (FRAMES, &self.num_frames),
            (STRENGTH, &self.strength),
            (SCHEDULER, &self.scheduler),
            (CONTROLNETS, &self.controlnets),
            (LORA, &self.lora_rank),
            (TILING, &self.vae_tiling),
            (BINNING, &self.use_resolution_binning),
            (REFINER, &self.refiner),
            (DENOISING_END, &self.denoising_end),
            (SOFTWARE, &self.software),
        ]
    }

    /// True where nothing of it is given.
    pub(super) fn is_empty(&self) -> bool {
        self.given().iter().all(|(_, value)| value.is_none())
    }

    /// The workload, through the same door as a job's annotations.
    pub(super) fn workload(&self, catalogue: &Catalogue) -> anyhow::Result<Workload> {
        if self.model.is_none() {
            return Err(wrong(
                "--model is missing: name one, for example --model flux.1-dev".to_owned(),
            ));
        }
        let given = self.given();
        let annotations = given
            .into_iter()
            .filter_map(|(a, value)| Some((a.name.to_owned(), value.clone()?)))
            .collect();
        workload(&annotations, catalogue, "--").map_err(wrong)
    }
}

/// A workload from annotations; what is wrong is said with `prefix` before each name.
pub(super) fn workload(
    annotations: &BTreeMap<String, String>,
    catalogue: &Catalogue,
    prefix: &str,
) -> Result<Workload, String> {
    Workload::from_annotations(annotations, catalogue).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines
            .join("; ")
            .replace("annotation jouleward.dev/", prefix)
    })
}

/// A column of a table of workloads is a parameter, with dashes or underscores, or with the
/// names that measured runs use.
pub(super) fn parameter(column: &str) -> Option<&'static str> {
    let column = column.trim().to_lowercase().replace('_', "-");
    let column = match column.as_str() {
        "steps" => "num-inference-steps",
        "frames" => "num-frames",
        "images" => "num-images",
        "batch" => "batch-size",
        other => other,
    };
    let known = ALL.iter().map(|annotation| annotation.name);
    known
        .into_iter()
        .find(|name| name.strip_prefix("jouleward.dev/") == Some(column))
}

/// The grid that the energy comes from.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Grid")]
pub(super) struct GridArguments {
    /// Country of the grid, ISO 3166-1 alpha-3.
    #[arg(long, conflicts_with_all = ["cloud_region", "intensity"])]
    country: Option<String>,
    /// Cloud region, for example aws/eu-central-1.
    #[arg(long, conflicts_with = "intensity")]
    cloud_region: Option<String>,
    /// Carbon intensity of the grid in g/kWh.
    #[arg(long, allow_negative_numbers = true)]
    intensity: Option<f64>,
    /// Power usage effectiveness of the site.
    #[arg(long, allow_negative_numbers = true)]
    pue: Option<f64>,
}

impl GridArguments {
    pub(super) fn resolve(&self) -> anyhow::Result<(Intensity, Pue)> {
        let place = match (&self.country, &self.cloud_region) {
            (Some(code), _) => Place::Country(code.clone()),
            (_, Some(region)) => {
                let (provider, region) = region.split_once('/').ok_or_else(|| {
                    wrong(format!("--cloud-region {region:?} is not PROVIDER/REGION, for example aws/eu-central-1"))
                })?;
                Place::Region {
                    provider: provider.to_owned(),
                    region: region.to_owned(),
                }
            }
            _ => Place::World,
        };
        let (mut intensity, mut pue) =
            embedded(&place).map_err(|error| wrong(error.to_string()))?;
        if let Some(grams_per_kwh) = self.intensity {
            intensity = Intensity {
                grams_per_kwh,
                zone: "given".into(),
                source: "--intensity".into(),
                ..intensity
            };
            intensity = intensity
                .check()
                .map_err(|error| wrong(format!("--intensity: {error}")))?;
        }
        if let Some(value) = self.pue {
            if !(1.0..=5.0).contains(&value) {
                return Err(wrong(format!(
                    "--pue {value} is not from 1 to 5, for example 1.2"
                )));
            }
            pue = Pue {
                value,
                source: "--pue".to_owned(),
            };
        }
        Ok((intensity, pue))
    }
}

/// What the node tells of the board; else as in the law's newest runs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Node")]
pub(super) struct NodeArguments {
    /// Version or branch of the NVIDIA driver, for example 550.54.15.
    #[arg(long)]
    driver: Option<String>,
    /// Enforced power limit of the board as a fraction of its default, for example 0.7.
    #[arg(long)]
    power_limit: Option<f64>,
}

impl NodeArguments {
    pub(super) fn stack(&self) -> anyhow::Result<Stack> {
        let branch = |version: &String| {
            let branch = driver_branch(version);
            if branch.is_empty() {
                return Err(wrong(format!(
                    "--driver {version:?} is no version, for example 550.54.15"
                )));
            }
            Ok(branch)
        };
        if let Some(limit) = self
            .power_limit
            .filter(|limit| !(0.05..=2.0).contains(limit))
        {
            return Err(wrong(format!(
                "--power-limit {limit} is not from 0.05 to 2, for example 0.7 for 70 % of the board's default"
            )));
        }
        Ok(Stack {
            software: None,
            driver: self.driver.as_ref().map(branch).transpose()?,
            power: self.power_limit,
        })
    }
}

/// Models of one's own.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct CatalogueArguments {
    /// Catalogue of models beside the built-in one, as `jouleward model import` writes it. May
    /// be given several times.
    #[arg(long)]
    catalogue: Vec<PathBuf>,
}

impl CatalogueArguments {
    pub(super) fn read(&self) -> anyhow::Result<Catalogue> {
        let mut catalogue = Catalogue::built_in();
        for path in &self.catalogue {
            let hint = "give a catalogue file as `jouleward model import` writes it";
            let text = read(path, "--catalogue:", hint)?;
            catalogue
                .read(&text)
                .map_err(|error| wrong(format!("--catalogue {}: {error}", path.display())))?;
        }
        Ok(catalogue)
    }
}

/// Laws and models of one's own.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Knowledge")]
pub(super) struct KnowledgeArguments {
    /// Laws: files that `jouleward fit --save` writes, or EnergyLaw objects in YAML or JSON;
    /// else the built-in prior. May be given several times.
    #[arg(long)]
    law: Vec<PathBuf>,
    #[command(flatten)]
    catalogue: CatalogueArguments,
}

impl KnowledgeArguments {
    pub(super) fn catalogue(&self) -> anyhow::Result<Catalogue> {
        self.catalogue.read()
    }

    pub(super) fn laws(&self) -> anyhow::Result<BTreeMap<Gpu, Law>> {
        let mut laws = BTreeMap::new();
        for path in &self.law {
            let hint = "`jouleward fit FILE --save FOLDER` writes such a file";
            let text = read(path, "--law:", hint)?;
            for law in laws_of(path, &text)? {
                laws.insert(law.gpu.clone(), law);
            }
        }
        Ok(laws)
    }
}

/// All that predictions are made from, with no cluster.
pub(super) fn oracle(
    knowledge: &KnowledgeArguments,
    grid: &GridArguments,
) -> anyhow::Result<Oracle> {
    Ok(Oracle {
        catalogue: knowledge.catalogue()?,
        laws: knowledge.laws()?,
        suspects: BTreeMap::new(),
        sites: Vec::new(),
        fleet: Fleet::default(),
        fallback: grid.resolve()?,
    })
}

/// Where the figures of a law come from, in a few words.
pub(super) fn origin(law: &Law) -> String {
    match law.observations {
        0 if *law == Law::prior(law.form, &law.gpu) => law.gpu.prior().source.to_owned(),
        0 => "carried over from another product by data sheets".to_owned(),
        runs => format!("{runs} runs"),
    }
}

/// Why nothing can be predicted, with the product as it was given.
pub(super) fn unpredictable(error: EstimateError, given: Option<&str>) -> String {
    match error {
        EstimateError::UnknownGpu { asked, allowed } => {
            let asked = given.unwrap_or(&asked);
            format!("--gpu {asked:?} is no GPU product that is known; {allowed}")
        }
        EstimateError::NoGpu => {
            "no GPU product is named: add --gpu, for example --gpu NVIDIA-L40S".to_owned()
        }
        other => other.to_string(),
    }
}

/// Refuses a quantile that is none.
pub(super) fn check_quantile(quantile: f64) -> anyhow::Result<()> {
    if quantile > 0.0 && quantile < 1.0 {
        return Ok(());
    }
    Err(wrong(format!(
        "--quantile {quantile} is not between 0 and 1, for example 0.9"
    )))
}

/// The laws of the EnergyLaw objects in a file, or the one that the file itself is.
pub(super) fn laws_of(path: &Path, text: &str) -> anyhow::Result<Vec<Law>> {
    let law = |state: String| {
        Law::load(&state).map_err(|error| {
            wrong(format!(
                "{} is no law: {error}; `jouleward fit FILE --save FOLDER` writes such a file, and kubectl get energylaws -o yaml gives those of a cluster that have learnt",
                path.display()
            ))
        })
    };
    law_states(text).into_iter().map(law).collect()
}

/// The states in a file: those of the EnergyLaw objects in it, or the file itself.
fn law_states(text: &str) -> Vec<String> {
    let state = |object: &serde_json::Value| -> Option<String> {
        Some(object.get("status")?.get("state")?.as_str()?.to_owned())
    };
    // What is no YAML may still be a state, and is then refused as one.
    let objects = objects(text).unwrap_or_default();
    let mut states: Vec<String> = objects.iter().filter_map(state).collect();
    if states.is_empty() {
        states.push(text.to_owned());
    }
    states
}

/// A GPU product by the name that people give it.
pub(super) fn gpu(name: &str) -> anyhow::Result<Gpu> {
    Gpu::parse(name).ok_or_else(|| {
        wrong(format!(
            "--gpu is empty; for example {}",
            crate::law::GPU_EXAMPLES
        ))
    })
}
