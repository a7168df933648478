//! What two real Prometheus servers keep of pods that come, change and go: the real exporter
//! on simulated GPUs whose true energies are known.

use crate::exporter::{Bench, folder, gpu, now, scenario, start_with};
use crate::kubelet::{Kubelet, pod};
use crate::support::runtime;
use harness::prometheus::{Answer, Prometheus};
use jouleward::node::LedgerPage;
use jouleward::node::podresources::PodResources;
use nvml_sim::scenario::{Gpu, Process};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// They stand for 15 and 60 s; the exporter shows zero for longer than either.
const SCRAPES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
const FLAGS: [&str; 2] = ["--publish-delay-seconds=3", "--idle-watts=50"];
const WATTS: f64 = 200.0;
/// Joules: a step of the counter, 100 ms, at full power, is what a change of owner may cost.
/// Windows are cut between steps, and a busy machine reads a counter later than it stamps it.
const STEP: f64 = 25.0;
const TEAM: &str = "team";

/// Two servers that scrape one exporter, at these intervals.
pub(crate) fn servers(bench: &Bench, folder: &Path, intervals: [Duration; 2]) -> [Prometheus; 2] {
    let mut number = 0;
    intervals.map(|interval| {
        number += 1;
        let name = format!("prometheus-{number}");
        let address = bench
            .address
            .replace(":9402", &format!(":{}", 19_090 + number));
        let rules = serde_json::json!({ "groups": [] });
        let target = [bench.address.clone()];
        Prometheus::start(folder, &name, &address, interval, &target, &rules).unwrap()
    })
}

/// A pod of the story: its name and number, when it is listed, on which GPU by container, and
/// when which of its processes live; ms.
struct Told {
    name: &'static str,
    number: u32,
    listed: (u64, u64),
    containers: &'static [(&'static str, usize)],
    /// Number, GPU, life.
    processes: &'static [(u32, usize, (u64, u64))],
}

const STORY: [Told; 6] = [
    Told {
        name: "short",
        number: 0,
        listed: (0, 1_700),
        containers: &[("main", 0)],
        processes: &[(0, 0, (500, 700))],
    },
    // The container is started anew: another process, the same pod.
    Told {
        name: "restarts",
        number: 1,
        listed: (0, 6_000),
        containers: &[("main", 1)],
        processes: &[(1, 1, (500, 2_000)), (2, 1, (3_000, 4_500))],
    },
    // An init container's device is handed on; the kubelet lists it under the main one.
    Told {
        name: "initialises",
        number: 2,
        listed: (0, 6_000),
        containers: &[("main", 2)],
        processes: &[(3, 2, (500, 1_500)), (4, 2, (1_800, 4_000))],
    },
    // A native sidecar has a device of its own.
    Told {
        name: "pair",
        number: 3,
        listed: (0, 6_000),
        containers: &[("sidecar", 3), ("main", 4)],
        processes: &[(5, 3, (500, 5_000)), (6, 4, (1_000, 5_000))],
    },
    // A StatefulSet's pod comes again under its name.
    Told {
        name: "again",
        number: 4,
        listed: (0, 2_500),
        containers: &[("main", 5)],
        processes: &[(7, 5, (500, 1_500))],
    },
    Told {
        name: "again",
        number: 5,
        listed: (2_700, 6_000),
        containers: &[("main", 5)],
        processes: &[(8, 5, (3_100, 4_500))],
    },
];

impl Told {
    fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    fn listing(&self) -> PodResources {
        let devices = self.containers.iter().map(|(container, gpu)| {
            let mut one = pod(TEAM, self.name, "nvidia.com/gpu", &[&format!("GPU-{gpu}")]);
            (*container).clone_into(&mut one.containers[0].name);
            one.containers.remove(0)
        });
        let mut whole = pod(TEAM, self.name, "", &[]);
        whole.containers = devices.collect();
        whole
    }

    /// Joules above idle of each container.
    fn truth(&self) -> BTreeMap<String, f64> {
        let of = |gpu: usize| {
            let lives = self.processes.iter().filter(move |(_, on, _)| *on == gpu);
            lives.map(|(_, _, (from, to))| (to - from) as f64 * WATTS / 1000.0)
        };
        let containers = self.containers.iter();
        containers
            .map(|(container, gpu)| ((*container).to_owned(), of(*gpu).sum()))
            .collect()
    }
}

fn pid(number: u32) -> u32 {
    7_000 + number
}

