//! A settled job becomes an observation, and the law of its GPU learns from it: once.

use super::context::{Context, Failure};
use super::objects::Progress;
use super::world::{gpu_of, law_of};
use crate::api::{
    CarbonReservation, EnergyLaw, EnergyLawStatus, NamedValue, ReservationStatus, set_condition,
};
use crate::contract as c;
use crate::law::{Basis, Gpu, Joules, Law, Observation, Outcome, Workload};
use crate::node::{LedgerPage, PodEnergy};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;

/// UIDs that a law remembers, so that a crash between its write and the reservation's
/// does not make it learn twice.
const REMEMBERED: usize = 64;
const TRIES: usize = 5;

/// What became of the job as an observation, in words.
pub(super) async fn learn(
    context: &Context,
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    progress: Option<Progress>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<String, Failure> {
    let (gpu, run) = match observe(context, reservation, status, progress, pods) {
        Ok(observed) => observed,
        Err(reason) => {
            context.tallies.count(
                &c::OBSERVATIONS_REFUSED,
                vec![("reason", reason.to_owned())],
            );
            return Ok(reason.to_owned());
        }
    };
    let api: Api<EnergyLaw> = Api::all(context.client.clone());
    let laws = context.caches.world.laws.all();
    let name = laws
        .iter()
        .find(|law| gpu_of(law).as_ref() == Some(&gpu))
        .map(|law| law.name_any());
    let Some(name) = name else {
        return Ok("NoLawForThisGpu".to_owned());
    };
    for _ in 0..TRIES {
        let object = context.call(api.get(&name)).await?;
        let uid = &reservation.spec.workload.uid;
        if object
            .status
            .as_ref()
            .is_some_and(|status| status.learnt.contains(uid))
        {
            return Ok("Learnt".to_owned());
        }
        let mut law = law_of(&object);
        let words = match law.learn(&run) {
            Outcome::Refused(why) => return Ok(format!("Refused: {why}")),
            Outcome::Learnt(update) => format!(
                "Learnt: the prediction was off by {:.1} %",
                update.error * 100.0
            ),
        };
        context.check_leading()?;
        let mut written = object.clone();
        written.metadata.managed_fields = None;
        written.status = Some(law_status(context, &object, &law, uid));
        match context
            .call(api.replace_status(&name, &PostParams::default(), &written))
            .await
        {
            Ok(_) => {
                crate::serve::crash::point("after-learning");
                return Ok(words);
            }
            Err(Failure::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Failure::Conflict)
}

/// The run as the law sees it, or why it cannot be learnt from.
fn observe(
    context: &Context,
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    progress: Option<Progress>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<(Gpu, Observation), &'static str> {
    if status.estimated {
        return Err("NodeLost");
    }
    if status.pods.iter().any(|pod| pod.before_millijoules > 0) {
        return Err("BeganBeforeTheBudget");
    }
    if progress != Some(Progress::Succeeded) {
        return Err("NotSucceeded");
    }
    let spec = &reservation.spec;
    if i64::try_from(status.pods.len()) != Ok(spec.pods) {
        return Err("RetriedOrUnmetered");
    }
    if pods.iter().any(|(_, pod)| pod.shared) {
        return Err("SharedGpu");
    }
    let mut models: Vec<Gpu> = pods
        .iter()
        .flat_map(|(_, pod)| &pod.models)
        .filter_map(|m| Gpu::parse(m))
        .collect();
    models.sort();
    models.dedup();
    let [gpu] = models.as_slice() else {
        return Err("MixedOrUnknownGpu");
    };
    let annotations: BTreeMap<String, String> = spec
        .parameters
        .iter()
        .map(|(k, v)| (format!("jouleward.dev/{k}"), v.clone()))
        .collect();
    let oracle = context.oracle();
    let workload = Workload::from_annotations(&annotations, &oracle.catalogue)
        .map_err(|_| "MissingParameters")?;
    let small = |n: i64| u32::try_from(n).unwrap_or(1);
    let (_, features) = oracle
        .catalogue
        .job(&workload, small(spec.pods), small(spec.gpus))
        .ok_or("UnknownModel")?;
    let energy = Joules(status.measured_millijoules as f64 / 1000.0);
    // The exporter bills all that the board drew.
    let basis = Basis::Gross;
    Ok((
        gpu.clone(),
        Observation {
            features,
            energy,
            basis,
        },
    ))
}

fn law_status(context: &Context, object: &EnergyLaw, law: &Law, uid: &str) -> EnergyLawStatus {
    let mut status = EnergyLawStatus {
        state: law.save(),
        last_fit: Some(context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ..describe(context, object, law)
    };
    status.learnt.push(uid.to_owned());
    let excess = status.learnt.len().saturating_sub(REMEMBERED);
    status.learnt.drain(..excess);
    status
}

/// A law's status for people.
pub(super) fn describe(context: &Context, object: &EnergyLaw, law: &Law) -> EnergyLawStatus {
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = object.metadata.generation.unwrap_or(0);
    status.observations = i64::try_from(law.observations).unwrap_or(i64::MAX);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an error of at most 10 000 permille"
    )]
    let permille = law
        .recent_error()
        .map(|error| (error * 1000.0).round() as i64);
    status.error_permille = permille.unwrap_or(0);
    status.error = law.recent_error().map_or("none yet".to_owned(), |error| {
        format!("{:.1} %", error * 100.0)
    });
    let value = |name: &str, mean: f64| format!("{:.4}", law.parameter(name).unwrap_or(mean));
    status.parameters = law
        .parameters()
        .map(|(name, mean)| NamedValue {
            name: name.to_owned(),
            value: value(name, mean),
        })
        .collect();
    let (yes, reason, message) = match super::world::law_problem(object) {
        None => (
            true,
            "Usable",
            "predictions are made with this law".to_owned(),
        ),
        Some(problem) => (false, "InvalidState", problem.to_string()),
    };
    let condition = context.condition("Ready", yes, reason, message, object.metadata.generation);
    set_condition(&mut status.conditions, condition);
    status
}
