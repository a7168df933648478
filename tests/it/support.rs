//! One control plane and one Jouleward for all tests, namespaces apart.

use harness::{NodeOptions, Process, Stack};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use tokio::runtime::Runtime;

pub(crate) struct Shared {
    pub(crate) stack: Stack,
    pub(crate) controller: Mutex<Option<Process>>,
    pub(crate) webhook: Mutex<Option<Process>>,
    /// Tests that stop a part of Jouleward take this for writing, all others for reading.
    quiet: RwLock<()>,
}

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

/// The shared stack, started by whoever asks first.
fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| match runtime().block_on(start()) {
        Ok(shared) => shared,
        Err(error) => panic!("the stack does not start: {error:#}"),
    })
}

async fn start() -> anyhow::Result<Shared> {
    let folder = harness::target()
        .join("it")
        .join(std::process::id().to_string());
    std::fs::create_dir_all(&folder)?;
    eprintln!(
        "it: starting the control plane; logs in {}",
        folder.join("logs").display()
    );
    let mut stack = Stack::start(&folder).await?;
    let controller = stack.controller(0, &[], &[])?;
    let webhook = stack.webhook()?;
    for name in ["gpu-a", "gpu-b"] {
        stack
            .add_node(
                name,
                &NodeOptions {
                    gpus: 4,
                    ..NodeOptions::default()
                },
            )
            .await?;
    }
    // The H100's prior lies as far below the A100's; this keeps the truth 25 % above it.
    let h100 = NodeOptions {
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        gpus: 4,
        burn: 0.9,
        ..NodeOptions::default()
    };
    stack.add_node("gpu-h", &h100).await?;
    let shared = NodeOptions {
        product: "NVIDIA L40S".to_owned(),
        gpus: 1,
        replicas: 2,
        ..NodeOptions::default()
    };
    stack.add_node("gpu-shared", &shared).await?;
    stack.ready(10, 9403).await?;
    stack.ready(20, 9404).await?;
    eprintln!("it: the stack is up");
    Ok(Shared {
        stack,
        controller: Mutex::new(Some(controller)),
        webhook: Mutex::new(Some(webhook)),
        quiet: RwLock::new(()),
    })
}

/// Runs a test beside others.
pub(crate) fn on_plane<F>(test: impl FnOnce(&'static Shared) -> F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    let shared = shared();
    let _beside = shared.quiet.read().unwrap_or_else(PoisonError::into_inner);
    finish(runtime().block_on(test(shared)));
}

/// Runs a test that stops parts of Jouleward: alone, and puts them back whatever happens.
pub(crate) fn alone<F>(test: impl FnOnce(&'static Shared) -> F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    let shared = shared();
    let _alone = shared.quiet.write().unwrap_or_else(PoisonError::into_inner);
    let result = runtime().block_on(test(shared));
    let restored = runtime().block_on(shared.restore());
    finish(result);
    finish(restored);
}

fn finish(result: anyhow::Result<()>) {
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

impl Shared {
    pub(crate) fn stop_controller(&self) {
        *self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn stop_webhook(&self) {
        *self.webhook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts what is not running, and waits until it is ready.
    pub(crate) async fn restore(&self) -> anyhow::Result<()> {
        {
            let mut controller = self
                .controller
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !controller.as_mut().is_some_and(Process::is_running) {
                *controller = Some(self.stack.controller(0, &[], &[])?);
            }
            let mut webhook = self.webhook.lock().unwrap_or_else(PoisonError::into_inner);
            if !webhook.as_mut().is_some_and(Process::is_running) {
                *webhook = Some(self.stack.webhook()?);
            }
        }
        self.stack.ready(10, 9403).await?;
        self.stack.ready(20, 9404).await?;
        self.leader().await?;
        self.trusted().await
    }

    /// Waits until the API server is told whom to believe at the webhook: one that was applied
    /// anew is not asked before, and jobs pass.
    async fn trusted(&self) -> anyhow::Result<()> {
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.stack.client.clone());
        let patience = std::time::Duration::from_secs(30);
        harness::eventually("the webhook is believed", patience, || async {
            let found = webhooks.get("jouleward").await?;
            let mut all = found.webhooks.iter().flatten();
            let believed = all.all(|webhook| webhook.client_config.ca_bundle.is_some());
            Ok(believed.then_some(()))
        })
        .await
    }

    /// Waits until one of these holds the lease, and the webhook knows that someone does.
    pub(crate) async fn led_by(&self, names: &[&str]) -> anyhow::Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.stack.client.clone(), "jouleward-system");
        harness::eventually(
            "one of them leads",
            std::time::Duration::from_secs(30),
            || async {
                let lease = leases.get("jouleward-controller").await?;
                let holder = lease.spec.and_then(|spec| spec.holder_identity);
                Ok(holder
                    .filter(|holder| names.contains(&holder.as_str()))
                    .map(|_| ()))
            },
        )
        .await?;
        self.leader().await
    }

    /// Waits until someone leads and the webhook knows it.
    pub(crate) async fn leader(&self) -> anyhow::Result<()> {
        let webhook = format!("{}:9404", self.stack.address(20));
        harness::eventually("a leader", std::time::Duration::from_secs(30), || async {
            let (_, text) = harness::stack::get(&webhook, "/metrics", "text/plain").await?;
            Ok(text.contains("\njouleward_leader_stale 0").then_some(()))
        })
        .await
    }
}
