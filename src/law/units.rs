//! Energy and work, each in its own type.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

/// An amount of energy in joules; the unit of predictions, never of bills.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
pub struct Joules(pub f64);

impl Joules {
    /// Kilowatt-hours: 1 kWh = 3.6 MJ, by definition.
    pub fn kilowatt_hours(self) -> f64 {
        self.0 / 3.6e6
    }
}

impl fmt::Display for Joules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let j = self.0.abs();
        match j {
            j if j >= 1e6 => write!(f, "{:.2} MJ", self.0 / 1e6),
            j if j >= 1e4 => write!(f, "{:.1} kJ", self.0 / 1e3),
            j if j >= 100.0 => write!(f, "{:.0} J", self.0),
            _ => write!(f, "{:.1} J", self.0),
        }
    }
}

/// A measured amount of energy in whole microjoules: what meters and ledgers add up,
/// so that parts sum to their whole exactly.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
pub struct Microjoules(pub u64);

impl Microjoules {
    pub fn joules(self) -> Joules {
        Joules(self.0 as f64 / 1e6)
    }
}

impl Add for Microjoules {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Microjoules {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Microjoules {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Microjoules {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), Add::add)
    }
}

/// A number of floating point operations; one multiply-accumulate counts as two.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
pub struct Flops(pub f64);

impl Flops {
    pub fn tera(self) -> f64 {
        self.0 / 1e12
    }
}

impl Add for Flops {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}
