//! The simulated NVML against NVIDIA's own header and against a second client, so that what
//! the exporter is tested with is what a driver would answer.

use crate::exporter::{folder, gpu, scenario};
use harness::{built, target};
use nvml_sim::layout::layout;
use nvml_sim::scenario::{Instance, Process, Scenario};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// What `make test-tools` unpacked of NVIDIA's wheels.
pub(crate) fn unpacked() -> PathBuf {
    let path = target().join("tools/nvml");
    assert!(
        path.join("pynvml.py").exists(),
        "not there: run `make test-tools`"
    );
    path
}

#[test]
fn the_simulated_library_has_the_layout_of_nvidias_own_header() {
    let folder = folder("abi");
    std::fs::create_dir_all(&folder).unwrap();
    let mut source = String::from("#include <stddef.h>\n#include <nvml.h>\n");
    let layout = layout();
    for (expression, value) in &layout {
        let _ = writeln!(
            source,
            "_Static_assert({expression} == {value}, \"{expression}\");"
        );
    }
    let compile = |source: &str| {
        std::fs::write(folder.join("abi.c"), source).unwrap();
        Command::new("cc")
            .args(["-std=c11", "-c", "-o", "/dev/null", "-I"])
            .arg(unpacked().join("nvidia/cu13/include"))
            .arg(folder.join("abi.c"))
            .output()
            .unwrap()
    };
    let said = compile(&source);
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(layout.len() > 50);
    let wrong = source.replace("sizeof(nvmlPciInfo_t) == 68", "sizeof(nvmlPciInfo_t) == 64");
    assert!(!compile(&wrong).status.success(), "a wrong size is noticed");
}

/// Asks by NVIDIA's own Python client what the exporter's figures rest on.
const CLIENT: &str = r#"
import json, pynvml as n
n.nvmlInit()
def text(x): return x.decode() if isinstance(x, bytes) else x
def pids(list): return sorted(p.pid for p in list)
boards = []
for index in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(index)
    board = {
        "uuid": text(n.nvmlDeviceGetUUID(h)), "name": text(n.nvmlDeviceGetName(h)),
        "millijoules": n.nvmlDeviceGetTotalEnergyConsumption(h),
        "milliwatts": n.nvmlDeviceGetPowerUsage(h),
        "limit": n.nvmlDeviceGetEnforcedPowerLimit(h),
        "default": n.nvmlDeviceGetPowerManagementDefaultLimit(h),
        "bus": text(n.nvmlDeviceGetPciInfo(h).busId),
        "pids": pids(n.nvmlDeviceGetComputeRunningProcesses(h)),
        "field": n.nvmlDeviceGetFieldValues(h, [83])[0].value.ullVal,
        "instances": [],
    }
    try:
        samples = n.nvmlDeviceGetProcessUtilization(h, 0)
        board["sampled"] = sorted(s.pid for s in samples)
    except n.NVMLError_NotSupported:
        board["sampled"] = "not supported"
    try:
        mode = n.nvmlDeviceGetMigMode(h)[0]
    except n.NVMLError_NotSupported:
        mode = 0
    for slot in range(n.nvmlDeviceGetMaxMigDeviceCount(h) if mode else 0):
        try:
            m = n.nvmlDeviceGetMigDeviceHandleByIndex(h, slot)
        except n.NVMLError_NotFound:
            continue
        board["instances"].append({
            "uuid": text(n.nvmlDeviceGetUUID(m)),
            "slices": n.nvmlDeviceGetAttributes_v2(m).computeInstanceSliceCount,
            "pids": pids(n.nvmlDeviceGetComputeRunningProcesses(m)),
        })
    boards.append(board)
n.nvmlShutdown()
print(json.dumps({"boards": boards}))
"#;

/// A board with two processes, and one that is cut, at a moment that does not move.
fn world(at: u64) -> Scenario {
    let process = |pid, instance: Option<&str>| Process {
        pid,
        start_us: at - 5_000_000,
        watts: 100.0,
        sm_percent: 40,
        instance: instance.map(str::to_owned),
        ..Process::default()
    };
    let mut world = scenario(vec![gpu(0), gpu(1)]);
    for board in &mut world.gpus {
        board.origin_us = at - 60_000_000;
    }
    world.gpus[0].processes = vec![process(11, None), process(12, None)];
    world.gpus[1].processes = vec![process(13, Some("MIG-1"))];
    world.gpus[1].instances = [("MIG-0", 0, 4), ("MIG-1", 5, 3)]
        .map(|(uuid, slot, slices)| Instance {
            uuid: uuid.into(),
            slot,
            slices,
            from_us: 0,
            until_us: None,
        })
        .into();
    world
}

#[test]
fn nvidias_python_client_reads_of_the_simulated_library_what_the_scenario_says() {
    let folder = folder("second-client");
    std::fs::create_dir_all(&folder).unwrap();
    let at = 1_800_000_000_050_000;
    let world = world(at);
    world.write(&folder.join("scenario.json")).unwrap();
    std::fs::write(folder.join("clock"), at.to_string()).unwrap();
    let library = folder.join("libnvidia-ml.so.1");
    let _ = std::fs::remove_file(&library);
    std::os::unix::fs::symlink(built("libnvml_sim.so").unwrap(), &library).unwrap();
    let output = Command::new("python3")
        .args(["-c", CLIENT])
        .env("PYTHONPATH", unpacked())
        .env("LD_LIBRARY_PATH", &folder)
        .env("NVML_SIM_SCENARIO", folder.join("scenario.json"))
        .env("NVML_SIM_CLOCK", folder.join("clock"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let energy = |number: usize| world.gpus[number].counter_mj(at);
    let board = |number: usize, bus: &str| {
        json!({
            "uuid": format!("GPU-{number}"), "name": "NVIDIA A100-SXM4-40GB", "bus": bus,
            "millijoules": energy(number), "field": energy(number), "limit": 400_000, "default": 400_000,
        })
    };
    let expected = [
        (
            board(0, "00000000:07:00.0"),
            json!({
                "milliwatts": 250_000, "pids": [11, 12], "sampled": [11, 12], "instances": [],
            }),
        ),
        (
            board(1, "00000000:08:00.0"),
            json!({
                "milliwatts": 150_000, "pids": [13], "sampled": "not supported", "instances": [
                    { "uuid": "MIG-0", "slices": 4, "pids": [] },
                    { "uuid": "MIG-1", "slices": 3, "pids": [13] },
                ],
            }),
        ),
    ]
    .map(|(mut board, rest)| {
        json_patch::merge(&mut board, &rest);
        board
    });
    assert_eq!(said["boards"], json!(expected));
    // 60 s idle at 50 W, two processes of 100 W for 5 s, down to the last step of 100 ms.
    assert_eq!(
        energy(0) - world.gpus[0].origin_mj,
        59_950 * 50 + 2 * 4_950 * 100
    );
}
