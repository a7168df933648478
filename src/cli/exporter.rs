//! `jouleward exporter`: meters the GPUs of one node.

use super::WrongInput;
use crate::contract::{EXPORTER_PORT, LEDGER_PORT};
use crate::node::attribution::Holder;
use crate::node::compat::Compat;
use crate::node::exporter::{self, Own as OwnPod, Settings};
use crate::node::nvml::LIBRARY_PATHS;
use crate::serve::shutdown::Stop;
use clap::{Args, ValueEnum};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Node,
    Sidecar,
}

/// The pod that a sidecar is in, from the downward API.
#[derive(Debug, Args)]
struct Own {
    #[arg(
        long = "pod-namespace",
        env = "POD_NAMESPACE",
        hide = true,
        default_value = "default"
    )]
    namespace: String,
    #[arg(long = "pod-name", env = "POD_NAME", hide = true)]
    name: Option<String>,
    #[arg(long = "pod-uid", env = "POD_UID", hide = true)]
    uid: Option<String>,
    /// File of this container's termination message: with --mode sidecar, the images that the
    /// application tells at /v1/images are in it.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    termination_message: PathBuf,
}

impl Own {
    fn pod(self, mode: Mode) -> Result<Option<OwnPod>, WrongInput> {
        if mode == Mode::Node {
            return Ok(None);
        }
        let (Some(pod), Some(uid)) = (self.name, self.uid) else {
            return Err(WrongInput(
                "--mode sidecar needs POD_NAMESPACE, POD_NAME and POD_UID from the downward API; \
                 manifests/sidecar.yaml shows how"
                    .to_owned(),
            ));
        };
        let pod = Holder {
            uid,
            namespace: self.namespace,
            pod,
            container: "pod".to_owned(),
            ..Holder::default()
        };
        Ok(Some(OwnPod {
            pod,
            message: self.termination_message,
        }))
    }
}

/// Meters the GPUs of this node and splits their energy exactly among pods.
#[derive(Debug, Args)]
#[command(
    after_help = "Endpoints: /metrics, /v1/pods (exact energy by pod; with --ledger-tls also for the
controller, who reads no other), /v1/windows (how the last windows were split), /healthz, /readyz
Examples:
  jouleward exporter --node-name $(hostname) --once
  jouleward exporter --node-name $(hostname) --dump"
)]
pub(super) struct Exporter {
    /// node: meters all GPUs and asks the kubelet who holds them. sidecar: meters the GPUs
    /// that its own pod uses, and asks nobody; /v1/energy gives the pod its joules, and
    /// POST /v1/images?done=N takes the images it has made.
    #[arg(long, value_enum, default_value = "node")]
    mode: Mode,
    #[command(flatten)]
    own: Own,
    /// Name of the node, as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Address to serve on.
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), EXPORTER_PORT))]
    listen: SocketAddr,
    /// Folder with ca.crt, tls.crt and tls.key of the ledger: serves /v1/pods to whom ca.crt
    /// has signed, on --ledger-listen. The files may come and change while it runs.
    #[arg(long, value_name = "DIR")]
    ledger_tls: Option<PathBuf>,
    /// Address to serve the ledger on.
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), LEDGER_PORT))]
    ledger_listen: SocketAddr,
    /// NVML library; may be repeated, the first that loads is used.
    #[arg(long, default_values = LIBRARY_PATHS)]
    nvml_library: Vec<PathBuf>,
    /// The kubelet's pod-resources socket.
    #[arg(long, default_value = "/var/lib/kubelet/pod-resources/kubelet.sock")]
    kubelet_socket: PathBuf,
    /// The kubelet's folder of pod logs: its directories name each pod's UID.
    #[arg(long, default_value = "/var/log/pods")]
    pod_logs: PathBuf,
    /// Root of the host's /proc; used only where it shows the host's processes (hostPID).
    #[arg(long, default_value = "/proc")]
    proc_root: PathBuf,
    /// Seconds between looks at the GPUs.
    #[arg(long, default_value_t = 1.0)]
    interval_seconds: f64,
    /// Seconds for which a new series shows 0; at least the longest scrape interval.
    #[arg(long, default_value_t = 60.0)]
    publish_delay_seconds: f64,
    /// Seconds for which an ended pod's series stays; at least three scrapes.
    #[arg(long, default_value_t = 300.0)]
    hold_after_end_seconds: f64,
    /// Seconds for which an ended pod stays in the ledger (/v1/pods) for a controller that is
    /// away; at least those of its series.
    #[arg(long, default_value_t = 3600.0)]
    keep_final_seconds: f64,
    /// Idle power of each GPU in watts, where it should not be learnt.
    #[arg(long)]
    idle_watts: Option<f64>,
    /// File in a folder of the host that lets all sums go on after a restart: no joule is
    /// lost to it. Without, sums begin at zero and what burns meanwhile is nobody's.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    sharing: Sharing,
    /// Also show energy and power under another exporter's names, in the text format only:
    /// for nodes on which that exporter does not run.
    #[arg(long, value_enum)]
    compat: Option<Names>,
    /// Look twice, print what a scrape would show, and end.
    #[arg(long, conflicts_with = "dump")]
    once: bool,
    /// Look twice, print as JSON who holds what and whose the processes are, and end.
    #[arg(long)]
    dump: bool,
    #[cfg(debug_assertions)]
    #[arg(long, env = "JOULEWARD_CRASH_POINT", hide = true)]
    crash_point: Option<String>,
}

