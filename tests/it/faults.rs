//! Drivers that are reloaded, upgraded or lost, and clocks that are stepped, under the real
//! exporter: no joule is invented, and pods are billed on.

#![expect(
    clippy::disallowed_methods,
    reason = "how long it ran is what is compared"
)]

use crate::exporter::{Bench, folder, gpu, now, scenario, start_in, start_with, value};
use crate::kubelet::{Kubelet, pod};
use jouleward::node::LedgerPage;
use nvml_sim::scenario::{Fault, HANGS, Process, Reset, Scenario};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FLAGS: [&str; 2] = ["--idle-watts=50", "--publish-delay-seconds=0"];
/// All GPUs together, busy.
const WATTS: f64 = 150.0 + 170.0;

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// One GPU for pod a, one for b and c in turn.
fn node(name: &str) -> (Kubelet, Scenario) {
    let pods = [("a", "GPU-0"), ("b", "GPU-1::0"), ("c", "GPU-1::1")];
    let list = pods.map(|(pod_name, id)| pod("team", pod_name, "nvidia.com/gpu", &[id]));
    let kubelet = Kubelet::start(&folder(name), list.into());
    for (number, (pod_name, _)) in pods.iter().enumerate() {
        kubelet.set_up("team", pod_name, &uid(number), 8_000 + number as u32);
    }
    let process = |number: u32, watts, sm_percent| Process {
        pid: 8_000 + number,
        watts,
        sm_percent,
        ..Process::default()
    };
    let mut world = scenario(vec![gpu(0), gpu(1)]);
    world.gpus[0].processes = vec![process(0, 100.0, 90)];
    world.gpus[1].processes = vec![process(1, 80.0, 60), process(2, 40.0, 30)];
    (kubelet, world)
}

fn page(bench: &Bench, what: &str, check: impl Fn(&LedgerPage) -> bool) -> LedgerPage {
    let read = |text: &str| serde_json::from_str::<LedgerPage>(text).unwrap_or_default();
    read(&bench.until("/v1/pods", what, |_, text| check(&read(text))))
}

/// Every pod's joules, once each has some.
fn billed(bench: &Bench) -> [f64; 3] {
    let of = |page: &LedgerPage, number: usize| {
        let line = page.pods.iter().find(|pod| pod.uid == uid(number));
        line.map_or(0.0, |line| line.microjoules as f64 / 1e6)
    };
    let all = |page: &LedgerPage| [0, 1, 2].map(|number| of(page, number));
    all(&page(bench, "every pod is billed", |page| {
        all(page).iter().all(|joules| *joules > 0.0)
    }))
}

fn unknown(page: &LedgerPage) -> f64 {
    let gpus = page.gpus.iter();
    let unknown = gpus.filter_map(|gpu| gpu.unattributed.get("unknown_holder"));
    unknown.sum::<u64>() as f64 / 1e6
}

fn faketime() -> PathBuf {
    let tools = harness::target().join("tools/usr/lib");
    let machines = std::fs::read_dir(&tools).expect("run `make test-tools`");
    let library = |machine: std::fs::DirEntry| machine.path().join("faketime/libfaketimeMT.so.1");
    let mut found = machines.flatten().map(library);
    found.find(|path| path.exists()).expect("libfaketime")
}