fn boards(from: u64) -> Vec<Gpu> {
    let mut boards: Vec<Gpu> = (0..6).map(gpu).collect();
    for (number, gpu, (start, end)) in STORY.iter().flat_map(|told| told.processes) {
        boards[*gpu].processes.push(Process {
            pid: pid(*number),
            start_us: from + start * 1000,
            end_us: Some(from + end * 1000),
            watts: WATTS,
            sm_percent: 80,
            ..Process::default()
        });
    }
    boards
}

/// Lets everything happen when it should.
fn play(kubelet: &Kubelet, from: u64) {
    for at in (0..=6_000).step_by(100) {
        std::thread::sleep(Duration::from_micros(
            (from + at * 1000).saturating_sub(now()),
        ));
        for told in &STORY {
            if told.listed.0 == at {
                kubelet.admit(TEAM, told.name, &told.uid());
            }
            for (number, _, (start, end)) in told.processes {
                if *start == at {
                    kubelet.run(&told.uid(), pid(*number));
                }
                if *end == at {
                    kubelet.exit(pid(*number));
                }
            }
            if told.listed.1 == at {
                kubelet.remove(TEAM, told.name, &told.uid());
            }
        }
        let listed = STORY.iter().filter(|t| t.listed.0 <= at && at < t.listed.1);
        kubelet.lists(listed.map(Told::listing).collect());
    }
}

#[test]
fn pods_of_a_fifth_of_a_second_restarts_init_containers_sidecars_and_namesakes_are_seen_whole() {
    let folder = folder("lifecycle");
    let kubelet = Kubelet::start(&folder, vec![]);
    let from = now() + 15_000_000;
    let bench = start_with("lifecycle", Some(&scenario(boards(from))), &FLAGS);
    bench.until("/readyz", "it is ready", |status, _| status == 200);
    let servers = servers(&bench, &folder, SCRAPES);
    assert!(now() < from, "everything is up before the first pod");
    play(&kubelet, from);
    let text = bench.until("/v1/pods", "all have ended", |_, text| {
        let page: LedgerPage = serde_json::from_str(text).unwrap_or_default();
        page.pods.len() == STORY.len() && page.pods.iter().all(|pod| pod.is_final)
    });
    let page: LedgerPage = serde_json::from_str(&text).unwrap();
    for (server, interval) in servers.iter().zip(SCRAPES) {
        // The delay, and two scrapes.
        std::thread::sleep(Duration::from_secs(3) + 2 * interval);
        runtime().block_on(agrees(server, &page));
    }
}

/// The value of the series that has these labels.
fn of(answer: &Answer, wanted: &[(&str, &str)]) -> f64 {
    let has = |labels: &serde_json::Map<String, serde_json::Value>| {
        wanted
            .iter()
            .all(|(label, value)| labels.get(*label).is_some_and(|v| v == value))
    };
    let found = answer.iter().find(|(labels, _)| has(labels));
    found.map_or(f64::NAN, |(_, joules)| *joules)
}

async fn agrees(server: &Prometheus, page: &LedgerPage) {
    let series = "max_over_time(jouleward_pod_gpu_energy_joules_total[5m])";
    let by = |labels: &str| format!("sum by ({labels}) ({series})");
    let ask = async |query: String| server.query(&query).await.unwrap();
    let whole = ask(by("uid")).await;
    let active = ask(by("uid, container, component")).await;
    for told in &STORY {
        let uid = told.uid();
        let line = page.pods.iter().find(|pod| pod.uid == uid).unwrap();
        let ledger = line.microjoules as f64 / 1e6;
        let seen = of(&whole, &[("uid", &uid)]);
        assert!(
            (seen - ledger).abs() < 0.01,
            "{}: {seen} of {ledger} J",
            told.name
        );
        for (container, truth) in told.truth() {
            let labels = [
                ("uid", uid.as_str()),
                ("container", &container),
                ("component", "active"),
            ];
            let seen = of(&active, &labels);
            assert!(
                (seen - truth).abs() < STEP,
                "{}/{container}: {seen} of {truth} J above idle",
                told.name
            );
        }
    }
    let ledger: u64 = page.pods.iter().map(|pod| pod.microjoules).sum();
    let namespace = "max_over_time(jouleward_namespace_gpu_energy_joules_total[5m])";
    let seen = of(&ask(namespace.to_owned()).await, &[("namespace", TEAM)]);
    assert!((seen - ledger as f64 / 1e6).abs() < 0.01, "{seen}");
    let pods = "jouleward_pod_gpu_energy_joules_total[5m]";
    let fallen = ask(format!("resets({pods}) > 0")).await;
    let late = ask(format!("min_over_time({pods}) > 0")).await;
    assert!(fallen.is_empty() && late.is_empty(), "{fallen:?} {late:?}");
}
