//! One row of a table becomes an observation, or the reason why not.

use super::DatasetError;
use crate::law::catalogue::{Catalogue, Model, Scale};
use crate::law::count::count;
use crate::law::features::{Basis, Features, Observation, driver_branch};
use crate::law::gpu::Gpu;
use crate::law::units::Joules;
use crate::law::workload::{Precision, Scheduler, Workload, stack_name};
use std::collections::BTreeMap;

/// Columns that may hold the energy: joules in their unit, and whether of the whole run.
pub(super) const ENERGIES: [(&str, f64, bool); 5] = [
    ("energy_joules_per_image", 1.0, false),
    ("energy_wh_per_image", 3.6e3, false),
    ("energy_joules", 1.0, true),
    ("energy_wh", 3.6e3, true),
    ("energy_kwh", 3.6e6, true),
];

/// Joules that a call of a denoiser cannot be below, whatever the model and the GPU.
const LEAST_A_CALL: f64 = 0.05;
/// Nor above: a day of a rack.
const MOST_A_CALL: f64 = 1e7;

/// Seconds of a run below which its energy is not measured well.
const SHORTEST: f64 = 1.0;

const BINNED: &str = "use_resolution_binning";

/// Columns that are read, beside the energies.
pub(super) const COLUMNS: [&str; 29] = [
    "model",
    "gpu",
    "width",
    "height",
    "steps",
    "images",
    "num_gpus",
    "precision",
    "frames",
    "cfg",
    "guidance_scale",
    "true_cfg_scale",
    "negative_prompt",
    "batch_size",
    "strength",
    "scheduler",
    "controlnets",
    "lora_rank",
    "vae_tiling",
    BINNED,
    "refiner",
    "denoising_end",
    "basis",
    "software",
    "driver",
    "power_limit",
    "warm_up",
    "seconds",
    "notes",
];

pub(super) type Row<'a> = BTreeMap<&'a str, String>;

pub(super) fn observe(row: &Row<'_>, catalogue: &Catalogue) -> Result<(Gpu, Observation), String> {
    if row.len() < 5 {
        return Err("it has fewer fields than the header".to_owned());
    }
    let text = |name: &str| row.get(name).map_or("", String::as_str);
    let model = catalogue.get(text("model")).ok_or_else(|| {
        let like = catalogue.like(text("model"));
        let hint = if like.is_empty() {
            String::new()
        } else {
            format!("; did you mean {}?", like.join(" or "))
        };
        format!("model {:?} is not in the catalogue{hint}", text("model"))
    })?;
    let gpu = Gpu::parse(text("gpu")).ok_or("gpu is empty")?;
    if !gpu.is_product() {
        return Err(format!(
            "gpu {:?} is no GPU product that is known; for example {}",
            text("gpu"),
            crate::law::GPU_EXAMPLES
        ));
    }
    if truth(text("warm_up"), "warm_up", false)? {
        return Err("warm_up is true: what it cost to warm up is no image's".to_owned());
    }
    if optional(text("seconds"), "seconds", 0.0, 1e9)?.is_some_and(|s| s < SHORTEST) {
        let seconds = text("seconds");
        return Err(format!(
            "seconds is {seconds}: an energy counter says little of a run under {SHORTEST} s"
        ));
    }
    let workload = workload(row, model, catalogue)?;
    let energy = energy(row, &workload)?;
    let gpus = number(text("num_gpus"), "num_gpus", Some(1), 1, 1024)?;
    let refiner = workload
        .refiner
        .as_deref()
        .and_then(|name| catalogue.get(name));
    let count = count(model, &workload, refiner);
    let mut features = Features::of_image(&workload, &model.architecture, &count, gpus);
    features.stack.driver = Some(text("driver"))
        .filter(|driver| !driver.is_empty())
        .map(driver_branch);
    features.stack.power = optional(text("power_limit"), "power_limit", 0.05, 2.0)?;
    let run = Observation {
        features,
        energy: Joules(energy),
        basis: basis(row)?,
    };
    if let Some(why) = run.impossible() {
        let tera = run.features.flops.tera();
        return Err(format!(
            "{energy:.3} J an image of {tera:.0} TFLOP is {why}; is the unit right?"
        ));
    }
    Ok((gpu, run))
}

/// True where a row does not say how many images were made together, and more than one may have been.
pub(super) fn leaves_batch_open(row: &Row<'_>) -> bool {
    let text = |name: &str| row.get(name).map_or("", String::as_str);
    text("batch_size").is_empty() && text("images") != "1"
}

