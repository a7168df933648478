//! Who holds the GPUs: the kubelet is asked, or, in a pod as a sidecar, it is that pod.

use super::attribution::Holder;
use super::devices::{Claim, claims};
use super::dra::{Dra, DraState};
use super::exporter::{ExporterError, Settings};
use super::podresources::Kubelet;
use super::shared::{Listed, Shared};
use crate::clock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The kubelet is asked at most once a second, and every five seconds in any case.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(5);

/// Where it is known from.
pub(super) enum Source {
    /// With what the API server says of claims, where it may be asked.
    Kubelet(Kubelet, Option<Box<Dra>>),
    Own(Holder),
}

impl Source {
    pub(super) fn of(settings: &Settings) -> Result<Self, ExporterError> {
        if let Some(own) = &settings.own {
            return Ok(Self::Own(own.pod.clone()));
        }
        let socket = &settings.kubelet_socket;
        let kubelet = Kubelet::new(socket);
        let kubelet = kubelet.map_err(|e| ExporterError::Socket(socket.clone(), e))?;
        let dra = settings.resource_claims.clone();
        let dra = dra.map(|client| Box::new(Dra::new(client, &settings.node)));
        Ok(Self::Kubelet(kubelet, dra))
    }

    fn dra_state(&self) -> DraState {
        match self {
            Self::Kubelet(_, Some(dra)) => dra.state().clone(),
            _ => DraState::default(),
        }
    }

    /// Who holds which device.
    pub(super) async fn list(&mut self, shared: &Shared) -> Result<Vec<Claim>, tonic::Status> {
        match self {
            Self::Kubelet(kubelet, None) => Ok(claims(&kubelet.list().await?)),
            Self::Kubelet(kubelet, Some(dra)) => {
                let listed = claims(&kubelet.list().await?);
                Ok(dra.complete(listed).await)
            }
            Self::Own(own) => {
                let used = shared.used.load();
                let held = |gpu: &String| Claim {
                    holder: own.clone(),
                    device: gpu.clone(),
                    pool: None,
                };
                Ok(used.iter().map(held).collect())
            }
        }
    }
}

/// Asks when the sampler wants to know, within its rate limit.
pub(super) async fn ask(mut source: Source, shared: Arc<Shared>) {
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
        listed.dra = source.dra_state();
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
    answer: Result<Vec<Claim>, tonic::Status>,
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
                claims: answer,
                errors: BTreeMap::new(),
                dra: DraState::default(),
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
                claims: previous.claims.clone(),
                errors: BTreeMap::new(),
                dra: DraState::default(),
                healthy: false,
            };
            (listed, Some(format!("{:?}", status.code())))
        }
    }
}
