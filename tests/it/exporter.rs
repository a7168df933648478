//! The real exporter binary on a simulated NVML, in every kind of trouble.

use harness::stack::get;
use harness::{Process, built, eventually};
use nvml_sim::scenario::{Fault, Gpu, Process as Worker, Reset, Scenario};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::kubelet::{Kubelet, pod};
use crate::support::runtime;

const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Bench {
    pub(crate) folder: PathBuf,
    pub(crate) address: String,
    exporter: Process,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the simulation lives by the wall clock"
)]
pub(crate) fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap()
}

pub(crate) fn gpu(number: u8) -> Gpu {
    Gpu {
        uuid: format!("GPU-{number}"),
        name: "NVIDIA A100-SXM4-40GB".into(),
        idle_watts: 50.0,
        limit_watts: 400.0,
        default_limit_watts: None,
        step_us: 100_000,
        origin_us: now(),
        origin_mj: 1_000_000,
        no_energy: false,
        processes: vec![],
        faults: vec![],
        resets: vec![],
        instances: vec![],
        gpm: false,
    }
}

pub(crate) fn scenario(gpus: Vec<Gpu>) -> Scenario {
    Scenario {
        driver_version: "580.95.05".into(),
        missing: vec![],
        init_code: None,
        gpus,
    }
}

/// Starts an exporter; without a scenario there is no library either.
fn start(name: &str, scenario: Option<&Scenario>) -> Bench {
    start_with(name, scenario, &[])
}

/// The folder of a test's exporter.
pub(crate) fn folder(name: &str) -> PathBuf {
    harness::target()
        .join("it")
        .join(format!("exporter-{}-{name}", std::process::id()))
}

pub(crate) fn start_with(name: &str, scenario: Option<&Scenario>, flags: &[&str]) -> Bench {
    start_in(name, scenario, flags, &[])
}

/// With an environment of its own.
pub(crate) fn start_in(
    name: &str,
    scenario: Option<&Scenario>,
    flags: &[&str],
    env: &[(&str, &Path)],
) -> Bench {
    static HOST: AtomicU8 = AtomicU8::new(1);
    let folder = folder(name);
    std::fs::create_dir_all(folder.join("pods")).unwrap();
    let address = format!(
        "127.99.{}.{}:9402",
        std::process::id() % 250,
        HOST.fetch_add(1, Ordering::Relaxed)
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_jouleward"));
    command.args(["exporter", "--node-name=n", "--listen", &address]);
    command.args(flags);
    command.arg(format!("--pod-logs={}", folder.join("pods").display()));
    command.arg(format!("--proc-root={}", folder.join("proc").display()));
    command.arg(format!(
        "--kubelet-socket={}",
        folder.join("kubelet.sock").display()
    ));
    let library = scenario.map_or(folder.join("no-such-library.so"), |scenario| {
        scenario.write(&folder.join("scenario.json")).unwrap();
        built("libnvml_sim.so").unwrap()
    });
    command.arg(format!("--nvml-library={}", library.display()));
    // Of the paths that are tried, most are on other machines.
    command.arg("--nvml-library=/no/such/libnvidia-ml.so.1");
    command.env_remove("KUBECONFIG");
    command.envs(env.iter().copied());
    command.env("NVML_SIM_SCENARIO", folder.join("scenario.json"));
    let exporter = Process::start("exporter", &folder, &mut command).unwrap();
    Bench {
        folder,
        address,
        exporter,
    }
}

impl Bench {
    pub(crate) fn until(
        &self,
        path: &str,
        what: &str,
        check: impl Fn(u16, &str) -> bool,
    ) -> String {
        self.until_within(SOON, path, what, check)
    }

    /// The same with another patience.
    pub(crate) fn until_within(
        &self,
        patience: Duration,
        path: &str,
        what: &str,
        check: impl Fn(u16, &str) -> bool,
    ) -> String {
        let look = || async {
            let (status, text) = get(&self.address, path, "text/plain").await?;
            Ok(check(status, &text).then_some(text))
        };
        match runtime().block_on(eventually(what, patience, look)) {
            Ok(text) => text,
            Err(error) => {
                let (status, text) = runtime()
                    .block_on(get(&self.address, path, "text/plain"))
                    .unwrap_or_default();
                panic!(
                    "{error:#}\nlast answer {status}:\n{text}\nlog:\n{}",
                    self.exporter.said()
                );
            }
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.exporter.is_running()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.exporter.id()
    }

    pub(crate) fn said(&self) -> String {
        self.exporter.said()
    }

    /// Memory that it holds by now, MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        let status = self.of_proc("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.unwrap() / 1024.0
    }

    /// Share of one core that it has used since it started.
    pub(crate) fn core_percent(&self) -> f64 {
        // Fields of /proc/PID/stat behind the name: 12 and 13 user and system time, 20 start,
        // in hundredths of a second.
        let stat = self.of_proc("stat");
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let up = std::fs::read_to_string("/proc/uptime").unwrap();
        let up: f64 = up.split_whitespace().next().unwrap().parse().unwrap();
        (fields[11] + fields[12]) / (up - fields[19] / 100.0)
    }

    fn of_proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap()
    }

    pub(crate) fn change(&self, scenario: &Scenario) {
        scenario.write(&self.folder.join("scenario.json")).unwrap();
    }
}

