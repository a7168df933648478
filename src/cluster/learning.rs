//! A settled job becomes an observation, and the law of its GPU learns from it: once.

use super::context::{Context, Failure};
use super::objects::{Progress, Work};
use super::world::{gpu_of, law_of};
use crate::api::{
    CarbonReservation, Condition, EnergyLaw, EnergyLawStatus, NamedValue, ReservationStatus,
    set_condition,
};
use crate::contract as c;
use crate::law::workload::IMAGES_DONE;
use crate::law::{Basis, Gpu, Joules, Law, Observation, Outcome, StateError, Update, Workload};
use crate::node::{LedgerPage, PodEnergy};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// UIDs that a law remembers, so that a crash between its write and the reservation's
/// does not make it learn twice.
const REMEMBERED: usize = 64;
const TRIES: usize = 5;
/// Runs of a model before a namespace's runs of it are compared with others'.
const RUNS_TO_COMPARE: u64 = 3;

/// A finished job, as it is learnt from.
struct Lesson<'a> {
    reservation: &'a CarbonReservation,
    namespace: String,
    run: Observation,
}

/// What became of the job as an observation, in words.
pub(super) async fn learn(
    context: &Context,
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    work: Option<&Work>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<String, Failure> {
    let (gpu, run) = match observe(context, reservation, status, work, pods) {
        Ok(observed) => observed,
        Err(reason) => return Ok(refuse(context, reason)),
    };
    let laws = context.caches.world.laws.all();
    let of_product = laws.iter().find(|law| gpu_of(law).as_ref() == Some(&gpu));
    let Some(name) = of_product.map(|law| law.name_any()) else {
        return Ok(refuse(context, "NoLawForThisGpu"));
    };
    let lesson = Lesson {
        reservation,
        namespace: reservation.namespace().unwrap_or_default(),
        run,
    };
    for _ in 0..TRIES {
        match teach(context, &name, &lesson).await {
            Err(Failure::Conflict) => {}
            done => return done,
        }
    }
    Err(Failure::Conflict)
}

fn refuse(context: &Context, reason: &str) -> String {
    let labels = vec![("reason", reason.to_owned())];
    context.tallies.count(&c::OBSERVATIONS_REFUSED, labels);
    reason.to_owned()
}

/// One try: the law as it stands learns, and is written where nobody else wrote in between.
async fn teach(context: &Context, name: &str, lesson: &Lesson<'_>) -> Result<String, Failure> {
    let api: Api<EnergyLaw> = Api::all(context.client.clone());
    let object = context.call(api.get(name)).await?;
    let uid = &lesson.reservation.spec.workload.uid;
    let before = object.status.clone().unwrap_or_default();
    if before.learnt.contains(uid) {
        return Ok("Learnt".to_owned());
    }
    if let Err(StateError::Newer(version)) = Law::load(&before.state) {
        // A newer program's law is not ours to write over.
        refuse(context, "NewerLaw");
        return Ok(format!(
            "NewerLaw: its state has version {version}; it is left as it is"
        ));
    }
    let mut law = law_of(&object);
    if law.observations == 0 {
        // It begins where its predictions did: with what another product has taught.
        let others = context.caches.world.laws.all();
        let others: Vec<Law> = others.iter().map(|other| law_of(other)).collect();
        law = Law::for_product(law.form, &law.gpu, &others);
    }
    let predicted = law.predict(&lesson.run.features);
    let mut standings = before.standings();
    // A model that few have run may be what is off: that is the law's to learn.
    if predicted.runs_of_model >= RUNS_TO_COMPARE {
        standings.note(&lesson.namespace, predicted.median.0, lesson.run.energy.0);
    }
    let suspect = standings.factor(&lesson.namespace);
    let taught = match suspect {
        // Known to be off by so much: it would only drag the others' law along.
        Some(_) => None,
        None => match law.learn(&lesson.run) {
            Outcome::Refused(why) => {
                refuse(context, "Impossible");
                return Ok(format!("Refused: {why}"));
            }
            Outcome::Learnt(update) => Some(update),
        },
    };
    context.check_leading()?;
    let mut written = object.clone();
    written.metadata.managed_fields = None;
    let mut status = law_status(context, &object, &law, uid);
    status.set_standings(&standings);
    say_suspects(context, &mut status, object.metadata.generation);
    written.status = Some(status);
    context
        .call(api.replace_status(name, &PostParams::default(), &written))
        .await?;
    crate::serve::crash::point("after-learning");
    Ok(tell(context, &object, &law, lesson, taught, suspect).await)
}

/// Words, metrics and Events of what was learnt.
async fn tell(
    context: &Context,
    object: &EnergyLaw,
    law: &Law,
    lesson: &Lesson<'_>,
    taught: Option<Update>,
    suspect: Option<f64>,
) -> String {
    let Some(update) = taught else {
        refuse(context, "AnnotationSuspect");
        let factor = suspect.unwrap_or(1.0);
        let words = format!(
            "AnnotationSuspect: jobs of this namespace burn {factor:.2} times what their annotations say; the law did not learn from it, and predictions here are multiplied by it"
        );
        let about = workload_reference(lesson);
        warn(context, about, "AnnotationSuspect", &words).await;
        return words;
    };
    if update.reset {
        let labels = vec![
            ("gpu", law.gpu.to_string()),
            ("form", law.form.as_str().to_owned()),
        ];
        context.tallies.count(&c::LAW_SHIFTS, labels);
        let words = format!(
            "runs on {} keep missing the law by the same factor: another driver, software stack or power limit? It opens up and follows",
            law.gpu
        );
        warn(context, object.object_ref(&()), "LevelMoved", &words).await;
    }
    let error = update.error * 100.0;
    format!("Learnt: the prediction was off by {error:.1} %")
}

fn workload_reference(lesson: &Lesson<'_>) -> ObjectReference {
    let workload = &lesson.reservation.spec.workload;
    let version = if workload.kind == "Job" {
        "batch/v1"
    } else {
        "v1"
    };
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(workload.kind.clone()),
        name: Some(workload.name.clone()),
        namespace: Some(lesson.namespace.clone()),
        uid: Some(workload.uid.clone()),
        ..ObjectReference::default()
    }
}

