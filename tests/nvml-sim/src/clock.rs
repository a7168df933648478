//! The one clock, and the scenario as it stands: re-read when the file changes.

use crate::scenario::Scenario;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

struct Cached {
    looked: Instant,
    stamp: (u64, SystemTime),
    scenario: Arc<Scenario>,
}

/// The calls of one look at a GPU read the file once: what a test of costs measures is the
/// exporter, not this library. On a stepped clock time does not pass between calls.
const LOOK: Duration = Duration::from_millis(2);

static CACHE: Mutex<Option<Cached>> = Mutex::new(None);

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// Microseconds since the Unix epoch, whoever steps the wall clock meanwhile: what a GPU burns
/// does not hang on it.
pub(crate) fn now() -> u64 {
    static BEGAN: OnceLock<(Instant, u64)> = OnceLock::new();
    let stepped = path("NVML_SIM_CLOCK")
        .and_then(|path| std::fs::read_to_string(path).ok())
        .and_then(|text| text.trim().parse().ok());
    stepped.unwrap_or_else(|| {
        let (at, wall_then) = BEGAN.get_or_init(|| (Instant::now(), wall()));
        wall_then + u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX)
    })
}

/// What the machine's clock says.
fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// By how much the wall clock was stepped since the library was loaded, which is what samples
/// are stamped by; in tenths of a second.
pub(crate) fn stepped() -> i64 {
    if path("NVML_SIM_CLOCK").is_some() {
        return 0;
    }
    let ahead = wall().cast_signed() - now().cast_signed();
    (ahead + ahead.signum() * 50_000) / 100_000 * 100_000
}

/// The scenario, or `None` where there is none: then there is no driver.
pub(crate) fn scenario() -> Option<Arc<Scenario>> {
    use std::os::unix::fs::MetadataExt;
    let stepped = path("NVML_SIM_CLOCK").is_some();
    let path = path("NVML_SIM_SCENARIO")?;
    let mut cache = CACHE.lock().ok()?;
    let fresh = |cached: &&Cached| !stepped && cached.looked.elapsed() < LOOK;
    if let Some(cached) = cache.as_ref().filter(fresh) {
        return Some(cached.scenario.clone());
    }
    let metadata = std::fs::metadata(&path).ok()?;
    let stamp = (metadata.ino(), metadata.modified().ok()?);
    let looked = Instant::now();
    if let Some(cached) = cache.as_mut().filter(|cached| cached.stamp == stamp) {
        cached.looked = looked;
        return Some(cached.scenario.clone());
    }
    let text = std::fs::read(&path).ok()?;
    let scenario = Arc::new(serde_json::from_slice(&text).ok()?);
    *cache = Some(Cached {
        looked,
        stamp,
        scenario,
    });
    cache.as_ref().map(|cached| cached.scenario.clone())
}
