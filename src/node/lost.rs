//! Whether the GPUs are lost for good to this process: then it ends, and the kubelet starts
//! one that may have them again. Pure.

use std::collections::BTreeSet;

/// A library that its driver has outlived answers nothing else any more.
const STALE: &str = "driver_library_mismatch";
/// What every device answers once the container's device cgroup is gone.
const UNKNOWN: &str = "unknown";
/// NVML is initialised anew in between.
const LOOKS: u32 = 3;

/// How often in a row all devices failed, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Any device has answered this process: one that never had any has lost none.
    had: bool,
    stale: bool,
    unknown: u32,
}

impl Lost {
    /// Takes in one look at all devices, or a refused start of NVML: whether any answered, and
    /// the codes of calls that failed.
    pub(super) fn look(&mut self, answered: bool, codes: &BTreeSet<&'static str>) {
        if answered {
            *self = Self {
                had: true,
                ..Self::default()
            };
        } else if !self.had {
            // Another process would find the same.
        } else if codes.contains(STALE) {
            self.stale = true;
        } else if codes.len() == 1 && codes.contains(UNKNOWN) {
            self.unknown += 1;
        }
    }

    /// Why nothing but another process can help, if so.
    pub(super) fn for_good(&self) -> Option<&'static str> {
        if self.stale {
            return Some("the driver was upgraded under this process, whose NVML library is stale");
        }
        (self.unknown >= LOOKS).then_some(
            "every device answers an unknown error, also after NVML was initialised anew: \
             the container has lost its devices",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(looks: &[(bool, &[&'static str])]) -> bool {
        let mut lost = Lost {
            had: true,
            ..Lost::default()
        };
        for (answered, codes) in looks {
            lost.look(*answered, &codes.iter().copied().collect());
        }
        lost.for_good().is_some()
    }

    #[test]
    fn only_a_stale_library_and_lasting_unknown_errors_are_for_good() {
        assert!(after(&[(false, &[STALE])]));
        assert!(!after(&[(true, &[STALE])]), "one of several");
        let unknown: (bool, &[&str]) = (false, &[UNKNOWN]);
        assert!(after(&[unknown; 3]));
        assert!(!after(&[unknown, unknown, (true, &[]), unknown]));
        let away: (bool, &[&str]) = (false, &["gpu_is_lost"]);
        assert!(!after(&[away; 9]), "it may come back");
        let mut new = Lost::default();
        new.look(false, &BTreeSet::from([STALE]));
        assert_eq!(new.for_good(), None, "it never had any");
    }
}
