//! An hour and more of a busy node at full size: scrapes every 15 and 60 s, thousands of pods
//! of 0.2 s to minutes. `make soak` runs it; its figures go to docs/benchmarks.md.
#![expect(clippy::print_stdout, reason = "its figures are what it is for")]

use crate::exporter::{Bench, folder, gpu, now, scenario, start_with, value};
use crate::kubelet::{Kubelet, pod};
use crate::lifecycle::servers;
use crate::support::runtime;
use harness::prometheus::Prometheus;
use harness::stack::get;
use jouleward::node::{LedgerPage, PodEnergy};
use nvml_sim::scenario::{Gpu, Process};
use std::collections::BTreeMap;
use std::time::Duration;

const GPUS: usize = 8;
/// The upper half of the GPUs is shared by so many at a time.
const SHARED_BY: usize = 4;
const SCRAPES: [Duration; 2] = [Duration::from_secs(15), Duration::from_mins(1)];
/// A pod is listed before its process starts and after it ends: its sandbox is made, and the
/// kubelet relists containers once a second.
const BEFORE_US: u64 = 500_000;
const AFTER_US: u64 = 1_000_000;
const PAUSE_US: u64 = 500_000;
const SECOND_US: u64 = 1_000_000;
/// The exporter's delay, and two scrapes.
const SHOWN: Duration = Duration::from_mins(3);
/// From here on memory is compared: every pool has been full once.
const WARM: Duration = Duration::from_mins(15);

/// A pod's whole life.
struct Life {
    number: usize,
    gpu: usize,
    lane: usize,
    starts: u64,
    ends: u64,
}

impl Life {
    fn namespace(&self) -> String {
        format!("team-{}", self.number % 5)
    }

    fn name(&self) -> String {
        format!("pod-{}", self.number)
    }

    fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    fn pid(&self) -> u32 {
        10_000 + self.number as u32
    }

    fn device(&self) -> String {
        format!("GPU-{}::{}", self.gpu, self.lane)
    }
}

/// Numbers that are the same in every run.
struct Chance(u64);

impl Chance {
    fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        least + (self.0 >> 33) % (most - least)
    }

    /// µs: most are short.
    fn life(&mut self) -> u64 {
        match self.between(0, 100) {
            0..40 => self.between(200_000, SECOND_US),
            40..90 => self.between(SECOND_US, 10 * SECOND_US),
            90..99 => self.between(10 * SECOND_US, 60 * SECOND_US),
            _ => self.between(60 * SECOND_US, 300 * SECOND_US),
        }
    }
}

/// Pods one after another in every lane of every GPU.
fn lives(from: u64, until: u64) -> Vec<Life> {
    let mut chance = Chance(1);
    let mut lives = Vec::new();
    for gpu in 0..GPUS {
        let lanes = if gpu < GPUS / 2 { 1 } else { SHARED_BY };
        for lane in 0..lanes {
            let mut free = from + chance.between(0, 5 * SECOND_US);
            while free < until {
                let starts = free + BEFORE_US;
                let ends = starts + chance.life();
                free = ends + AFTER_US + PAUSE_US;
                let number = lives.len();
                lives.push(Life {
                    number,
                    gpu,
                    lane,
                    starts,
                    ends,
                });
            }
        }
    }
    lives
}

fn boards(lives: &[Life]) -> Vec<Gpu> {
    let mut boards: Vec<Gpu> = (0..GPUS).map(|n| gpu(n as u8)).collect();
    for life in lives {
        let shared = life.gpu >= GPUS / 2;
        boards[life.gpu].processes.push(Process {
            pid: life.pid(),
            start_us: life.starts,
            end_us: Some(life.ends),
            watts: if shared { 60.0 } else { 240.0 },
            sm_percent: if shared { 22 } else { 90 },
            ..Process::default()
        });
    }
    boards
}

