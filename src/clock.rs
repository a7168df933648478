//! The one place where time comes in. Everything else is given it.

use jiff::Timestamp;
use std::sync::LazyLock;
use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "this is the place")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The wall clock: for people and for other clocks' stamps, never for durations.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Microseconds on a clock that nobody steps, since this program started.
pub fn monotonic_micros() -> u64 {
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since the Unix epoch, as NVML stamps its samples.
pub fn wall_micros() -> u64 {
    u64::try_from(now().as_microsecond()).unwrap_or(0)
}