#[test]
fn a_clock_that_is_stepped_back_and_forward_changes_no_bill() {
    let name = "stepped";
    let (_kubelet, world) = node(name);
    let step = folder(name).join("step");
    let set = |by: &str| {
        std::fs::write(step.with_extension("part"), by).unwrap();
        std::fs::rename(step.with_extension("part"), &step).unwrap();
    };
    set("+0");
    let library = faketime();
    let env = [
        ("LD_PRELOAD", library.as_path()),
        ("FAKETIME_TIMESTAMP_FILE", &step),
        ("FAKETIME_NO_CACHE", Path::new("1")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
        ("NO_FAKE_STAT", Path::new("1")),
    ];
    let bench = start_in(name, Some(&world), &FLAGS, &env);
    let before = billed(&bench);
    let tick = || {
        let text = bench.until("/metrics", "metrics", |status, _| status == 200);
        value(&text, "jouleward_last_tick_timestamp_seconds{node=\"n\"}")
    };
    let began = Instant::now();
    let mut shown = tick();
    for (by, seconds) in [("-600", -600.0), ("+900", 1500.0)] {
        set(by);
        std::thread::sleep(Duration::from_secs(5));
        let later = tick();
        let stepped = later - shown;
        assert!(
            (stepped - seconds - 5.0).abs() < 3.0,
            "stepped by {stepped} s"
        );
        shown = later;
    }
    let after = billed(&bench);
    let seconds = began.elapsed().as_secs_f64();
    let spent = [0, 1, 2].map(|number| after[number] - before[number]);
    let total: f64 = spent.iter().sum();
    assert!(
        (total / seconds - WATTS).abs() < 0.25 * WATTS,
        "{total} J in {seconds} s"
    );
    // b works twice as much as c, and both are told apart all through: 105 and 65 W.
    let ratio = spent[1] / spent[2];
    assert!((ratio - 105.0 / 65.0).abs() < 0.2, "{spent:?}");
    let page = page(&bench, "the books", |page| !page.pods.is_empty());
    assert!(unknown(&page) < 0.15 * total, "{page:?}");
    let text = bench.until("/metrics", "metrics", |status, _| status == 200);
    for gpu in ["GPU-0", "GPU-1"] {
        let resets = format!("jouleward_gpu_energy_resets_total{{node=\"n\",gpu_uuid=\"{gpu}\"}}");
        assert!(value(&text, &resets) < 1.0, "{text}");
    }
}

/// All GPUs answer so for a while.
fn fail(world: &mut Scenario, code: u32, from_us: u64, until_us: u64) {
    for gpu in &mut world.gpus {
        let call = "*".into();
        gpu.faults.push(Fault {
            call,
            code,
            from_us,
            until_us,
        });
    }
}

#[test]
fn a_driver_that_is_reloaded_is_metered_on_without_a_restart_and_without_a_joule_too_many() {
    let name = "reloaded";
    let (_kubelet, mut world) = node(name);
    let mut bench = start_with(name, Some(&world), &FLAGS);
    billed(&bench);
    let at = now();
    fail(&mut world, 1, at, at + 3_000_000);
    for gpu in &mut world.gpus {
        gpu.resets.push(Reset {
            at_us: at + 2_000_000,
            to_mj: 3,
        });
    }
    bench.change(&world);
    bench.until("/readyz", "the driver is missed", |status, text| {
        status == 503 && text.contains("uninitialized")
    });
    bench.until("/readyz", "and found again", |status, _| status == 200);
    let again = billed(&bench);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let later = billed(&bench);
    let watts =
        (later.iter().sum::<f64>() - again.iter().sum::<f64>()) / began.elapsed().as_secs_f64();
    assert!(
        (watts / WATTS - 1.0).abs() < 0.5,
        "{watts} W are billed again"
    );
    assert!(bench.is_running());
    let most = (now() - world.gpus[0].origin_us) as f64 / 1e6 * WATTS;
    assert!(later.iter().sum::<f64>() < most, "{later:?} of {most}");
}

#[test]
fn a_gpu_that_was_lost_at_the_start_is_metered_once_it_is_back() {
    let name = "lost-at-start";
    let (_kubelet, mut world) = node(name);
    let at = now();
    world.gpus[0].faults.push(Fault {
        call: "*".into(),
        code: 15,
        from_us: at,
        until_us: at + 6_000_000,
    });
    let bench = start_with(name, Some(&world), &FLAGS);
    bench.until("/metrics", "the other one is metered", |_, text| {
        text.contains("jouleward_gpus{node=\"n\"} 1") && text.contains("code=\"gpu_is_lost\"")
    });
    billed(&bench);
}

#[test]
fn under_a_driver_that_was_upgraded_it_ends_and_says_why() {
    let name = "upgraded";
    let (_kubelet, mut world) = node(name);
    let mut bench = start_with(name, Some(&world), &FLAGS);
    billed(&bench);
    fail(&mut world, 18, now(), u64::MAX);
    bench.change(&world);
    ends(&mut bench, "the driver was upgraded under this process");
}

#[test]
fn where_the_container_has_lost_its_devices_it_tries_again_and_ends() {
    let name = "device-cgroup";
    let (_kubelet, mut world) = node(name);
    let mut bench = start_with(name, Some(&world), &FLAGS);
    billed(&bench);
    fail(&mut world, 999, now(), u64::MAX);
    bench.change(&world);
    bench.until("/readyz", "it is not ready", |status, text| {
        status == 503 && text.contains("every device fails")
    });
    ends(&mut bench, "the container has lost its devices");
}

fn ends(bench: &mut Bench, why: &str) {
    let begun = Instant::now();
    while bench.is_running() && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!bench.is_running(), "it runs on: {}", bench.said());
    assert!(bench.said().contains(why), "{}", bench.said());
}

