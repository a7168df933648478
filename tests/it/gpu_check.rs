//! The exporter beside a second reader of the same counters. In tests both read the simulated
//! library; `make gpu-check` runs the same check on a real driver, beside nvidia-smi.
#![expect(clippy::print_stdout, reason = "figures of both readers, for people")]

use crate::abi::unpacked;
use crate::exporter::{Bench, folder, gpu, scenario, start_with};
use crate::kubelet::Kubelet;
use harness::built;
use jouleward::node::Replay;
use nvml_sim::scenario::Process;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Reads every counter each 10 ms for some seconds, with the boot-time clock in µs, and who
/// has a context at the end.
const READER: &str = r#"
import json, sys, time
import pynvml as n
n.nvmlInit()
text = lambda v: v.decode() if isinstance(v, bytes) else v
boards = {}
for index in range(n.nvmlDeviceGetCount()):
    handle = n.nvmlDeviceGetHandleByIndex(index)
    boards[text(n.nvmlDeviceGetUUID(handle))] = (handle, [])
micros = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
end = micros() + int(float(sys.argv[1]) * 1e6)
while micros() < end:
    for handle, readings in boards.values():
        before = micros()
        energy = n.nvmlDeviceGetTotalEnergyConsumption(handle)
        readings.append((before, micros(), energy))
    time.sleep(0.01)
pids = [p.pid for handle, _ in boards.values() for p in n.nvmlDeviceGetComputeRunningProcesses(handle)]
print(json.dumps({"boards": {uuid: r for uuid, (_, r) in boards.items()}, "pids": pids}))
"#;

/// (µs before the call, µs after it, mJ).
type Reading = (u64, u64, u64);

#[derive(Deserialize)]
struct Readings {
    boards: BTreeMap<String, Vec<Reading>>,
    pids: BTreeSet<u32>,
}

impl Readings {
    /// With the simulated library in `simulated`, or with the machine's own.
    fn take(seconds: u32, simulated: Option<&Path>) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", READER, &seconds.to_string()])
            .env("PYTHONPATH", unpacked());
        if let Some(folder) = simulated {
            command.env("LD_LIBRARY_PATH", folder);
            command.env("NVML_SIM_SCENARIO", folder.join("scenario.json"));
        }
        let output = command.output().expect("python3");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Watts in the mean, by board.
    fn watts(&self) -> BTreeMap<&str, f64> {
        let of = |readings: &Vec<Reading>| {
            let (first, last) = (readings[0], readings[readings.len() - 1]);
            (last.2 - first.2) as f64 * 1e3 / (last.0 - first.0) as f64
        };
        let boards = self.boards.iter();
        boards.map(|(uuid, r)| (uuid.as_str(), of(r))).collect()
    }
}

/// Least and most that the counter may have shown at a moment.
fn bounds(readings: &[Reading], at: u64) -> Option<(u64, u64)> {
    let before = readings.iter().rev().find(|(_, after, _)| *after <= at)?;
    let after = readings.iter().find(|(before, ..)| *before >= at)?;
    Some((before.2, after.2))
}

/// The windows that the exporter split, against the second reader's counter; says how many
/// boards were compared.
fn agree(bench: &Bench, readings: &Readings) -> usize {
    let text = bench.until("/v1/windows", "windows", |status, _| status == 200);
    let windows: Vec<Replay> = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (uuid, readings) in &readings.boards {
        let (first, last) = (readings[0].1, readings[readings.len() - 1].0);
        let inside = windows.iter().filter(|window| {
            window.gpu == *uuid && window.from_micros >= first && window.to_micros <= last
        });
        let inside: Vec<&Replay> = inside.collect();
        let (Some(from), Some(to)) = (
            inside.iter().map(|w| w.from_micros).min(),
            inside.iter().map(|w| w.to_micros).max(),
        ) else {
            continue;
        };
        let exporter: u64 = inside.iter().map(|window| window.microjoules).sum();
        let (begin, end) = (
            bounds(readings, from).unwrap(),
            bounds(readings, to).unwrap(),
        );
        let steps = readings.windows(2).map(|pair| pair[1].2 - pair[0].2);
        let step = steps.max().unwrap_or(0);
        // A moment is stamped a little before its counter is read.
        let least = (end.0 - begin.1).saturating_sub(step);
        let most = end.1 - begin.0 + step;
        println!(
            "{uuid}: {:.1} s, exporter {:.3} J, second reader {:.3} J, step {:.3} J",
            (to - from) as f64 / 1e6,
            exporter as f64 / 1e6,
            (end.0 - begin.0) as f64 / 1e3,
            step as f64 / 1e3,
        );
        assert!(
            (least * 1000..=most * 1000).contains(&exporter),
            "{uuid}: {exporter} µJ is not from {least} to {most} mJ"
        );
        compared += 1;
    }
    compared
}

#[test]
fn a_second_reader_counts_the_same_joules_within_a_step_of_the_counter() {
    let name = "second-reader";
    let kubelet = Kubelet::start(&folder(name), vec![]);
    let mut world = scenario(vec![gpu(0), gpu(1)]);
    world.gpus[0].processes.push(Process {
        pid: 9_000,
        watts: 237.0,
        sm_percent: 70,
        ..Process::default()
    });
    let bench = start_with(name, Some(&world), &[]);
    bench.until("/readyz", "ready", |status, _| status == 200);
    let library = folder(name).join("libnvidia-ml.so.1");
    let _ = std::fs::remove_file(&library);
    std::os::unix::fs::symlink(built("libnvml_sim.so").unwrap(), &library).unwrap();
    let readings = Readings::take(6, Some(&folder(name)));
    // The last windows wait for the kubelet's next list.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(agree(&bench, &readings), 2);
    assert_eq!(readings.pids, BTreeSet::from([9_000]));
    drop(kubelet);
}

#[test]
#[ignore = "needs a real GPU: make gpu-check"]
fn on_this_machines_gpus_the_exporter_counts_right_and_costs_nothing() {
    const SECONDS: u32 = 30;
    let name = "gpu-check";
    let kubelet = Kubelet::start(&folder(name), vec![]);
    let without = Readings::take(SECONDS, None);
    let flags = ["--nvml-library=libnvidia-ml.so.1"];
    let bench = start_with(name, None, &flags);
    bench.until("/readyz", "ready", |status, _| status == 200);
    let with = Readings::take(SECONDS, None);
    std::thread::sleep(Duration::from_secs(6));
    let compared = agree(&bench, &with);
    assert!(compared > 0, "NVML lists no board that counts energy");
    let pid = bench.pid();
    let apps = Command::new("nvidia-smi")
        .args(["--query-compute-apps=pid", "--format=csv,noheader"])
        .output()
        .expect("nvidia-smi");
    let apps = String::from_utf8_lossy(&apps.stdout).into_owned();
    assert!(
        !with.pids.contains(&pid) && !apps.lines().any(|app| app.trim() == pid.to_string()),
        "the exporter has a context on a GPU: {apps}"
    );
    assert!(
        without.pids.is_empty() && with.pids.is_empty(),
        "others work on the GPUs ({:?}): what the exporter adds cannot be told; run it on idle ones",
        with.pids
    );
    for (uuid, watts) in with.watts() {
        let added = watts - without.watts()[uuid];
        println!("{uuid}: {watts:.2} W with the exporter, {added:+.2} W more than without");
        assert!(added < 1.0, "{uuid}: it adds {added} W");
    }
    drop(kubelet);
}
