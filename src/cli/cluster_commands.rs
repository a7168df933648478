//! `jouleward controller`, `webhook`, `release`, `uninstall`.

use super::WrongInput;
use super::exporter::seconds;
use super::output::{Format, columns, print};
use crate::cluster::controller::{self, Settings};
use crate::cluster::{Archive, Lifted, lease, webhook};
use crate::contract::{CONTROLLER_PORT, WEBHOOK_ADMIN_PORT, WEBHOOK_PORT};
use crate::serve::shutdown::Stop;
use anyhow::Context;
use clap::Args;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Keeps the ledger, releases held jobs, learns; of several replicas one leads.
#[derive(Debug, Args)]
#[command(after_help = "Endpoints: /metrics, /healthz, /readyz")]
pub(super) struct Controller {
    /// Namespace of Jouleward itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "jouleward-system")]
    namespace: String,
    /// Name of this replica in the leader's lease.
    #[arg(long, env = "POD_NAME", default_value = "jouleward-controller")]
    identity: String,
    /// Address of metrics and health.
    #[arg(long, default_value_t = SocketAddr::new(ANY, CONTROLLER_PORT))]
    listen: SocketAddr,
    /// Host name or address that the webhook's certificate is for; may be repeated.
    #[arg(long, required = true)]
    webhook_host: Vec<String>,
    /// Seconds between writes of one law at least; what it learns in between is in the
    /// reservations.
    #[arg(long, default_value_t = 60, overrides_with = "law_write_seconds",
        value_parser = clap::value_parser!(u64).range(0..=3600))]
    law_write_seconds: u64,
    /// Seconds that a job's record is kept after it was settled, and longer while its job or a
    /// pod of it is there; then the namespace's CarbonStatement has it, and it is handed on.
    #[arg(long, default_value_t = 86_400, overrides_with = "keep_records_seconds",
        value_parser = clap::value_parser!(u64).range(1..=31_622_400))]
    keep_records_seconds: u64,
    /// Folder that records are handed on to as JSON lines, a file for each day; standard output
    /// without it.
    #[arg(long)]
    records_folder: Option<PathBuf>,
    /// Who keeps the webhook's certificate in the Secret jouleward-webhook-tls, and tells API servers
    /// to trust it: own, this controller; external, for example cert-manager.
    #[arg(long, value_enum, default_value = "own")]
    webhook_certificate: Keeper,
    /// Seconds for which API servers are told to trust a new certificate of the webhook before it is
    /// served; longer than the slowest of them takes to hear of it.
    #[arg(long, default_value_t = 30.0)]
    certificate_overlap_seconds: f64,
    #[command(flatten)]
    lease: LeaseFlags,
    #[cfg(debug_assertions)]
    #[arg(long, hide = true)]
    ignore_lease: bool,
    #[cfg(debug_assertions)]
    #[arg(long, hide = true, env = "JOULEWARD_CRASH_POINT")]
    crash_point: Option<String>,
}

/// Who keeps a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Keeper {
    Own,
    External,
}

/// How the leader's lease is kept.
#[derive(Debug, Args)]
#[allow(clippy::struct_field_names, reason = "the flags share their prefix")]
struct LeaseFlags {
    /// Seconds after which a lease that stood still may be taken over.
    #[arg(long, default_value_t = 6)]
    lease_duration_seconds: u64,
    /// Seconds after which a leader that could not renew steps down.
    #[arg(long, default_value_t = 4)]
    lease_renew_deadline_seconds: u64,
    /// Seconds between looks at the lease.
    #[arg(long, default_value_t = 1)]
    lease_retry_seconds: u64,
}

impl LeaseFlags {
    fn terms(&self) -> Result<lease::Terms, WrongInput> {
        let (duration, deadline, retry) = (
            self.lease_duration_seconds,
            self.lease_renew_deadline_seconds,
            self.lease_retry_seconds,
        );
        if retry == 0 || deadline <= retry || duration <= deadline {
            return Err(WrongInput(format!(
                "--lease-retry-seconds {retry}, --lease-renew-deadline-seconds {deadline} and \
                 --lease-duration-seconds {duration} must rise in this order, for example 1, 4, 6"
            )));
        }
        Ok(lease::Terms {
            duration: Duration::from_secs(duration),
            renew_deadline: Duration::from_secs(deadline),
            retry: Duration::from_secs(retry),
        })
    }
}