#[test]
fn the_ledger_says_the_driver_and_the_power_limit_as_it_is_now() {
    let name = "limited";
    let (_kubelet, mut world) = node(name);
    for gpu in &mut world.gpus {
        (gpu.limit_watts, gpu.default_limit_watts) = (300.0, Some(400.0));
    }
    let bench = start_with(name, Some(&world), &["--interval-seconds=0.2"]);
    let limits = |page: &LedgerPage| -> Vec<Option<u64>> {
        page.pods
            .iter()
            .map(|pod| pod.power_limit_permille)
            .collect()
    };
    let first = page(&bench, "three pods", |page| page.pods.len() == 3);
    assert_eq!(first.driver, world.driver_version);
    assert_eq!(limits(&first), [Some(750); 3]);
    bench.until("/metrics", "the boards' own limit", |_, text| {
        (value(text, "jouleward_gpu_power_limit_default_watts{") - 400.0).abs() < 1e-9
    });
    // Someone lowers it: read again every ten seconds.
    for gpu in &mut world.gpus {
        gpu.limit_watts = 200.0;
    }
    world.write(&folder(name).join("scenario.json")).unwrap();
    let lowered = page(&bench, "the lower limit", |page| {
        limits(page).iter().all(|limit| *limit == Some(500))
    });
    assert_eq!(lowered.pods.len(), 3);
    let text = bench.until("/metrics", "no reset is seen in it", |_, text| {
        value(text, "jouleward_gpu_power_limit_watts{") > 0.0
    });
    assert!(
        value(&text, "jouleward_gpu_energy_resets_total") < 0.5,
        "{text}"
    );
}

#[test]
fn a_call_that_hangs_is_told_at_both_probes_and_metering_goes_on_where_it_ended() {
    let name = "hangs";
    let (_kubelet, mut world) = node(name);
    let begun = now();
    // Longer than the exporter waits before it says so.
    world.gpus[0].faults.push(Fault {
        call: "nvmlDeviceGetPowerUsage".into(),
        code: HANGS + 40_000,
        from_us: begun + 6_000_000,
        until_us: begun + 16_000_000,
    });
    let bench = start_with(name, Some(&world), &FLAGS);
    billed(&bench);
    let until = |path: &str, what: &str, check: &dyn Fn(u16, &str) -> bool| {
        bench.until_within(Duration::from_mins(1), path, what, check)
    };
    let healthy = bench.until("/healthz", "it is well", |status, _| status == 200);
    assert_eq!(healthy, "ok\n");
    until("/healthz", "it is said to hang", &|status, text| {
        status == 503 && text.contains("hangs in a call to the driver")
    });
    until("/readyz", "it is not ready", &|status, text| {
        status == 503 && text.contains("hangs")
    });
    // Meanwhile it answers, and what it shows does not fall.
    let shown = billed(&bench);
    until("/healthz", "the call has come back", &|status, _| {
        status == 200
    });
    let text = until("/metrics", "the error is counted", &|_, text| {
        text.contains("call=\"nvmlDeviceGetPowerUsage\",code=\"Timeout\"")
            || text.contains("call=\"nvmlDeviceGetPowerUsage\"")
    });
    let after = billed(&bench);
    for number in 0..3 {
        assert!(after[number] >= shown[number], "{shown:?}, then {after:?}");
    }
    for gpu in ["GPU-0", "GPU-1"] {
        let resets = format!("jouleward_gpu_energy_resets_total{{node=\"n\",gpu_uuid=\"{gpu}\"}}");
        assert!(value(&text, &resets) < 1.0, "{text}");
    }
}

#[test]
fn a_kubelet_that_takes_questions_and_never_answers_is_told_within_its_deadline() {
    let name = "mute";
    let folder = folder(name);
    std::fs::create_dir_all(&folder).unwrap();
    // Connections are taken by the kernel, and nobody reads them.
    let _mute = std::os::unix::net::UnixListener::bind(folder.join("kubelet.sock")).unwrap();
    let world = scenario(vec![gpu(0)]);
    let bench = start_with(name, Some(&world), &FLAGS);
    bench.until("/readyz", "it is told", |status, text| {
        status == 503
            && text.contains("kubelet pod-resources: does not answer")
            && text.contains("kubelet errors:")
    });
    let text = bench.until("/metrics", "it is counted", |_, text| {
        text.contains("jouleward_podresources_errors_total{")
    });
    // The GPU is metered all the same.
    assert!(text.contains("jouleward_gpu_power_watts{"), "{text}");
}
