//! The footprint of an amount of energy: `g = PUE · E · I`, location based. The boundary is
//! the GPU and, through PUE, the building around it; host share and embodied carbon are
//! not in it.

use super::intensity::{Intensity, Pue};
use super::units::Milligrams;
use crate::law::{Joules, Prediction};
use serde::{Deserialize, Serialize};

/// What a predicted job will emit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    pub median: Milligrams,
    /// The quantile of the prediction that a budget charges.
    pub charged: Milligrams,
    /// One standard deviation of ln g: energy, intensity and PUE together.
    pub ln_sd: f64,
}

/// One standard deviation of a PUE, as a fraction: a region's published yearly value.
const PUE_UNCERTAINTY: f64 = 0.05;

/// Milligrams of an energy, rounded up so that nothing burns for nothing.
pub fn grams(energy: Joules, intensity: &Intensity, pue: &Pue) -> Milligrams {
    Milligrams::ceil_of_grams(energy.kilowatt_hours() * intensity.grams_per_kwh * pue.value)
}

/// The energy that a mass of CO2e allows.
pub fn to_joules(mass: Milligrams, intensity: &Intensity, pue: &Pue) -> Joules {
    Joules(mass.0 as f64 / 1000.0 / (intensity.grams_per_kwh * pue.value) * 3.6e6)
}

impl Footprint {
    /// The footprint of a prediction, charged at its quantile `p` of energy: the intensity
    /// that a job is settled with is known, so its doubt is shown but not charged.
    pub fn of(prediction: &Prediction, p: f64, intensity: &Intensity, pue: &Pue) -> Self {
        let squares = prediction.ln_sd.powi(2)
            + intensity.relative_uncertainty.powi(2)
            + PUE_UNCERTAINTY.powi(2);
        Self {
            median: grams(prediction.median, intensity, pue),
            charged: grams(prediction.quantile(p), intensity, pue),
            ln_sd: squares.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Place, embedded};
    use super::*;

    #[test]
    fn a_kilowatt_hour_in_germany_emits_its_intensity_times_pue() {
        let (intensity, _) = embedded(&Place::Country("DEU".into())).unwrap();
        let pue = Pue {
            value: 1.5,
            source: "test".into(),
        };
        let mass = grams(Joules(3.6e6), &intensity, &pue);
        assert_eq!(
            mass,
            Milligrams::ceil_of_grams(1.5 * intensity.grams_per_kwh)
        );
        assert!((to_joules(mass, &intensity, &pue).0 / 3.6e6 - 1.0).abs() < 1e-5);
    }
}
