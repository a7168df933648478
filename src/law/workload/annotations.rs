//! The annotations that carry a job's parameters, read without ever guessing at a wrong one.

use super::{Precision, Scheduler, Workload};
use crate::law::catalogue::{Catalogue, Model};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// An annotation that carries a job parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Annotation {
    pub name: &'static str,
    /// What is allowed, for messages.
    pub allowed: &'static str,
}

macro_rules! annotations {
    ($($konst:ident = $name:literal, $allowed:literal;)*) => {
        $(pub const $konst: Annotation = Annotation { name: concat!("jouleward.dev/", $name), allowed: $allowed };)*
        /// Every annotation an author may set.
        pub const ALL: &[Annotation] = &[$($konst),*];
    };
}

annotations! {
    MODEL = "model", "a model of the catalogue or a DiffusionModel, for example flux.1-dev";
    WIDTH = "width", "64 to 8192 pixels, a multiple of 8, together with height";
    HEIGHT = "height", "64 to 8192 pixels, a multiple of 8, together with width";
    STEPS = "num-inference-steps", "1 to 1000";
    GUIDANCE = "guidance-scale", "0 to 100";
    TRUE_CFG = "true-cfg-scale", "0 to 100";
    PRECISION = "precision", "fp32, tf32, fp16, bf16, fp8, int8 or fp4";
    IMAGES = "num-images", "1 to 10000000, images of one pod";
    BATCH = "batch-size", "1 to 1024, images generated together";
    FRAMES = "num-frames", "1 to 10000 for a model of videos, 1 for one of pictures";
    NEGATIVE = "negative-prompt", "true or false: whether there is one";
    STRENGTH = "strength", "0.01 to 1, the part of the steps that image-to-image runs";
    SCHEDULER = "scheduler", "a scheduler of diffusers, for example HeunDiscreteScheduler";
    CONTROLNETS = "controlnets", "0 to 8 that run beside each step";
    LORA = "lora-rank", "0 to 1024, the rank of a LoRA that is not fused";
    TILING = "vae-tiling", "true or false";
    BINNING = "use-resolution-binning", "true or false: whether a pipeline that makes one of a few sizes does so";
    REFINER = "refiner", "another model of the catalogue that makes images, for example sdxl-refiner";
    DENOISING_END = "denoising-end", "0 to 1, the part of the steps before the refiner's";
    SOFTWARE = "software", "1 to 63 letters, digits and . _ + -: the stack that the pipeline runs on, for example diffusers-0.35-compile";
    WARM_UP = "warm-up", "true or false: whether the run only warms up, and is not learnt from";
    IMAGES_DONE = "images-done", "0 to 10000000, what the application has made so far";
}

/// One annotation that cannot be used: which, its value, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterError {
    pub annotation: String,
    pub value: Option<String>,
    pub allowed: String,
    /// True where parameters are missing altogether, false where one is wrong.
    pub missing: bool,
}

impl std::error::Error for ParameterError {}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => {
                write!(
                    f,
                    "annotation {}: {value:?} is not {}",
                    self.annotation, self.allowed
                )
            }
            None => write!(
                f,
                "annotation {} is missing: set {}",
                self.annotation, self.allowed
            ),
        }
    }
}

impl Workload {
    /// Reads a workload from annotations; parameters that are absent take the model's
    /// pipeline default and are listed in `assumed`.
    ///
    /// # Errors
    /// Every annotation that is wrong, all at once.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
        catalogue: &Catalogue,
    ) -> Result<Self, Vec<ParameterError>> {
        let mut reader = Reader {
            annotations,
            errors: Vec::new(),
            assumed: Vec::new(),
        };
        let Some(name) = annotations.get(MODEL.name) else {
            return Err(vec![error(MODEL, None)]);
        };
        let Some(model) = catalogue.get(name) else {
            let mut error = error(MODEL, Some(name));
            error.allowed = not_known(name, catalogue);
            return Err(vec![error]);
        };
        let workload = reader.read(model, catalogue);
        reader.unknown();
        if reader.errors.is_empty() {
            Ok(workload)
        } else {
            Err(reader.errors)
        }
    }
}

/// What is allowed instead of a model that is not known.
fn not_known(name: &str, catalogue: &Catalogue) -> String {
    let like = catalogue.like(name);
    if !like.is_empty() {
        let like = like.join(" or ");
        return format!(
            "a known model (did you mean {like}?) nor a DiffusionModel of this cluster"
        );
    }
    let known = catalogue.names().collect::<Vec<_>>().join(", ");
    format!("a known model ({known}) nor a DiffusionModel of this cluster")
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn fraction(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&number).then_some(number)
}

