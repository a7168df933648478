//! Polynomials in the size of a picture or a video.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Mul};

/// The size that a network works on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// S: positions of 16×16 px in one frame.
    pub tokens: f64,
    /// T: latent frames; 1 for a picture.
    pub frames: f64,
}

/// `constant + perFrame·T + perToken·S·T + spatial·S²·T + temporal·S·T² + joint·(S·T)²`.
///
/// Convolutions, projections and attention to a text are linear in the tokens; attention
/// within a frame, along time and over everything are the three terms of second degree.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Polynomial {
    #[serde(default)]
    pub constant: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub per_frame: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub per_token: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spatial: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub temporal: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub joint: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Polynomial {
    /// A value that the size does not change.
    pub const fn constant(constant: f64) -> Self {
        Self {
            constant,
            per_frame: 0.0,
            per_token: 0.0,
            spatial: 0.0,
            temporal: 0.0,
            joint: 0.0,
        }
    }

    /// Of pictures: `constant + perToken·S + perTokenSquared·S²`.
    pub const fn of_picture(constant: f64, per_token: f64, per_token_squared: f64) -> Self {
        Self {
            constant,
            per_token,
            spatial: per_token_squared,
            per_frame: 0.0,
            temporal: 0.0,
            joint: 0.0,
        }
    }

    pub fn at(&self, extent: Extent) -> f64 {
        let (s, t) = (extent.tokens, extent.frames);
        self.constant
            + t * (self.per_frame + s * (self.per_token + self.spatial * s + self.temporal * t))
            + self.joint * (s * t) * (s * t)
    }

    /// Coefficients, in the order of the formula.
    pub fn coefficients(&self) -> [f64; 6] {
        [
            self.constant,
            self.per_frame,
            self.per_token,
            self.spatial,
            self.temporal,
            self.joint,
        ]
    }
}

impl Add for Polynomial {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Polynomial {
    fn add_assign(&mut self, other: Self) {
        self.constant += other.constant;
        self.per_frame += other.per_frame;
        self.per_token += other.per_token;
        self.spatial += other.spatial;
        self.temporal += other.temporal;
        self.joint += other.joint;
    }
}

impl Mul<f64> for Polynomial {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self {
            constant: self.constant * factor,
            per_frame: self.per_frame * factor,
            per_token: self.per_token * factor,
            spatial: self.spatial * factor,
            temporal: self.temporal * factor,
            joint: self.joint * factor,
        }
    }
}
