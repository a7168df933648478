//! Mass of CO2e in whole milligrams: what budgets add up.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub};
use std::str::FromStr;

/// Milligrams of CO2e; negative only as a difference.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Milligrams(pub i64);

impl Milligrams {
    /// The smallest whole number of milligrams that is not less than `grams`; the largest
    /// representable for what is not finite, so that nothing broken is ever cheap.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "clamped to the range of i64 first"
    )]
    pub fn ceil_of_grams(grams: f64) -> Self {
        let milligrams = (grams * 1000.0).ceil();
        if milligrams.is_nan() || milligrams >= i64::MAX as f64 {
            return Self(i64::MAX);
        }
        Self(milligrams.max(0.0) as i64)
    }

    /// The larger of this and zero.
    pub fn or_zero(self) -> Self {
        Self(self.0.max(0))
    }
}

impl fmt::Display for Milligrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mg = self.0 as f64;
        let (value, unit) = match self.0.unsigned_abs() {
            0..1_000 => return write!(f, "{} mg", self.0),
            1_000..1_000_000 => (mg / 1e3, "g"),
            1_000_000..1_000_000_000 => (mg / 1e6, "kg"),
            _ => (mg / 1e9, "t"),
        };
        let digits = if value.abs() < 10.0 {
            2
        } else {
            usize::from(value.abs() < 100.0)
        };
        let text = format!("{value:.digits$}");
        let text = if digits > 0 {
            text.trim_end_matches('0').trim_end_matches('.')
        } else {
            &text
        };
        write!(f, "{text} {unit}")
    }
}

/// A mass that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a mass of CO2e; write a number and mg, g, kg or t, for example 5kg")]
pub struct MassError(pub String);

impl FromStr for Milligrams {
    type Err = MassError;

    /// Reads `500mg`, `1.5kg`, `2 t`; more than zero.
    fn from_str(text: &str) -> Result<Self, MassError> {
        let wrong = || MassError(text.chars().take(40).collect());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(wrong)?;
        let (number, unit) = trimmed.split_at(split);
        let number = number.trim();
        let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let value: f64 = number.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        let grams = value
            * match unit {
                "mg" => 1e-3,
                "g" => 1.0,
                "kg" => 1e3,
                "t" => 1e6,
                _ => return Err(wrong()),
            };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked to be within 1e15 mg"
        )]
        match (grams * 1000.0).round() {
            mg if (1.0..=1e15).contains(&mg) => Ok(Self(mg as i64)),
            _ => Err(wrong()),
        }
    }
}

impl Add for Milligrams {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Milligrams {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Milligrams {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for Milligrams {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for Milligrams {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_read_as_people_write_them() {
        for (text, mg) in [
            ("5kg", 5_000_000),
            ("1.5 g", 1500),
            ("300mg", 300),
            ("2t", 2_000_000_000),
        ] {
            assert_eq!(text.parse::<Milligrams>().unwrap().0, mg, "{text}");
        }
        for text in [
            "", "5", "kg", "-1g", "5 lb", "1e9kg", "0g", "NaNg", "1_000g",
        ] {
            assert!(text.parse::<Milligrams>().is_err(), "{text}");
        }
    }

    #[test]
    fn masses_print_in_the_unit_people_expect() {
        for (mg, text) in [
            (0, "0 mg"),
            (812_000, "812 g"),
            (5_000_000, "5 kg"),
            (1_234, "1.23 g"),
            (-20, "-20 mg"),
        ] {
            assert_eq!(Milligrams(mg).to_string(), text);
        }
    }

    #[test]
    fn nothing_broken_is_cheap() {
        assert_eq!(Milligrams::ceil_of_grams(f64::NAN).0, i64::MAX);
        assert_eq!(Milligrams::ceil_of_grams(f64::INFINITY).0, i64::MAX);
        assert_eq!(Milligrams::ceil_of_grams(0.000_01).0, 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,30}") {
            let _ = text.parse::<Milligrams>();
        }
    }
}
