//! What a GPU draws with nobody on it: configured, else learnt from quiet windows.

use crate::law::Microjoules;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IdlePower {
    configured: Option<u64>,
    quiet: VecDeque<(u64, u64)>,
}

/// Quiet time that must have been watched before a figure is believed.
const ENOUGH_US: u64 = 10_000_000;
/// Windows shorter than this say more about the counter's steps than about power.
const SHORTEST_US: u64 = 900_000;
const KEPT: usize = 64;

impl IdlePower {
    pub(super) fn new(configured: Option<u64>) -> Self {
        Self {
            configured,
            quiet: VecDeque::new(),
        }
    }

    /// What is configured wins over what was learnt, also after a restart.
    pub(super) fn configure(&mut self, configured: Option<u64>) {
        self.configured = configured;
    }

    /// A window with neither holder nor process.
    pub(super) fn learn(&mut self, energy: Microjoules, micros: u64) {
        if micros < SHORTEST_US {
            return;
        }
        if self.quiet.len() == KEPT {
            self.quiet.pop_front();
        }
        self.quiet
            .push_back((energy.0.saturating_mul(1000) / micros, micros));
    }

    /// mW, a low quantile of the quiet windows; `None` while not known.
    pub(super) fn milliwatts(&self) -> Option<u64> {
        if self.configured.is_some() {
            return self.configured;
        }
        if self.quiet.iter().map(|(_, micros)| micros).sum::<u64>() < ENOUGH_US {
            return None;
        }
        let mut powers: Vec<u64> = self
            .quiet
            .iter()
            .map(|(milliwatts, _)| *milliwatts)
            .collect();
        powers.sort_unstable();
        powers.get(powers.len() / 4).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_power_is_believed_after_ten_quiet_seconds() {
        let mut idle = IdlePower::new(None);
        for _ in 0..9 {
            idle.learn(Microjoules(52_000_000), 1_000_000);
        }
        assert_eq!(idle.milliwatts(), None);
        idle.learn(Microjoules(90_000_000), 1_000_000);
        assert_eq!(idle.milliwatts(), Some(52_000));
        assert_eq!(IdlePower::new(Some(70_000)).milliwatts(), Some(70_000));
    }
}
