//! One GPU: its counter, the windows between looks that wait for their holders, and what it
//! draws idle. Pure.

use super::attribution::{Holder, Owner, Quality, Unattributed, Window};
use super::idle::IdlePower;
use super::mig::Mig;
use super::nvml::{EnergySource, GpuInfo};
use super::pairs;
use super::replay::Replay;
use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// One GPU's sums since the exporter started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuTotals {
    pub energy: Microjoules,
    pub unattributed: BTreeMap<Unattributed, Microjoules>,
    pub quality: BTreeMap<Quality, Microjoules>,
    pub resets: u64,
    pub lost: u64,
    pub gap_micros: u64,
    pub power_milliwatts: Option<u64>,
    pub idle_milliwatts: Option<u64>,
    /// With a context on it, and nothing running.
    pub context_milliwatts: Option<u64>,
    pub limit_milliwatts: Option<u64>,
    /// True where it is cut by MIG.
    #[serde(default)]
    pub mig: bool,
    /// True where clients of MPS were seen at the last look.
    #[serde(default)]
    pub mps: bool,
}

/// One look at one GPU, as the meter takes it.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// µs, monotonic: when its counter was read.
    pub read_at: Option<u64>,
    pub energy_millijoules: Option<u64>,
    pub power_milliwatts: Option<u64>,
    /// True where processes have a context, and where that could not be seen.
    pub busy: bool,
    /// True where the driver says that nothing ran since the last look.
    pub at_rest: bool,
    /// Whose processes have a context.
    pub contexts: BTreeSet<Owner>,
    /// SM percent by owner since the last look.
    pub activity: BTreeMap<Owner, u64>,
    /// How it is cut, where it is.
    pub mig: Option<Mig>,
    /// True where clients of MPS run on it.
    pub mps: bool,
    /// The enforced power limit, where it was asked for this time.
    pub limit_milliwatts: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) energy: Microjoules,
    #[serde(with = "pairs")]
    pub(super) activity: BTreeMap<Owner, u64>,
    pub(super) busy: bool,
    pub(super) at_rest: bool,
    pub(super) contexts: BTreeSet<Owner>,
    #[serde(default)]
    pub(super) mig: Option<Mig>,
    #[serde(default)]
    pub(super) mps: bool,
    pub(super) watch: Watch,
}

/// Whether anyone watched who held the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Watch {
    Watched,
    /// The looks lay too far apart.
    Unwatched,
    /// The time between two runs of the exporter.
    Outage,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Gpu {
    pub(super) info: GpuInfo,
    /// (counter, µs) of the last look.
    pub(super) last: Option<(Microjoules, u64)>,
    /// (mW, µs) of the last look, where power is added up.
    pub(super) last_power: Option<(u64, u64)>,
    pub(super) failing: bool,
    /// True until the first look after a restart.
    #[serde(skip)]
    pub(super) resumed: bool,
    pub(super) pending: VecDeque<Pending>,
    /// How the last windows were split, for people who ask.
    #[serde(skip)]
    pub(super) replays: VecDeque<Arc<Replay>>,
    /// Idle energy that the counter had not shown yet when its window was split.
    #[serde(default)]
    pub(super) owed: u64,
    pub(super) idle: IdlePower,
    pub(super) context: IdlePower,
    pub(super) totals: GpuTotals,
}

/// What a window leaves owed of idle power: it ended between two steps of the counter, so the
/// next one shows it. Not more than a usual step holds; else, windows being cut anywhere, the
/// part above idle would grow by what the idle part lacks.
fn owed(pending: &Pending, idle_milliwatts: u64, before: Microjoules) -> u64 {
    let idle = |micros: u64| idle_milliwatts.saturating_mul(micros) / 1000;
    let due = idle(pending.to - pending.from).saturating_add(before.0);
    due.saturating_sub(pending.energy.0).min(idle(STEP_US))
}