/// What happens on the node when.
fn events(lives: &[Life]) -> Vec<(u64, usize, Event)> {
    let mut events: Vec<_> = lives
        .iter()
        .flat_map(|life| {
            [
                (life.starts - BEFORE_US, life.number, Event::Admitted),
                (life.starts, life.number, Event::Started),
                (life.ends, life.number, Event::Ended),
                (life.ends + AFTER_US, life.number, Event::Unlisted),
            ]
        })
        .collect();
    events.sort();
    events
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Admitted,
    Started,
    Ended,
    Unlisted,
}

/// Lets the pods live as they should, until the last one has gone.
fn play(kubelet: &Kubelet, lives: &[Life]) {
    let mut listed = BTreeMap::new();
    for (at, number, event) in events(lives) {
        std::thread::sleep(Duration::from_micros(at.saturating_sub(now())));
        let life = &lives[number];
        let (namespace, name, uid) = (life.namespace(), life.name(), life.uid());
        match event {
            Event::Admitted => {
                kubelet.admit(&namespace, &name, &uid);
                let device = life.device();
                let held = pod(&namespace, &name, "nvidia.com/gpu.shared", &[&device]);
                listed.insert(number, held);
            }
            Event::Started => kubelet.run(&uid, life.pid()),
            Event::Ended => kubelet.exit(life.pid()),
            Event::Unlisted => {
                kubelet.remove(&namespace, &name, &uid);
                listed.remove(&number);
            }
        }
        kubelet.lists(listed.values().cloned().collect());
    }
}

/// What was seen of the exporter while it ran.
#[derive(Default)]
struct Watched {
    finals: BTreeMap<String, PodEnergy>,
    looks: u64,
    /// MiB after the warm-up, and last.
    warm: Option<f64>,
    last: f64,
    gpus: BTreeMap<String, u64>,
}

impl Watched {
    fn look(&mut self, bench: &Bench, warm: bool) {
        let page = runtime().block_on(get(&bench.address, "/v1/pods", "application/json"));
        let page: LedgerPage = serde_json::from_str(&page.unwrap().1).unwrap();
        let nobodys = page.gpus.iter().flat_map(|gpu| gpu.unattributed.values());
        let pods = page.pods.iter().map(|pod| pod.microjoules);
        let parts: u64 = nobodys.sum::<u64>() + pods.sum::<u64>() + page.forgotten_microjoules;
        let whole: u64 = page.gpus.iter().map(|gpu| gpu.microjoules).sum();
        assert_eq!(parts, whole, "the parts are the counter, at every look");
        for gpu in page.gpus {
            let before = self.gpus.insert(gpu.uuid, gpu.microjoules);
            assert!(before <= Some(gpu.microjoules), "nothing ever falls");
        }
        let finals = page.pods.into_iter().filter(|pod| pod.is_final);
        self.finals.extend(finals.map(|pod| (pod.uid.clone(), pod)));
        self.looks += 1;
        self.last = bench.resident_mib();
        if warm {
            self.warm.get_or_insert(self.last);
        }
    }
}

/// Joules by one label.
async fn by(server: &Prometheus, label: &str, series: &str, over: &str) -> BTreeMap<String, f64> {
    let series = format!("jouleward_{series}_gpu_energy_joules_total");
    let query = format!("sum by ({label}) (max_over_time({series}[{over}]))");
    let said = server.query(&query).await.unwrap();
    said.into_iter()
        .map(|(labels, joules)| {
            (
                labels[label].as_str().unwrap_or_default().to_owned(),
                joules,
            )
        })
        .collect()
}

