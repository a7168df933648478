//! The hidden true law. Another functional form than any law of the product: a step's time
//! is the root of a launch floor squared plus the work squared, energy is time times power,
//! the first image of a pod runs slow, loading costs apart, and every job has its own luck.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a job's author wrote, as far as it decides what is burned.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    model: String,
    pixels: f64,
    steps: f64,
    guided: bool,
    images: f64,
    fp32: bool,
}

/// How a pod burns: loading, then generating.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Burn {
    pub(crate) load_seconds: f64,
    pub(crate) load_watts: f64,
    pub(crate) seconds: f64,
    pub(crate) watts: f64,
}

/// (joules of a step that does nothing, joules of work a step at 512² px, guided).
fn appetite(model: &str) -> (f64, f64) {
    match model {
        m if m.contains("flux") => (40.0, 70.0),
        m if m.contains("xl") || m.contains("ssd") => (11.9, 14.2),
        m if m.contains("sd3") => (12.0, 21.0),
        _ => (7.4, 10.2),
    }
}

impl Job {
    pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| annotations.get(&format!("jouleward.dev/{name}"));
        let number =
            |name: &str, default: f64| get(name).and_then(|v| v.parse().ok()).unwrap_or(default);
        Self {
            model: get("model").cloned().unwrap_or_default().to_lowercase(),
            pixels: number("width", 512.0) * number("height", 512.0),
            steps: number("num-inference-steps", 25.0),
            guided: number("guidance-scale", 7.5) > 1.0,
            // What an application makes may be less than it was asked for.
            images: annotations
                .get("simnode/makes")
                .and_then(|v| v.parse().ok())
                .unwrap_or_else(|| number("num-images", 1.0)),
            fp32: get("precision").is_some_and(|p| p == "fp32"),
        }
    }

    /// What this pod will burn. `luck` in (0, 1) is the job's own; `lies` doubles the steps.
    pub(crate) fn burn(&self, factor: f64, noise: f64, luck: f64, lies: bool) -> Burn {
        let (floor, work) = appetite(&self.model);
        let area = self.pixels / (512.0 * 512.0);
        let work =
            work * area * if self.guided { 1.0 } else { 0.5 } * if self.fp32 { 6.0 } else { 1.0 };
        let steps = self.steps * if lies { 2.0 } else { 1.0 };
        let image = steps * floor.hypot(work) + 9.0 * area;
        // The first image warms the caches up.
        let joules = image * (self.images + 0.06);
        // A sum of uniform draws is nearly normal; twelve of them have unit variance.
        let normal: f64 = (1..=12)
            .map(|k| (luck * 7919.0 * f64::from(k)).fract())
            .sum::<f64>()
            - 6.0;
        let joules = joules * factor * (noise * normal).exp();
        let watts = 240.0 + 80.0 * (1.0 - (-area).exp());
        Burn {
            load_seconds: 0.5,
            load_watts: 90.0,
            seconds: joules / watts,
            watts,
        }
    }
}

/// A number in (0, 1) that belongs to a pod.
pub(crate) fn luck(uid: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    (hasher.finish() % 999_983) as f64 / 999_983.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(pairs: &[(&str, &str)]) -> Job {
        let annotations = pairs
            .iter()
            .map(|(k, v)| (format!("jouleward.dev/{k}"), (*v).to_owned()))
            .collect();
        Job::from_annotations(&annotations)
    }

    #[test]
    fn a_small_picture_costs_more_than_its_share_of_pixels() {
        let small = job(&[("width", "256"), ("height", "256")]).burn(1.0, 0.0, 0.3, false);
        let large = job(&[("width", "512"), ("height", "512")]).burn(1.0, 0.0, 0.3, false);
        let joules = |burn: Burn| burn.seconds * burn.watts;
        assert!(joules(small) > joules(large) / 4.0 * 1.5);
    }

    #[test]
    fn a_wrong_annotation_doubles_the_steps() {
        let honest = job(&[]).burn(1.0, 0.0, 0.3, false);
        let liar = job(&[]).burn(1.0, 0.0, 0.3, true);
        assert!(liar.seconds > 1.8 * honest.seconds);
    }
}
