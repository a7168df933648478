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
        let seconds = breakdown.parts.iter().map(|part| {
            let share = if part.name == "launches" {
                WAITING
            } else {
                AT_WORK
            };
            part.joules * factor / (share * power)
        });
        Some(seconds.sum())
    }
}
