//! One control plane and one Jouleward for all tests, namespaces apart.

use harness::{NodeOptions, Process, Stack};
use std::sync::{Mutex, OnceLock};
use tokio::runtime::Runtime;

pub(crate) struct Shared {
    pub(crate) stack: Stack,
    /// Tests that stop a part of Jouleward take this for writing, all others for reading.
    pub(crate) controller: Mutex<Option<Process>>,
    pub(crate) webhook: Mutex<Option<Process>>,
    _folder: Folder,
}

/// Removed at the end of the run that made it, if it ended well.
struct Folder;

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

/// The shared stack, started by whoever asks first.
pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| runtime().block_on(start()).expect("the stack starts"))
}

async fn start() -> anyhow::Result<Shared> {
    let folder = harness::target().join("it").join(std::process::id().to_string());
    std::fs::create_dir_all(&folder)?;
    eprintln!("it: starting the control plane in {}", folder.display());
    let mut stack = Stack::start(&folder).await?;
    let controller = stack.controller(0, &[], &[])?;
    let webhook = stack.webhook()?;
    for name in ["gpu-a", "gpu-b"] {
        stack.add_node(name, &NodeOptions { gpus: 4, ..NodeOptions::default() }).await?;
    }
    stack.ready(10, 9403).await?;
    stack.ready(20, 9404).await?;
    eprintln!("it: the stack is up");
    Ok(Shared {
        stack,
        controller: Mutex::new(Some(controller)),
        webhook: Mutex::new(Some(webhook)),
        _folder: Folder,
    })
}

/// Runs a test on the shared runtime and stack.
pub(crate) fn on_plane<F>(test: impl FnOnce(&'static Shared) -> F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    let shared = shared();
    if let Err(error) = runtime().block_on(test(shared)) {
        panic!("{error:#}");
    }
}
