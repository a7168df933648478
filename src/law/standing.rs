//! How each namespace's runs compare with the law: authors whose annotations do not fit what
//! they burn are told apart from a law that is wrong, and from a world that has moved.

use serde::{Deserialize, Serialize};

/// One namespace on one GPU product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub namespace: String,
    /// Running mean of ln(measured / predicted).
    pub off: f64,
    pub runs: u64,
    /// Runs on end that stood far from the others.
    pub far: u64,
    /// Number of the newest run, over all namespaces.
    pub at: u64,
}

/// Runs before a namespace is compared, and runs on end that flag it.
const RUNS: u64 = 3;
/// How far from the others a run must stand, in ln: a third more or less.
const FAR: f64 = 0.3;
/// The newest run's weight in the mean.
const WEIGHT: f64 = 0.34;
/// Runs of all namespaces after which one that is silent is no measure for others.
const RECENT: u64 = 40;
/// Namespaces remembered for each law.
const MOST: usize = 64;
/// A namespace is never charged less for what it says, nor more than this many times.
const FACTORS: std::ops::RangeInclusive<f64> = 1.0..=10.0;

/// All namespaces of one law.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Standings(pub Vec<Standing>);

impl Standings {
    /// Takes a run into a namespace's mean, whether the law learns from it or not.
    pub fn note(&mut self, namespace: &str, predicted: f64, measured: f64) {
        let off = (measured / predicted).ln();
        if !off.is_finite() {
            return;
        }
        let at = self.0.iter().map(|s| s.at).max().unwrap_or(0) + 1;
        let far = self
            .middle(namespace, at)
            .is_some_and(|middle| (off - middle).abs() > FAR);
        match self.0.iter_mut().find(|s| s.namespace == namespace) {
            Some(standing) => {
                let weight = (1.0 / (standing.runs as f64 + 1.0)).max(WEIGHT);
                standing.off += weight * (off - standing.off);
                standing.runs += 1;
                standing.far = if far { standing.far + 1 } else { 0 };
                standing.at = at;
            }
            None => self.0.push(Standing {
                namespace: namespace.to_owned(),
                off,
                runs: 1,
                far: u64::from(far),
                at,
            }),
        }
        if self.0.len() > MOST {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, s)| s.at);
            if let Some((place, _)) = oldest {
                self.0.remove(place);
            }
        }
    }

    /// Where the others stand that have run of late; `None` where there are none.
    fn middle(&self, namespace: &str, now: u64) -> Option<f64> {
        let mut others: Vec<f64> = self
            .0
            .iter()
            .filter(|s| s.namespace != namespace && s.runs >= RUNS && s.far < RUNS)
            .filter(|s| now.saturating_sub(s.at) <= RECENT)
            .map(|s| s.off)
            .collect();
        others.sort_by(f64::total_cmp);
        others.get(others.len().saturating_sub(1) / 2).copied()
    }

    /// True where a namespace's newest runs all stood apart from the others. Where there are
    /// no others, the law is what is wrong.
    pub fn is_suspect(&self, namespace: &str) -> bool {
        let own = self.0.iter().find(|s| s.namespace == namespace);
        own.is_some_and(|own| own.far >= RUNS)
    }

    /// The factor by which a suspect namespace's jobs are charged: what they burn beside what
    /// their annotations say, never less than once.
    pub fn factor(&self, namespace: &str) -> Option<f64> {
        let own = self.0.iter().find(|s| s.namespace == namespace)?;
        let factor = own.off.exp().clamp(*FACTORS.start(), *FACTORS.end());
        self.is_suspect(namespace).then_some(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(runs: &[(&str, f64)]) -> Standings {
        let mut standings = Standings::default();
        for (namespace, factor) in runs {
            standings.note(namespace, 100.0, 100.0 * factor);
        }
        standings
    }

    #[test]
    fn a_namespace_that_says_half_of_what_it_does_is_told_from_the_others() {
        let mut runs = vec![("honest", 1.0), ("honest", 1.1), ("honest", 0.9)];
        runs.extend([("liar", 2.0), ("liar", 2.1), ("liar", 1.9)]);
        let standings = told(&runs);
        let factor = standings.factor("liar").unwrap();
        assert!((1.8..2.2).contains(&factor), "{factor}");
        assert_eq!(standings.factor("honest"), None);
        assert_eq!(standings.factor("stranger"), None);
    }

    #[test]
    fn who_says_more_than_is_burned_is_told_and_charged_no_less() {
        let mut runs = vec![("honest", 1.0); 4];
        runs.extend([("modest", 0.1); 4]);
        let standings = told(&runs);
        assert!(standings.is_suspect("modest"));
        assert_eq!(standings.factor("modest"), Some(1.0));
    }

    #[test]
    fn a_world_that_moves_for_the_one_busy_namespace_is_no_lie() {
        let mut standings = told(&[("silent", 1.0); 5]);
        for _ in 0..60 {
            standings.note("busy", 100.0, 100.0);
        }
        for _ in 0..10 {
            standings.note("busy", 100.0, 180.0);
        }
        assert!(!standings.is_suspect("busy"));
    }

    #[test]
    fn where_all_are_off_alike_the_law_is_wrong_and_nobody_is_blamed() {
        let runs: Vec<(&str, f64)> = ["a", "b", "a", "b", "a", "b"].map(|n| (n, 1.6)).to_vec();
        let standings = told(&runs);
        assert_eq!((standings.factor("a"), standings.factor("b")), (None, None));
        assert_eq!(told(&[("alone", 3.0); 9]).factor("alone"), None);
    }

    #[test]
    fn who_mends_the_annotations_is_believed_again_within_five_runs() {
        let mut standings = told(&[("honest", 1.0); 4]);
        for _ in 0..20 {
            standings.note("liar", 100.0, 200.0);
        }
        let again = (1..=5).find(|_| {
            standings.note("liar", 100.0, 100.0);
            standings.factor("liar").is_none()
        });
        assert!(again.is_some());
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut standings = Standings::default();
        for n in 0..500 {
            standings.note(&format!("namespace-{n}"), 1.0, 1.0);
        }
        assert!(standings.0.len() <= MOST);
    }
}
