//! The real exporter binary on a simulated NVML: its tick, its memory, its share of a core,
//! and how long a scrape takes while ten scrape at once.

use crate::kubelet::{Kubelet, pod};
use hyper::body::Bytes;
use jouleward::node::podresources::PodResources;
use jouleward::serve::http::{Answer, Call, Server};
use jouleward::serve::shutdown;
use nvml_sim::scenario::{Gpu, Instance, Process, Scenario};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ADDRESS: &str = "127.0.0.1:19402";
const CONSTANT: &str = "127.0.0.1:19403";
const SECONDS: u64 = 30;
const SCRAPERS: usize = 10;
/// Of each scraper, a pause apart.
const SCRAPES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// Pods that come, one after the other.
const NEW_PODS: usize = 7;

/// A node with pods on all its GPUs.
#[derive(Clone, Copy)]
struct Node {
    gpus: usize,
    /// MIG instances of each, 0 for none.
    instances: usize,
    pods: usize,
    /// Pods that are still to come, whose processes the driver knows already.
    coming: usize,
}

impl Node {
    fn uuid(gpu: usize) -> String {
        format!("GPU-00000000-0000-4000-8000-{gpu:012}")
    }

    fn mig(gpu: usize, instance: usize) -> String {
        format!("MIG-{gpu:08}-0000-5000-8000-{instance:012}")
    }

    fn device(&self, pod: usize) -> String {
        let (gpu, turn) = (pod % self.gpus, pod / self.gpus);
        match self.instances {
            0 => format!("{}::{turn}", Self::uuid(gpu)),
            many => format!("{}::{}", Self::mig(gpu, turn % many), turn / many),
        }
    }

    fn board(&self, gpu: usize, now: u64) -> Gpu {
        let process = |pod: usize| Process {
            pid: pid(pod),
            start_us: now,
            watts: 10.0,
            sm_percent: 7,
            instance: (self.instances > 0)
                .then(|| Self::mig(gpu, pod / self.gpus % self.instances)),
            ..Process::default()
        };
        let instance = |number: usize| Instance {
            uuid: Self::mig(gpu, number),
            slot: u32::try_from(number).unwrap(),
            slices: 1,
            from_us: 0,
            until_us: None,
        };
        Gpu {
            uuid: Self::uuid(gpu),
            name: "NVIDIA A100-SXM4-40GB".to_owned(),
            idle_watts: 52.0,
            limit_watts: 400.0,
            step_us: 100_000,
            origin_us: now,
            processes: (gpu..self.pods + self.coming)
                .step_by(self.gpus)
                .map(process)
                .collect(),
            instances: (0..self.instances).map(instance).collect(),
            ..Gpu::default()
        }
    }

    fn pods(&self, number: usize) -> Vec<PodResources> {
        let held = |n| {
            pod(
                "team",
                &format!("job-{n}"),
                "nvidia.com/gpu",
                &[&self.device(n)],
            )
        };
        (0..number).map(held).collect()
    }

    fn set_up(&self, folder: &Path) -> Kubelet {
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap();
        let kubelet = Kubelet::start(folder, self.pods(self.pods));
        for n in 0..self.pods {
            kubelet.set_up("team", &format!("job-{n}"), &uid(n), pid(n));
        }
        let scenario = Scenario {
            driver_version: "580".into(),
            missing: vec![],
            init_code: None,
            gpus: (0..self.gpus).map(|gpu| self.board(gpu, now)).collect(),
        };
        scenario.write(&folder.join("scenario.json")).unwrap();
        kubelet
    }
}

fn uid(pod: usize) -> String {
    format!("00000000-0000-4000-8000-{pod:012}")
}

fn pid(pod: usize) -> u32 {
    200_000 + u32::try_from(pod).unwrap()
}

/// An exporter on a node, until it is dropped.
struct Running {
    exporter: Child,
    folder: PathBuf,
    kubelet: Kubelet,
}

