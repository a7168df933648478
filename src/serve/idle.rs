//! Whether a connection has asked for anything of late.

use crate::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A connection that was never asked on, and one that was: how long they may be silent.
const FIRST: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_mins(5);
const LOOK: Duration = Duration::from_secs(1);

/// What one connection has been asked.
#[derive(Debug)]
pub(super) struct Idle {
    open: AtomicUsize,
    asked: AtomicU64,
    /// µs, monotonic: when it was opened, or last answered.
    since: AtomicU64,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            since: AtomicU64::new(clock::monotonic_micros()),
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Idle>);

impl Idle {
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.asked.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// Returns once nothing has been asked for too long.
    pub(super) async fn too_long(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let most = match self.asked.load(Ordering::Acquire) {
                0 => FIRST,
                _ => BETWEEN,
            };
            let since = self.since.load(Ordering::Acquire);
            let silent = clock::monotonic_micros().saturating_sub(since);
            let quiet = self.open.load(Ordering::Acquire) == 0;
            if quiet && Duration::from_micros(silent) > most {
                return;
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0
            .since
            .store(clock::monotonic_micros(), Ordering::Release);
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}
