//! The whole of Jouleward on a plane: chart applied, controller, webhook, simulated nodes
//! with their exporters, each part a real process of the real binary under its own account.

use crate::chart::Chart;
use crate::plane::Plane;
use crate::process::Process;
use crate::{built, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What a simulated node is like.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub product: String,
    pub gpus: usize,
    pub replicas: usize,
    pub burn: f64,
    pub liars: f64,
    pub noise: f64,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            product: "NVIDIA A100-SXM4-40GB".to_owned(),
            gpus: 2,
            replicas: 1,
            burn: 1.0,
            liars: 0.0,
            noise: 0.02,
        }
    }
}

#[derive(Debug)]
pub struct SimulatedNode {
    pub name: String,
    pub ip: String,
    pub state: PathBuf,
    pub node: Process,
    pub exporter: Process,
}

/// Where the DaemonSet's pods find the ledger's certificate.
const TLS_MOUNT: &str = "/etc/jouleward/tls";

pub struct Stack {
    pub plane: Plane,
    pub chart: Chart,
    pub client: kube::Client,
    pub nodes: Vec<SimulatedNode>,
    /// First three bytes of this stack's own loopback addresses.
    network: String,
}

impl Stack {
    /// Starts a plane and applies the chart to it; no process of Jouleward runs yet.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plane = Plane::start(folder).await?;
        let id = std::process::id();
        let network = format!("127.{}.{}", id % 250 + 2, id / 250 % 250 + 1);
        let values = json!({
            "webhook": { "url": format!("https://{network}.20:9443"), "replicas": 1 },
            // Tests look at a law right after a job.
            "controller": { "replicas": 1, "lawWriteSeconds": 0 },
            // Exporters of many nodes share one machine here: each test gives its own file.
            "exporter": { "runtimeClassName": "", "publishDelaySeconds": 2, "checkpoint": { "enabled": false } },
            "gridZones": [{ "name": "default", "source": { "staticGramsPerKwh": 400 }, "pue": "1.25" }],
        });
        let chart = Chart::render(&plane, &values)?;
        chart.check_ports()?;
        plane.apply(&chart.manifests(|kind| kind == "CustomResourceDefinition")?)?;
        let client = plane.client("admin").await?;
        crate::jobs::wait_for_crds(&client).await?;
        plane.apply(&chart.manifests(|kind| kind != "CustomResourceDefinition")?)?;
        Ok(Self {
            plane,
            chart,
            client,
            nodes: Vec::new(),
            network,
        })
    }

    pub fn address(&self, host: u8) -> String {
        format!("{}.{host}", self.network)
    }

    fn logs(&self) -> PathBuf {
        self.plane.folder.join("logs")
    }

    /// Where the simulated node of an exporter mounts its Secret.
    fn tls_of(&self, exporter: &str) -> String {
        let node = exporter.strip_prefix("exporter-").unwrap_or(exporter);
        self.plane
            .folder
            .join(node)
            .join("tls")
            .display()
            .to_string()
    }

    /// Starts one of the chart's containers as a process.
    pub fn run(
        &self,
        part: &str,
        name: &str,
        host: u8,
        extra: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        let fields = BTreeMap::from([
            ("metadata.namespace", "jouleward-system".to_owned()),
            ("metadata.name", name.to_owned()),
            ("status.podIP", self.address(host)),
            ("spec.nodeName", name.to_owned()),
        ]);
        let started = self
            .chart
            .container(&format!("jouleward-{part}"), &fields)?;
        let mut command = Command::new(built("jouleward")?);
        let mounted = |arg: &String| arg.replace(TLS_MOUNT, &self.tls_of(name));
        command.args(started.args.iter().map(mounted));
        command.args(extra).envs(&started.env);
        if part == "exporter" {
            command.env_remove("KUBECONFIG");
        } else {
            command.env(
                "KUBECONFIG",
                self.plane.kubeconfig(&format!("jouleward-{part}")),
            );
        }
        command
            .env("JOULEWARD_LOG", "info,jouleward=debug")
            .envs(env.iter().copied());
        Process::start(name, &self.logs(), &mut command)
    }

    /// The controller, replica `n`.
    pub fn controller(
        &self,
        n: u8,
        extra: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        self.run("controller", &format!("controller-{n}"), 10 + n, extra, env)
    }

    pub fn webhook(&self) -> anyhow::Result<Process> {
        self.run("webhook", "webhook-0", 20, &[], &[])
    }

    /// Waits until a part says it is ready.
    pub async fn ready(&self, host: u8, port: u16) -> anyhow::Result<()> {
        let address = format!("{}:{port}", self.address(host));
        eventually(
            &format!("{address}/readyz"),
            Duration::from_secs(30),
            || async {
                let (status, _) = get(&address, "/readyz", "text/plain").await?;
                Ok((status == 200).then_some(()))
            },
        )
        .await
    }

    /// A simulated GPU node with its exporter, as long as the stack.
    pub async fn add_node(&mut self, name: &str, options: &NodeOptions) -> anyhow::Result<()> {
        let host = 100 + u8::try_from(self.nodes.len())?;
        let node = self.start_node(name, host, options).await?;
        self.nodes.push(node);
        Ok(())
    }

    /// A simulated GPU node with its exporter, until it is dropped.
    pub async fn start_node(
        &self,
        name: &str,
        host: u8,
        options: &NodeOptions,
    ) -> anyhow::Result<SimulatedNode> {
        let ip = self.address(host);
        let state = self.plane.folder.join(name);
        std::fs::create_dir_all(&state)?;
        let mut command = Command::new(built("simnode")?);
        command
            .args(["--name", name, "--ip", &ip, "--product", &options.product])
            .arg("--state")
            .arg(&state);
        for (flag, value) in [
            ("--gpus", options.gpus.to_string()),
            ("--replicas", options.replicas.to_string()),
            ("--burn", options.burn.to_string()),
            ("--liars", options.liars.to_string()),
            ("--noise", options.noise.to_string()),
        ] {
            command.args([flag, &value]);
        }
        command.env("KUBECONFIG", self.plane.kubeconfig("admin"));
        let node = Process::start(name, &self.logs(), &mut command)?;
        let socket = state.join("kubelet.sock");
        eventually(
            "the simulated kubelet's socket",
            Duration::from_secs(20),
            || async { Ok(socket.exists().then_some(())) },
        )
        .await?;
        let exporter = self.exporter(name, host, &state, &[], &[])?;
        self.ready(host, 9402).await?;
        Ok(SimulatedNode {
            name: name.to_owned(),
            ip,
            state,
            node,
            exporter,
        })
    }

    /// The exporters' ledger pages.
    pub async fn pages(&self) -> anyhow::Result<Vec<Value>> {
        let mut pages = Vec::new();
        for node in &self.nodes {
            let address = format!("{}:9402", node.ip);
            let (_, body) = get(&address, "/v1/pods", "application/json").await?;
            pages.push(serde_json::from_str(&body)?);
        }
        Ok(pages)
    }

    /// A pod's line in the ledger of its node's exporter.
    pub async fn line_of(&self, pod: &str) -> anyhow::Result<Option<Value>> {
        let pages = self.pages().await?;
        let mut lines = pages
            .iter()
            .flat_map(|page| page["pods"].as_array().into_iter().flatten());
        Ok(lines.find(|line| line["uid"] == pod).cloned())
    }

    /// The exporter as the DaemonSet starts it, with the node's own folders.
    pub fn exporter(
        &self,
        node: &str,
        host: u8,
        state: &Path,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        let library = built("libnvml_sim.so")?;
        let text = |path: PathBuf| path.display().to_string();
        let extra = [
            format!("--nvml-library={}", library.display()),
            format!("--kubelet-socket={}", text(state.join("kubelet.sock"))),
            format!("--pod-logs={}", text(state.join("pods"))),
            format!("--proc-root={}", text(state.join("proc"))),
            format!("--node-name={node}"),
        ];
        let extra: Vec<&str> = extra
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied())
            .collect();
        let scenario = text(state.join("scenario.json"));
        self.run(
            "exporter",
            &format!("exporter-{node}"),
            host,
            &extra,
            &[&[("NVML_SIM_SCENARIO", scenario.as_str())], env].concat(),
        )
    }

    /// The sidecar of manifests/sidecar.yaml, in a pod (namespace, name, UID) on a node.
    pub fn sidecar(
        &self,
        node: &SimulatedNode,
        host: u8,
        pod: (&str, &str, &str),
    ) -> anyhow::Result<Process> {
        let text = std::fs::read_to_string(crate::root().join("manifests/sidecar.yaml"))?;
        let job: Value = serde_yaml::from_str(&text)?;
        let container = &job["spec"]["template"]["spec"]["initContainers"][0];
        let args: Vec<String> = serde_json::from_value(container["args"].clone())?;
        let mut command = Command::new(built("jouleward")?);
        // Every pod has a loopback of its own; here they share one machine's.
        command.args(args.iter().filter(|arg| !arg.starts_with("--listen")));
        command.arg(format!("--listen={}:9402", self.address(host)));
        command.arg(format!(
            "--nvml-library={}",
            built("libnvml_sim.so")?.display()
        ));
        let message = node.state.join("termination").join(pod.2);
        command.arg(format!("--termination-message={}", message.display()));
        for name in ["pod-logs", "proc-root", "kubelet-socket"] {
            // It has none of them.
            command.arg(format!("--{name}={}", node.state.join("none").display()));
        }
        command
            .env_remove("KUBECONFIG")
            .env("NODE_NAME", &node.name)
            .env("POD_NAMESPACE", pod.0)
            .env("POD_NAME", pod.1)
            .env("POD_UID", pod.2)
            .env("NVML_SIM_SCENARIO", node.state.join("scenario.json"));
        Process::start(&format!("sidecar-{}", pod.1), &self.logs(), &mut command)
    }

    /// What simulated pods truly burned, by UID: joules.
    pub fn truth(&self) -> BTreeMap<String, f64> {
        let nodes = self.nodes.iter();
        nodes.flat_map(|node| self.truth_of(node)).collect()
    }

    /// The same for one node.
    pub fn truth_of(&self, node: &SimulatedNode) -> BTreeMap<String, f64> {
        let text = std::fs::read_to_string(node.state.join("truth.jsonl")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some((line["uid"].as_str()?.to_owned(), line["joules"].as_f64()?)))
            .collect()
    }
}

/// A plain HTTP request to one of our own addresses: status and body. HTTP/1.0, so that
/// nobody answers in chunks.
pub async fn get(address: &str, path: &str, accept: &str) -> anyhow::Result<(u16, String)> {
    ask("GET", address, path, accept).await
}

/// The same with nothing in its body.
pub async fn post(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    ask("POST", address, path, "*/*").await
}

async fn ask(
    method: &str,
    address: &str,
    path: &str,
    accept: &str,
) -> anyhow::Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    Ok((status, body.to_owned()))
}
