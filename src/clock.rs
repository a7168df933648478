//! The one place where time comes in. Everything else is given it.

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The wall clock: for people and for other clocks' stamps, never for durations.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some((now, _)) = simulated::get() {
        return now;
    }
    Timestamp::now()
}

/// Microseconds on a clock that nobody steps, since the machine started: the same for every
/// program on it, so that a figure can be taken up again after a restart.
pub fn monotonic_micros() -> u64 {
    #[cfg(test)]
    if let Some((_, micros)) = simulated::get() {
        return micros;
    }
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

/// Microseconds since the Unix epoch, as NVML stamps its samples.
pub fn wall_micros() -> u64 {
    u64::try_from(now().as_microsecond()).unwrap_or(0)
}

/// Both clocks as a simulation sets them, for its own thread.
#[cfg(test)]
pub(crate) mod simulated {
    use jiff::Timestamp;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<Option<(Timestamp, u64)>> = const { Cell::new(None) };
    }

    pub(crate) fn get() -> Option<(Timestamp, u64)> {
        NOW.get()
    }

    pub(crate) fn set(now: Timestamp, micros: u64) {
        NOW.set(Some((now, micros)));
    }
}