/// The value of the first series that begins so.
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

#[test]
fn without_a_driver_it_idles_and_says_so() {
    let bench = start("absent", None);
    let text = bench.until("/readyz", "ready without a GPU", |status, _| status == 200);
    assert!(
        text.contains("no NVML library found") && text.contains("no NVIDIA driver on this node"),
        "{text}"
    );
    let metrics = bench.until("/metrics", "metrics", |status, _| status == 200);
    assert!(
        metrics.contains("jouleward_gpus{node=\"n\"} 0"),
        "{metrics}"
    );
}

#[test]
fn a_driver_that_refuses_is_named_and_not_ready() {
    let refusing = Scenario {
        init_code: Some(4),
        ..scenario(vec![gpu(0)])
    };
    let bench = start("refused", Some(&refusing));
    let text = bench.until("/readyz", "not ready", |status, text| {
        status == 503 && text.contains("nvml: nvmlInit")
    });
    assert!(text.contains("nvmlInit answered no_permission"), "{text}");
    bench.until("/healthz", "alive all the same", |status, _| status == 200);
    bench.until("/metrics", "the refusal is counted", |_, text| {
        text.contains("call=\"nvmlInit\",code=\"no_permission\"")
    });
    bench.change(&scenario(vec![gpu(0)]));
    bench.until("/metrics", "it is tried again", |_, text| {
        text.contains("jouleward_gpus{node=\"n\"} 1")
    });
}

#[test]
fn a_kubelet_that_is_away_is_counted_and_nobody_is_billed() {
    let bench = start("kubelet", Some(&scenario(vec![gpu(0)])));
    bench.until("/readyz", "not ready", |status, text| {
        status == 503 && text.contains("does not answer")
    });
    let metrics = bench.until("/metrics", "errors are counted", |_, text| {
        value(text, "jouleward_podresources_errors_total{") >= 1.0
    });
    assert!(
        !metrics.contains("jouleward_pod_gpu_energy_joules_total{"),
        "{metrics}"
    );
}

#[test]
fn a_function_the_driver_lacks_is_counted_and_the_rest_goes_on() {
    let old = Scenario {
        missing: vec!["nvmlDeviceGetProcessUtilization".into()],
        ..scenario(vec![gpu(0)])
    };
    let bench = start("missing", Some(&old));
    let metrics = bench.until("/metrics", "the missing function is counted", |_, text| {
        text.contains("call=\"nvmlDeviceGetProcessUtilization\",code=\"function_not_found\"")
    });
    assert!(
        value(&metrics, "jouleward_gpu_power_watts{") > 0.0,
        "{metrics}"
    );
}

#[test]
fn a_lost_gpu_and_a_reset_counter_bill_nothing_and_leave_the_other_gpu_alone() {
    let mut world = scenario(vec![gpu(0), gpu(1)]);
    let bench = start("lost", Some(&world));
    bench.until("/metrics", "both are metered", |_, text| {
        text.contains("gpu_power_watts{node=\"n\",gpu_uuid=\"GPU-1\"}")
    });
    let at = now();
    let lost = Fault {
        call: "*".into(),
        code: 15,
        from_us: at,
        until_us: at + 2_000_000,
    };
    world.gpus[0].faults.push(lost);
    // It comes back with its counter near zero.
    world.gpus[0].resets.push(Reset {
        at_us: at + 1_000_000,
        to_mj: 5,
    });
    bench.change(&world);
    let metrics = bench.until("/metrics", "loss and reset are counted", |_, text| {
        value(
            text,
            "jouleward_gpu_lost_total{node=\"n\",gpu_uuid=\"GPU-0\"}",
        ) >= 1.0
            && value(
                text,
                "jouleward_gpu_energy_resets_total{node=\"n\",gpu_uuid=\"GPU-0\"}",
            ) >= 1.0
    });
    assert!(metrics.contains("code=\"gpu_is_lost\""), "{metrics}");
    let reset = |gpu: &str| {
        value(
            &metrics,
            &format!("jouleward_gpu_energy_resets_total{{node=\"n\",gpu_uuid=\"{gpu}\"}}"),
        )
    };
    assert_eq!((reset("GPU-0"), reset("GPU-1")), (1.0, 0.0), "{metrics}");
}

