//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, each a
//! process of one multi-call binary, with real RBAC and a token for everyone; beside them
//! kwok, which plays the kubelets of nodes labelled `type=kwok`.

use crate::eventually;
use crate::process::Process;
use anyhow::Context;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Who may ask: (token, user, groups).
const USERS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("author", "author", "authors"),
    ("viewer", "viewer", "viewers"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    (
        "jouleward-controller",
        "system:serviceaccount:jouleward-system:jouleward-controller",
        SERVICE_ACCOUNTS,
    ),
    (
        "jouleward-webhook",
        "system:serviceaccount:jouleward-system:jouleward-webhook",
        SERVICE_ACCOUNTS,
    ),
    (
        "jouleward-exporter",
        "system:serviceaccount:jouleward-system:jouleward-exporter",
        SERVICE_ACCOUNTS,
    ),
    (
        "jouleward-uninstall",
        "system:serviceaccount:jouleward-system:jouleward-uninstall",
        SERVICE_ACCOUNTS,
    ),
];
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts,system:serviceaccounts:jouleward-system";

#[derive(Debug)]
pub struct Plane {
    pub folder: PathBuf,
    /// plane, kwok and helm.
    pub binaries: PathBuf,
    pub url: String,
    processes: Vec<Process>,
    keep: bool,
}

/// Builds the binaries where they are not built yet, and says so.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let script = crate::root().join("tests/plane/build.sh");
    let output = Command::new("bash")
        .arg(&script)
        .env("CARGO_TARGET_DIR", crate::target())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run tests/plane/build.sh")?;
    anyhow::ensure!(
        output.status.success(),
        "tests/plane/build.sh failed; is Go 1.26 on the PATH?"
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // Held together, so that none is given twice.
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    listeners
        .iter()
        .map(|l| Ok(l.local_addr()?.port()))
        .collect()
}

