//! The exporter: a sampler thread, a task that asks the kubelet, and an HTTP server that
//! shows the latest snapshot.

use super::attribution::Holder;
use super::compat::Compat;
use super::made::Made;
use super::own::energy;
use super::replay::Replay;
use super::sampler::Sampler;
use super::shared::Shared;
use super::source::{Source, ask, take};
use crate::clock;
use crate::serve::http::{Answer, Call, Server, readiness};
use crate::serve::mutual::Mounted;
use crate::serve::shutdown::Stop;
use crate::serve::telemetry::chain;
use hyper::StatusCode;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;

/// How often the ledger's certificate is looked at.
const MOUNTED_EVERY: Duration = Duration::from_secs(2);

/// What an exporter is told.
#[derive(Clone)]
pub struct Settings {
    pub node: String,
    pub listen: SocketAddr,
    /// The ledger over mutual TLS: where, and the folder of its certificate.
    pub ledger: Option<(SocketAddr, PathBuf)>,
    /// NVML libraries, tried in order.
    pub libraries: Vec<PathBuf>,
    pub kubelet_socket: PathBuf,
    pub pod_logs: PathBuf,
    pub proc_root: PathBuf,
    pub interval: Duration,
    /// A new series shows 0 this long, so that `increase()` sees all of it.
    pub publish_delay: Duration,
    /// An ended pod's series stays this long.
    pub hold_after_end: Duration,
    /// An ended pod's account stays in the ledger this long.
    pub keep_final: Duration,
    pub most_pods: usize,
    pub idle_milliwatts: Option<u64>,
    /// In a pod as a sidecar: that pod, which holds whatever GPUs it uses.
    pub own: Option<Own>,
    /// File that lets the sums go on after a restart.
    pub checkpoint: Option<PathBuf>,
    /// Read how busy MIG instances are, by GPU performance monitoring.
    pub mig_activity: bool,
    /// Asks the API server about resource claims.
    pub resource_claims: Option<kube::Client>,
    /// Another exporter's names besides ours.
    pub compat: Option<Compat>,
}

/// The pod that a sidecar is in.
#[derive(Debug, Clone)]
pub struct Own {
    pub pod: Holder,
    /// The container's termination message, which tells the API server what was made.
    pub message: PathBuf,
}

