//! The physics: power at a moment, energy up to a moment, who is seen on the GPU.

use crate::scenario::{Gpu, Instance, Process};

/// The driver's utilisation ring: entries and their distance.
pub(crate) const RING: u64 = 72;
pub(crate) const SAMPLE_US: u64 = 10_000_000 / RING;

impl Process {
    pub(crate) fn runs_at(&self, t: u64) -> bool {
        self.start_us <= t && self.end_us.is_none_or(|end| t < end)
    }

    /// Microseconds of its life that lie in [from, to).
    fn overlap(&self, from: u64, to: u64) -> u64 {
        let end = self.end_us.unwrap_or(u64::MAX).min(to);
        end.saturating_sub(self.start_us.max(from))
    }
}

impl Gpu {
    /// Watts at a moment; never above the limit's double, whatever the scenario says.
    pub fn watts(&self, t: u64) -> f64 {
        let busy: f64 = self
            .processes
            .iter()
            .filter(|p| p.runs_at(t))
            .map(|p| p.watts)
            .sum();
        self.idle_watts + busy
    }

    /// Joules burned in [from, to): the truth, without steps.
    pub fn joules(&self, from: u64, to: u64) -> f64 {
        let busy: f64 = self
            .processes
            .iter()
            .map(|p| p.watts * p.overlap(from, to) as f64)
            .sum();
        (self.idle_watts * to.saturating_sub(from) as f64 + busy) / 1e6
    }

    /// What the counter shows: millijoules up to the last step.
    pub fn counter_mj(&self, now: u64) -> u64 {
        let t = now - now % self.step_us.max(1);
        let reset = self
            .resets
            .iter()
            .filter(|r| r.at_us <= t)
            .max_by_key(|r| r.at_us);
        let (origin, base) = reset.map_or((self.origin_us, self.origin_mj), |r| (r.at_us, r.to_mj));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "energies are small and positive"
        )]
        let burned = (self.joules(origin, t) * 1000.0) as u64;
        base + burned
    }

    /// The MIG instance in a slot at a moment.
    pub(crate) fn instance(&self, slot: u32, t: u64) -> Option<&Instance> {
        self.instances
            .iter()
            .find(|i| i.slot == slot && i.from_us <= t && i.until_us.is_none_or(|until| t < until))
    }

    /// Share of an instance's multiprocessors that worked in [from, to), percent.
    pub(crate) fn busy_percent(&self, instance: &str, from: u64, to: u64) -> f64 {
        let inside = self.processes.iter();
        let inside = inside.filter(|p| p.instance.as_deref() == Some(instance));
        let work: f64 = inside
            .map(|p| f64::from(p.sm_percent) * p.overlap(from, to) as f64)
            .sum();
        (work / to.saturating_sub(from).max(1) as f64).min(100.0)
    }

    /// The PID that sample `k` of the ring names, if any: resident processes take turns by
    /// their share of time.
    pub(crate) fn sampled(&self, k: u64) -> Option<&Process> {
        let t = k * SAMPLE_US;
        let running: Vec<&Process> = self.processes.iter().filter(|p| p.runs_at(t)).collect();
        // Clients of MPS run together, and a sample names one of them.
        if let Some(client) = running.iter().find(|p| p.mps && p.sm_percent > 0) {
            return Some(client);
        }
        let total: u32 = running.iter().map(|p| p.sm_percent).sum();
        // The golden ratio's multiples fill the interval evenly: every share is met soon.
        let turn = (k as f64 * 0.618_033_988_749_895).fract() * f64::from(total.max(100));
        let mut reached = 0.0;
        running.into_iter().find(|p| {
            reached += f64::from(p.sm_percent);
            turn < reached
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        Gpu {
            uuid: "GPU-0".into(),
            name: "sim".into(),
            idle_watts: 50.0,
            limit_watts: 400.0,
            default_limit_watts: None,
            step_us: 100_000,
            origin_us: 0,
            origin_mj: 7,
            no_energy: false,
            processes: vec![Process {
                pid: 1,
                start_us: 1_000_000,
                end_us: Some(3_000_000),
                watts: 200.0,
                sm_percent: 90,
                ..Process::default()
            }],
            instances: vec![],
            gpm: false,
            faults: vec![],
            resets: vec![],
        }
    }

    #[test]
    fn energy_is_the_integral_of_power_floored_to_the_step() {
        assert_eq!(gpu().counter_mj(1_000_000), 50_007);
        assert_eq!(gpu().counter_mj(4_099_999), 7 + 4_000 * 50 + 2_000 * 200);
        assert!((gpu().joules(1_500_000, 2_500_000) - 250.0).abs() < 1e-9);
    }

    #[test]
    fn a_reset_starts_the_counter_anew() {
        let mut gpu = gpu();
        gpu.resets.push(crate::scenario::Reset {
            at_us: 2_000_000,
            to_mj: 0,
        });
        assert_eq!(gpu.counter_mj(2_500_000), 125_000);
    }

    #[test]
    fn samples_meet_each_share_of_time() {
        let mut gpu = gpu();
        gpu.processes = [(1, 60), (2, 20)]
            .map(|(pid, sm_percent)| Process {
                pid,
                start_us: 0,
                end_us: None,
                watts: 1.0,
                sm_percent,
                ..Process::default()
            })
            .to_vec();
        let count = |pid| {
            (0..1000)
                .filter(|k| gpu.sampled(*k).is_some_and(|p| p.pid == pid))
                .count()
        };
        assert!((595..=605).contains(&count(1)) && (195..=205).contains(&count(2)));
    }
}
