//! Adds up a network layer by layer.

use super::polynomial::Polynomial;
use super::work::Work;
use std::ops::{Add, Mul};

/// How many positions a layer works on: `perToken·S·T + perFrame·T + constant`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tokens {
    pub per_token: f64,
    pub per_frame: f64,
    pub constant: f64,
}

impl Tokens {
    /// One position: an embedding of time, of a pooled text.
    pub const ONE: Self = Self::text(1.0);

    /// `n` positions for every 16×16 px.
    pub const fn image(n: f64) -> Self {
        Self {
            per_token: n,
            per_frame: 0.0,
            constant: 0.0,
        }
    }

    /// A text of `n` tokens.
    pub const fn text(n: f64) -> Self {
        Self {
            per_token: 0.0,
            per_frame: 0.0,
            constant: n,
        }
    }

    /// `n` positions in every latent frame.
    pub const fn each_frame(n: f64) -> Self {
        Self {
            per_token: 0.0,
            per_frame: n,
            constant: 0.0,
        }
    }

    fn polynomial(self) -> Polynomial {
        Polynomial {
            constant: self.constant,
            per_frame: self.per_frame,
            per_token: self.per_token,
            ..Polynomial::default()
        }
    }
}

impl Add for Tokens {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            per_token: self.per_token + other.per_token,
            per_frame: self.per_frame + other.per_frame,
            constant: self.constant + other.constant,
        }
    }
}

impl Mul<f64> for Tokens {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self {
            per_token: self.per_token * factor,
            per_frame: self.per_frame * factor,
            constant: self.constant * factor,
        }
    }
}

/// What attends to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Within each frame.
    Frame,
    /// Each position along time.
    Time,
    /// Everything to everything.
    All,
}

/// Reads and writes of an operation from one tensor to another of its size.
pub(super) const UNARY: f64 = 2.0;
/// Of one that takes two tensors of that size.
pub(super) const BINARY: f64 = 3.0;
/// Of a group norm: statistics are read once more.
pub(super) const GROUP_NORM: f64 = 3.0;

/// Heads that attention kernels are compiled for; others are padded up to the next.
const HEADS: [f64; 8] = [32.0, 64.0, 96.0, 128.0, 160.0, 192.0, 224.0, 256.0];

/// Adds up layers.
#[derive(Debug, Default)]
pub struct Counter {
    pub work: Work,
}

impl Counter {
    /// A matrix product from `from` to `to` features.
    pub fn linear(&mut self, tokens: Tokens, from: f64, to: f64) {
        self.check(from.min(to));
        self.work.linear += tokens.polynomial() * (2.0 * from * to);
        self.work.weights += from * to + to;
        self.work.launches += 1.0;
    }

    /// A convolution whose kernel has `volume` taps; `tokens` are positions of its output.
    pub fn convolution(&mut self, tokens: Tokens, from: f64, to: f64, volume: f64) {
        self.check(from.min(to).min(volume));
        self.work.convolution += tokens.polynomial() * (2.0 * from * to * volume);
        self.work.weights += from * to * volume + to;
        self.work.launches += 1.0;
    }

    /// A memory-bound kernel over `channels` features that moves each `moves` times.
    pub fn elementwise(&mut self, tokens: Tokens, channels: f64, moves: f64) {
        self.work.elements += tokens.polynomial() * (channels * moves);
        self.work.launches += 1.0;
    }

    /// Attention's two products: `heads` heads of `head` features each.
    pub fn attention(&mut self, scope: Scope, query: Tokens, key: Tokens, heads: f64, head: f64) {
        self.check(heads.min(head));
        let pairs = pairs(scope, query, key);
        let padded = HEADS
            .iter()
            .find(|known| head <= **known)
            .map_or(head, |known| *known);
        self.work.attention += pairs * (4.0 * heads * head);
        self.work.padding += pairs * (4.0 * heads * (padded - head));
        self.work.launches += 1.0;
    }

    /// What is not positive makes the whole count no number, for [`super::measure`] to refuse.
    fn check(&mut self, width: f64) {
        if width.is_nan() || width <= 0.0 {
            self.work.weights = f64::NAN;
        }
    }

    /// Two linear layers with an activation between them.
    pub fn mlp(&mut self, tokens: Tokens, from: f64, hidden: f64, to: f64) {
        self.linear(tokens, from, hidden);
        self.elementwise(tokens, hidden, UNARY);
        self.linear(tokens, hidden, to);
    }

    /// A feed-forward layer whose activation is gated: GEGLU, SwiGLU.
    pub fn gated_mlp(&mut self, tokens: Tokens, width: f64, hidden: f64) {
        self.linear(tokens, width, 2.0 * hidden);
        self.elementwise(tokens, hidden, UNARY);
        self.elementwise(tokens, hidden, BINARY);
        self.linear(tokens, hidden, width);
    }

    /// Embedding of the time step: two linear layers.
    pub fn time_embedding(&mut self, from: f64, to: f64) {
        self.mlp(Tokens::ONE, from, to, to);
    }

    /// `times` elementwise kernels alike.
    pub fn elementwise_times(&mut self, times: usize, tokens: Tokens, channels: f64, moves: f64) {
        for _ in 0..times {
            self.elementwise(tokens, channels, moves);
        }
    }
}

/// Whether two numbers of channels differ: whole numbers, kept as they are multiplied.
pub(super) fn differ(a: f64, b: f64) -> bool {
    (a - b).abs() > 0.5
}

fn pairs(scope: Scope, q: Tokens, k: Tokens) -> Polynomial {
    let cross = q.per_token * k.constant + q.constant * k.per_token;
    match scope {
        Scope::All => Polynomial {
            joint: q.per_token * k.per_token,
            per_token: cross,
            constant: q.constant * k.constant,
            ..Polynomial::default()
        },
        // In each frame: (a·S + b)·(a'·S + b'), where a text stands in every frame.
        Scope::Frame => {
            let (b, d) = (q.per_frame + q.constant, k.per_frame + k.constant);
            Polynomial {
                spatial: q.per_token * k.per_token,
                per_token: q.per_token * d + b * k.per_token,
                per_frame: b * d,
                ..Polynomial::default()
            }
        }
        Scope::Time => Polynomial {
            temporal: q.per_token * k.per_token,
            per_token: cross,
            ..Polynomial::default()
        },
    }
}
