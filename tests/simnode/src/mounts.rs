//! What a kubelet does for a pod with an optional Secret volume: writes the Secret's files
//! into the pod's folder, when it comes and whenever it changes.

use crate::Args;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use std::time::Duration;

const NAMESPACE: &str = "jouleward-system";
const SECRET: &str = "jouleward-exporter-tls";
/// A kubelet takes a minute or so.
const EVERY: Duration = Duration::from_millis(500);

/// Runs until the process ends.
pub(crate) async fn keep(client: kube::Client, args: Args) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let folder = args.state.join("tls");
    let mut mounted = None;
    loop {
        // The API server may be away: what is mounted stays.
        if let Ok(Some(secret)) = api.get_opt(SECRET).await
            && mounted != secret.metadata.resource_version
        {
            std::fs::create_dir_all(&folder)?;
            for (name, bytes) in secret.data.iter().flatten() {
                std::fs::write(folder.join(name), &bytes.0)?;
            }
            mounted = secret.metadata.resource_version;
        }
        tokio::time::sleep(EVERY).await;
    }
}
