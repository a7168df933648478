//! Asks every exporter for its ledger page, once a second; both ends prove who they are.

use super::stores::ExporterSeen;
use super::world::NodeInfo;
use crate::clock;
use crate::contract::{EXPORTER_NAME, LEDGER_PORT};
use crate::node::LedgerPage;
use crate::serve::fetch::{self, FetchError};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(3);
/// A node that is gone and silent for this long will not speak again.
const GONE_US: u64 = 30_000_000;
const LARGEST_PAGE: usize = 16 << 20;

/// The last page of each node, and when it came.
#[derive(Debug, Default, Clone)]
pub(super) struct Pages {
    pages: HashMap<String, (Arc<LedgerPage>, u64)>,
}

/// Why an exporter gave no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the exporter's page is not what it should be")]
    Page(#[from] serde_json::Error),
    #[error("the exporter says that it is on {0:?}")]
    Another(String),
    #[error("the exporter did not answer in 3 s")]
    Late,
    #[error("{0:?} is no address")]
    Address(String),
}

impl Pages {
    /// Pages that were read at `at` (µs, monotonic).
    #[cfg(test)]
    pub(super) fn read(pages: impl IntoIterator<Item = LedgerPage>, at: u64) -> Self {
        let pages = pages.into_iter();
        let pages = pages.map(|page| (page.node.clone(), (Arc::new(page), at)));
        Self {
            pages: pages.collect(),
        }
    }

    /// Asks all exporters at once; returns the nodes whose exporter failed.
    pub(super) async fn refresh(
        &mut self,
        exporters: Vec<Arc<ExporterSeen>>,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Vec<(String, ScrapeError)> {
        let mut asked = JoinSet::new();
        for exporter in exporters {
            let tls = tls.clone();
            asked.spawn(async move {
                let page = tokio::time::timeout(DEADLINE, fetch(&exporter.ip, tls)).await;
                (
                    exporter.node.clone(),
                    page.unwrap_or(Err(ScrapeError::Late)),
                )
            });
        }
        let mut failed = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                // What a node says of others' pods is not for it to say.
                Ok((node, Ok(page))) if page.node != node => {
                    failed.push((node, ScrapeError::Another(page.node)));
                }
                Ok((node, Ok(page))) => {
                    self.pages
                        .insert(node, (Arc::new(page), clock::monotonic_micros()));
                }
                Ok((node, Err(error))) => failed.push((node, error)),
                Err(_) => {}
            }
        }
        failed
    }

    /// Drops pages of nodes that are gone and have been silent for a while.
    pub(super) fn forget_nodes(&mut self, nodes: &[Arc<NodeInfo>]) {
        let now = clock::monotonic_micros();
        let there = |node: &str| nodes.iter().any(|known| known.name == node);
        self.pages
            .retain(|node, (_, at)| now.saturating_sub(*at) < GONE_US || there(node));
    }

    /// Pages by node, with their age's origin in µs.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Arc<LedgerPage>, u64)> {
        self.pages
            .iter()
            .map(|(node, (page, at))| (node.as_str(), page, *at))
    }

    /// The moment that lay so many milliseconds before a page was read at `at`; `now` and
    /// `micros` are the same moment on both clocks.
    pub(super) fn moment(
        at: u64,
        milliseconds: u64,
        now: Timestamp,
        micros: u64,
    ) -> Option<Timestamp> {
        let page = i64::try_from(micros.saturating_sub(at)).ok()?;
        let before = i64::try_from(milliseconds).ok()?;
        let ago = SignedDuration::from_micros(page) + SignedDuration::from_millis(before);
        now.checked_sub(ago).ok()
    }

    pub(super) fn of(&self, node: &str) -> Option<(&Arc<LedgerPage>, u64)> {
        self.pages.get(node).map(|(page, at)| (page, *at))
    }
}

async fn fetch(ip: &str, tls: Arc<rustls::ClientConfig>) -> Result<LedgerPage, ScrapeError> {
    let address: std::net::IpAddr = ip
        .parse()
        .map_err(|_| ScrapeError::Address(ip.to_owned()))?;
    let address = std::net::SocketAddr::new(address, LEDGER_PORT);
    let body = fetch::get_tls(address, EXPORTER_NAME, tls, "/v1/pods", LARGEST_PAGE).await?;
    Ok(serde_json::from_slice(&body)?)
}
