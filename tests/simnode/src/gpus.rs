//! The node's GPUs: who holds which, what runs on them, and the files that show it.

use crate::Args;
use crate::truth::Burn;
use nvml_sim::scenario::{Gpu, Process, Scenario};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// A container that holds devices.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) devices: Vec<String>,
    gpus: Vec<usize>,
    pid: u32,
    from_us: u64,
    until_us: Option<u64>,
}

/// What a pod truly burned: a line of `truth.jsonl`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Truth<'a> {
    uid: &'a str,
    namespace: &'a str,
    pod: &'a str,
    /// Its own burning and the idle power of the GPUs while it held them.
    joules: f64,
    seconds: f64,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) held: BTreeMap<String, Allocation>,
    scenario: Scenario,
    replicas: usize,
    next_pid: u32,
    folder: PathBuf,
}

/// Shared between the kubelet's loop and the PodResources server.
#[derive(Debug, Clone)]
pub(crate) struct Gpus(Arc<Mutex<State>>);

pub(crate) fn now_us() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

impl Gpus {
    pub(crate) fn new(args: &Args) -> anyhow::Result<Self> {
        for folder in ["pods", "proc/1", "termination"] {
            std::fs::create_dir_all(args.state.join(folder))?;
        }
        std::fs::write(args.state.join("proc/1/cgroup"), "0::/init.scope\n")?;
        let gpu = |index: usize| Gpu {
            uuid: format!("GPU-{:08x}-0000-4000-8000-{index:012x}", crc(&args.name)),
            name: args.product.clone(),
            idle_watts: 52.0,
            // Jobs that share a GPU add their power here; a real board would throttle them.
            limit_watts: 400.0 * args.replicas.max(1) as f64,
            default_limit_watts: None,
            step_us: 100_000,
            origin_us: now_us(),
            origin_mj: 123_456,
            no_energy: false,
            processes: Vec::new(),
            instances: vec![],
            gpm: false,
            faults: Vec::new(),
            resets: Vec::new(),
        };
        let scenario = Scenario {
            driver_version: "580.95.05".to_owned(),
            missing: Vec::new(),
            init_code: None,
            gpus: (0..args.gpus).map(gpu).collect(),
        };
        let state = State {
            held: BTreeMap::new(),
            scenario,
            replicas: args.replicas.max(1),
            next_pid: 100_000,
            folder: args.state.clone(),
        };
        state.write()?;
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    pub(crate) fn lock(&self) -> anyhow::Result<MutexGuard<'_, State>> {
        self.0
            .lock()
            .map_err(|_| anyhow::anyhow!("the state's lock is poisoned"))
    }
}