impl Plane {
    /// Starts a plane in an empty folder; ready when the API server says so and the
    /// controllers work.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let binaries = binaries()?;
        let ports = free_ports(6)?;
        let [client, peer, api, kcm, scheduler, kwok] = ports[..] else {
            anyhow::bail!("no free ports")
        };
        for sub in ["logs", "etcd", "certs", "kubeconfig"] {
            std::fs::create_dir_all(folder.join(sub))?;
        }
        let url = format!("https://127.0.0.1:{api}");
        let mut plane = Self {
            folder: folder.to_path_buf(),
            binaries,
            url,
            processes: Vec::new(),
            keep: false,
        };
        plane.write_users()?;
        plane.make_key()?;
        plane.etcd(client, peer)?;
        plane.api_server(client, api)?;
        plane.ready().await?;
        plane.managers(kcm, scheduler)?;
        plane.kwok(kwok)?;
        plane.first_objects().await?;
        Ok(plane)
    }

    fn spawn(&mut self, component: &str, args: &[String]) -> anyhow::Result<()> {
        let mut command = if component == "kwok" {
            Command::new(self.binaries.join("kwok"))
        } else {
            let mut command = Command::new(self.binaries.join("plane"));
            command.arg(component);
            command
        };
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.folder);
        // Fewer threads: a test machine has two cores.
        command.env("GOMAXPROCS", "2").env("GOGC", "200");
        let process = Process::start(component, &self.folder.join("logs"), &mut command)?;
        self.processes.push(process);
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn etcd(&mut self, client: u16, peer: u16) -> anyhow::Result<()> {
        let (client, peer) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let args = [
            format!("--data-dir={}", self.path("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.spawn("etcd", &args)
    }

    fn api_server(&mut self, etcd: u16, port: u16) -> anyhow::Result<()> {
        let key = self.path("service-account.key");
        let args = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.path("certs")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            format!("--token-auth-file={}", self.path("tokens.csv")),
            "--endpoint-reconciler-type=none".to_owned(),
            // Enough room that tests of many jobs do not measure the server's fairness.
            "--max-requests-inflight=1000".to_owned(),
            "--max-mutating-requests-inflight=500".to_owned(),
        ];
        self.spawn("kube-apiserver", &args)
    }

    fn managers(&mut self, kcm: u16, scheduler: u16) -> anyhow::Result<()> {
        let mut args = vec![
            format!(
                "--kubeconfig={}",
                self.kubeconfig("controller-manager").display()
            ),
            format!(
                "--service-account-private-key-file={}",
                self.path("service-account.key")
            ),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={kcm}"),
            // No kubelet tells of itself here: simulated nodes stay ready.
            "--controllers=*,-node-lifecycle-controller".to_owned(),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        self.spawn("kube-controller-manager", &args)?;
        args = vec![
            format!("--kubeconfig={}", self.kubeconfig("scheduler").display()),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={scheduler}"),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        self.spawn("kube-scheduler", &args)
    }

    fn kwok(&mut self, port: u16) -> anyhow::Result<()> {
        let stages = crate::root().join("tests/plane/stages.yaml");
        let args = [
            format!("--kubeconfig={}", self.kubeconfig("admin").display()),
            format!("--config={}", stages.display()),
            "--manage-all-nodes=false".to_owned(),
            "--manage-nodes-with-label-selector=type=kwok".to_owned(),
            "--node-ip=127.0.0.1".to_owned(),
            format!("--node-port={port}"),
        ];
        self.spawn("kwok", &args)
    }

    /// A node whose kubelet kwok plays: pods of Jobs end there after a second.
    pub async fn kwok_node(&self, name: &str) -> anyhow::Result<()> {
        use kube::api::{Patch, PatchParams, PostParams};
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> =
            kube::Api::all(self.client("admin").await?);
        let node = serde_json::from_value(serde_json::json!({
            "metadata": { "name": name, "labels": { "type": "kwok", "kubernetes.io/hostname": name } },
        }))?;
        nodes.create(&PostParams::default(), &node).await?;
        eventually("kwok's node is ready", Duration::from_secs(20), || async {
            let node = nodes.get(name).await?;
            let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(ready.then_some(()))
        })
        .await?;
        // Nobody else takes the taint of new nodes off here.
        let none = serde_json::json!({ "spec": { "taints": null } });
        nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(&none))
            .await?;
        Ok(())
    }

    fn write_users(&self) -> anyhow::Result<()> {
        let rows: Vec<String> = USERS
            .iter()
            .enumerate()
            .map(|(i, (token, user, groups))| format!("{token}-token,{user},u{i},\"{groups}\"\n"))
            .collect();
        std::fs::write(self.folder.join("tokens.csv"), rows.concat())?;
        for (token, _, _) in USERS {
            let config = serde_json::json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "plane",
                "clusters": [{ "name": "plane", "cluster": {
                    "server": self.url, "insecure-skip-tls-verify": true } }],
                "users": [{ "name": token, "user": { "token": format!("{token}-token") } }],
                "contexts": [{ "name": "plane", "context": { "cluster": "plane", "user": token } }],
            });
            std::fs::write(self.kubeconfig(token), serde_json::to_vec_pretty(&config)?)?;
        }
        Ok(())
    }

    fn make_key(&self) -> anyhow::Result<()> {
        let status = Command::new("openssl")
            .args(["genrsa", "-out", &self.path("service-account.key"), "2048"])
            .stderr(std::process::Stdio::null())
            .status()
            .context("cannot run openssl")?;
        anyhow::ensure!(status.success(), "openssl genrsa failed");
        Ok(())
    }

    /// The configuration of a user, by token name.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.join("kubeconfig").join(user)
    }

    /// A client that acts as a user.
    pub async fn client(&self, user: &str) -> anyhow::Result<kube::Client> {
        let text = std::fs::read_to_string(self.kubeconfig(user))?;
        let config = kube::config::Kubeconfig::from_yaml(&text)?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// kubectl as a user: exit status and both outputs.
    pub fn kubectl(&self, user: &str, args: &[&str], input: Option<&str>) -> anyhow::Result<Said> {
        use std::io::Write;
        let mut child = Command::new(self.binaries.join("plane"))
            .arg("kubectl")
            .args(args)
            .env("KUBECONFIG", self.kubeconfig(user))
            .env("HOME", &self.folder)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.unwrap_or_default().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        Ok(Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Applies manifests as the administrator.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        let said = self.kubectl(
            "admin",
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            Some(manifests),
        )?;
        anyhow::ensure!(said.ok, "kubectl apply: {}", said.err);
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let client = self.client("admin").await?;
        eventually(
            "the API server's /readyz",
            Duration::from_secs(90),
            || async {
                let request = http_get("/readyz");
                Ok(client
                    .request_text(request)
                    .await
                    .ok()
                    .filter(|text| text == "ok"))
            },
        )
        .await
        .with_context(|| {
            format!(
                "see {}",
                self.folder.join("logs/kube-apiserver.log").display()
            )
        })?;
        Ok(())
    }

    /// Namespaces, and what author and viewer may do.
    async fn first_objects(&self) -> anyhow::Result<()> {
        self.apply(
            "{apiVersion: v1, kind: Namespace, metadata: {name: jouleward-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: authors}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: authors}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: viewers}]
",
        )?;
        let client = self.client("admin").await?;
        let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
            kube::Api::namespaced(client, "jouleward-system");
        eventually(
            "the controller manager's first work",
            Duration::from_mins(1),
            || async { Ok(accounts.get_opt("default").await?) },
        )
        .await?;
        Ok(())
    }

    /// Leaves the processes running when this is dropped.
    pub fn keep_running(&mut self) {
        self.keep = true;
    }

    /// One of them, by component.
    pub fn process(&self, name: &str) -> anyhow::Result<&Process> {
        let mut processes = self.processes.iter();
        processes
            .find(|process| process.name == name)
            .with_context(|| format!("no process {name}"))
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter()
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    let mut request = http::Request::new(Vec::new());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}

impl Drop for Plane {
    fn drop(&mut self) {
        // The last started first: nobody complains of a server that is gone.
        while let Some(process) = self.processes.pop() {
            if self.keep {
                process.leave();
            } else {
                drop(process);
            }
        }
    }
}
