//! `make bench`, or `figures webhook` for a part: the figures of docs/benchmarks.md, each in one run beside its baseline.
//! Everything talks to 127.0.0.1 only, for a bounded time.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot run should say so and stop"
)]

mod exporter;
#[path = "../../tests/it/kubelet.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod kubelet;
mod law;
mod webhook;

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // All, or those named.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let parts: [(&str, fn()); 3] = [
        ("law", law::run),
        ("exporter", exporter::run),
        ("webhook", webhook::run),
    ];
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|want| want == name) {
            run();
        }
    }
}
