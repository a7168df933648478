//! The sampler's thread: looks at the GPUs once a second, and at once when a pod comes or
//! goes; bills what can be billed; publishes a snapshot. Nothing else calls NVML.

mod look;
mod watch;

use super::allocations::Allocations;
use super::attribution::{Holder, Owner};
use super::checkpoint::{Checkpoint, Found, View, boot_id};
use super::cuts::Cuts;
use super::devices::Hold;
use super::exporter::Settings;
use super::health::Health;
use super::held::held;
use super::ledger::page;
use super::lost::Lost;
use super::meter::Meter;
use super::metrics::NodeSnapshot;
use super::names::PodNames;
use super::nvml::{GpuInfo, OpenError, Reader};
use super::procfs::Processes;
use super::shared::Shared;
use crate::clock;
use crate::serve::crash;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often pods and processes are looked for; a look at a folder's time and at a few
/// files of /proc.
const WATCH: Duration = Duration::from_millis(50);
/// A reading that is later than its tick by more is one of its own time.
const LATE_US: u64 = 1_000_000;
/// Pause before NVML is tried again.
const REOPEN_US: u64 = 10_000_000;

/// What the sampler found out of the node, for people who ask.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::node) struct FoundOut {
    health: String,
    gpus: Vec<GpuInfo>,
    /// Replicas held, by GPU and `namespace/pod/container`.
    holders: BTreeMap<String, BTreeMap<String, u64>>,
    /// UIDs of the pods that have a log folder.
    pods: BTreeSet<String>,
    /// Whose the processes on the GPUs are: a pod's UID, or host.
    processes: BTreeMap<u32, String>,
}

pub(in crate::node) struct Sampler {
    settings: Settings,
    shared: Arc<Shared>,
    cuts: Cuts,
    /// The kubelet's last answer was read with other devices.
    devices_changed: bool,
    reader: Option<Reader>,
    meter: Meter,
    allocations: Allocations,
    names: PodNames,
    processes: Processes,
    /// Pods seen by their log folder.
    pods: HashSet<String>,
    /// PIDs on the GPUs at the last look, with their pod.
    pids: HashMap<u32, Owner>,
    /// Which part of them is asked after next.
    turn: u32,
    since: BTreeMap<String, u64>,
    health: Health,
    listed: u64,
    epoch: String,
    /// µs, monotonic: since when GPUs and kubelet both answer.
    ready_since: Option<u64>,
    checkpoint: Option<Checkpoint>,
    /// µs, monotonic: when the GPUs were taken stock of.
    opened: Option<u64>,
    lost: Lost,
}

impl Sampler {
    pub(in crate::node) fn new(settings: Settings, shared: Arc<Shared>) -> Self {
        let names = PodNames::new(settings.pod_logs.clone());
        let own = settings.own.as_ref().map(|own| own.pod.uid.clone());
        let processes = Processes::new(settings.proc_root.clone(), own);
        Self {
            shared,
            cuts: Cuts::default(),
            devices_changed: false,
            reader: None,
            meter: Meter::default(),
            allocations: Allocations::new(clock::monotonic_micros()),
            names,
            processes,
            pods: HashSet::new(),
            pids: HashMap::new(),
            turn: 0,
            since: BTreeMap::new(),
            health: if settings.own.is_some() {
                Health::of_own()
            } else {
                Health::default()
            },
            settings,
            listed: 0,
            epoch: clock::now().to_string(),
            ready_since: None,
            checkpoint: None,
            opened: None,
            lost: Lost::default(),
        }
        .resumed()
    }

    /// Takes up what an earlier run left, where there is a checkpoint.
    fn resumed(mut self) -> Self {
        let Some(path) = self.settings.checkpoint.clone() else {
            return self;
        };
        let checkpoint = Checkpoint::new(path, boot_id(&self.settings.proc_root));
        match checkpoint.load() {
            Ok(Found::Nothing) => {}
            Ok(Found::Earlier {
                state,
                same_boot,
                away,
            }) => {
                tracing::info!(same_boot, epoch = state.epoch, "goes on where it ended");
                let mut state = *state;
                let (kept, now) = (self.settings.keep_final, clock::monotonic_micros());
                let anew = state.go_on(same_boot, away, kept, now);
                (self.meter, self.allocations) = (state.meter, state.allocations);
                if !anew {
                    // The same sums go on, so the epoch does too.
                    self.epoch = state.epoch;
                }
                if same_boot {
                    self.pods = state.pods;
                }
                self.health.restored = true;
            }
            Ok(Found::SetAside { why, to }) => {
                tracing::warn!(why, to = %to.display(), "the checkpoint cannot be used and is set aside");
                self.health.checkpoint_errors += 1;
            }
            Err(error) => {
                tracing::error!(%error, "the checkpoint cannot be read");
                self.health.checkpoint_errors += 1;
            }
        }
        self.checkpoint = Some(checkpoint);
        self
    }

    /// Before anything is shown: what was shown must not be taken back by a restart.
    fn save(&mut self) {
        let Some(checkpoint) = &self.checkpoint else {
            return;
        };
        let saved = checkpoint.save(View {
            epoch: &self.epoch,
            pods: &self.pods,
            meter: &self.meter,
            allocations: &self.allocations,
        });
        match saved {
            Ok(()) => self.health.checkpoint_fails = false,
            Err(error) => {
                self.health.checkpoint_errors += 1;
                if !self.health.checkpoint_fails {
                    tracing::error!(%error, "the checkpoint cannot be written; a restart loses what is not saved");
                }
                self.health.checkpoint_fails = true;
            }
        }
    }

