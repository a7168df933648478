//! Each right that the exporter is given, taken away: what is lost, and what is not.

use crate::exporter::{Bench, folder, gpu, scenario, start_with, value};
use crate::kubelet::{Kubelet, pod};
use crate::support::on_plane;
use anyhow::{Context, ensure};
use harness::chart::Chart;
use jouleward::node::LedgerPage;
use nvml_sim::scenario::{Gpu, Process};
use serde_json::{Value, json};

const FLAGS: [&str; 2] = ["--idle-watts=50", "--publish-delay-seconds=0"];

fn busy(number: u8, pids: &[u32]) -> Gpu {
    let process = |pid: &u32| Process {
        pid: *pid,
        watts: 100.0,
        sm_percent: 40,
        ..Process::default()
    };
    Gpu {
        processes: pids.iter().map(process).collect(),
        ..gpu(number)
    }
}

fn page(bench: &Bench, what: &str, check: impl Fn(&LedgerPage) -> bool) -> LedgerPage {
    let read = |text: &str| serde_json::from_str::<LedgerPage>(text).unwrap_or_default();
    read(&bench.until("/v1/pods", what, |_, text| check(&read(text))))
}

fn microjoules(page: &LedgerPage, pod: &str) -> u64 {
    let line = page.pods.iter().find(|line| line.pod == pod);
    line.map_or(0, |line| line.microjoules)
}

#[test]
fn without_hostpid_pods_that_share_a_gpu_are_not_told_apart_and_one_alone_is_billed_as_ever() {
    let name = "no-hostpid";
    let pods = [("alone", "GPU-0"), ("a", "GPU-1::0"), ("b", "GPU-1::1")];
    let list = pods.map(|(name, id)| pod("team", name, "nvidia.com/gpu", &[id]));
    let kubelet = Kubelet::start(&folder(name), list.into());
    for (number, (name, _)) in pods.iter().enumerate() {
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        kubelet.set_up("team", name, &uid, 5_000 + number as u32);
    }
    // The container's own /proc: no process of the host.
    std::fs::remove_dir_all(folder(name).join("proc")).unwrap();
    let world = scenario(vec![busy(0, &[5_000]), busy(1, &[5_001, 5_002])]);
    let bench = start_with(name, Some(&world), &FLAGS);
    let page = page(&bench, "all are billed", |page| {
        ["alone", "a", "b"]
            .iter()
            .all(|pod| microjoules(page, pod) > 0)
            && page
                .gpus
                .iter()
                .any(|gpu| gpu.unattributed.contains_key("unknown_holder"))
    });
    let of = |uuid: &str| page.gpus.iter().find(|gpu| gpu.uuid == uuid).unwrap();
    let unknown = |uuid: &str| {
        of(uuid)
            .unattributed
            .get("unknown_holder")
            .copied()
            .unwrap_or(0)
    };
    assert_eq!(
        unknown("GPU-0"),
        0,
        "one holder needs no sight of processes: {page:?}"
    );
    assert_eq!(
        microjoules(&page, "alone"),
        of("GPU-0").microjoules,
        "{page:?}"
    );
    let shared = microjoules(&page, "a") + microjoules(&page, "b");
    assert_eq!(
        shared + unknown("GPU-1"),
        of("GPU-1").microjoules,
        "idle alone: {page:?}"
    );
    assert!(unknown("GPU-1") > 3 * shared, "200 of 250 W: {page:?}");
}

#[test]
fn without_the_log_folders_a_pod_goes_by_its_name() {
    let name = "no-logs";
    let list = vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])];
    let _kubelet = Kubelet::start(&folder(name), list);
    let bench = start_with(name, Some(&scenario(vec![busy(0, &[5_000])])), &FLAGS);
    let page = page(&bench, "it is billed", |page| microjoules(page, "a") > 0);
    assert_eq!(
        page.pods[0].uid, "team/a",
        "no UID: the ledger cannot join it"
    );
}

#[test]
fn without_a_place_to_write_its_checkpoint_it_meters_on_and_says_so() {
    let name = "no-checkpoint";
    let list = vec![pod("team", "a", "nvidia.com/gpu", &["GPU-0"])];
    let kubelet = Kubelet::start(&folder(name), list);
    kubelet.set_up("team", "a", "00000000-0000-4000-8000-000000000000", 5_000);
    let flags = [
        FLAGS[0],
        FLAGS[1],
        "--checkpoint=/proc/no-such-folder/exporter.json",
    ];
    let bench = start_with(name, Some(&scenario(vec![busy(0, &[5_000])])), &flags);
    page(&bench, "it is billed", |page| microjoules(page, "a") > 0);
    bench.until("/metrics", "errors are counted", |_, text| {
        value(text, "jouleward_checkpoint_errors_total{") >= 1.0
    });
}

#[test]
fn the_chart_gives_the_exporter_these_rights_and_no_others() {
    on_plane(|shared| async move {
        let values = json!({ "exporter": { "checkpoint": { "enabled": true } } });
        let chart = Chart::render(&shared.stack.plane, &values)?;
        let exporter = chart
            .objects
            .iter()
            .find(|object| object["kind"] == "DaemonSet");
        let pod = &exporter.context("the DaemonSet")?["spec"]["template"]["spec"];
        ensure!(pod["hostPID"] == false && pod["automountServiceAccountToken"] == false);
        for right in ["hostNetwork", "hostIPC"] {
            ensure!(pod[right].is_null(), "{right}");
        }
        let container = &pod["containers"][0];
        ensure!(
            container["securityContext"]
                == json!({
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "runAsUser": 0, "capabilities": { "drop": ["ALL"] },
                    "seccompProfile": { "type": "RuntimeDefault" },
                }),
            "{}",
            container["securityContext"]
        );
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mounts: Vec<(String, bool)> = list(&container["volumeMounts"])
            .iter()
            .map(|mount| {
                (
                    mount["mountPath"].as_str().unwrap_or_default().to_owned(),
                    mount["readOnly"] == true,
                )
            })
            .collect();
        let expected = [
            ("/var/lib/kubelet/pod-resources", true),
            ("/var/log/pods", true),
            ("/etc/jouleward/tls", true),
            ("/var/lib/jouleward", false),
        ];
        ensure!(
            mounts == expected.map(|(path, only)| (path.to_owned(), only)),
            "{mounts:?}"
        );
        // Each is the host's folder of that name, but for the Secret of the ledger.
        for (volume, (path, _)) in list(&pod["volumes"]).iter().zip(expected) {
            let folder = &volume["hostPath"]["path"];
            let secret = &volume["secret"]["secretName"];
            ensure!(
                *folder == path || *secret == "jouleward-exporter-tls",
                "{volume}"
            );
        }
        ensure!(list(&pod["volumes"]).len() == expected.len());
        let rules = chart.objects.iter().filter(|object| {
            object["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("RoleBinding"))
                && object.to_string().contains("jouleward-exporter")
        });
        ensure!(rules.count() == 0, "nothing of the API server");
        Ok(())
    });
}