async fn warn(context: &Context, about: ObjectReference, reason: &str, words: &str) {
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(words.chars().take(1000).collect()),
        action: "Learn".to_owned(),
        secondary: None,
    };
    let reporter = Reporter {
        controller: "jouleward-controller".to_owned(),
        instance: Some(context.settings.identity.clone()),
    };
    let recorder = Recorder::new(context.client.clone(), reporter);
    let _ = context.call(recorder.publish(&event, &about)).await;
}

/// The condition that names the namespaces whose annotations do not fit.
fn say_suspects(context: &Context, status: &mut EnergyLawStatus, generation: Option<i64>) {
    let standings = status.standings();
    let named: Vec<String> = standings
        .0
        .iter()
        .filter(|s| standings.is_suspect(&s.namespace))
        .map(|s| format!("{} ({:.2} times)", s.namespace, s.off.exp()))
        .collect();
    let (reason, message) = if named.is_empty() {
        (
            "None",
            "each namespace burns what its annotations say".to_owned(),
        )
    } else {
        (
            "StandsApart",
            format!("burns beside its annotations: {}", named.join(", ")),
        )
    };
    let yes = !named.is_empty();
    let condition = context.condition("AnnotationSuspect", yes, reason, message, generation);
    set_condition(&mut status.conditions, condition);
}

/// The run as the law sees it, or why it cannot be learnt from.
fn observe(
    context: &Context,
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    work: Option<&Work>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<(Gpu, Observation), &'static str> {
    if status.estimated {
        return Err("NodeLost");
    }
    if status.pods.iter().any(|pod| pod.before_millijoules > 0) {
        return Err("BeganBeforeTheBudget");
    }
    let done = images_done(work)?;
    // One that failed has burned for what it says it made, and for nothing else.
    if work.map(|work| work.progress) != Some(Progress::Succeeded) && done.is_none() {
        return Err("NotSucceeded");
    }
    let spec = &reservation.spec;
    if i64::try_from(status.pods.len()) != Ok(spec.pods) {
        return Err("RetriedOrUnmetered");
    }
    if pods.iter().any(|(_, pod)| pod.shared) {
        return Err("SharedGpu");
    }
    if pods.iter().any(|(_, pod)| pod.held_milliseconds < 1_000) {
        return Err("TooShort");
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
    let (_, mut features) = oracle
        .catalogue
        .job(&workload, small(spec.pods), small(spec.gpus))
        .ok_or("UnknownModel")?;
    if let Some(done) = done {
        if done > features.images {
            return Err("MoreDoneThanAsked");
        }
        features.images = done;
    }
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

/// Images that the application says were made, all pods together.
fn images_done(work: Option<&Work>) -> Result<Option<f64>, &'static str> {
    let said = work.and_then(|work| work.annotations.get(IMAGES_DONE.name));
    let Some(said) = said else {
        return Ok(None);
    };
    match said.trim().parse::<u32>() {
        Ok(0) => Err("NothingMade"),
        Ok(done) => Ok(Some(f64::from(done))),
        Err(_) => Err("ImagesDoneUnreadable"),
    }
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
    let generation = object.metadata.generation;
    let condition = context.condition("Ready", yes, reason, message, generation);
    set_condition(&mut status.conditions, condition);
    let condition = level(context, law, generation);
    set_condition(&mut status.conditions, condition);
    status
}

/// Runs for which a shift of the law's level is told.
const TOLD: u64 = 20;

/// Whether the level of the law has moved of late.
fn level(context: &Context, law: &Law, generation: Option<i64>) -> Condition {
    let since = law.observations.saturating_sub(law.shifted_at);
    let moved = law.shifts > 0 && since < TOLD;
    let (reason, message) = if moved {
        (
            "Followed",
            format!("its level moved {since} runs ago, and is followed"),
        )
    } else {
        (
            "Steady",
            format!("no shift within {TOLD} runs, {} so far", law.shifts),
        )
    };
    context.condition("LevelMoved", moved, reason, message, generation)
}
