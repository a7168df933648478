//! The catalogue of models: what each costs to run, worked out of its published
//! configuration, and how its pipeline runs it.

mod binning;
mod file;
mod model;

pub use binning::Binning;
pub use file::{CatalogueError, CatalogueFile, Component, DefaultsEntry, Entry, TextEntry};
pub use model::{Frames, Guidance, Model, Negative, Runs, Scale};

use super::count::{Count, count};
use super::features::Features;
use super::workload::Workload;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// All models known: the built-in ones, and a company's own on top.
#[derive(Debug, Clone)]
pub struct Catalogue {
    models: BTreeMap<String, Model>,
    aliases: BTreeMap<String, String>,
}

const BUILT_IN: &str = include_str!("models.yaml");

#[expect(clippy::expect_used, reason = "a test reads the file that is built in")]
static KNOWN: LazyLock<Catalogue> = LazyLock::new(|| {
    let mut catalogue = Catalogue {
        models: BTreeMap::new(),
        aliases: BTreeMap::new(),
    };
    catalogue
        .read(BUILT_IN)
        .expect("the built-in catalogue is sound");
    catalogue
});

impl Catalogue {
    /// The models that Jouleward knows without being told.
    pub fn built_in() -> Self {
        KNOWN.clone()
    }

    /// Adds the models of a catalogue file, in YAML or JSON; those of a known name are
    /// replaced. Either all are added or none.
    ///
    /// # Errors
    /// What is wrong with the file, by line or by model and field.
    pub fn read(&mut self, text: &str) -> Result<(), CatalogueError> {
        let file: CatalogueFile = serde_yaml::from_str(text).map_err(CatalogueError::Syntax)?;
        let models = file.models()?;
        for (model, aliases) in &models {
            for alias in aliases {
                if let Some(taken) = self.get(alias).filter(|taken| taken.name != model.name) {
                    return Err(CatalogueError::Value {
                        model: model.name.clone(),
                        field: "aliases",
                        value: format!("{alias:?}, which is {}", taken.name),
                        allowed: "an alias may not take another model's name",
                    });
                }
            }
        }
        for (model, aliases) in models {
            let name = model.name.clone();
            self.insert(model);
            for alias in aliases {
                self.alias(&alias, &name);
            }
        }
        Ok(())
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

    /// Finds a model by name, by Hugging Face id or another alias, without case.
    pub fn get(&self, name: &str) -> Option<&Model> {
        let key = name.trim().to_lowercase();
        self.models
            .get(&key)
            .or_else(|| self.models.get(self.aliases.get(&key)?))
    }

    /// The work of a workload and what the laws see of it, for `pods` pods of `gpus` GPUs each;
    /// `None` where its model, or its refiner, is not in the catalogue.
    pub fn job(&self, workload: &Workload, pods: u32, gpus: u32) -> Option<(Count, Features)> {
        let model = self.get(&workload.model)?;
        let refiner = match &workload.refiner {
            Some(name) => Some(self.get(name)?),
            None => None,
        };
        let count = count(model, workload, refiner);
        let features = Features::of_job(workload, &model.architecture, &count, pods, gpus);
        Some((count, features))
    }

    /// The names of all models, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.values().map(|model| model.name.as_str())
    }

    /// Names that look like one that is not there, likeliest first.
    pub fn like(&self, name: &str) -> Vec<&str> {
        let plain = |text: &str| -> String {
            let text = text.rsplit('/').next().unwrap_or(text).to_lowercase();
            text.chars().filter(char::is_ascii_alphanumeric).collect()
        };
        let wanted = plain(name);
        let near = |known: &str| {
            let known = plain(known);
            let shared = wanted
                .chars()
                .zip(known.chars())
                .take_while(|(a, b)| a == b)
                .count();
            (shared >= 3).then_some(shared)
        };
        let mut found: Vec<(usize, &str)> = self
            .names()
            .filter_map(|known| Some((near(known)?, known)))
            .collect();
        found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        found.into_iter().take(3).map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound_and_no_name_hides_another() {
        let file: CatalogueFile = serde_yaml::from_str(BUILT_IN).unwrap();
        let catalogue = Catalogue::built_in();
        let mut seen = std::collections::BTreeSet::new();
        for (model, aliases) in file.models().unwrap() {
            assert!(seen.insert(model.name.to_lowercase()), "{}", model.name);
            for alias in aliases {
                assert!(seen.insert(alias.to_lowercase()), "{alias}");
                assert_eq!(catalogue.get(&alias), Some(&model), "{alias}");
            }
        }
    }

    #[test]
    fn a_name_that_is_nearly_right_is_offered() {
        let catalogue = Catalogue::built_in();
        assert_eq!(catalogue.like("flux1-dev")[0], "flux.1-dev");
        assert_eq!(catalogue.like("sd-xl")[0], "sdxl");
        assert!(catalogue.like("dall-e").is_empty());
    }

    #[test]
    fn an_entry_with_a_typing_error_is_refused_by_name() {
        let read = |text: &str| Catalogue::built_in().read(text).unwrap_err().to_string();
        for (text, needles) in [
            (
                "models: [{name: a, denoiser: nosuch, decoder: autoencoder-kl, defaults: {}}]",
                ["model a", "nosuch"],
            ),
            (
                "models: [{name: a, denoser: sdxl, decoder: x, defaults: {}}]",
                ["denoser", "denoiser"],
            ),
            (
                "components: {u: {_class_name: UNet2DConditonModel}}\nmodels: [{name: a, denoiser: u, decoder: u, defaults: {}}]",
                ["UNet2DConditonModel", "UNet2DConditionModel"],
            ),
            (
                "components: {u: {_class_name: FluxTransformer2DModel, num_layers: many}}\nmodels: [{name: a, denoiser: u, decoder: u, defaults: {}}]",
                ["FluxTransformer2DModel", "many"],
            ),
            (
                "components: {u: {_class_name: FluxTransformer2DModel, num_layers: 1000000}}\nmodels: [{name: a, denoiser: u, decoder: u, defaults: {}}]",
                ["num_layers", "1000038"],
            ),
        ] {
            let said = read(text);
            assert!(needles.iter().all(|needle| said.contains(needle)), "{said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_whatever_makes_it_panic(text in "\\PC{0,200}") {
            let _ = Catalogue::built_in().read(&text);
        }
    }
}
