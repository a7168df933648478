//! Admission reviews: a pure function of the review and a snapshot. No call goes out, no
//! state is kept: a dry run is answered like any other and changes nothing.

use super::admission::{Answered, Change, Put, Request, Response, Review, ReviewError};
use super::objects::{Kind, Owner, Work};
use super::verdicts::{
    Forecast, Spoken, Terms, forecast, judge, parameter_warning, strictest, worst,
};
use super::wire::Lite;
use super::world::{NodeInfo, Objects};
use crate::api::{CarbonBudget, EnergyLaw};
use crate::budget::{Decision, Mode, Oracle, Reason, WhenUnavailable};
use crate::contract::{GATE, GRANTED, HOLD, PREDICTION, PRODUCT_LABEL, REFUSED};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What reviews are answered from.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) oracle: Oracle,
    /// Budgets by namespace, by name.
    pub(super) budgets: HashMap<String, Vec<Terms>>,
    /// True while no leader is at work.
    pub(super) leader_stale: bool,
}

impl Snapshot {
    /// A snapshot of these budgets and laws, in a cluster with nodes of these products.
    pub fn of(budgets: &[CarbonBudget], laws: Vec<EnergyLaw>, products: &[&str]) -> Self {
        let node = |(number, product): (usize, &&str)| NodeInfo {
            name: format!("node-{number}"),
            labels: BTreeMap::from([(PRODUCT_LABEL.to_owned(), (*product).to_owned())]).into(),
        };
        let objects = Objects {
            laws: laws.into_iter().map(Arc::new).collect(),
            nodes: products.iter().enumerate().map(node).collect(),
            ..Objects::default()
        };
        Self {
            oracle: objects.oracle(),
            budgets: by_namespace(budgets.iter()),
            leader_stale: false,
        }
    }
}

/// Budgets that make sense, by namespace.
pub(super) fn by_namespace<'a>(
    budgets: impl Iterator<Item = &'a CarbonBudget>,
) -> HashMap<String, Vec<Terms>> {
    let mut found: HashMap<String, Vec<Terms>> = HashMap::new();
    for budget in budgets {
        if let (Some(namespace), Some(terms)) = (budget.namespace(), Terms::of(budget)) {
            found.entry(namespace).or_default().push(terms);
        }
    }
    found
}

/// What was decided, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Job, Pod or other.
    pub kind: &'static str,
    pub namespace: String,
    /// allowed, held, warned, denied or error.
    pub decision: &'static str,
    pub reason: &'static str,
}

/// Which of the two webhooks is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Mutate,
    Validate,
}

/// Controllers of the cluster whose pods their owners are charged for: the controller
/// manager with an account for each controller, or with one for all.
const POD_MAKERS: &str = "system:serviceaccount:kube-system:";
const POD_MAKER: &str = "system:kube-controller-manager";

/// Answers one review.
///
/// # Errors
/// A body that is no review of the version that is spoken here.
pub fn answer(
    step: Step,
    body: &[u8],
    snapshot: &Snapshot,
    now: Timestamp,
) -> Result<(Vec<u8>, Outcome), ReviewError> {
    let Review { mut request, .. } = Review::read(body)?;
    let object = request.object.take();
    let (response, outcome) = decide_request(step, &request, object, snapshot, now);
    Ok((serde_json::to_vec(&Answered::of(response))?, outcome))
}

fn decide_request<'r>(
    step: Step,
    request: &'r Request,
    object: Option<Lite>,
    snapshot: &Snapshot,
    now: Timestamp,
) -> (Response<'r>, Outcome) {
    let mut response = Response {
        uid: &request.uid,
        allowed: true,
        status: None,
        patch: None,
        patch_type: None,
        warnings: Vec::new(),
        audit_annotations: BTreeMap::new(),
    };
    let mut outcome = Outcome {
        kind: "other",
        namespace: request.namespace.clone(),
        decision: "allowed",
        reason: "NotOurs",
    };
    let kind = match request.kind.kind.as_str() {
        "Job" => Kind::Job,
        "Pod" => Kind::Pod,
        _ => return (response, outcome),
    };
    outcome.kind = kind.as_str();
    let Some(object) = object else {
        return (response, outcome);
    };
    let written = Written::of(&object);
    let Some(work) = Work::of(kind, object) else {
        return (response, outcome);
    };
    let Some(terms) = snapshot
        .budgets
        .get(&request.namespace)
        .filter(|terms| !terms.is_empty())
    else {
        return (response, outcome);
    };
    if kind == Kind::Pod && charged_to_owner(&work, request) {
        outcome.reason = "OwnerCharged";
        return (response, outcome);
    }
    let case = Case {
        request,
        written,
        work: &work,
        terms,
        snapshot,
        now,
    };
    match step {
        Step::Mutate => case.mutate(&mut response, &mut outcome),
        Step::Validate => case.validate(&mut response, &mut outcome),
    }
    (response, outcome)
}

