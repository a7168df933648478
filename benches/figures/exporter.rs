//! The real exporter binary on a simulated NVML: 8 GPUs, 110 pods; its tick and memory.

use jouleward::node::podresources::{
    ContainerDevices, ContainerResources, ListRequest, ListResponse, PodResources,
};
use nvml_sim::scenario::{Gpu, Process, Scenario};
use std::convert::Infallible;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const GPUS: usize = 8;
const PODS: usize = 110;
const SECONDS: u64 = 15;
const ADDRESS: &str = "127.0.0.1:19402";

#[derive(Clone)]
struct Lister(ListResponse);

impl tonic::server::UnaryService<ListRequest> for Lister {
    type Response = ListResponse;
    type Future = std::future::Ready<Result<tonic::Response<ListResponse>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<ListRequest>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new(self.0.clone())))
    }
}

fn uuid(gpu: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{gpu:012}")
}

fn lay_out(folder: &Path) -> ListResponse {
    let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap();
    std::fs::create_dir_all(folder.join("proc/1")).unwrap();
    std::fs::write(folder.join("proc/1/cgroup"), "0::/init.scope\n").unwrap();
    let mut pods = Vec::new();
    let mut processes: Vec<Vec<Process>> = vec![Vec::new(); GPUS];
    for n in 0..PODS {
        let uid = format!("00000000-0000-4000-8000-{n:012}");
        let pid = 200_000 + u32::try_from(n).unwrap();
        std::fs::create_dir_all(folder.join(format!("pods/team_job-{n}_{uid}"))).unwrap();
        let process = folder.join(format!("proc/{pid}"));
        std::fs::create_dir_all(&process).unwrap();
        let slice = uid.replace('-', "_");
        std::fs::write(
            process.join("cgroup"),
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{n:064x}.scope\n"),
        )
        .unwrap();
        std::fs::write(
            process.join("stat"),
            format!("{pid} (gen) R {}1 0\n", "0 ".repeat(18)),
        )
        .unwrap();
        processes[n % GPUS].push(Process {
            pid,
            start_us: now,
            end_us: None,
            watts: 20.0,
            sm_percent: 7,
            ..Process::default()
        });
        let devices = vec![ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: vec![format!("{}::{}", uuid(n % GPUS), n / GPUS)],
        }];
        pods.push(PodResources {
            name: format!("job-{n}"),
            namespace: "team".to_owned(),
            containers: vec![ContainerResources {
                name: "main".to_owned(),
                devices,
            }],
        });
    }
    let gpus = processes.into_iter().enumerate().map(|(n, processes)| Gpu {
        uuid: uuid(n),
        name: "NVIDIA A100-SXM4-40GB".to_owned(),
        idle_watts: 52.0,
        limit_watts: 400.0,
        step_us: 100_000,
        origin_us: now,
        origin_mj: 0,
        no_energy: false,
        processes,
        faults: vec![],
        resets: vec![],
        instances: vec![],
    });
    let scenario = Scenario {
        driver_version: "580".into(),
        missing: vec![],
        init_code: None,
        gpus: gpus.collect(),
    };
    scenario.write(&folder.join("scenario.json")).unwrap();
    ListResponse { pods }
}

pub(crate) fn run() {
    let folder = std::env::temp_dir().join(format!("jouleward-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let list = lay_out(&folder);
    let socket = folder.join("kubelet.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            serve(listener, Lister(list)).await;
        });
    });
    let binary = Path::new(env!("CARGO_BIN_EXE_jouleward"));
    let library = binary.with_file_name("libnvml_sim.so");
    let mut exporter = Command::new(binary)
        .args([
            "exporter",
            "--node-name=bench",
            "--listen",
            ADDRESS,
            "--publish-delay-seconds=0",
        ])
        .arg(format!("--nvml-library={}", library.display()))
        .arg(format!("--kubelet-socket={}", socket.display()))
        .arg(format!("--pod-logs={}", folder.join("pods").display()))
        .arg(format!("--proc-root={}", folder.join("proc").display()))
        .env("NVML_SIM_SCENARIO", folder.join("scenario.json"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(SECONDS));
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", exporter.id())).unwrap_or_default();
    let metrics = scrape();
    let _ = exporter.kill();
    let _ = exporter.wait();
    let _ = std::fs::remove_dir_all(&folder);
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(f64::NAN)
    };
    let ticks = value("jouleward_tick_duration_seconds_count");
    let mean = value("jouleward_tick_duration_seconds_sum") / ticks * 1e3;
    let rss: f64 = status
        .lines()
        .find(|l| l.starts_with("VmRSS"))
        .map_or(f64::NAN, |l| {
            l.split_whitespace()
                .nth(1)
                .and_then(|kb| kb.parse::<f64>().ok())
                .unwrap_or(f64::NAN)
                / 1024.0
        });
    let pods = metrics
        .lines()
        .filter(|l| l.starts_with("jouleward_pod_gpu_allocation_ratio{"))
        .count();
    println!("exporter: {GPUS} GPUs, {pods} pods held, {ticks} ticks of {mean:.2} ms (goal ≤ 10)");
    println!("exporter: RSS {rss:.1} MiB without pod watcher (goal ≤ 16)");
}

async fn serve(listener: tokio::net::UnixListener, lister: Lister) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let lister = lister.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(
                move |request: hyper::Request<hyper::body::Incoming>| {
                    let lister = lister.clone();
                    async move {
                        let codec = tonic_prost::ProstCodec::<ListResponse, ListRequest>::default();
                        let request = request.map(tonic::body::Body::new);
                        Ok::<_, Infallible>(
                            tonic::server::Grpc::new(codec).unary(lister, request).await,
                        )
                    }
                },
            );
            let builder =
                hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = builder
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        });
    }
}

fn scrape() -> String {
    use std::io::{Read, Write};
    let mut text = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(ADDRESS) {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}