/// A usual step of the counter.
const STEP_US: u64 = 100_000;
/// A window longer than this was not watched: its holders cannot be known.
const WATCHED_US: u64 = 10_000_000;
/// Windows of a GPU whose split can be replayed: two minutes and more.
const REPLAYS: usize = 150;
/// The counter may show two of its steps at once.
const STEP_SLACK_US: u64 = 200_000;

impl Gpu {
    pub(super) fn new(info: GpuInfo) -> Self {
        Self {
            info,
            last: None,
            last_power: None,
            failing: false,
            resumed: false,
            pending: VecDeque::new(),
            replays: VecDeque::new(),
            owed: 0,
            idle: IdlePower::new(None),
            context: IdlePower::new(None),
            totals: GpuTotals::default(),
        }
    }

    /// What NVML says of it now, and what is configured.
    pub(super) fn renew(&mut self, info: GpuInfo, idle_milliwatts: Option<u64>) {
        self.totals.limit_milliwatts = info.limit_milliwatts;
        self.info = info;
        self.idle.configure(idle_milliwatts);
    }

    /// Takes in one look at `now` (µs, monotonic).
    pub(super) fn look(&mut self, look: Look, now: u64) {
        self.totals.power_milliwatts = look.power_milliwatts;
        if look.limit_milliwatts.is_some() {
            self.totals.limit_milliwatts = look.limit_milliwatts;
        }
        (self.totals.mig, self.totals.mps) = (look.mig.is_some(), look.mps);
        let counted = match self.info.source {
            EnergySource::Counter => look
                .energy_millijoules
                .map(|energy| Microjoules(energy.saturating_mul(1000))),
            EnergySource::Power => self.add_up(look.power_milliwatts, now),
        };
        let Some(energy) = counted else {
            self.totals.lost += u64::from(!self.failing);
            self.failing = true;
            return;
        };
        self.failing = false;
        if let Some((before, at)) = self.last
            && now > at
        {
            let micros = now - at;
            match energy
                .0
                .checked_sub(before.0)
                .filter(|delta| self.plausible(*delta, micros))
            {
                None => {
                    self.totals.resets += 1;
                    self.totals.gap_micros += micros;
                }
                Some(delta) => self.pending.push_back(Pending {
                    from: at,
                    to: now,
                    energy: Microjoules(delta),
                    activity: look
                        .activity
                        .into_iter()
                        .map(|(o, sm)| (o, sm * micros))
                        .collect(),
                    busy: look.busy,
                    at_rest: look.at_rest,
                    contexts: look.contexts,
                    mig: look.mig,
                    mps: look.mps,
                    watch: match micros {
                        _ if self.resumed => Watch::Outage,
                        0..=WATCHED_US => Watch::Watched,
                        _ => Watch::Unwatched,
                    },
                }),
            }
        }
        self.last = Some((energy, now));
        self.resumed = false;
    }

    /// The window that is split: with what was learnt of idle power until now.
    pub(super) fn window(&mut self, pending: Pending, holders: BTreeMap<Holder, u64>) -> Window {
        let micros = pending.to - pending.from;
        let unwatched = pending.watch != Watch::Watched;
        if !unwatched {
            if holders.is_empty() && !pending.busy {
                self.idle.learn(pending.energy, micros);
            }
            if pending.busy && pending.at_rest {
                self.context.learn(pending.energy, micros);
            }
        }
        self.totals.idle_milliwatts = self.idle.milliwatts();
        self.totals.context_milliwatts = self.context.milliwatts();
        let idle_milliwatts = self.totals.idle_milliwatts.unwrap_or(0);
        let idle_owed = Microjoules(if unwatched { 0 } else { self.owed });
        self.owed = owed(&pending, idle_milliwatts, idle_owed);
        let mut contexts = pending.contexts;
        // Without a sight of processes, a context on a GPU is its only holder's.
        if contexts.is_empty()
            && pending.busy
            && let [only] = holders.keys().collect::<Vec<_>>()[..]
        {
            contexts.insert(Owner::Pod(only.uid.clone()));
        }
        Window {
            energy: pending.energy,
            micros,
            idle_milliwatts,
            idle_owed,
            context_milliwatts: self.totals.context_milliwatts.unwrap_or(0),
            contexts,
            mig: pending.mig,
            mps: pending.mps,
            from_power: self.info.source == EnergySource::Power,
            holders,
            activity: pending.activity,
            unwatched,
        }
    }

