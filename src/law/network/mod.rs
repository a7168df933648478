//! What one pass of a network costs, worked out of its published configuration.
//!
//! Each file walks the layers of one family as `diffusers` or `transformers` runs them and
//! adds up, for every layer, its FLOPs by kind, the elements that its memory-bound kernels
//! move, its weights and the kernels it launches, as polynomials in the size of the picture.
//! Nothing is looked up by size. Field names are those of the models' own `config.json`.
//!
//! The counts agree with operation-by-operation counts of the same configurations (1
//! multiply-accumulate = 2 FLOPs) within 1 %.

mod auraflow;
mod autoencoder;
mod cogview4;
mod config;
mod counter;
mod dit;
mod flux2;
mod mmdit;
mod polynomial;
mod single_stream;
#[cfg(test)]
mod tests;
mod text;
mod unet;
mod unet_cascade;
mod unet_cascade_levels;
mod unet_kandinsky3;
mod unet_motion;
mod video;
mod work;

pub(in crate::law) use config::is_near;
pub use config::{ConfigError, class, measure};
pub use counter::{Counter, Scope, Tokens};
pub use polynomial::{Extent, Polynomial};
pub use work::{Amount, Work};
