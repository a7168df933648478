//! A simulated GPU node. It does what a kubelet with NVIDIA's device plugin does: takes
//! the pods that the scheduler binds to it, hands GPUs to them, serves PodResources on a
//! unix socket, lays out log folders and a /proc tree, lets each pod burn energy by a
//! hidden true law, and ends it.
//!
//! It shares no code with the product: what it burns, the product must find out.

#![allow(
    clippy::disallowed_methods,
    reason = "a simulation that lives by the wall clock"
)]

mod gpus;
mod kubelet;
mod mounts;
mod node;
mod podresources;
mod truth;

use clap::Parser;
use std::net::IpAddr;
use std::path::PathBuf;

/// A simulated GPU node.
#[derive(Debug, Clone, Parser)]
struct Args {
    #[arg(long)]
    name: String,
    /// Address of the node and its pods.
    #[arg(long)]
    ip: IpAddr,
    /// Folder for the socket, logs, processes, scenario and truth.
    #[arg(long)]
    state: PathBuf,
    /// GPU product, as NVML names it.
    #[arg(long, default_value = "NVIDIA A100-SXM4-40GB")]
    product: String,
    #[arg(long, default_value_t = 2)]
    gpus: usize,
    /// Time-slicing replicas of each GPU.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Multiplies what every job burns.
    #[arg(long, default_value_t = 1.0)]
    burn: f64,
    /// Share of jobs whose annotation is wrong: they run twice the steps.
    #[arg(long, default_value_t = 0.0)]
    liars: f64,
    /// Standard deviation of ln E, job to job.
    #[arg(long, default_value_t = 0.02)]
    noise: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let client = kube::Client::try_default().await?;
    let gpus = gpus::Gpus::new(&args)?;
    node::register(&client, &args).await?;
    let server = podresources::serve(&args.state, gpus.clone());
    let mounts = mounts::keep(client.clone(), args.clone());
    let kubelet = kubelet::run(client, args.clone(), gpus);
    tokio::select! {
        result = server => result,
        result = kubelet => result,
        result = mounts => result,
    }
}
