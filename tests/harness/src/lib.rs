//! Starts what the end-to-end tests and the demonstration run against: a real control
//! plane on free ports, simulated GPU nodes, and Jouleward's own processes as the rendered
//! chart describes them. Everything that is started here is ended here, by process id.

#![allow(
    clippy::disallowed_methods,
    reason = "a test harness waits by the clock and reads cargo's environment"
)]

pub mod chart;
pub mod jobs;
pub mod plane;
pub mod process;
pub mod prometheus;
pub mod stack;

pub use plane::Plane;
pub use process::Process;
pub use stack::{NodeOptions, Stack};

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A file that `cargo build --workspace` makes.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    // Figures are of what is shipped, whatever the test itself is built as.
    let asked = std::env::vars().find(|(key, _)| key == "JOULEWARD_PROFILE");
    let own = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let profile = asked.map_or(own.to_owned(), |(_, profile)| profile);
    let path = target().join(profile).join(name);
    anyhow::ensure!(
        path.exists(),
        "{} is not there: run `cargo build --workspace` first",
        path.display()
    );
    Ok(path)
}

/// Waits until `check` gives something, looking every 50 ms.
pub async fn eventually<T, F>(
    what: &str,
    patience: Duration,
    mut check: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < patience {
        match check().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let waited = format!("waited {} s in vain: {what}", patience.as_secs());
    match last {
        Some(error) => Err(error).context(waited),
        None => anyhow::bail!(waited),
    }
}
