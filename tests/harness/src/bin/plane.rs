//! `make plane`: a control plane with Jouleward's chart applied, left running.
#![expect(clippy::print_stdout, reason = "a program for people")]

use harness::Plane;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = harness::target().join(format!("plane-run-{}", std::process::id()));
    let mut plane = Plane::start(&folder).await?;
    let kubectl = plane.binaries.join("plane");
    println!("The control plane runs at {}. To use it:\n", plane.url);
    println!(
        "  export KUBECONFIG={}",
        plane.kubeconfig("admin").display()
    );
    println!("  {} kubectl get namespaces\n", kubectl.display());
    println!(
        "Other users: author, viewer and the service accounts, in {}",
        folder.join("kubeconfig").display()
    );
    let ids: Vec<String> = plane
        .processes()
        .map(|process| process.id().to_string())
        .collect();
    println!("To end it:\n\n  kill {}\n", ids.join(" "));
    plane.keep_running();
    Ok(())
}