    /// Runs until told to stop.
    pub(in crate::node) fn run(mut self) {
        let interval = u64::try_from(self.settings.interval.as_micros()).unwrap_or(1_000_000);
        let mut next = 0;
        let mut reopen = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = clock::monotonic_micros();
            self.shared.came_round.store(now, Ordering::Release);
            if now >= reopen {
                reopen = now + REOPEN_US;
                match &mut self.reader {
                    None => self.open(),
                    // A device that was lost when NVML was started may be back.
                    Some(reader) => {
                        let found = reader.find_missing();
                        self.add(&found);
                    }
                }
            }
            let event = self.watch(now);
            let wanted = self.shared.wanted.swap(false, Ordering::AcqRel);
            if event || wanted || now >= next {
                self.tick(now);
                // On the grid, so that a late tick does not shift all later ones.
                next = (now / interval + 1) * interval;
            }
            if let Some(why) = self.lost.for_good() {
                // Only a new process gets the driver's new library, or its devices back.
                self.shared.end(why);
                return;
            }
            std::thread::sleep(WATCH);
        }
    }

    /// One look outside the loop.
    pub(in crate::node) fn look_once(mut self) -> Self {
        if self.reader.is_none() {
            self.open();
        }
        let now = clock::monotonic_micros();
        self.watch(now);
        self.tick(now);
        self
    }

    pub(in crate::node) fn found_out(&self) -> FoundOut {
        let listed = self.shared.listed.load();
        let named = |holders: &BTreeMap<Holder, Hold>| {
            let named = holders
                .iter()
                .map(|(h, hold)| (h.to_string(), hold.replicas));
            named.collect()
        };
        FoundOut {
            health: self.health.report(),
            gpus: self.reader.iter().flat_map(Reader::gpus).cloned().collect(),
            holders: self
                .cuts
                .devices
                .holders(&listed.claims)
                .0
                .iter()
                .map(|(gpu, holders)| (gpu.clone(), named(holders)))
                .collect(),
            pods: self.pods.iter().cloned().collect(),
            processes: self
                .pids
                .iter()
                .map(|(pid, owner)| (*pid, owner.to_string()))
                .collect(),
        }
    }

    fn tick(&mut self, now: u64) {
        let visible = self.processes.visible();
        let uuids: Vec<String> = self
            .reader
            .iter()
            .flat_map(Reader::gpus)
            .map(|gpu| gpu.uuid.clone())
            .collect();
        let mut answered = false;
        let mut codes = BTreeSet::new();
        let mut used = BTreeSet::new();
        for uuid in &uuids {
            let (look, ok, in_use) = self.look(uuid, visible, now, &mut codes);
            answered |= ok;
            if in_use || uuids.len() == 1 {
                used.insert(uuid.clone());
            }
            // One moment for the whole tick: windows are cut where events were booked. But a call
            // that hung for another GPU makes this one's reading a later one's.
            let at = look.read_at.unwrap_or(now);
            let late = at.saturating_sub(now) > LATE_US;
            self.meter.look(uuid, look, if late { at } else { now });
        }
        crash::point("looked");
        self.notice_use(used, now);
        if !uuids.is_empty() && !answered {
            // Every device fails: the driver was reloaded, or is gone.
            self.health.nvml(Err(OpenError::Failing));
            self.reader = None;
        }
        if !uuids.is_empty() {
            self.lost.look(answered, &codes);
        }
        self.meter.settle(&self.allocations, now);
        crash::point("settled");
        self.processes.forget(now);
        for (file, error) in std::mem::take(&mut self.processes.errors) {
            self.health.proc(file, error);
        }
        let kept = u64::try_from(self.settings.keep_final.as_micros()).unwrap_or(u64::MAX);
        self.health.dropped += self
            .meter
            .retire(now.saturating_sub(kept), self.settings.most_pods);
        self.save();
        self.publish(now);
        crash::point("published");
    }

    fn publish(&mut self, now: u64) {
        let listed = self.shared.listed.load();
        self.health
            .ticked(clock::monotonic_micros().saturating_sub(now), clock::now());
        self.health.kubelet(&listed.errors, listed.healthy);
        self.health.claims(&listed.dra);
        self.ready_since = self
            .health
            .is_ready()
            .then(|| self.ready_since.unwrap_or(now));
        self.shared.ledger.store(Arc::new(page(
            &self.meter,
            &self.settings.node,
            &self.epoch,
            self.ready_since,
            now,
        )));
        self.shared.replays.store(Arc::new(self.meter.replays()));
        for micros in self.shared.snapshot.load().render_micros() {
            self.health.rendered(micros);
        }
        let held = held(&self.allocations, &self.cuts);
        let snapshot = NodeSnapshot::of(&self.meter, held, &self.settings, &self.health, now);
        self.shared.snapshot.store(Arc::new(snapshot));
        self.shared.looks.fetch_add(1, Ordering::AcqRel);
    }
}