impl Controller {
    pub(super) async fn run(self, stop: Stop) -> anyhow::Result<()> {
        #[cfg(debug_assertions)]
        if let Some(point) = self.crash_point {
            crate::serve::crash::arm(point);
        }
        #[cfg(debug_assertions)]
        let ignore_lease = self.ignore_lease;
        #[cfg(not(debug_assertions))]
        let ignore_lease = false;
        let settings = Settings {
            lease: self.lease.terms()?,
            namespace: self.namespace,
            identity: self.identity,
            listen: self.listen,
            law_write: Duration::from_secs(self.law_write_seconds),
            own_certificate: self.webhook_certificate == Keeper::Own,
            certificate_overlap: seconds(
                "--certificate-overlap-seconds",
                self.certificate_overlap_seconds,
                0.1,
                3600.0,
            )?,
            keep_records: Duration::from_secs(self.keep_records_seconds),
            archive: self.records_folder.map_or(Archive::Stdout, Archive::Folder),
            ignore_lease,
            webhook_hosts: self.webhook_host,
        };
        let listen = settings.listen;
        controller::run(client().await?, settings, stop)
            .await
            .with_context(|| format!("the controller on {listen} ended"))
    }
}

/// Predicts, holds and refuses at admission.
#[derive(Debug, Args)]
#[command(
    after_help = "Endpoints: /mutate and /validate over TLS; /metrics, /healthz, /readyz on the admin address"
)]
pub(super) struct Webhook {
    /// Namespace of Jouleward itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "jouleward-system")]
    namespace: String,
    /// Address of the admission endpoints.
    #[arg(long, default_value_t = SocketAddr::new(ANY, WEBHOOK_PORT))]
    listen: SocketAddr,
    /// Address of metrics and health.
    #[arg(long, default_value_t = SocketAddr::new(ANY, WEBHOOK_ADMIN_PORT))]
    admin_listen: SocketAddr,
    /// Seconds after which a leader's lease that stood still is stale.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease_duration_seconds: u64,
}

impl Webhook {
    pub(super) async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let settings = webhook::Settings {
            namespace: self.namespace,
            listen: self.listen,
            admin_listen: self.admin_listen,
            lease_duration: Duration::from_secs(self.lease_duration_seconds),
        };
        let listen = settings.listen;
        webhook::run(client().await?, settings, stop)
            .await
            .with_context(|| format!("the webhook on {listen} ended"))
    }
}

/// Lifts Jouleward's holds by hand: jobs start without a grant and are charged.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward release --namespace team-a --name images
  jouleward release --all-namespaces
Without this program:
  kubectl patch job NAME --type=json -p '[{\"op\":\"remove\",\"path\":\"/metadata/annotations/jouleward.dev~1hold\"},{\"op\":\"replace\",\"path\":\"/spec/suspend\",\"value\":false}]'")]
pub(super) struct Release {
    /// Namespace to release in.
    #[arg(short, long, required_unless_present = "all_namespaces")]
    namespace: Option<String>,
    /// Only this job or pod.
    #[arg(long, requires = "namespace")]
    name: Option<String>,
    /// Every namespace.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Release {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = client().await?;
        let lifted =
            crate::cluster::release(&client, self.namespace.as_deref(), self.name.as_deref())
                .await
                .context("the cluster could not be asked for held jobs")?;
        report(self.output, &lifted)
    }
}

/// Lifts every hold and takes the webhooks away; run before the chart is removed.
#[derive(Debug, Args)]
pub(super) struct Uninstall {
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Uninstall {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = client().await?;
        let lifted = crate::cluster::uninstall(&client)
            .await
            .context("the uninstall did not finish; run it again")?;
        report(self.output, &lifted)
    }
}

pub(super) async fn client() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer().await.map_err(|error| {
        WrongInput(format!(
            "no cluster: {error}; set KUBECONFIG to a readable file, or run inside a cluster \
             with a service account"
        ))
    })?;
    Ok(kube::Client::try_from(config)?)
}

fn report(format: Format, lifted: &Lifted) -> anyhow::Result<()> {
    print(format, lifted, |lifted| {
        let line = |what: &str| {
            let what = what.to_owned();
            move |text: &String| vec![what.clone(), text.clone()]
        };
        let mut rows: Vec<Vec<String>> = lifted.removed.iter().map(line("removed")).collect();
        rows.extend(lifted.released.iter().map(line("released")));
        rows.extend(lifted.failed.iter().map(line("FAILED")));
        if rows.is_empty() {
            "nothing of ours is held\n".to_owned()
        } else {
            columns(&rows)
        }
    })?;
    anyhow::ensure!(
        lifted.failed.is_empty(),
        "{} holds could not be lifted",
        lifted.failed.len()
    );
    Ok(())
}
