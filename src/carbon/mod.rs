//! From joules to grams of CO2e: the grid's intensity, with everything that says what kind
//! of figure it is, and the footprint of an amount of energy.
//!
//! Pure. Unlike signals and bases are never added; a measured figure never hides that
//! its intensity was a yearly mean.

mod embedded;
mod footprint;
mod intensity;
mod units;

pub use embedded::{ASSUMED_PUE, EmbeddedError, Place, embedded};
pub use footprint::{Footprint, charge, grams, to_joules};
pub use intensity::{Basis, Intensity, IntensityError, Kind, Pue, Signal};
pub use units::{MassError, Milligrams};