#[test]
fn a_counter_that_jumps_bills_nothing() {
    let mut world = scenario(vec![gpu(0)]);
    let bench = start("jump", Some(&world));
    bench.until("/metrics", "it is metered", |_, text| {
        text.contains("gpu_power_watts{")
    });
    std::thread::sleep(Duration::from_secs(2));
    world.gpus[0].resets.push(Reset {
        at_us: now(),
        to_mj: 900_000_000_000,
    });
    bench.change(&world);
    bench.until("/metrics", "the jump is counted", |_, text| {
        value(text, "jouleward_gpu_energy_resets_total{") >= 1.0
            && value(text, "jouleward_gpu_energy_joules_total{") < 1e6
    });
}

/// An exporter that looks twice, prints, and ends.
fn in_passing(name: &str, flag: &str) -> String {
    let folder = folder(name);
    std::fs::create_dir_all(folder.join("pods/team-a_images-0_0f1e2d3c")).unwrap();
    scenario(vec![gpu(0)])
        .write(&folder.join("scenario.json"))
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_jouleward"))
        .args(["exporter", "--node-name=n", "--interval-seconds=0.2", flag])
        .arg(format!("--pod-logs={}", folder.join("pods").display()))
        .arg(format!("--proc-root={}", folder.join("proc").display()))
        .arg(format!(
            "--kubelet-socket={}",
            folder.join("none.sock").display()
        ))
        .arg(format!(
            "--nvml-library={}",
            built("libnvml_sim.so").unwrap().display()
        ))
        .env("NVML_SIM_SCENARIO", folder.join("scenario.json"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_look_in_passing_prints_what_a_scrape_would_show() {
    let text = in_passing("once", "--once");
    assert!(
        value(
            &text,
            "jouleward_gpu_power_watts{node=\"n\",gpu_uuid=\"GPU-0\"}"
        ) > 0.0
            && text.contains("# TYPE jouleward_gpu_energy_joules"),
        "{text}"
    );
}

#[test]
fn a_dump_tells_what_the_exporter_found_out_of_its_node() {
    let text = in_passing("dump", "--dump");
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["gpus"][0]["uuid"], "GPU-0");
    assert_eq!(found["pods"][0], "0f1e2d3c");
    assert!(
        found["health"]
            .as_str()
            .unwrap()
            .contains("does not answer"),
        "the kubelet is away: {text}"
    );
}

#[test]
fn a_gpu_without_a_counter_says_that_its_energy_is_power_added_up() {
    let old = Gpu {
        no_energy: true,
        ..gpu(0)
    };
    let bench = start("no-counter", Some(&scenario(vec![old])));
    let metrics = bench.until("/metrics", "the source is shown", |_, text| {
        text.contains("energy_source=\"power\"")
    });
    assert!(
        !metrics.contains("call=\"nvmlDeviceGetTotalEnergyConsumption\""),
        "what it cannot do is no error: {metrics}"
    );
}

#[test]
fn a_pod_on_a_gpu_without_a_counter_is_billed_by_power_and_the_split_says_so() {
    let name = "power-billed";
    let kubelet = Kubelet::start(
        &folder(name),
        vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])],
    );
    let uid = "00000000-0000-4000-8000-000000000000";
    kubelet.set_up("team", "a", uid, 4_000);
    let mut old = Gpu {
        no_energy: true,
        ..gpu(0)
    };
    old.processes = vec![Worker {
        pid: 4_000,
        watts: 150.0,
        sm_percent: 80,
        ..Worker::default()
    }];
    let flags = ["--idle-watts=50", "--publish-delay-seconds=0"];
    let bench = start_with(name, Some(&scenario(vec![old])), &flags);
    let joules = |text: &str| -> f64 {
        let lines = text.lines().filter(|line| {
            line.starts_with("jouleward_pod_gpu_energy_joules_total{") && line.contains(uid)
        });
        let parts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        parts.sum()
    };
    let moment = |text: &str| value(text, "jouleward_last_tick_timestamp_seconds{node=\"n\"}");
    let first = bench.until("/metrics", "it is billed", |_, text| joules(text) > 0.0);
    let later = bench.until("/metrics", "ten seconds more", |_, text| {
        moment(text) >= moment(&first) + 10.0
    });
    let watts = (joules(&later) - joules(&first)) / (moment(&later) - moment(&first));
    assert!((watts / 200.0 - 1.0).abs() < 0.05, "{watts} W of 200");
    let label = "gpu_uuid=\"GPU-0\",quality=\"fallback_power\"}";
    let line = later.lines().find(|line| line.contains(label));
    let told: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(told > 1_000.0, "{later}");
    let line = later
        .lines()
        .find(|line| line.contains("quality=\"exact\""));
    assert!(line.unwrap().ends_with(" 0"), "{later}");
}

