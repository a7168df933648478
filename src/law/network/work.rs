//! The work of a pass, by kind: what the law prices.

use super::polynomial::{Extent, Polynomial};
use crate::law::units::Flops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Mul};

/// Work of one pass as a function of size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Work {
    /// FLOPs of matrix products.
    #[serde(default)]
    pub linear: Polynomial,
    /// FLOPs of convolutions.
    #[serde(default)]
    pub convolution: Polynomial,
    /// FLOPs of attention's two products.
    #[serde(default)]
    pub attention: Polynomial,
    /// FLOPs that attention kernels add where a head is padded to a size they know.
    #[serde(default)]
    pub padding: Polynomial,
    /// Elements read and written by memory-bound kernels: norms, activations, additions.
    #[serde(default)]
    pub elements: Polynomial,
    /// Weights, in numbers.
    #[serde(default)]
    pub weights: f64,
    /// Kernels launched.
    #[serde(default)]
    pub launches: f64,
}

/// Work at one size: FLOPs by kind, elements, launches.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    pub linear: f64,
    pub convolution: f64,
    pub attention: f64,
    pub padding: f64,
    pub elements: f64,
    pub launches: f64,
}

impl Work {
    /// FLOPs as they are counted in publications: padding left out.
    pub fn flops(&self, extent: Extent) -> Flops {
        self.at(extent).flops()
    }

    /// True where no part is negative or no number.
    pub fn is_possible(&self) -> bool {
        let parts = [
            &self.linear,
            &self.convolution,
            &self.attention,
            &self.padding,
            &self.elements,
        ];
        let possible = |x: f64| (0.0..1e30).contains(&x);
        let coefficients = parts.iter().flat_map(|part| part.coefficients());
        coefficients
            .chain([self.weights, self.launches])
            .all(possible)
    }

    pub fn at(&self, extent: Extent) -> Amount {
        Amount {
            linear: self.linear.at(extent),
            convolution: self.convolution.at(extent),
            attention: self.attention.at(extent),
            padding: self.padding.at(extent),
            elements: self.elements.at(extent),
            launches: self.launches,
        }
    }
}

impl Amount {
    pub fn flops(&self) -> Flops {
        Flops(self.linear + self.convolution + self.attention)
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.linear += other.linear;
        self.convolution += other.convolution;
        self.attention += other.attention;
        self.padding += other.padding;
        self.elements += other.elements;
        self.weights += other.weights;
        self.launches += other.launches;
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            linear: self.linear + other.linear,
            convolution: self.convolution + other.convolution,
            attention: self.attention + other.attention,
            padding: self.padding + other.padding,
            elements: self.elements + other.elements,
            launches: self.launches + other.launches,
        }
    }
}

impl Mul<f64> for Amount {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self {
            linear: self.linear * factor,
            convolution: self.convolution * factor,
            attention: self.attention * factor,
            padding: self.padding * factor,
            elements: self.elements * factor,
            launches: self.launches * factor,
        }
    }
}
