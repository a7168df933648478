//! What every part serves with: HTTP, TLS, metrics in two formats, shutdown, logging.

pub(crate) mod crash;
pub mod exposition;
pub mod fetch;
pub mod http;
mod idle;
pub mod mutual;
mod room;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
