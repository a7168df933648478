//! The node: reads the GPUs, asks the kubelet who holds them, splits every joule, and
//! shows it.

pub mod attribution;
pub mod cgroup;