    /// Keeps how a window was split, for a while.
    pub(super) fn remember(&mut self, replay: Replay) {
        if self.replays.len() == REPLAYS {
            self.replays.pop_front();
        }
        self.replays.push_back(Arc::new(replay));
    }

    /// 1.5 times the power limit for the time passed is the most a board can burn; without
    /// a limit, 2 kW.
    fn plausible(&self, microjoules: u64, micros: u64) -> bool {
        // The limit may have been lowered since the last look.
        let limits = [
            self.totals.limit_milliwatts,
            self.info.limit_milliwatts,
            self.info.default_limit_milliwatts,
        ];
        let limit = limits.into_iter().flatten().max().filter(|mw| *mw > 0);
        let limit = limit.unwrap_or(1_300_000);
        let most = u128::from(limit) * 3 / 2 * u128::from(micros + STEP_SLACK_US) / 1000;
        u128::from(microjoules) <= most
    }

    /// A counter made of power: the mean of two looks for the time between. What was not
    /// watched is not invented: it is a gap without energy.
    fn add_up(&mut self, power: Option<u64>, now: u64) -> Option<Microjoules> {
        let power = power?;
        let mut sum = self.last.map_or(Microjoules(0), |(sum, _)| sum);
        if let Some((before, at)) = self.last_power {
            let micros = now.saturating_sub(at);
            if micros <= WATCHED_US {
                let doubled = u128::from(before + power) * u128::from(micros);
                sum += Microjoules(u64::try_from(doubled / 2000).unwrap_or(u64::MAX));
            } else {
                self.totals.gap_micros += micros;
            }
        }
        self.last_power = Some((power, now));
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn gpu(source: EnergySource) -> Gpu {
        Gpu::new(GpuInfo {
            uuid: "GPU-0".into(),
            index: 0,
            minor: 0,
            model: "Tesla P40".into(),
            pci_bus_id: String::new(),
            driver: String::new(),
            limit_milliwatts: Some(250_000),
            default_limit_milliwatts: None,
            source,
        })
    }

    fn power(milliwatts: u64) -> Look {
        Look {
            power_milliwatts: Some(milliwatts),
            ..Look::default()
        }
    }

    fn waiting(gpu: &Gpu) -> u64 {
        gpu.pending.iter().map(|window| window.energy.0).sum()
    }

    #[test]
    fn without_a_counter_power_is_added_up_between_looks() {
        let mut gpu = gpu(EnergySource::Power);
        for second in 0..10 {
            gpu.look(
                power(if second < 5 { 100_000 } else { 200_000 }),
                second * SECOND,
            );
        }
        // Four seconds at 100 W, one between the two, four at 200 W.
        assert_eq!(waiting(&gpu), (400 + 150 + 800) * SECOND);
    }

    #[test]
    fn power_that_was_not_watched_is_not_invented() {
        let mut gpu = gpu(EnergySource::Power);
        gpu.look(power(100_000), 0);
        gpu.look(power(100_000), 60 * SECOND);
        gpu.look(power(100_000), 61 * SECOND);
        assert_eq!(waiting(&gpu), 100 * SECOND);
        assert_eq!(gpu.totals.gap_micros, 60 * SECOND);
    }

    #[test]
    fn both_idle_levels_are_learnt_of_quiet_seconds_with_and_without_a_context() {
        let mut gpu = gpu(EnergySource::Counter);
        let (mut counter, mut now) = (0, 0);
        let mut second = |gpu: &mut Gpu, watts: u64, busy: bool, at_rest: bool| {
            counter += watts * 1000;
            now += SECOND;
            let look = Look {
                energy_millijoules: Some(counter),
                busy,
                at_rest,
                ..Look::default()
            };
            gpu.look(look, now);
            let holder = Holder {
                uid: "a".into(),
                ..Holder::default()
            };
            let holders = if busy {
                BTreeMap::from([(holder, 1)])
            } else {
                BTreeMap::new()
            };
            while let Some(pending) = gpu.pending.pop_front() {
                gpu.window(pending, holders.clone());
            }
        };
        for _ in 0..15 {
            second(&mut gpu, 52, false, true);
        }
        assert_eq!(gpu.totals.idle_milliwatts, Some(52_000));
        assert_eq!(gpu.totals.context_milliwatts, None, "there was none");
        for _ in 0..15 {
            second(&mut gpu, 78, true, true);
        }
        // Work says nothing of either.
        for _ in 0..15 {
            second(&mut gpu, 300, true, false);
        }
        assert_eq!(gpu.totals.idle_milliwatts, Some(52_000));
        assert_eq!(gpu.totals.context_milliwatts, Some(78_000));
    }

    #[test]
    fn a_counter_that_falls_or_jumps_bills_nothing_and_is_counted() {
        let mut gpu = gpu(EnergySource::Counter);
        let counter = |millijoules| Look {
            energy_millijoules: Some(millijoules),
            ..Look::default()
        };
        for (second, millijoules) in [
            (0, 1000),
            (1, 2000),
            (2, 5),
            (3, 900_000_000),
            (4, 900_001_000),
        ] {
            gpu.look(counter(millijoules), second * SECOND);
        }
        assert_eq!((waiting(&gpu), gpu.totals.resets), (2_000_000, 2));
    }

    proptest::proptest! {
        #[test]
        fn windows_cut_anywhere_between_the_counters_steps_keep_idle_apart_from_work(
            windows in proptest::collection::vec(1_u64..1_500_000, 1..200),
            worked in 0_u64..200,
        ) {
            let mut gpu = gpu(EnergySource::Counter);
            gpu.idle.configure(Some(50_000));
            // Before and after a second at 150 W there is only idling, at 50 W; mJ.
            let begin = worked * 100_000;
            let counter = |at: u64| {
                let step = at - at % 100_000;
                step * 50 / 1000 + step.saturating_sub(begin).min(SECOND) * 100 / 1000
            };
            let (mut now, mut active) = (0, 0);
            for micros in [1].into_iter().chain(windows) {
                gpu.look(Look { energy_millijoules: Some(counter(now)), ..Look::default() }, now);
                now += micros;
                while let Some(pending) = gpu.pending.pop_front() {
                    let holder = Holder { uid: "a".into(), ..Holder::default() };
                    let window = gpu.window(pending, BTreeMap::from([(holder.clone(), 1)]));
                    active += super::super::attribution::split(&window).pods[&holder].0.0;
                }
            }
            let seen = gpu.last.map_or(0, |(_, at)| at);
            let truth = seen.saturating_sub(begin).min(SECOND) * 100;
            // A step at either end, of all that was drawn by then.
            proptest::prop_assert!(
                active.abs_diff(truth) <= 2 * 150 * 100_000,
                "{active} of {truth} µJ"
            );
        }

        #[test]
        fn whatever_nvml_answers_no_joule_is_negative_or_beyond_the_limit(
            looks in proptest::collection::vec(
                (proptest::option::of(0_u64..u64::MAX), proptest::option::of(0_u64..u64::from(u32::MAX)), 0_u64..20_000_000),
                0..40,
            ),
            counter: bool,
        ) {
            let source = if counter { EnergySource::Counter } else { EnergySource::Power };
            let mut gpu = gpu(source);
            let mut now = 0;
            for (energy, power, passed) in looks {
                now += passed;
                let look = Look { energy_millijoules: energy, power_milliwatts: power, ..Look::default() };
                gpu.look(look, now);
            }
            // 250 W and half as much again, for the time and two counter steps a look.
            let most = 375 * (now + 40 * 200_000);
            proptest::prop_assert!(waiting(&gpu) <= most);
        }
    }
}