#[test]
fn the_series_of_a_pod_that_ended_go_and_its_namespace_keeps_what_it_burned() {
    let name = "gone";
    let list = vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])];
    let kubelet = Kubelet::start(&folder(name), list);
    let uid = "00000000-0000-4000-8000-000000000000";
    kubelet.set_up("team", "a", uid, 4_000);
    let mut board = gpu(0);
    board.processes = vec![Worker {
        pid: 4_000,
        watts: 150.0,
        sm_percent: 80,
        ..Worker::default()
    }];
    let flags = [
        "--publish-delay-seconds=0",
        "--hold-after-end-seconds=3",
        "--keep-final-seconds=6",
    ];
    let bench = start_with(name, Some(&scenario(vec![board])), &flags);
    let team = "jouleward_namespace_gpu_energy_joules_total{node=\"n\",namespace=\"team\"}";
    bench.until("/metrics", "it is billed", |_, text| {
        value(text, team) > 0.0
    });
    kubelet.lists(vec![]);
    kubelet.remove("team", "a", uid);
    let ended = bench.until("/v1/pods", "it has ended", |_, text| {
        text.contains("\"final\":true")
    });
    assert!(ended.contains(uid), "{ended}");
    let shown = bench.until("/metrics", "still shown", |_, text| text.contains(uid));
    let burned = value(&shown, team);
    let text = bench.until("/metrics", "its series are gone", |_, text| {
        !text.contains(uid)
    });
    assert!(value(&text, team) >= burned, "{text}");
    let books = bench.until("/v1/pods", "its account is closed", |_, text| {
        !text.contains(uid)
    });
    assert!(!books.contains("\"forgottenMicrojoules\":0"), "{books}");
}

#[test]
fn a_grace_hopper_counts_its_whole_module_and_says_so() {
    let module = Gpu {
        name: "NVIDIA GH200 480GB".into(),
        ..gpu(0)
    };
    let bench = start("module", Some(&scenario(vec![module])));
    bench.until("/metrics", "the scope is shown", |_, text| {
        text.contains("scope=\"module\"")
    });
}

#[test]
fn both_metric_formats_are_served_by_what_is_asked_for() {
    let bench = start("formats", Some(&scenario(vec![gpu(0)])));
    bench.until("/metrics", "it is metered", |_, text| {
        text.contains("gpu_power_watts{")
    });
    let ask = |accept: &str| {
        runtime()
            .block_on(get(&bench.address, "/metrics", accept))
            .unwrap()
            .1
    };
    assert!(ask("application/openmetrics-text; version=1.0.0").ends_with("# EOF\n"));
    let text = ask("text/plain");
    assert!(text.contains("# TYPE jouleward_gpu_power_watts gauge") && !text.contains("# EOF"));
}

#[test]
fn how_long_pages_take_to_render_is_shown_by_those_after_them() {
    let bench = start("rendered", Some(&scenario(vec![gpu(0)])));
    // Only what is scraped is rendered: nothing but these asks.
    let count = |text: &str| value(text, "jouleward_scrape_render_seconds_count{node=\"n\"}");
    let text = bench.until("/metrics", "a page of the past", |_, text| {
        count(text) >= 2.0
    });
    let sum = value(&text, "jouleward_scrape_render_seconds_sum{node=\"n\"}");
    assert!(sum > 0.0, "{text}");
}

#[test]
fn the_names_of_dcgm_exporter_are_shown_where_they_are_asked_for() {
    let _kubelet = crate::kubelet::Kubelet::start(&folder("dcgm"), Vec::new());
    let bench = start_with("dcgm", Some(&scenario(vec![gpu(0)])), &["--compat=dcgm"]);
    let energy = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu=\"0\",UUID=\"GPU-0\",pci_bus_id=\"00000000:07:00.0\",device=\"nvidia0\",modelName=\"NVIDIA A100-SXM4-40GB\",hostname=\"n\"}";
    let text = bench.until("/metrics", "both are shown", |_, text| {
        value(text, energy) > 0.0 && value(text, "DCGM_FI_DEV_POWER_USAGE{gpu=\"0\"") > 49.0
    });
    let joules = value(&text, "jouleward_gpu_energy_joules_total{");
    let difference = (value(&text, energy) - joules * 1000.0).abs();
    assert!(difference < 0.5, "the same in mJ: {text}");
    let ask = get(
        &bench.address,
        "/metrics",
        "application/openmetrics-text; version=1.0.0",
    );
    let (_, text) = runtime().block_on(ask).unwrap();
    assert!(text.contains("DCGM_FI_DEV_POWER_USAGE") && !text.contains("# EOF"));
    let plain = start("no-dcgm", Some(&scenario(vec![gpu(0)])));
    let text = plain.until("/metrics", "ours alone", |_, text| {
        text.contains("jouleward_gpu_power_watts{")
    });
    assert!(!text.contains("DCGM_"), "off unless asked for");
}
