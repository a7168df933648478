//! What the sampler's thread shares with the async side: the kubelet's answers one way,
//! what was metered the other.

use super::devices::Claim;
use super::dra::DraState;
use super::ledger::LedgerPage;
use super::metrics::NodeSnapshot;
use super::replay::Replay;
use crate::clock;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What the kubelet last said.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Counts answers.
    pub(super) number: u64,
    /// µs, monotonic: when it was asked.
    pub(super) asked: u64,
    pub(super) claims: Vec<Claim>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) dra: DraState,
    pub(super) healthy: bool,
}

/// What the sampler shares with the async side.
pub(super) struct Shared {
    pub(super) listed: ArcSwap<Listed>,
    pub(super) ask_kubelet: Notify,
    pub(super) snapshot: ArcSwap<NodeSnapshot>,
    pub(super) ledger: ArcSwap<LedgerPage>,
    /// Why the ledger is not served to the controller, in words.
    pub(super) ledger_trouble: ArcSwapOption<String>,
    pub(super) replays: ArcSwap<Vec<Arc<Replay>>>,
    pub(super) stop: AtomicBool,
    /// Why the sampler has ended by itself.
    pub(super) ended: ArcSwapOption<&'static str>,
    has_ended: Notify,
    /// GPUs that processes of this PID namespace use; the only one, where there is one.
    pub(super) used: ArcSwap<BTreeSet<String>>,
    /// Someone wants to know now.
    pub(super) wanted: AtomicBool,
    /// µs, monotonic: when the sampler's loop came round last.
    pub(super) came_round: AtomicU64,
    pub(super) looks: AtomicU64,
}

/// A driver without persistence may take this long to start.
const HANGS_S: u64 = 30;
/// A look that was asked for is waited for this long.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
const LOOK_PAUSE: Duration = Duration::from_millis(10);

impl Shared {
    /// Nothing is known yet.
    pub(super) fn new(node: &str) -> Self {
        Self {
            listed: ArcSwap::default(),
            ask_kubelet: Notify::new(),
            snapshot: ArcSwap::from_pointee(NodeSnapshot::default()),
            ledger: ArcSwap::from_pointee(LedgerPage {
                node: node.to_owned(),
                ..LedgerPage::default()
            }),
            ledger_trouble: ArcSwapOption::empty(),
            replays: ArcSwap::default(),
            stop: AtomicBool::new(false),
            ended: ArcSwapOption::empty(),
            has_ended: Notify::new(),
            used: ArcSwap::default(),
            wanted: AtomicBool::new(false),
            came_round: AtomicU64::new(clock::monotonic_micros()),
            looks: AtomicU64::new(0),
        }
    }

    /// Seconds since the sampler's loop came round, where that is too long: it hangs in a call to
    /// the driver, which nothing but a new process gets out of.
    pub(super) fn hangs(&self) -> Option<u64> {
        let since = self.came_round.load(Ordering::Acquire);
        let seconds = clock::monotonic_micros().saturating_sub(since) / 1_000_000;
        (seconds >= HANGS_S).then_some(seconds)
    }

    /// Nothing more can be metered by this process.
    pub(super) fn end(&self, why: &'static str) {
        self.ended.store(Some(Arc::new(why)));
        self.has_ended.notify_one();
    }

    /// Returns once the sampler has ended by itself.
    pub(super) async fn until_ended(&self) -> &'static str {
        self.has_ended.notified().await;
        self.ended
            .load()
            .as_deref()
            .copied()
            .unwrap_or("the sampler ended")
    }

    /// Waits for a look that began after now.
    pub(super) async fn look_now(&self) {
        let before = self.looks.load(Ordering::Acquire);
        self.wanted.store(true, Ordering::Release);
        let looked = async {
            while self.looks.load(Ordering::Acquire) == before {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(LOOK_DEADLINE, looked).await;
    }
}