/// A stable number of a name, for UUIDs.
fn crc(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

impl State {
    fn write(&self) -> anyhow::Result<()> {
        Ok(self.scenario.write(&self.folder.join("scenario.json"))?)
    }

    /// Hands `count` devices to a pod and starts its process; false where none are free.
    pub(crate) fn start(
        &mut self,
        uid: &str,
        (namespace, pod, container): (&str, &str, &str),
        count: usize,
        burn: Option<Burn>,
    ) -> anyhow::Result<bool> {
        let Some(devices) = self.free(count) else {
            return Ok(false);
        };
        self.next_pid += 1;
        let (pid, from) = (self.next_pid, now_us());
        let mut gpus: Vec<usize> = devices.iter().map(|(gpu, _)| *gpu).collect();
        gpus.dedup();
        for gpu in &gpus {
            let mut begin = from;
            for (seconds, watts, sm_percent) in phases(burn) {
                let end = seconds.map(|s| begin + micros(s));
                let process = Process {
                    pid,
                    start_us: begin,
                    end_us: end,
                    watts,
                    sm_percent,
                    ..nvml_sim::scenario::Process::default()
                };
                self.scenario.gpus[*gpu].processes.push(process);
                begin = end.unwrap_or(begin);
            }
        }
        self.lay_out(uid, (namespace, pod), pid)?;
        self.write()?;
        let until_us = burn.map(|b| from + micros(b.load_seconds) + micros(b.seconds));
        let devices = devices.into_iter().map(|(_, id)| id).collect();
        let (namespace, pod, container) =
            (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let allocation = Allocation {
            namespace,
            pod,
            container,
            devices,
            gpus,
            pid,
            from_us: from,
            until_us,
        };
        self.held.insert(uid.to_owned(), allocation);
        Ok(true)
    }

    fn free(&self, count: usize) -> Option<Vec<(usize, String)>> {
        let taken = |id: &String| self.held.values().any(|a| a.devices.contains(id));
        let all = (0..self.replicas).flat_map(|replica| {
            self.scenario
                .gpus
                .iter()
                .enumerate()
                .map(move |(index, gpu)| match self.replicas {
                    1 => (index, gpu.uuid.clone()),
                    _ => (index, format!("{}::{replica}", gpu.uuid)),
                })
        });
        let free: Vec<(usize, String)> = all.filter(|(_, id)| !taken(id)).take(count).collect();
        (free.len() == count).then_some(free)
    }

    /// The log folder and the process, as a real node shows them.
    fn lay_out(&self, uid: &str, (namespace, pod): (&str, &str), pid: u32) -> anyhow::Result<()> {
        let process = self.folder.join("proc").join(pid.to_string());
        std::fs::create_dir_all(&process)?;
        let slice = uid.replace('-', "_");
        let container = format!("{pid:064x}");
        let cgroup = format!(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice/cri-containerd-{container}.scope\n"
        );
        std::fs::write(process.join("cgroup"), cgroup)?;
        let zeros = "0 ".repeat(18);
        std::fs::write(
            process.join("stat"),
            format!("{pid} (python3 (gen)) R {zeros}{} 0\n", now_us() / 10_000),
        )?;
        std::fs::create_dir_all(
            self.folder
                .join("pods")
                .join(format!("{namespace}_{pod}_{uid}")),
        )?;
        Ok(())
    }

    /// Ends a pod's process and takes its devices back; writes down what it truly burned.
    pub(crate) fn stop(&mut self, uid: &str) -> anyhow::Result<()> {
        let Some(held) = self.held.remove(uid) else {
            return Ok(());
        };
        let now = now_us();
        for gpu in &held.gpus {
            for process in self.scenario.gpus[*gpu]
                .processes
                .iter_mut()
                .filter(|p| p.pid == held.pid)
            {
                process.end_us = Some(process.end_us.unwrap_or(now).min(now).max(process.start_us));
            }
        }
        self.write()?;
        let _ = std::fs::remove_dir_all(self.folder.join("proc").join(held.pid.to_string()));
        let joules: f64 = held
            .gpus
            .iter()
            .map(|gpu| self.own_joules(*gpu, &held, now))
            .sum();
        let truth = Truth {
            uid,
            namespace: &held.namespace,
            pod: &held.pod,
            joules,
            seconds: (now - held.from_us) as f64 / 1e6,
        };
        append(
            &self.folder.join("truth.jsonl"),
            &serde_json::to_string(&truth)?,
        )
    }

    /// Its own processes, and its share by replicas of the idle power.
    fn own_joules(&self, gpu: usize, held: &Allocation, now: u64) -> f64 {
        let gpu = &self.scenario.gpus[gpu];
        let mut alone = gpu.clone();
        alone.processes.retain(|p| p.pid == held.pid);
        alone.idle_watts = 0.0;
        let replicas = held
            .devices
            .iter()
            .filter(|id| id.starts_with(&gpu.uuid))
            .count();
        let idle = gpu.idle_watts * (now - held.from_us) as f64 / 1e6;
        alone.joules(held.from_us, now) + idle * replicas as f64 / self.replicas as f64
    }

    /// Pods whose process has ended by itself.
    pub(crate) fn finished(&self) -> Vec<String> {
        let now = now_us();
        let over = |a: &Allocation| a.until_us.is_some_and(|until| until <= now);
        self.held
            .iter()
            .filter(|(_, a)| over(a))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// The kubelet removes a pod's logs with the pod.
    pub(crate) fn forget(&self, uid: &str, namespace: &str, pod: &str) {
        let _ = std::fs::remove_dir_all(
            self.folder
                .join("pods")
                .join(format!("{namespace}_{pod}_{uid}")),
        );
    }
}

fn phases(burn: Option<Burn>) -> Vec<(Option<f64>, f64, u32)> {
    match burn {
        // Without annotations: a service that burns until it is deleted.
        None => vec![(None, 150.0, 80)],
        Some(burn) => vec![
            (Some(burn.load_seconds), burn.load_watts, 10),
            (Some(burn.seconds), burn.watts, 96),
        ],
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a short job"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

fn append(path: &Path, line: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    Ok(writeln!(file, "{line}")?)
}
