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
}

/// Runs before anything is said of a namespace.
const RUNS: u64 = 3;
/// How far from the others a namespace must stand, in ln: a third more or less.
const FAR: f64 = 0.3;
/// The newest run's weight in the mean, so that a namespace that mends its annotations is
/// believed again within a few runs.
const WEIGHT: f64 = 0.34;
/// Namespaces remembered for each law.
const MOST: usize = 64;

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
        match self.0.iter_mut().find(|s| s.namespace == namespace) {
            Some(standing) => {
                let weight = (1.0 / (standing.runs as f64 + 1.0)).max(WEIGHT);
                standing.off += weight * (off - standing.off);
                standing.runs += 1;
            }
            None => self.0.push(Standing {
                namespace: namespace.to_owned(),
                off,
                runs: 1,
            }),
        }
        if self.0.len() > MOST {
            let fewest = self.0.iter().enumerate().min_by_key(|(_, s)| s.runs);
            if let Some((place, _)) = fewest {
                self.0.remove(place);
            }
        }
    }

    /// The factor by which a namespace's jobs cost more than their annotations say, where it
    /// stands apart from the others. Where there are no others, the law is what is wrong.
    pub fn factor(&self, namespace: &str) -> Option<f64> {
        let own = self.0.iter().find(|s| s.namespace == namespace)?;
        let mut others: Vec<f64> = self
            .0
            .iter()
            .filter(|s| s.namespace != namespace && s.runs >= RUNS)
            .map(|s| s.off)
            .collect();
        if own.runs < RUNS || others.is_empty() {
            return None;
        }
        others.sort_by(f64::total_cmp);
        let middle = others[(others.len() - 1) / 2];
        ((own.off - middle).abs() > FAR).then(|| own.off.exp())
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
