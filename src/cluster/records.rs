//! What a reservation records of the decision that made it. Pure.

use super::objects::Work;
use super::verdicts::{Forecast, Terms, explain};
use crate::api::{
    CarbonReservation, CarbonReservationSpec, IntensityUsed, LawUsed, ReservedFor, WorkloadRef,
};
use crate::budget::{Estimate, Oracle, decide};
use jiff::{SignedDuration, Timestamp};

/// The record of a grant: what was asked, of which law and grid, and the arithmetic.
pub(super) fn reservation(
    work: &Work,
    budgets: &[ReservedFor],
    forecast: &Forecast,
    terms: &[Terms],
    oracle: &Oracle,
    adopted: bool,
    now: Timestamp,
) -> CarbonReservation {
    let quantile = terms.iter().map(|t| t.policy.quantile).fold(0.5, f64::max);
    let estimate = forecast.estimate(oracle, quantile).ok();
    let verdict = terms.first().map_or(String::new(), |terms| {
        let need = forecast.need(oracle, terms.policy.quantile);
        let name = format!("{}/{}", work.namespace, terms.name);
        let verdict = decide(
            &name,
            &terms.policy,
            &terms.totals,
            need,
            SignedDuration::ZERO,
            now,
        );
        let verdict = explain(&verdict, forecast, oracle);
        match &work.break_glass {
            Some(why) => format!("not asked (break-glass: {why}); {verdict}"),
            None => verdict,
        }
    });
    let (intensity, pue) = estimate.as_ref().map_or_else(
        || oracle.fallback.clone(),
        |e| (e.intensity.clone(), e.pue.clone()),
    );
    let mut reservation = CarbonReservation::new(
        &CarbonReservation::name_of(work.kind.as_str(), &work.uid),
        CarbonReservationSpec {
            workload: WorkloadRef {
                kind: work.kind.as_str().to_owned(),
                name: work.name.clone(),
                uid: work.uid.clone(),
            },
            budgets: budgets.to_vec(),
            reserved_milligrams: budgets
                .iter()
                .map(|part| part.milligrams)
                .max()
                .unwrap_or(0),
            predicted_millijoules: estimate
                .as_ref()
                .map_or(0, |e| whole(e.prediction.median.0 * 1000.0)),
            predicted_uncertainty_permille: estimate
                .as_ref()
                .map_or(0, |e| whole(e.prediction.relative_90() * 1000.0)),
            parameters: work.parameters(),
            pods: i64::from(work.pods),
            gpus: i64::from(work.gpus),
            law: estimate.as_deref().map(law_used).unwrap_or_default(),
            intensity: IntensityUsed {
                zone: intensity.zone.clone(),
                milligrams_per_kwh: whole(intensity.grams_per_kwh * 1000.0),
                source: intensity.source.clone(),
                signal: format!("{:?}", intensity.signal),
                basis: format!("{:?}", intensity.basis),
                kind: format!("{:?}", intensity.kind),
            },
            pue_permille: whole(pue.value * 1000.0),
            adopted,
            verdict,
        },
    );
    reservation.metadata.namespace = Some(work.namespace.clone());
    reservation
}

fn law_used(estimate: &Estimate) -> LawUsed {
    LawUsed {
        gpu: estimate.gpu.to_string(),
        form: estimate.form.as_str().to_owned(),
        observations: i64::try_from(estimate.observations).unwrap_or(i64::MAX),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn whole(value: f64) -> i64 {
    value.round() as i64
}