/// "My owner is charged" is believed only of a pod that a controller of the cluster made;
/// a forged owner reference makes a pod of its own.
fn charged_to_owner(work: &Work, request: &Request) -> bool {
    let user = &request.user_info.username;
    let controller = user == POD_MAKER || user.starts_with(POD_MAKERS);
    // A kubelet shows what it runs already.
    let mirror = user.starts_with("system:node:");
    mirror || (work.owner != Owner::Nobody && controller)
}

/// What a patch has to know of the object as it came.
struct Written {
    /// Without any annotation.
    bare: bool,
    /// Our stamps that the author brought along.
    stamps: Vec<&'static str>,
    /// With scheduling gates.
    gated: bool,
}

impl Written {
    fn of(object: &Lite) -> Self {
        let annotations = &object.metadata.annotations;
        let stamps = [HOLD, GRANTED, REFUSED].into_iter();
        Self {
            bare: annotations.is_empty(),
            stamps: stamps.filter(|s| annotations.contains_key(*s)).collect(),
            gated: !object.spec.pod.scheduling_gates.is_empty(),
        }
    }
}

struct Case<'a> {
    request: &'a Request,
    written: Written,
    work: &'a Work,
    terms: &'a [Terms],
    snapshot: &'a Snapshot,
    now: Timestamp,
}

