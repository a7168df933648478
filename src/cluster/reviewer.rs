//! Answers reviews over HTTP, and counts what it answered.

use super::review::{Outcome, Snapshot, Step, answer};
use crate::clock;
use crate::contract::{self as c};
use crate::serve::exposition::{Family, Histogram, LATENCY, Value};
use crate::serve::http::{Answer, Call};
use arc_swap::ArcSwap;
use hyper::{Method, StatusCode};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

const JSON: &str = "application/json";

/// The snapshot that reviews are answered from, and what became of them.
#[derive(Debug)]
pub struct Reviewer {
    pub snapshot: ArcSwap<Snapshot>,
    counted: Mutex<Counted>,
}

/// Counts by labels; no label is copied but the first time.
#[derive(Debug, Default)]
struct Counted {
    /// By webhook, kind, decision.
    reviews: BTreeMap<(&'static str, &'static str, &'static str), u64>,
    seconds: BTreeMap<&'static str, Histogram>,
    /// By namespace, reason.
    verdicts: HashMap<String, BTreeMap<&'static str, u64>>,
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

impl Reviewer {
    /// Answers from this snapshot until another is stored.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            counted: Mutex::default(),
        }
    }

    /// Answers one call to `/mutate` or `/validate`.
    pub fn answer(&self, call: &Call) -> Answer {
        let step = match call.path.as_str() {
            "/mutate" => Step::Mutate,
            "/validate" => Step::Validate,
            _ => return Answer::not_found(),
        };
        if call.method != Method::POST {
            return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n");
        }
        if let Some(other) = call.content_type.as_deref().filter(|kind| *kind != JSON) {
            let kind: String = other.chars().take(80).collect();
            let why = format!("content type {kind:?}: an AdmissionReview comes as {JSON}\n");
            return Answer::text(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
        }
        let began = clock::monotonic_micros();
        let answered = answer(step, &call.body, &self.snapshot.load(), clock::now());
        let seconds = clock::monotonic_micros().saturating_sub(began) as f64 / 1e6;
        self.count(step, answered.as_ref().ok().map(|(_, o)| o), seconds);
        match answered {
            Ok((body, _)) => Answer::json(body),
            Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    fn count(&self, step: Step, outcome: Option<&Outcome>, seconds: f64) {
        let Ok(mut counted) = self.counted.lock() else {
            return;
        };
        let webhook = step.as_str();
        let histogram = counted.seconds.entry(webhook);
        histogram
            .or_insert_with(|| Histogram::new(LATENCY))
            .observe(seconds);
        let (kind, decision) = outcome.map_or(("unknown", "error"), |o| (o.kind, o.decision));
        *counted
            .reviews
            .entry((webhook, kind, decision))
            .or_default() += 1;
        if let Some(outcome) = outcome.filter(|_| step == Step::Validate) {
            if !counted.verdicts.contains_key(&outcome.namespace) {
                let namespace = outcome.namespace.clone();
                counted.verdicts.insert(namespace, BTreeMap::new());
            }
            if let Some(verdicts) = counted.verdicts.get_mut(&outcome.namespace) {
                *verdicts.entry(outcome.reason).or_default() += 1;
            }
        }
    }

    /// What was counted, for a scrape.
    pub(super) fn families(&self) -> Vec<Family> {
        let (mut reviews, mut verdicts, mut seconds) = (
            Family::new(c::REVIEWS),
            Family::new(c::VERDICTS),
            Family::new(c::REVIEW_SECONDS),
        );
        if let Ok(counted) = self.counted.lock() {
            for ((webhook, kind, decision), count) in &counted.reviews {
                let labels = [("webhook", webhook), ("kind", kind), ("decision", decision)];
                let labels = labels.map(|(name, value)| (name, (*value).to_owned()));
                reviews.add(labels.to_vec(), *count as f64);
            }
            let sorted: BTreeMap<_, _> = counted.verdicts.iter().collect();
            for (namespace, reasons) in sorted {
                for (reason, count) in reasons {
                    let labels = vec![
                        ("namespace", namespace.clone()),
                        ("reason", (*reason).to_owned()),
                    ];
                    verdicts.add(labels, *count as f64);
                }
            }
            for (webhook, histogram) in &counted.seconds {
                let labels = vec![("webhook", (*webhook).to_owned())];
                let value = Value::Histogram(histogram.clone());
                seconds.series.push((labels, value));
            }
        }
        let families = [reviews, verdicts, seconds].into_iter();
        families.filter(|f| !f.series.is_empty()).collect()
    }
}
