//! How long an image takes, out of what it costs: a GPU at work draws close to its board
//! power, one that waits for launches a part of it.

use super::features::Features;
use super::form::Form;
use super::state::Law;

/// Share of the board's power that is drawn while it computes or moves memory: public runs
/// with large batches draw 96 to 98 % of the limit.
const AT_WORK: f64 = 0.96;
/// Share while it waits for launches: 197 of 400 W on an A100 and 212 of 700 W on an H100
/// with half of the time at work.
const WAITING: f64 = 0.25;

impl Law {
    /// Seconds that one GPU takes for an image, start-up left out; `None` where the form or
    /// the product's data sheet does not tell.
    pub fn seconds_per_image(&self, f: &Features) -> Option<f64> {
        if self.form != Form::Roofline {
            return None;
        }
        let power = self.gpu.sheet()?.power;
        let breakdown = self.explain(f);
        let factor: f64 = breakdown
            .factors
            .iter()
            .map(|factor| factor.value)
            .product();
        let of = |launches: bool| {
            let parts = breakdown.parts.iter();
            let parts = parts.filter(|part| (part.name == "launches") == launches);
            parts.map(|part| part.joules * factor / power).sum::<f64>()
        };
        // Launches run ahead of the work as far as they can: the slower of the two decides,
        // and where they are alike they hinder each other.
        let (work, launches) = (of(false) / AT_WORK, of(true) / WAITING);
        Some((work.powi(4) + launches.powi(4)).sqrt().sqrt())
    }
}
