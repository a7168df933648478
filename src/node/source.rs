//! Who holds the GPUs: the kubelet is asked, or, in a pod as a sidecar, it is that pod.

use super::attribution::Holder;
use super::exporter::{ExporterError, Settings};
use super::podresources::{Holders, Kubelet, holders};
use super::sampler::{Listed, Shared};
use crate::clock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The kubelet is asked at most once a second, and every five seconds in any case.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(5);

/// Where it is known from.
pub(super) enum Source {
    Kubelet(Kubelet),
    Own(Holder),
}

impl Source {
    pub(super) fn of(settings: &Settings) -> Result<Self, ExporterError> {
        if let Some(own) = &settings.own {
            return Ok(Self::Own(own.clone()));
        }
        let socket = &settings.kubelet_socket;
        let kubelet = Kubelet::new(socket);
        let kubelet = kubelet.map_err(|e| ExporterError::Socket(socket.clone(), e))?;
        Ok(Self::Kubelet(kubelet))
    }

    /// Holders by GPU.
    pub(super) async fn list(&self, shared: &Shared) -> Result<Holders, tonic::Status> {
        match self {
            Self::Kubelet(kubelet) => {
                let answer = kubelet.list().await?;
                Ok(holders(&answer, &shared.by_index.load()))
            }
            Self::Own(own) => {
                let used = shared.used.load();
                let held = |gpu: &String| (gpu.clone(), BTreeMap::from([(own.clone(), 1)]));
                Ok(used.iter().map(held).collect())
            }
        }
    }
}

/// Asks when the sampler wants to know, within its rate limit.
pub(super) async fn ask(source: Source, shared: Arc<Shared>) {
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let mut number = 0;
    loop {
        let asked = clock::monotonic_micros();
        number += 1;
        let (mut listed, code) = take(source.list(&shared).await, number, asked, &shared);
        if let Some(code) = code {
            *errors.entry(code).or_default() += 1;
        }
        listed.errors = errors.clone();
        shared.listed.store(Arc::new(listed));
        tokio::time::sleep(SOONEST).await;
        let _ = tokio::time::timeout(
            LATEST.saturating_sub(SOONEST),
            shared.ask_kubelet.notified(),
        )
        .await;
    }
}

/// The answer as the sampler reads it; an error keeps what is known, and is named.
pub(super) fn take(
    answer: Result<Holders, tonic::Status>,
    number: u64,
    asked: u64,
    shared: &Shared,
) -> (Listed, Option<String>) {
    let previous = shared.listed.load_full();
    match answer {
        Ok(answer) => {
            let listed = Listed {
                number,
                asked,
                holders: answer,
                errors: BTreeMap::new(),
                healthy: true,
            };
            (listed, None)
        }
        Err(status) => {
            if previous.healthy || number == 1 {
                tracing::warn!(code = ?status.code(), message = status.message(), "the kubelet does not answer");
            }
            let listed = Listed {
                number: previous.number,
                asked: previous.asked,
                holders: previous.holders.clone(),
                errors: BTreeMap::new(),
                healthy: false,
            };
            (listed, Some(format!("{:?}", status.code())))
        }
    }
}
