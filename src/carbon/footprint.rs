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

/// The same of whole millijoules, mg/kWh and thousandths of PUE, exactly: what a measured job is
/// charged, and what anyone can check by hand. Never negative; more than can be counted is all
/// that can be.
pub fn charge(millijoules: i64, milligrams_per_kwh: i64, pue_permille: i64) -> Milligrams {
    const MILLIJOULES_PER_KWH: i128 = 3_600_000_000;
    let [energy, intensity, pue] =
        [millijoules, milligrams_per_kwh, pue_permille].map(|whole| i128::from(whole.max(0)));
    let product = energy.saturating_mul(intensity).saturating_mul(pue);
    let whole = MILLIJOULES_PER_KWH * 1000;
    let milligrams = product / whole + i128::from(product % whole != 0);
    Milligrams(i64::try_from(milligrams).unwrap_or(i64::MAX))
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
    fn a_measured_job_is_charged_exactly_and_nothing_burns_for_nothing() {
        // 510 J at 360 g/kWh are 51 mg, and not a rounding error more.
        assert_eq!(charge(510_000, 360_000, 1000), Milligrams(51));
        assert_eq!(charge(510_001, 360_000, 1000), Milligrams(52));
        assert_eq!(charge(1, 1, 1000), Milligrams(1));
        assert_eq!(charge(0, 360_000, 1250), Milligrams(0));
        assert_eq!(charge(i64::MAX, i64::MAX, i64::MAX), Milligrams(i64::MAX));
        assert_eq!(charge(-5, 360_000, 1000), Milligrams(0));
    }

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
