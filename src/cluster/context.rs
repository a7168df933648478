//! What every part of the controller works with: the client with its deadline, the caches,
//! and the right to write.

use super::archive::Archive;
use super::caches::Caches;
use super::energy::Pages;
use super::lease;
use crate::api::Condition;
use crate::budget::Oracle;
use crate::clock;
use crate::contract as c;
use crate::serve::exposition::{Family, Tallies};
use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use kube::Client;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// What a controller is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of Jouleward itself.
    pub namespace: String,
    /// Name of this replica.
    pub identity: String,
    pub listen: SocketAddr,
    pub lease: lease::Terms,
    /// Leads whatever the lease says: for tests of the guarded writes.
    pub ignore_lease: bool,
    /// A law that has learnt is written this often at most.
    pub law_write: Duration,
    /// False where somebody else keeps the webhook's certificate, and what API servers trust.
    pub own_certificate: bool,
    /// For how long a new certificate of the webhook is trusted before it is served.
    pub certificate_overlap: Duration,
    /// A record is kept for so long after its job was settled.
    pub keep_records: Duration,
    /// Where records go that are put away.
    pub archive: Archive,
    /// Names and addresses that the webhook's certificate is for.
    pub webhook_hosts: Vec<String>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("another write was faster")]
    Conflict,
    #[error("the object is gone")]
    NotFound,
    #[error("this replica leads no more")]
    Deposed,
    #[error("the API server refused: {0}")]
    Invalid(String),
    #[error("the API server did not answer in 5 s")]
    Late,
    #[error("the API server could not be asked")]
    Api(#[source] Box<kube::Error>),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            kube::Error::Api(status) if status.code == 404 => Self::NotFound,
            kube::Error::Api(status) if status.code == 422 || status.code == 403 => {
                Self::Invalid(status.message.clone())
            }
            other => Self::Api(Box::new(other)),
        }
    }
}

pub(super) type LedgerTls = (Option<String>, Arc<rustls::ClientConfig>);

/// What every part of the controller works with.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) caches: Caches,
    pub(super) tallies: Tallies,
    pub(super) gauges: ArcSwap<Vec<Family>>,
    pub(super) pages: Mutex<Arc<Pages>>,
    /// How the exporters' ledgers are asked, with the version of the Secret that it is from.
    pub(super) ledger_tls: ArcSwapOption<LedgerTls>,
    oracle: ArcSwap<Option<Arc<Oracle>>>,
    epoch: AtomicI64,
    leads_until: AtomicU64,
    pub(super) changed: Arc<Notify>,
    /// µs, monotonic: when the API server was last heard of.
    pub(super) heard: Arc<AtomicU64>,
}

const CALL_DEADLINE: Duration = Duration::from_secs(5);

impl Context {
    pub(super) fn new(client: Client, settings: Settings) -> Self {
        Self {
            client,
            settings,
            caches: Caches::default(),
            tallies: Tallies::default(),
            gauges: ArcSwap::default(),
            pages: Mutex::default(),
            ledger_tls: ArcSwapOption::empty(),
            oracle: ArcSwap::from_pointee(None),
            epoch: AtomicI64::new(0),
            leads_until: AtomicU64::new(0),
            changed: Arc::new(Notify::new()),
            heard: Arc::default(),
        }
    }

    /// Runs one call to the API server within its deadline.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let result = tokio::time::timeout(CALL_DEADLINE, call)
            .await
            .map_err(|_| Failure::Late);
        let result = result.and_then(|result| result.map_err(Failure::from));
        if let Err(error) = &result {
            let code = match error {
                Failure::Conflict => "conflict",
                Failure::NotFound => "not_found",
                Failure::Invalid(_) => "refused",
                Failure::Late => "timeout",
                _ => "unreachable",
            };
            self.tallies
                .count(&c::API_ERRORS, vec![("code", code.to_owned())]);
        }
        result
    }

    pub(super) fn now(&self) -> Timestamp {
        clock::now()
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Leads with this number until `until` (µs, monotonic).
    pub(super) fn lead(&self, epoch: i64, until: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.leads_until.store(until, Ordering::Release);
    }

    pub(super) fn is_leading(&self) -> bool {
        self.settings.ignore_lease
            || clock::monotonic_micros() < self.leads_until.load(Ordering::Acquire)
    }

    /// Asked before every write: who could not renew in time must not spend.
    pub(super) fn check_leading(&self) -> Result<(), Failure> {
        if self.is_leading() {
            Ok(())
        } else {
            Err(Failure::Deposed)
        }
    }

    /// The oracle of this cycle.
    pub(super) fn oracle(&self) -> Arc<Oracle> {
        if let Some(oracle) = self.oracle.load().as_ref() {
            return oracle.clone();
        }
        self.renew_oracle()
    }

    pub(super) fn renew_oracle(&self) -> Arc<Oracle> {
        let oracle = Arc::new(self.caches.world.objects().oracle());
        self.oracle.store(Arc::new(Some(oracle.clone())));
        oracle
    }

    pub(super) fn condition(
        &self,
        kind: &str,
        yes: bool,
        reason: &str,
        message: String,
        generation: Option<i64>,
    ) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: if yes { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }
}

/// Says what went wrong; the next cycle tries again.
pub(super) fn note(what: &str, error: &Failure) {
    match error {
        // Lost races are the design at work.
        Failure::Conflict | Failure::NotFound => {
            tracing::debug!(what, %error, "again in the next cycle");
        }
        _ => {
            tracing::warn!(what, error = %crate::serve::telemetry::chain(error), "again in the next cycle");
        }
    }
}

/// Only a lost lease ends a cycle; one piece of work's trouble keeps no other waiting.
pub(super) fn carry_on(what: &str, result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(Failure::Deposed) => Err(Failure::Deposed),
        Err(error) => {
            note(what, &error);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
