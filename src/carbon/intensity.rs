//! How much CO2e a kilowatt-hour of a grid carries, and what kind of figure that is.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Average and marginal intensity answer different questions and never mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    Average,
    Marginal,
}

/// Lifecycle counts building and fuel supply; direct counts the stack only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Basis {
    Lifecycle,
    Direct,
}

/// How the value came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Measured,
    Estimated,
    Forecast,
    Static,
}

/// Carbon intensity of one grid zone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intensity {
    pub zone: String,
    /// Grams of CO2e a kilowatt-hour.
    pub grams_per_kwh: f64,
    pub signal: Signal,
    pub basis: Basis,
    pub kind: Kind,
    /// Who says so, with the year or version.
    pub source: String,
    /// One standard deviation as a fraction of the value.
    pub relative_uncertainty: f64,
}

/// A value no grid has.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0} g/kWh is no grid's intensity; allowed is more than 0 and at most 2000")]
pub struct IntensityError(pub f64);

impl Intensity {
    /// # Errors
    /// Where the value is not in 0 < x ≤ 2000 g/kWh.
    pub fn check(self) -> Result<Self, IntensityError> {
        let grams = self.grams_per_kwh;
        if grams > 0.0 && grams <= 2000.0 {
            Ok(self)
        } else {
            Err(IntensityError(grams))
        }
    }
}

impl fmt::Display for Intensity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Measured => "measured",
            Kind::Estimated => "estimated",
            Kind::Forecast => "forecast",
            Kind::Static => "static",
        };
        write!(
            f,
            "{} {:.0} g/kWh ({kind}, {})",
            self.zone, self.grams_per_kwh, self.source
        )
    }
}

/// Power usage effectiveness: facility energy for each unit of IT energy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pue {
    pub value: f64,
    /// Where the value is from; "assumed" where nobody said.
    pub source: String,
}
