//! From a piece of work and a namespace's budgets to verdicts with their words: the same
//! path for the webhook, the controller and the CLI.

use super::objects::Work;
use crate::api::CarbonBudget;
use crate::budget::{
    Alternative, Budget, Decision, Estimate, Mode, Need, OnUnknown, Oracle, Policy, Request,
    Totals, Verdict, alternatives, decide,
};
use crate::carbon::Milligrams;
use crate::law::{Stack, Workload};
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A budget that makes sense.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) name: String,
    pub(super) policy: Policy,
    pub(super) totals: Totals,
    /// What was charged by day, where it was asked of the ledger.
    pub(super) days: BTreeMap<Date, Milligrams>,
}

impl Terms {
    /// `None` where the spec makes no sense: it is shown as not ready and binds nobody.
    pub(super) fn of(budget: &CarbonBudget) -> Option<Self> {
        let policy = Policy::try_from(&budget.spec).ok()?;
        let status = budget.status.clone().unwrap_or_default();
        let carried = Milligrams(status.carried_milligrams);
        let totals = Totals {
            limit: policy.limit + carried,
            carried,
            grace: policy.grace,
            consumed: Milligrams(status.consumed_milligrams),
            reserved: Milligrams(status.reserved_milligrams),
            ..Totals::default()
        };
        Some(Self {
            name: budget.name_any(),
            policy,
            totals,
            days: BTreeMap::new(),
        })
    }

    pub(super) fn budget(&self) -> Budget {
        Budget {
            name: self.name.clone(),
            policy: self.policy.clone(),
            totals: self.totals,
            days: self.days.clone(),
        }
    }
}

/// The strictest mode of a namespace's budgets.
pub(super) fn strictest(terms: &[Terms]) -> Option<Mode> {
    terms.iter().map(|terms| terms.policy.mode).max()
}

/// What can be said of a piece of work before it runs.
#[derive(Debug, Clone)]
pub(super) struct Forecast {
    /// What was asked of the oracle; `None` where parameters are missing or wrong.
    pub(super) request: Option<Request>,
    /// Why nothing can be predicted.
    pub(super) problem: Option<String>,
    /// The estimate at the quantile that was asked first: nearly always the only one.
    first: OnceLock<(f64, Result<Arc<Estimate>, String>)>,
}

/// Reads the parameters.
pub(super) fn forecast(work: &Work, oracle: &Oracle) -> Forecast {
    match Workload::from_annotations(&work.annotations, &oracle.catalogue) {
        Ok(workload) => Forecast {
            request: Some(Request {
                namespace: work.namespace.clone(),
                workload,
                pods: work.pods,
                gpus: work.gpus,
                eligible: work.eligible.clone(),
                placement: work.placement.clone(),
                stack: Stack::default(),
            }),
            problem: None,
            first: OnceLock::new(),
        },
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Forecast {
                request: None,
                problem: Some(lines.join("; ")),
                first: OnceLock::new(),
            }
        }
    }
}

impl Forecast {
    /// The estimate at a budget's quantile, or why there is none.
    pub(super) fn estimate(&self, oracle: &Oracle, quantile: f64) -> Result<Arc<Estimate>, String> {
        let first = self
            .first
            .get_or_init(|| (quantile, self.ask(oracle, quantile)));
        if first.0.to_bits() == quantile.to_bits() {
            first.1.clone()
        } else {
            self.ask(oracle, quantile)
        }
    }

    fn ask(&self, oracle: &Oracle, quantile: f64) -> Result<Arc<Estimate>, String> {
        let request = self
            .request
            .as_ref()
            .ok_or_else(|| self.problem.clone().unwrap_or_default())?;
        oracle
            .estimate(request, quantile)
            .map(Arc::new)
            .map_err(|error| error.to_string())
    }

    /// What a budget is asked for.
    pub(super) fn need(&self, oracle: &Oracle, quantile: f64) -> Need {
        match self.estimate(oracle, quantile) {
            Ok(estimate) => Need::Known(estimate.footprint.charged),
            Err(why) => Need::Unknown(why),
        }
    }
}

/// A verdict with its words.
#[derive(Debug, Clone)]
pub(super) struct Spoken {
    pub(super) verdict: Verdict,
    /// Empty where there is nothing to say.
    pub(super) message: String,
}

/// What one budget says of a piece of work that has waited for `waited`.
pub(super) fn judge(
    namespace: &str,
    terms: &Terms,
    forecast: &Forecast,
    oracle: &Oracle,
    waited: SignedDuration,
    now: Timestamp,
) -> Spoken {
    let quantile = terms.policy.quantile;
    let need = forecast.need(oracle, quantile);
    let name = format!("{namespace}/{}", terms.name);
    let verdict = decide(&name, &terms.policy, &terms.totals, need, waited, now);
    let message = if verdict.decision == Decision::Admit {
        String::new()
    } else {
        explain(&verdict, forecast, oracle)
    };
    Spoken { verdict, message }
}

/// A verdict in words, with what would fit where it is no.
pub(super) fn explain(verdict: &Verdict, forecast: &Forecast, oracle: &Oracle) -> String {
    let estimate = forecast.estimate(oracle, verdict.quantile).ok();
    let fits: Vec<Alternative> = match (&forecast.request, verdict.decision) {
        (Some(request), Decision::Hold | Decision::Reject) => {
            alternatives(oracle, request, verdict.quantile, verdict.room)
        }
        _ => Vec::new(),
    };
    verdict.message(estimate.as_deref(), &fits)
}

/// The worst of several verdicts: a refusal, else a hold, else the first.
pub(super) fn worst(spoken: Vec<Spoken>) -> Option<Spoken> {
    let rank = |decision| match decision {
        Decision::Admit => 0,
        Decision::Hold => 1,
        Decision::Reject => 2,
    };
    spoken
        .into_iter()
        .rev()
        .max_by_key(|s| rank(s.verdict.decision))
}

/// The warning that a policy wants where nothing can be predicted.
pub(super) fn parameter_warning(
    terms: &[Terms],
    forecast: &Forecast,
    oracle: &Oracle,
) -> Option<String> {
    let lenient = terms
        .iter()
        .find(|terms| terms.policy.on_unknown == OnUnknown::Warn)?;
    let problem = forecast.estimate(oracle, lenient.policy.quantile).err()?;
    Some(format!(
        "jouleward: not predicted, charged as measured: {problem}"
    ))
}