/// What else is asked where GPUs are shared.
#[derive(Debug, Args)]
struct Sharing {
    /// Split a board that MIG has cut by how busy each instance is, too (Hopper and newer).
    /// Reads GPU performance monitoring, which adds some power and which one profiler at a
    /// time may use.
    #[arg(long)]
    mig_activity: bool,
    /// Ask the API server which resource claims are for administration, whose pods are no
    /// holders, and which MIG instance a claim's device is. Needs to get resourceclaims and
    /// list resourceslices; without, every claim counts as an ordinary one.
    #[arg(long)]
    resource_claims: bool,
}

impl Sharing {
    async fn client(&self) -> anyhow::Result<Option<kube::Client>> {
        Ok(if self.resource_claims {
            Some(super::cluster_commands::client().await?)
        } else {
            None
        })
    }
}

/// Another exporter's names.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Names {
    /// `DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION` and `DCGM_FI_DEV_POWER_USAGE`.
    Dcgm,
}

impl Exporter {
    pub(super) async fn run(self, stop: Stop) -> anyhow::Result<()> {
        #[cfg(debug_assertions)]
        if let Some(point) = self.crash_point {
            crate::serve::crash::arm(point);
        }
        let settings = Settings {
            interval: seconds("--interval-seconds", self.interval_seconds, 0.1, 10.0)?,
            publish_delay: seconds(
                "--publish-delay-seconds",
                self.publish_delay_seconds,
                0.0,
                3600.0,
            )?,
            hold_after_end: seconds(
                "--hold-after-end-seconds",
                self.hold_after_end_seconds,
                0.0,
                86_400.0,
            )?,
            idle_milliwatts: self.idle_watts.map(milliwatts).transpose()?,
            // A look in passing must not take a running exporter's sums.
            checkpoint: self.checkpoint.filter(|_| !self.once && !self.dump),
            own: self.own.pod(self.mode)?,
            node: self.node_name,
            listen: self.listen,
            ledger: self.ledger_tls.map(|folder| (self.ledger_listen, folder)),
            libraries: self.nvml_library,
            kubelet_socket: self.kubelet_socket,
            pod_logs: self.pod_logs,
            proc_root: self.proc_root,
            mig_activity: self.sharing.mig_activity,
            resource_claims: self.sharing.client().await?,
            compat: self.compat.map(|Names::Dcgm| Compat::Dcgm),
            keep_final: seconds(
                "--keep-final-seconds",
                self.keep_final_seconds,
                self.hold_after_end_seconds,
                86_400.0,
            )?,
            most_pods: 10_000,
        };
        if self.once || self.dump {
            let text = exporter::once(settings, self.dump).await?;
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(());
        }
        Ok(exporter::run(settings, stop).await?)
    }
}

pub(super) fn seconds(
    flag: &str,
    value: f64,
    least: f64,
    most: f64,
) -> Result<Duration, WrongInput> {
    if (least..=most).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(WrongInput(format!(
            "{flag} {value} is not from {least} to {most} seconds"
        )))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be small and positive"
)]
fn milliwatts(watts: f64) -> Result<u64, WrongInput> {
    if (0.0..=1000.0).contains(&watts) {
        Ok((watts * 1000.0) as u64)
    } else {
        Err(WrongInput(format!(
            "--idle-watts {watts} is not from 0 to 1000"
        )))
    }
}
