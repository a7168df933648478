//! A crowded node, and a kubelet that is pressed hard: the real exporter on simulated GPUs.

use crate::exporter::{Bench, folder, gpu, now, scenario, start_with, value};
use crate::kubelet::{Kubelet, pod};
use crate::support::runtime;
use harness::stack::get;
use jouleward::node::podresources::{ContainerDevices, ListResponse, PodResources};
use nvml_sim::scenario::{Gpu, Instance};
use prost::Message;
use std::time::Duration;

const BOARDS: usize = 16;
const INSTANCES: usize = 7;
const PODS: usize = 1_000;
const SCRAPERS: usize = 10;

fn uid(pod: usize) -> String {
    format!("00000000-0000-4000-8000-{pod:012}")
}

fn mig(pod: usize) -> String {
    format!("MIG-00000000-0000-5000-8000-{pod:012}")
}

fn boards() -> Vec<Gpu> {
    let cut = |board: usize| {
        let instance = |slot: usize| Instance {
            uuid: mig(board * INSTANCES + slot),
            slot: slot as u32,
            slices: 1,
            from_us: 0,
            until_us: None,
        };
        Gpu {
            instances: (0..INSTANCES).map(instance).collect(),
            ..gpu(board as u8)
        }
    };
    (0..BOARDS).map(cut).collect()
}

/// A pod with an instance for the first of them; all with many devices of another kind.
fn crowd() -> Vec<PodResources> {
    let number = |n: usize| {
        let held: &[&str] = &[&mig(n)];
        let held = if n < BOARDS * INSTANCES { held } else { &[] };
        let mut pod = pod("crowd", &format!("pod-{n}"), "nvidia.com/mig-1g.5gb", held);
        pod.containers[0].devices.push(ContainerDevices {
            resource_name: "example.com/network".into(),
            device_ids: (0..100)
                .map(|id| format!("{n:04}-{id:04}-a-device-with-a-long-name-of-its-own"))
                .collect(),
        });
        pod
    };
    (0..PODS).map(number).collect()
}

fn held(text: &str) -> usize {
    text.lines()
        .filter(|line| line.starts_with("jouleward_pod_gpu_allocation_ratio{"))
        .count()
}

#[test]
fn a_thousand_pods_and_112_instances_are_all_shown_to_ten_scrapers() {
    let folder = folder("crowd");
    let pods = crowd();
    let list = ListResponse { pods: pods.clone() };
    assert!(list.encoded_len() > 4 << 20, "more than gRPC takes unasked");
    let kubelet = Kubelet::start(&folder, pods);
    for n in 0..PODS {
        kubelet.set_up("crowd", &format!("pod-{n}"), &uid(n), 10_000 + n as u32);
    }
    let began = now();
    let bench = start_with(
        "crowd",
        Some(&scenario(boards())),
        &["--publish-delay-seconds=0"],
    );
    bench.until("/metrics", "every instance has its pod", |_, text| {
        held(text) == BOARDS * INSTANCES
    });
    let address = bench.address.clone();
    let scrapes = (0..SCRAPERS).map(|_| get(&address, "/metrics", "text/plain"));
    let scrapes = runtime().block_on(async { futures::future::join_all(scrapes).await });
    for scrape in scrapes {
        let (status, text) = scrape.unwrap();
        assert_eq!((status, held(&text)), (200, BOARDS * INSTANCES));
        let series = |n: usize| text.lines().filter(|line| line.contains(&uid(n))).count();
        assert!(
            (0..BOARDS * INSTANCES).all(|n| series(n) <= 4),
            "four series a pod at most"
        );
    }
    let seconds = (now() - began).div_ceil(1_000_000);
    let asked = u64::from(kubelet.asked());
    assert!(asked <= seconds + 1, "asked {asked} times in {seconds} s");
    // At rest it asks every five seconds; what came late counts once more.
    std::thread::sleep(Duration::from_secs(3));
    let (before, rests) = (kubelet.asked(), now());
    std::thread::sleep(Duration::from_secs(20));
    let asked = u64::from(kubelet.asked() - before);
    let most = (now() - rests).div_ceil(5_000_000) + 1;
    assert!(asked <= most, "asked {asked} times at rest");
}

fn one_pod(name: &str) -> (Kubelet, Bench) {
    let folder = folder(name);
    let kubelet = Kubelet::start(
        &folder,
        vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])],
    );
    kubelet.set_up("team", "a", &uid(0), 4_000);
    let bench = start_with(
        name,
        Some(&scenario(vec![gpu(0)])),
        &["--publish-delay-seconds=0"],
    );
    bench.until("/metrics", "the pod is billed", |_, text| {
        billed(text) > 0.0
    });
    (kubelet, bench)
}

fn billed(text: &str) -> f64 {
    value(
        text,
        "jouleward_namespace_gpu_energy_joules_total{node=\"n\",namespace=\"team\"}",
    )
}

#[test]
fn a_kubelet_that_refuses_for_a_while_is_counted_and_its_pods_are_billed_on() {
    let (kubelet, bench) = one_pod("exhausted");
    kubelet.answers(Err(tonic::Code::ResourceExhausted));
    let text = bench.until("/metrics", "refusals are counted", |_, text| {
        value(
            text,
            "jouleward_podresources_errors_total{node=\"n\",code=\"ResourceExhausted\"}",
        ) >= 1.0
    });
    let before = billed(&text);
    bench.until("/metrics", "it is billed by what is known", |_, text| {
        billed(text) > before
    });
    bench.until("/readyz", "and says so", |status, text| {
        status == 503 && text.contains("kubelet errors: ResourceExhausted")
    });
    let list = vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])];
    kubelet.answers(Ok(ListResponse { pods: list }));
    bench.until("/readyz", "ready again", |status, _| status == 200);
}

#[test]
fn a_kubelet_that_makes_its_socket_anew_is_found_again() {
    let (kubelet, bench) = one_pod("socket");
    drop(kubelet);
    bench.until("/readyz", "it is missed", |status, _| status == 503);
    std::thread::sleep(Duration::from_secs(1));
    let list = vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])];
    let kubelet = Kubelet::start(&bench.folder, list);
    bench.until("/readyz", "it is found again", |status, _| status == 200);
    assert!(kubelet.asked() >= 1);
    let text = bench.until("/metrics", "metrics", |status, _| status == 200);
    let before = billed(&text);
    bench.until("/metrics", "the pod is billed on", |_, text| {
        billed(text) > before
    });
}