/// The name of a software stack: a law keeps a level by it.
pub fn stack_name(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    let fits = (1..=63).contains(&text.len()) && text.chars().all(allowed);
    fits.then(|| text.to_owned())
}

fn error(annotation: Annotation, value: Option<&str>) -> ParameterError {
    ParameterError {
        annotation: annotation.name.to_owned(),
        value: value.map(|v| v.chars().take(80).collect()),
        allowed: annotation.allowed.to_owned(),
        missing: value.is_none(),
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    errors: Vec<ParameterError>,
    assumed: Vec<Cow<'static, str>>,
}

impl Reader<'_> {
    fn read(&mut self, model: &Model, catalogue: &Catalogue) -> Workload {
        let defaults = &model.defaults;
        let (width, height) = self.size(defaults.width, defaults.height);
        let batch = self.number(BATCH, 1, 1, 1024);
        let images = self.number(IMAGES, u64::from(batch), 1, 10_000_000);
        let most = if model.frames.is_some() { 10_000 } else { 1 };
        let frames = self.number(FRAMES, defaults.frames.min(most), 1, most);
        // An author who sets the scale means guidance to run.
        let scaled = self.annotations.contains_key(TRUE_CFG.name);
        let negative = self.value(NEGATIVE, scaled, truth);
        let strength = self.optional(STRENGTH, |text| fraction(text).filter(|s| *s >= 0.01));
        let scheduler = self.optional(SCHEDULER, Scheduler::parse);
        self.optional(WARM_UP, truth);
        self.optional(IMAGES_DONE, |text| {
            text.parse::<u64>().ok().filter(|n| *n <= 10_000_000)
        });
        Workload {
            model: model.name.clone(),
            width,
            height,
            steps: self.number(STEPS, defaults.steps, 1, 1000),
            guidance_scale: self.scale(GUIDANCE, defaults.guidance),
            true_cfg_scale: self.scale(TRUE_CFG, defaults.true_cfg),
            precision: self.precision(),
            images,
            batch: batch.min(u32::try_from(images).unwrap_or(u32::MAX)),
            frames,
            negative_prompt: negative,
            strength,
            scheduler: scheduler.unwrap_or_default(),
            controlnets: self.rare(CONTROLNETS, 8),
            lora_rank: self.rare(LORA, 1024),
            vae_tiling: self.optional(TILING, truth).unwrap_or(false),
            use_resolution_binning: self.optional(BINNING, truth).unwrap_or(true),
            refiner: self.optional(REFINER, |name| {
                let refiner = catalogue.get(name)?;
                let usable = refiner.frames.is_none() && refiner.name != model.name;
                usable.then(|| refiner.name.clone())
            }),
            denoising_end: self.optional(DENOISING_END, fraction),
            software: self.optional(SOFTWARE, stack_name),
            assumed: std::mem::take(&mut self.assumed),
        }
    }

    /// An annotation of ours that nobody reads is a typing error, not a comment.
    fn unknown(&mut self) {
        for name in self
            .annotations
            .keys()
            .filter(|name| name.starts_with("jouleward.dev/"))
        {
            let known = ALL.iter().any(|a| a.name == name)
                || crate::contract::NO_PARAMETERS.contains(&name.as_str());
            if !known {
                let names = ALL.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
                self.errors.push(ParameterError {
                    annotation: name.clone(),
                    value: self.annotations.get(name).cloned(),
                    allowed: format!("a parameter of Jouleward; those are {names}"),
                    missing: false,
                });
            }
        }
    }

    fn size(&mut self, width: u32, height: u32) -> (u32, u32) {
        let given = |a: Annotation| self.annotations.contains_key(a.name);
        match (given(WIDTH), given(HEIGHT)) {
            (true, false) => self.errors.push(error(HEIGHT, None)),
            (false, true) => self.errors.push(error(WIDTH, None)),
            _ => {}
        }
        (self.side(WIDTH, width), self.side(HEIGHT, height))
    }

    fn side(&mut self, annotation: Annotation, default: u32) -> u32 {
        let side = self.number(annotation, default, 64, 8192);
        if !side.is_multiple_of(8) {
            self.errors.push(error(
                annotation,
                self.annotations.get(annotation.name).map(String::as_str),
            ));
        }
        side
    }

    fn number<T>(&mut self, annotation: Annotation, default: T, least: T, most: T) -> T
    where
        T: std::str::FromStr + PartialOrd + Copy,
    {
        self.value(annotation, default, |text| {
            text.parse()
                .ok()
                .filter(|number| *number >= least && *number <= most)
        })
    }

    fn scale(&mut self, annotation: Annotation, default: f64) -> f64 {
        self.number(annotation, default, 0.0, 100.0)
    }

    fn precision(&mut self) -> Precision {
        self.value(PRECISION, Precision::Fp16, Precision::parse)
    }

    /// What most workloads do not have: 0 where it is absent, and nothing is assumed.
    fn rare(&mut self, annotation: Annotation, most: u32) -> u32 {
        let parse = |text: &str| text.parse().ok().filter(|n| *n <= most);
        self.optional(annotation, parse).unwrap_or(0)
    }

    fn optional<T>(
        &mut self,
        annotation: Annotation,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.annotations.get(annotation.name)?;
        let parsed = parse(text.trim());
        if parsed.is_none() {
            self.errors.push(error(annotation, Some(text)));
        }
        parsed
    }

    fn value<T>(
        &mut self,
        annotation: Annotation,
        default: T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(text) = self.annotations.get(annotation.name) else {
            self.assumed.push(Cow::Borrowed(annotation.name));
            return default;
        };
        parse(text.trim()).unwrap_or_else(|| {
            self.errors.push(error(annotation, Some(text)));
            default
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotate(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (format!("jouleward.dev/{k}"), (*v).to_owned()))
            .collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Workload, Vec<ParameterError>> {
        Workload::from_annotations(&annotate(pairs), &Catalogue::built_in())
    }

    #[test]
    fn a_whole_workload_is_read_as_written() {
        let workload = read(&[
            ("model", "flux.1-dev"),
            ("width", "1024"),
            ("height", "768"),
            ("num-inference-steps", "28"),
            ("precision", "bf16"),
            ("num-images", "10"),
            ("batch-size", "2"),
        ])
        .unwrap();
        assert_eq!(
            (workload.width, workload.height, workload.steps),
            (1024, 768, 28)
        );
        assert_eq!(
            (workload.images, workload.batch, workload.precision),
            (10, 2, Precision::Bf16)
        );
    }

    #[test]
    fn what_is_absent_takes_the_pipelines_default_and_is_named() {
        let workload = read(&[("model", "sdxl")]).unwrap();
        assert_eq!((workload.width, workload.steps), (1024, 50));
        assert!(
            workload
                .assumed
                .contains(&Cow::Borrowed("jouleward.dev/num-inference-steps"))
        );
    }

    #[test]
    fn each_wrong_annotation_is_named_with_its_value_and_what_is_allowed() {
        for (name, value) in [
            ("width", "1000000"),
            ("height", "1023"),
            ("num-inference-steps", "0"),
            ("num-inference-steps", "many"),
            ("guidance-scale", "NaN"),
            ("guidance-scale", "-1"),
            ("precision", "fp12"),
            ("num-images", "-3"),
            ("batch-size", "1e3"),
            ("num-frames", "81"),
            ("num-inference-step", "20"),
        ] {
            let errors = read(&[
                ("model", "sdxl"),
                ("width", "512"),
                ("height", "512"),
                (name, value),
            ])
            .err()
            .unwrap_or_else(|| {
                // `width` and `height` above are overwritten by the pair under test.
                unreachable!("{name}={value} was accepted")
            });
            let text = errors[0].to_string();
            assert!(text.contains(name) && text.contains(value), "{text}");
        }
    }

    #[test]
    fn width_without_height_is_a_contradiction_not_a_square() {
        let errors = read(&[("model", "sdxl"), ("width", "512")]).unwrap_err();
        assert!(
            errors[0]
                .to_string()
                .contains("jouleward.dev/height is missing")
        );
    }

    #[test]
    fn no_model_is_missing_and_an_unknown_one_lists_the_known() {
        assert!(read(&[]).unwrap_err()[0].missing);
        let errors = read(&[("model", "dall-e")]).unwrap_err();
        assert!(
            errors[0].to_string().contains("flux.1-dev"),
            "{}",
            errors[0]
        );
    }

    proptest::proptest! {
        #[test]
        fn no_annotation_whatever_makes_it_panic(name in "[a-z-]{1,20}", value in "\\PC{0,40}") {
            let _ = read(&[("model", "sd1.5"), (&name, &value)]);
            for annotation in ALL {
                let mut annotations = annotate(&[("model", "sd1.5")]);
                annotations.insert(annotation.name.to_owned(), value.clone());
                let _ = Workload::from_annotations(&annotations, &Catalogue::built_in());
            }
        }
    }
}