impl Case<'_> {
    /// Nothing is held while nobody could release it, unless the budget says so.
    fn holds(&self) -> bool {
        let enforcing: Vec<&Terms> = self
            .terms
            .iter()
            .filter(|t| t.policy.mode == Mode::Enforce)
            .collect();
        let hold_anyway = enforcing
            .iter()
            .any(|t| t.policy.when_unavailable == WhenUnavailable::Hold);
        !enforcing.is_empty() && (!self.snapshot.leader_stale || hold_anyway)
    }

    fn mutate(&self, response: &mut Response<'_>, outcome: &mut Outcome) {
        let mut patch: Vec<Change> = Vec::new();
        if self.request.operation == "CREATE" {
            let forecast = forecast(self.work, &self.snapshot.oracle);
            self.stamp(&forecast, &mut patch);
        }
        // Lifting a hold is the guard's to refuse, in words; to restore it here in silence
        // would only look like success.
        let was_held = self
            .request
            .old_object
            .as_ref()
            .is_some_and(|old| old.metadata.annotations.contains_key(HOLD));
        let released = self.request.operation == "UPDATE" && (self.work.granted || was_held);
        let hold = self.holds()
            && !self.work.author_suspended
            && !released
            && self.work.node.is_none()
            && self.work.break_glass.is_none();
        outcome.reason = "Stamped";
        if hold {
            self.hold(&mut patch);
            outcome.decision = "held";
            outcome.reason = "WaitingForBudget";
        }
        if !patch.is_empty() {
            let bytes = serde_json::to_vec(&patch).unwrap_or_default();
            response.patch = Some(STANDARD.encode(bytes));
            response.patch_type = Some("JSONPatch");
        }
    }

    /// The prediction, and no stamp that the author brought along.
    fn stamp(&self, forecast: &Forecast, patch: &mut Vec<Change>) {
        if self.written.bare {
            patch.push(Change::add("/metadata/annotations", Put::Nothing {}));
        }
        let stamps = self.written.stamps.iter();
        patch.extend(stamps.map(|stamp| Change::remove(annotation_path(stamp))));
        let text = self.prediction(forecast);
        patch.push(Change::add(annotation_path(PREDICTION), Put::Text(text)));
    }

    fn prediction(&self, forecast: &Forecast) -> String {
        let quantile = self
            .terms
            .iter()
            .map(|t| t.policy.quantile)
            .fold(0.0, f64::max);
        match forecast.estimate(&self.snapshot.oracle, quantile) {
            Ok(estimate) => format!(
                "{} ±{:.0} %, {} CO2e (p{:.0} {}); {}",
                estimate.prediction.median,
                estimate.prediction.relative_90() * 100.0,
                estimate.footprint.median,
                quantile * 100.0,
                estimate.footprint.charged,
                estimate.provenance()
            ),
            Err(why) => format!("none: {why}"),
        }
    }

    fn hold(&self, patch: &mut Vec<Change>) {
        match self.work.kind {
            Kind::Job => {
                if self.written.bare && patch.is_empty() {
                    patch.push(Change::add("/metadata/annotations", Put::Nothing {}));
                }
                patch.push(Change::add("/spec/suspend", Put::Switch(true)));
                let at = self.now.to_string();
                patch.push(Change::add(annotation_path(HOLD), Put::Text(at)));
            }
            Kind::Pod => {
                if self.work.held {
                    return;
                }
                if !self.written.gated {
                    patch.push(Change::add("/spec/schedulingGates", Put::List([])));
                }
                let gate = Put::Named { name: GATE };
                patch.push(Change::add("/spec/schedulingGates/-", gate));
            }
        }
    }

    /// Whoever may break the glass is known to the API server: its policy refuses all others.
    fn break_glass(&self, why: &str, response: &mut Response<'_>, outcome: &mut Outcome) {
        outcome.reason = Reason::BreakGlass.as_str();
        let said = format!("jouleward: break-glass: neither held nor refused, and charged: {why}");
        response.warnings.push(said);
        response
            .audit_annotations
            .insert("break-glass", why.to_owned());
    }

    fn validate(&self, response: &mut Response<'_>, outcome: &mut Outcome) {
        if let Some(why) = &self.work.break_glass {
            self.break_glass(why, response, outcome);
            return;
        }
        let oracle = &self.snapshot.oracle;
        let forecast = forecast(self.work, oracle);
        let spoken = self.terms.iter().map(|terms| {
            (
                terms,
                judge(
                    &self.request.namespace,
                    terms,
                    &forecast,
                    oracle,
                    SignedDuration::ZERO,
                    self.now,
                ),
            )
        });
        let (enforced, shown): (Vec<_>, Vec<_>) =
            spoken.partition(|(terms, _)| terms.policy.mode == Mode::Enforce && self.holds());
        response
            .warnings
            .extend(parameter_warning(self.terms, &forecast, oracle));
        for (terms, spoken) in &shown {
            if terms.policy.mode != Mode::Audit && spoken.verdict.decision != Decision::Admit {
                outcome.decision = "warned";
                response.warnings.push(format!(
                    "jouleward ({:?}): {}",
                    terms.policy.mode, spoken.message
                ));
            }
        }
        outcome.reason = shown
            .first()
            .map_or("Fits", |(_, s)| s.verdict.reason.as_str());
        let Some(spoken) = worst(enforced.into_iter().map(|(_, spoken)| spoken).collect()) else {
            if strictest(self.terms) == Some(Mode::Enforce) {
                response.warnings.push(
                    "jouleward: no controller leads; the job is not held, and charged".to_owned(),
                );
            }
            return;
        };
        outcome.reason = spoken.verdict.reason.as_str();
        if self.work.node.is_some() {
            // Nothing would keep it from running before the ledger has set its grams aside.
            deny(
                response,
                outcome,
                "a pod that names its node cannot be held for its carbon budget: leave \
                 spec.nodeName out, and use a node selector",
            );
            return;
        }
        self.enforce(&spoken, response, outcome);
    }

    fn enforce(&self, spoken: &Spoken, response: &mut Response<'_>, outcome: &mut Outcome) {
        match spoken.verdict.decision {
            Decision::Admit => {}
            Decision::Hold => {
                outcome.decision = "held";
                response
                    .warnings
                    .push(format!("jouleward: held: {}", spoken.message));
            }
            Decision::Reject => deny(response, outcome, &spoken.message),
        }
    }
}

fn deny(response: &mut Response<'_>, outcome: &mut Outcome, message: &str) {
    outcome.decision = "denied";
    response.allowed = false;
    response.status = Some(json!({
        "status": "Failure",
        "code": 403,
        "reason": "CarbonBudgetExceeded",
        "message": message,
    }));
}

/// JSON pointer of an annotation.
pub(super) fn annotation_path(name: &str) -> String {
    let mut path = String::with_capacity(64);
    path.push_str("/metadata/annotations/");
    for letter in name.chars() {
        match letter {
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            other => path.push(other),
        }
    }
    path
}