/// What a server has kept of what the ledger said.
async fn compare(server: &Prometheus, lives: &[Life], watched: &Watched, over: &str) {
    let namespaces = by(server, "namespace", "namespace", over).await;
    for (namespace, joules) in &namespaces {
        let of = watched
            .finals
            .values()
            .filter(|p| p.namespace == *namespace);
        let ledger: u64 = of.map(|pod| pod.microjoules).sum();
        let ledger = ledger as f64 / 1e6;
        println!("  {namespace}: ledger {ledger:.3} J, PromQL {joules:.3} J");
        assert!((ledger - joules).abs() < 0.01, "a namespace is seen whole");
    }
    assert_eq!(namespaces.len(), 5);
    let pods = by(server, "uid", "pod", over).await;
    let mut seen = (0.0, 0.0);
    let mut short = (0, 0);
    for life in lives {
        let ledger = watched.finals[&life.uid()].microjoules as f64 / 1e6;
        let joules = pods.get(&life.uid()).copied().unwrap_or_default();
        let whole = (ledger - joules).abs() < 0.01;
        if life.ends - life.starts >= SECOND_US {
            seen = (seen.0 + joules, seen.1 + ledger);
            assert!(whole, "pod {}: {ledger} J, seen {joules}", life.number);
        } else {
            short = (short.0 + u32::from(whole), short.1 + 1);
        }
    }
    println!(
        "  pods of a second and more: {:.4} of {:.4} J",
        seen.0, seen.1
    );
    println!(
        "  pods of 0.2 to 1 s seen whole: {} of {}",
        short.0, short.1
    );
    assert!(short.0 * 100 >= short.1 * 99);
    let late = "min_over_time(jouleward_pod_gpu_energy_joules_total";
    let late = server.query(&format!("{late}[{over}]) > 0")).await.unwrap();
    assert!(late.is_empty(), "zero first: {late:?}");
}

#[test]
#[ignore = "takes hours: make soak"]
#[expect(clippy::disallowed_methods, reason = "its length comes from outside")]
fn a_busy_node_loses_nothing_in_hours() {
    let minutes = std::env::var("SOAK_MINUTES").unwrap_or_else(|_| "180".into());
    let minutes: u64 = minutes.parse().expect("SOAK_MINUTES is a whole number");
    let length = Duration::from_mins(minutes);
    let folder = folder("soak");
    let kubelet = Kubelet::start(&folder, vec![]);
    let from = now() + 5 * SECOND_US;
    let lives = lives(from, from + minutes * 60 * SECOND_US);
    println!("soak: {minutes} min, {GPUS} GPUs, {} pods", lives.len());
    let scenario = scenario(boards(&lives));
    // A day's 10,000 pods leave no more than this many in the ledger at a time.
    let bench = start_with("soak", Some(&scenario), &["--keep-final-seconds=420"]);
    let servers = servers(&bench, &folder, SCRAPES);
    let mut watched = Watched::default();
    std::thread::scope(|scope| {
        let player = scope.spawn(|| play(&kubelet, &lives));
        let begun = std::time::Instant::now();
        while !player.is_finished() {
            std::thread::sleep(Duration::from_secs(10));
            let warm = begun.elapsed() >= WARM.min(length / 2);
            watched.look(&bench, warm);
        }
    });
    std::thread::sleep(SHOWN);
    watched.look(&bench, true);
    let (growth, warm) = (watched.last - watched.warm.unwrap(), watched.warm.unwrap());
    println!(
        "soak: parts = counter at {} looks, to the microjoule",
        watched.looks
    );
    println!("soak: RSS {warm:.2} MiB warm, {growth:+.2} MiB since");
    println!("soak: {:.3} % of a core", bench.core_percent());
    let text = bench.until("/metrics", "metrics", |status, _| status == 200);
    let mean = value(&text, "jouleward_tick_duration_seconds_sum{node=\"n\"}")
        / value(&text, "jouleward_tick_duration_seconds_count{node=\"n\"}");
    println!("soak: tick {:.2} ms in the mean", mean * 1e3);
    let over = format!("{}m", minutes + 20);
    for (server, interval) in servers.iter().zip(SCRAPES) {
        println!("soak: scraped every {interval:?}");
        runtime().block_on(compare(server, &lives, &watched, &over));
    }
    assert!(growth <= 1.0, "memory grew by {growth} MiB");
}

/// Leaders that are killed one after the other, on the whole plane.
const KILLS: usize = 300;

#[test]
#[ignore = "takes most of an hour: make soak"]
fn three_hundred_leaders_are_killed_and_nothing_is_lost_or_released_twice() {
    crate::support::alone(|shared| async move {
        crate::trouble::kill_leaders(shared, "soak-killed", KILLS).await?;
        println!("soak: {KILLS} leaders were killed");
        Ok(())
    });
}
