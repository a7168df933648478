//! Pods that come and go, between the looks at the GPUs.

use super::super::attribution::Owner;
use super::Sampler;
use crate::clock;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Parts of the processes, of which one is looked at each time.
const TURNS: u32 = 4;

impl Sampler {
    /// Looks for pods that came or went; true where something happened.
    pub(super) fn watch(&mut self, now: u64) -> bool {
        let (mut event, mut came) = (false, false);
        if self.names.refresh(clock::wall_micros()) {
            let present: HashSet<String> = self.names.uids().map(str::to_owned).collect();
            for uid in present.difference(&self.pods) {
                self.allocations.pod_appeared(uid, now);
                came = true;
            }
            for uid in self.pods.difference(&present) {
                self.allocations.pod_vanished(uid, now);
            }
            self.pods = present;
            event = true;
        }
        for uid in self.exited(now, came) {
            self.allocations.pod_vanished(&uid, now);
            event = true;
        }
        let listed = self.shared.listed.load_full();
        // A list from before the GPUs were known may have left some of them out.
        let complete = self.opened.is_some_and(|opened| listed.asked >= opened);
        let news = listed.number != self.listed || self.devices_changed;
        if news && complete && listed.number > 0 {
            self.listed = listed.number;
            self.devices_changed = false;
            let (holders, unknown) = self.cuts.devices.holders(&listed.claims);
            self.health.unknown_devices(unknown);
            let names = &self.names;
            let own = self.settings.own.as_ref().map(|own| own.pod.uid.clone());
            let uid = |namespace: &str, pod: &str| {
                let named = || names.uid(namespace, pod).map(str::to_owned);
                own.clone().or_else(named)
            };
            event |= self.allocations.observe(&holders, listed.asked, now, uid);
        }
        if self.allocations.is_dirty() {
            self.shared.ask_kubelet.notify_one();
        }
        event
    }

    /// Pods of which no process that was seen lives any more. Each process is asked after every
    /// fourth time, for a GPU changes hands when its pod ends, later than its process; and `all`
    /// where a pod came, which may have taken over from one of them.
    pub(super) fn exited(&mut self, now: u64, all: bool) -> Vec<String> {
        self.turn = (self.turn + 1) % TURNS;
        let turn = self.turn;
        let gone: Vec<u32> = self
            .pids
            .keys()
            .copied()
            .filter(|pid| (all || pid % TURNS == turn) && !self.processes.alive(*pid, now))
            .collect();
        let mut exited = Vec::new();
        for pid in gone {
            if let Some(Owner::Pod(uid)) = self.pids.remove(&pid)
                && !self
                    .pids
                    .values()
                    .any(|owner| *owner == Owner::Pod(uid.clone()))
            {
                exited.push(uid);
            }
        }
        exited
    }

    /// In a sidecar, a GPU that is used anew or no more is a change of holders.
    pub(super) fn notice_use(&mut self, used: BTreeSet<String>, now: u64) {
        let Some(own) = &self.settings.own else {
            return;
        };
        if **self.shared.used.load() != used {
            self.allocations.pod_appeared(&own.pod.uid, now);
            self.allocations.something_happened(now);
            self.shared.used.store(Arc::new(used));
        }
    }
}