/// Why the exporter could not start.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    #[error("cannot listen on {0}; free the port or choose another with --listen, --ledger-listen")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("the kubelet socket's path {0} makes no address")]
    Socket(PathBuf, #[source] tonic::transport::Error),
    #[error("{0}; started anew, the exporter goes on where it ended")]
    Lost(&'static str),
    #[error("cannot start the sampler's thread")]
    Thread(#[source] std::io::Error),
}

/// Runs until told to stop.
pub async fn run(settings: Settings, stop: Stop) -> Result<(), ExporterError> {
    let server = Server::bind(settings.listen)
        .await
        .map_err(|e| ExporterError::Listen(settings.listen, e))?;
    let source = Source::of(&settings)?;
    let shared = Arc::new(Shared::new(&settings.node));
    let mut tasks = JoinSet::new();
    if let Some((address, folder)) = &settings.ledger {
        let server = Server::bind(*address)
            .await
            .map_err(|e| ExporterError::Listen(*address, e))?;
        tasks.spawn(serve_ledger(
            server,
            folder.clone(),
            shared.clone(),
            stop.clone(),
        ));
    }
    let sampler = Sampler::new(settings.clone(), shared.clone());
    let thread = std::thread::Builder::new()
        .name("sampler".to_owned())
        .spawn(|| sampler.run())
        .map_err(ExporterError::Thread)?;
    tasks.spawn(ask(source, shared.clone()));
    let served = shared.clone();
    let compat = settings.compat;
    let own = settings.own.clone();
    let own = own.map(|own| Arc::new((own.pod, Made::new(own.message))));
    let handler = move |call: Call| {
        let (shared, own) = (served.clone(), own.clone());
        async move {
            match own {
                Some(own) if call.path.starts_with("/v1/energy") => {
                    shared.look_now().await;
                    energy(&call, &shared, &own.0, own.1.so_far())
                }
                Some(own) if call.path.starts_with("/v1/images") => own.1.answer(&call),
                _ => answer(&call, &shared, compat),
            }
        }
    };
    tracing::info!(node = settings.node, listen = %settings.listen, "exporter starts");
    let lost = tokio::select! {
        () = server.run(None, handler, stop) => None,
        why = shared.until_ended() => Some(why),
    };
    shared.stop.store(true, Ordering::Relaxed);
    // The thread looks at the flag every 50 ms; a hanging driver must not keep us.
    let _ = tokio::time::timeout(
        Duration::from_secs(2),
        tokio::task::spawn_blocking(|| thread.join()),
    )
    .await;
    lost.map_or(Ok(()), |why| Err(ExporterError::Lost(why)))
}

/// The ledger's page, for the controller alone. The certificate may come later than we do.
async fn serve_ledger(server: Server, folder: PathBuf, shared: Arc<Shared>, stop: Stop) {
    let mut mounted = Mounted::new(folder);
    let tls = mounted.server_config();
    let served = shared.clone();
    let handler = move |call: Call| {
        let shared = served.clone();
        async move {
            match call.path.as_str() {
                "/v1/pods" => ledger_page(&shared),
                _ => Answer::not_found(),
            }
        }
    };
    let take_up = async {
        loop {
            let trouble = match mounted.refresh() {
                Ok(anew) => {
                    if anew {
                        tracing::info!("the ledger's certificate is taken up");
                    }
                    None
                }
                Err(error) => Some(chain(&error)),
            };
            let told = shared.ledger_trouble.load_full();
            if told.as_deref() != trouble.as_ref() {
                if let Some(error) = &trouble {
                    tracing::warn!(
                        error,
                        "the ledger's certificate; the one before stays in use"
                    );
                }
                shared.ledger_trouble.store(trouble.map(Arc::new));
            }
            tokio::time::sleep(MOUNTED_EVERY).await;
        }
    };
    tokio::select! {
        () = server.run(Some(tls), handler, stop) => {}
        () = take_up => {}
    }
}

fn ledger_page(shared: &Shared) -> Answer {
    Answer::json(serde_json::to_vec(shared.ledger.load().as_ref()).unwrap_or_default())
}

/// Looks twice, an interval apart, and shows what a scrape would, or what was found out.
///
/// # Errors
/// Where the kubelet's socket makes no address.
pub async fn once(settings: Settings, dump: bool) -> Result<String, ExporterError> {
    let mut source = Source::of(&settings)?;
    let (interval, compat) = (settings.interval, settings.compat);
    let shared = Arc::new(Shared::new(&settings.node));
    let mut sampler = Sampler::new(settings, shared.clone());
    for number in 1..=2 {
        let asked = clock::monotonic_micros();
        let (listed, _) = take(source.list(&shared).await, number, asked, &shared);
        shared.listed.store(Arc::new(listed));
        if number > 1 {
            tokio::time::sleep(interval).await;
        }
        // Two short looks before the program ends: nothing else waits for this thread.
        sampler = tokio::task::block_in_place(|| sampler.look_once());
    }
    if dump {
        return Ok(serde_json::to_string_pretty(&sampler.found_out()).unwrap_or_default() + "\n");
    }
    Ok(shared.snapshot.load().text(compat))
}

fn hangs(seconds: u64) -> String {
    format!(
        "sampler: hangs in a call to the driver for {seconds} s; a new process may get out of it\n"
    )
}

fn answer(call: &Call, shared: &Shared, compat: Option<Compat>) -> Answer {
    match call.path.as_str() {
        "/metrics" => {
            let snapshot = shared.snapshot.load();
            let (body, content_type) = snapshot.shown(compat, call.accept.as_deref());
            Answer {
                status: StatusCode::OK,
                content_type,
                body,
            }
        }
        "/v1/pods" => ledger_page(shared),
        "/v1/windows" => {
            let replays = shared.replays.load();
            let list: Vec<&Replay> = replays.iter().map(AsRef::as_ref).collect();
            Answer::json(serde_json::to_vec(&list).unwrap_or_default())
        }
        "/healthz" => match shared.hangs() {
            None => Answer::text(StatusCode::OK, "ok\n"),
            Some(seconds) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, hangs(seconds)),
        },
        "/readyz" => {
            let snapshot = shared.snapshot.load();
            let stuck = shared.hangs();
            let status = readiness(snapshot.health.is_ready() && stuck.is_none());
            let mut report = snapshot.health.report();
            report += &stuck.map(hangs).unwrap_or_default();
            if let Some(trouble) = shared.ledger_trouble.load().as_deref() {
                report += &format!("ledger for the controller: {trouble}\n");
            }
            Answer::text(status, report)
        }
        _ => Answer::not_found(),
    }
}
