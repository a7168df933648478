//! Asks every exporter for its ledger page, once a second; both ends prove who they are.

use super::stores::ExporterSeen;
use super::world::NodeInfo;
use crate::clock;
use crate::contract::{EXPORTER_NAME, LEDGER_PORT};
use crate::node::{LedgerPage, PodEnergy};
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
/// Pods that are told by name alone, before all are asked after anew.
const NAMED: usize = 10_000;

/// The last page of each node, and when it came.
#[derive(Debug, Default, Clone)]
pub(super) struct Pages {
    pages: HashMap<String, (Arc<LedgerPage>, u64)>,
    /// UIDs of pods that a node could only tell by `namespace/name`.
    named: HashMap<String, Named>,
}

/// A pod that a node tells by name alone.
#[derive(Debug, Clone)]
struct Named {
    uid: String,
    /// What pods of the same name before it had burned, µJ, and what was told last.
    before: u64,
    seen: u64,
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
            named: HashMap::new(),
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

    /// Gives those pods their UID that a node could only tell by `namespace/name`: where it finds no
    /// log folder of theirs.
    pub(super) fn name_pods(&mut self, uid_of: impl Fn(&str) -> Option<String>) {
        let mut named = HashMap::new();
        for (page, _) in self.pages.values_mut() {
            let unnamed = page.pods.iter().map(|pod| &pod.uid);
            let unnamed: Vec<String> = unnamed.filter(|uid| uid.contains('/')).cloned().collect();
            for name in unnamed {
                let (known, live) = (self.named.get(&name), uid_of(&name));
                // Another pod of the same name begins where the one before it ended.
                let burned = |pod: &&PodEnergy| pod.uid == name;
                let sum = page
                    .pods
                    .iter()
                    .find(burned)
                    .map_or(0, |pod| pod.microjoules);
                let next = match (known, live) {
                    (Some(known), Some(live)) if known.uid != live => Some(Named {
                        uid: live,
                        before: known.seen,
                        seen: sum,
                    }),
                    (Some(known), _) => Some(Named {
                        seen: sum,
                        ..known.clone()
                    }),
                    (None, live) => live.map(|uid| Named {
                        uid,
                        before: 0,
                        seen: sum,
                    }),
                };
                // One that was named meanwhile has a line of its own from then on.
                let alone = |next: &Named| page.pods.iter().all(|pod| pod.uid != next.uid);
                let Some(next) = next.filter(alone) else {
                    continue;
                };
                for pod in &mut Arc::make_mut(page).pods {
                    if pod.uid == name {
                        pod.uid.clone_from(&next.uid);
                        pod.microjoules = pod.microjoules.saturating_sub(next.before);
                    }
                }
                named.insert(name, next);
            }
        }
        // What no page of this second tells by name is told no more, or by a node that is silent
        // for a moment.
        self.named.extend(named);
        if self.named.len() > NAMED {
            self.named.clear();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_a_node_tells_by_name_alone_is_named_and_stays_so_once_it_is_gone() {
        let line = |uid: &str| PodEnergy {
            uid: uid.to_owned(),
            ..PodEnergy::default()
        };
        let page = || LedgerPage {
            node: "n".to_owned(),
            pods: vec![line("team/a"), line("team/b"), line("uid-b"), line("uid-c")],
            ..LedgerPage::default()
        };
        let mut pages = Pages::read([page()], 0);
        let uids = |pages: &Pages| -> Vec<String> {
            let (page, _) = pages.of("n").unwrap();
            page.pods.iter().map(|pod| pod.uid.clone()).collect()
        };
        pages.name_pods(|name| Some(format!("uid-{}", name.strip_prefix("team/")?)));
        assert_eq!(uids(&pages), ["uid-a", "team/b", "uid-b", "uid-c"]);
        let mut later = page();
        later.pods[0].microjoules = 5;
        pages
            .pages
            .insert("n".to_owned(), (Arc::new(later.clone()), 1));
        pages.name_pods(|_| None);
        assert_eq!(uids(&pages), ["uid-a", "team/b", "uid-b", "uid-c"]);
        // Another of the same name is not charged what the first burned.
        later.pods[0].microjoules = 12;
        pages.pages.insert("n".to_owned(), (Arc::new(later), 2));
        pages.name_pods(|name| (name == "team/a").then(|| "uid-new".to_owned()));
        assert_eq!(uids(&pages)[0], "uid-new");
        assert_eq!(pages.of("n").unwrap().0.pods[0].microjoules, 7);
    }
}