fn workload(row: &Row<'_>, model: &Model, catalogue: &Catalogue) -> Result<Workload, String> {
    let text = |name: &str| row.get(name).map_or("", String::as_str);
    let frames = number(text("frames"), "frames", Some(1), 1, 10_000)?;
    if model.frames.is_none() && frames != 1 {
        return Err(format!(
            "frames is {frames}, and {} makes pictures",
            model.name
        ));
    }
    let guided = match text("cfg").to_lowercase().as_str() {
        "" => None,
        given if given.starts_with("true") => Some(true),
        "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        other => return Err(format!("cfg {other:?} is not true or false")),
    };
    // A scale that says what `cfg` says, whatever the pipeline's threshold.
    let said = guided.map(|guided| if guided { 7.5 } else { 0.0 });
    let scale = |name: &str, own: Scale| -> Result<f64, String> {
        let given = optional(text(name), name, 0.0, 100.0)?;
        let said = if model.guidance.scale == own {
            said
        } else {
            None
        };
        Ok(given.or(said).unwrap_or(0.0))
    };
    let precision = match text("precision") {
        "" => Precision::Fp16,
        other => {
            Precision::parse(other).ok_or_else(|| format!("precision {other:?} is not known"))?
        }
    };
    let scheduler = match text("scheduler") {
        "" => Scheduler::FirstOrder,
        other => Scheduler::parse(other)
            .ok_or_else(|| format!("scheduler {other:?} is none of diffusers"))?,
    };
    let refiner = match text("refiner") {
        "" => None,
        other => Some(
            catalogue
                .get(other)
                .ok_or_else(|| format!("refiner {other:?} is not in the catalogue"))?
                .name
                .clone(),
        ),
    };
    let batch = number(text("batch_size"), "batch_size", Some(1), 1, 1024)?;
    Ok(Workload {
        // The level goes by the catalogue's name: a fine-tune shares that of its base.
        model: model.name.clone(),
        width: number(text("width"), "width", None, 64, 8192)?,
        height: number(text("height"), "height", None, 64, 8192)?,
        steps: number(text("steps"), "steps", None, 1, 1000)?,
        guidance_scale: scale("guidance_scale", Scale::Guidance)?,
        true_cfg_scale: scale("true_cfg_scale", Scale::TrueCfg)?,
        precision,
        images: u64::from(batch),
        batch,
        frames,
        negative_prompt: truth(text("negative_prompt"), "negative_prompt", true)?,
        strength: optional(text("strength"), "strength", 0.01, 1.0)?,
        scheduler,
        controlnets: number(text("controlnets"), "controlnets", Some(0), 0, 8)?,
        lora_rank: number(text("lora_rank"), "lora_rank", Some(0), 0, 1024)?,
        vae_tiling: truth(text("vae_tiling"), "vae_tiling", false)?,
        use_resolution_binning: truth(text(BINNED), BINNED, true)?,
        refiner,
        denoising_end: optional(text("denoising_end"), "denoising_end", 0.0, 1.0)?,
        software: software(text("software"))?,
        assumed: Vec::new(),
    })
}

/// Joules of one image.
fn energy(row: &Row<'_>, workload: &Workload) -> Result<f64, String> {
    let text = |name: &str| row.get(name).map_or("", String::as_str);
    let given = ENERGIES.iter().find(|(name, ..)| !text(name).is_empty());
    let Some((name, joules, whole)) = given else {
        if !text("energy").is_empty() {
            return Err(DatasetError::Unit.to_string());
        }
        return Err("energy_joules_per_image \"\" is not a positive number".to_owned());
    };
    let all = ENERGIES.iter().filter(|(name, ..)| !text(name).is_empty());
    if all.clone().count() > 1 {
        let names: Vec<&str> = all.map(|(name, ..)| *name).collect();
        return Err(format!(
            "{} are all given: leave the energy in one of them",
            names.join(" and ")
        ));
    }
    let written = text(name);
    if written.contains(',') {
        return Err(format!(
            "{name} {written:?} has a decimal comma or a thousands separator: write 1234.5"
        ));
    }
    let value: f64 = written
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| format!("{name} {written:?} is not a positive number"))?;
    let images = if *whole {
        f64::from(number(text("images"), "images", None, 1, 10_000_000)?)
    } else {
        1.0
    };
    if *whole && images > 1.0 && text("batch_size").is_empty() {
        return Err(format!(
            "batch_size is empty and {images} images were made: say how many together"
        ));
    }
    if *whole && images < f64::from(workload.batch) {
        return Err(format!(
            "images is {images} and batch_size {}: no fewer are made than are made together",
            workload.batch
        ));
    }
    let energy = value * joules / images;
    let calls = workload.model_calls() / f64::from(workload.batch.max(1));
    if energy < LEAST_A_CALL * calls {
        let steps = workload.steps;
        return Err(format!(
            "{name} {written}: {energy:.3} J an image of {steps} steps is less than any GPU needs; is the unit right?"
        ));
    }
    if energy > MOST_A_CALL * calls.max(1.0) {
        return Err(format!(
            "{name} {written}: {energy:.3e} J an image is more than any GPU uses; is the unit right?"
        ));
    }
    Ok(energy)
}

fn software(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = stack_name(text);
    let allowed = crate::law::workload::SOFTWARE.allowed;
    name.map(Some)
        .ok_or_else(|| format!("software {text:?} is not {allowed}"))
}

fn truth(text: &str, name: &str, absent: bool) -> Result<bool, String> {
    match text {
        "" => Ok(absent),
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{name} {other:?} is not true or false")),
    }
}

/// Whether idle power is in the energy: the column `basis`, else a note that it was subtracted.
fn basis(row: &Row<'_>) -> Result<Basis, String> {
    let text = |name: &str| row.get(name).map_or("", String::as_str);
    match text("basis").to_lowercase().as_str() {
        "net" => Ok(Basis::Net),
        "" if text("notes").contains("idle subtracted") => Ok(Basis::Net),
        "gross" | "" => Ok(Basis::Gross),
        other => Err(format!(
            "basis {other:?} is not gross or net (of idle power)"
        )),
    }
}

fn number(
    text: &str,
    name: &str,
    default: Option<u32>,
    least: u32,
    most: u32,
) -> Result<u32, String> {
    match (text, default) {
        ("", Some(default)) => Ok(default),
        ("", None) => Err(format!("{name} is empty")),
        _ => text
            .parse::<u32>()
            .ok()
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| format!("{name} {text:?} is not a whole number from {least} to {most}")),
    }
}

fn optional(text: &str, name: &str, least: f64, most: f64) -> Result<Option<f64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|n| (least..=most).contains(n))
        .map(Some)
        .ok_or_else(|| format!("{name} {text:?} is not a number from {least} to {most}"))
}