impl Running {
    fn start(node: &Node) -> Self {
        let folder = std::env::temp_dir().join(format!("jouleward-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let kubelet = node.set_up(&folder);
        // Built beside this program.
        let binary = std::env::current_exe().unwrap().with_file_name("jouleward");
        let shown = |path: PathBuf| path.display().to_string();
        let exporter = Command::new(&binary)
            .args(["exporter", "--node-name=bench", "--listen", ADDRESS])
            .arg("--publish-delay-seconds=0")
            .args([
                "--nvml-library",
                &shown(binary.with_file_name("libnvml_sim.so")),
            ])
            .args(["--kubelet-socket", &shown(folder.join("kubelet.sock"))])
            .args(["--pod-logs", &shown(folder.join("pods"))])
            .args(["--proc-root", &shown(folder.join("proc"))])
            .env("NVML_SIM_SCENARIO", folder.join("scenario.json"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            exporter,
            folder,
            kubelet,
        }
    }

    fn of_proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.exporter.id())).unwrap_or_default()
    }

    fn resident_mib(&self) -> f64 {
        let status = self.of_proc("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) / 1024.0
    }

    /// Seconds of a core that it has used: fields 14 and 15 of its stat, in hundredths.
    fn core_seconds(&self) -> f64 {
        let stat = self.of_proc("stat");
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let times = behind.split_whitespace().skip(11).take(2);
        times
            .filter_map(|time| time.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.exporter.kill();
        let _ = self.exporter.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn run() {
    let node = Node {
        gpus: 8,
        instances: 0,
        pods: 110,
        coming: 0,
    };
    let running = Running::start(&node);
    // The start, with its taking of stock, is no tick.
    std::thread::sleep(Duration::from_secs(3));
    let (used, begun) = (running.core_seconds(), Instant::now());
    std::thread::sleep(Duration::from_secs(SECONDS));
    let share = (running.core_seconds() - used) / begun.elapsed().as_secs_f64() * 100.0;
    let rss = running.resident_mib();
    let metrics = scrape();
    drop(running);
    let crowded = first_joules(&Node {
        coming: NEW_PODS,
        ..node
    });
    let first = first_joules(&Node {
        pods: 1,
        coming: NEW_PODS,
        ..node
    });
    let ticks = value(&metrics, "jouleward_tick_duration_seconds_count");
    let mean = value(&metrics, "jouleward_tick_duration_seconds_sum") / ticks * 1e3;
    let pods = held(&metrics);
    println!("exporter: 8 GPUs, {pods} pods held, {ticks} ticks of {mean:.2} ms (goal ≤ 10)");
    println!(
        "exporter: {share:.2} % of a core (goal ≤ 0.5), RSS {rss:.1} MiB without pod watcher (goal ≤ 16)"
    );
    println!(
        "exporter: the first joule of a pod on its own GPU is shown after {:.2} s in the middle, {:.2} s at worst of {NEW_PODS} (goal ≤ 2); one among 14 on a GPU, of which the driver samples one at a time, {:.2} and {:.2} s",
        first[NEW_PODS / 2],
        first[NEW_PODS - 1],
        crowded[NEW_PODS / 2],
        crowded[NEW_PODS - 1]
    );
    let crowd = Node {
        gpus: 8,
        instances: 7,
        pods: 250,
        coming: 0,
    };
    scrapes(&crowd, "8 GPUs x 7 MIG instances", 10.0);
    let few = Node {
        gpus: 2,
        instances: 0,
        pods: 5,
        coming: 0,
    };
    scrapes(&few, "2 GPUs", 2.0);
}

/// The same of pods that come one after the other, sorted.
fn first_joules(node: &Node) -> Vec<f64> {
    let running = Running::start(node);
    std::thread::sleep(Duration::from_secs(3));
    let mut first: Vec<f64> = (0..NEW_PODS)
        .map(|number| first_joule(&running, node, number))
        .collect();
    first.sort_by(f64::total_cmp);
    first
}

/// Seconds from a pod's start until a scrape shows energy of it, without a publish delay.
fn first_joule(running: &Running, node: &Node, number: usize) -> f64 {
    let pod = node.pods + number;
    let (name, uid) = (format!("job-{pod}"), uid(pod));
    let begun = Instant::now();
    // As a kubelet does: devices first, then the pod's folder.
    running.kubelet.lists(node.pods(pod + 1));
    running.kubelet.set_up("team", &name, &uid, pid(pod));
    let shown = |text: &str| {
        let mut lines = text.lines();
        lines.any(|line| {
            line.starts_with("jouleward_pod_gpu_energy_joules_total{")
                && line.contains(&uid)
                && !line.ends_with(" 0")
        })
    };
    while !shown(&scrape()) && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(PAUSE);
    }
    begun.elapsed().as_secs_f64()
}

/// How long scrapes take while as many scrape at once as there may be.
fn scrapes(node: &Node, what: &str, goal: f64) {
    let running = Running::start(node);
    std::thread::sleep(Duration::from_secs(5));
    let (times, page) = crowd(ADDRESS, node.pods);
    drop(running);
    // What the same machine takes for a page of that size that is always there.
    let (least, _) = with_constant_page(page.clone(), || crowd(CONSTANT, node.pods));
    println!(
        "exporter: {what}, {} pods, {SCRAPERS} scrapers, {} kB: scrape p50 {:.2}, p99 {:.2} ms (goal ≤ {goal}); a constant page p50 {:.2}, p99 {:.2} ms",
        node.pods,
        page.len() / 1000,
        at(&times, 50),
        at(&times, 99),
        at(&least, 50),
        at(&least, 99),
    );
}

fn at(sorted: &[f64], share: usize) -> f64 {
    sorted[(sorted.len() - 1) * share / 100]
}

/// As many scrapers as there may be, at once: their times in ms, sorted, and the last page.
fn crowd(address: &'static str, pods: usize) -> (Vec<f64>, String) {
    let scraper = move || {
        let timed = (0..SCRAPES).map(|_| {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            let text = scrape_of(address);
            let took = begun.elapsed().as_secs_f64() * 1e3;
            assert_eq!(held(&text), pods);
            (took, text)
        });
        timed.collect::<Vec<_>>()
    };
    let scrapers: Vec<_> = (0..SCRAPERS).map(|_| std::thread::spawn(scraper)).collect();
    let mut all: Vec<(f64, String)> = scrapers
        .into_iter()
        .flat_map(|scraper| scraper.join().unwrap())
        .collect();
    let page = all.pop().map(|(_, text)| text).unwrap_or_default();
    let body = page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    let mut times: Vec<f64> = all.into_iter().map(|(took, _)| took).collect();
    times.sort_by(f64::total_cmp);
    (times, body.unwrap_or_default())
}

/// Serves one page by the exporter's own server, while `run` runs.
fn with_constant_page<T>(page: String, run: impl FnOnce() -> T) -> T {
    let (stopper, stop) = shutdown::pair();
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let page = Bytes::from(page);
        runtime.block_on(async {
            let server = Server::bind(CONSTANT.parse().unwrap()).await.unwrap();
            sender.send(()).unwrap();
            let answer = move |_: Call| {
                let body = page.clone();
                std::future::ready(Answer {
                    body,
                    ..Answer::json(Vec::new())
                })
            };
            server.run(None, answer, stop).await;
        });
    });
    receiver.recv().unwrap();
    let ran = run();
    stopper.stop();
    server.join().unwrap();
    ran
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

fn held(metrics: &str) -> usize {
    let lines = metrics.lines();
    lines
        .filter(|line| line.starts_with("jouleward_pod_gpu_allocation_ratio{"))
        .count()
}

fn scrape() -> String {
    scrape_of(ADDRESS)
}

fn scrape_of(address: &str) -> String {
    use std::io::{Read, Write};
    let mut text = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(address) {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}
