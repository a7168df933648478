//! A settled job becomes an observation, and the law of its GPU learns from it: once.

use super::context::{Context, Failure};
use super::lawbook::{Closed, LawBook, Page, Taken, Taught};
use super::objects::{Progress, Work};
use super::world::gpu_of;
use crate::api::{
    CarbonReservation, Condition, EnergyLaw, EnergyLawStatus, Lesson, NamedValue, PodCharge,
    ReservationStatus, set_condition,
};
use crate::contract as c;
use crate::law::workload::{IMAGES_DONE, WARM_UP};
use crate::law::{Basis, Catalogue, Gpu, Joules, Law, Observation, Stack, Workload, driver_branch};
use crate::node::{LedgerPage, PodEnergy};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// A law's page that has learnt from a job, to be kept once the job's record is written.
pub(super) struct Learning {
    page: Page,
    taken: Taken,
    taught: Taught,
    words: String,
}

/// What becomes of a job as an observation: it goes into the status that is about to be
/// written, as words and, where a law learns, as a lesson.
pub(super) async fn learn(
    context: &Context,
    book: &mut LawBook,
    reservation: &CarbonReservation,
    status: &mut ReservationStatus,
    work: Option<&Work>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<Option<Learning>, Failure> {
    let observed = observe(reservation, status, work, pods);
    let observed = observed.and_then(|(gpu, lesson)| {
        let law = law_for(context, &gpu)?;
        let mut seen = reservation.clone();
        seen.status = Some(status.clone());
        let run = observation(&seen, &lesson, &context.oracle().catalogue)?;
        Ok((law, lesson, run))
    });
    let (law, lesson, run) = match observed {
        Ok(observed) => observed,
        Err(reason) => {
            status.observation = Some(refuse(context, reason));
            return Ok(None);
        }
    };
    let taken = Taken {
        number: 0,
        uid: reservation.spec.workload.uid.clone(),
        namespace: reservation.namespace().unwrap_or_default(),
        run,
    };
    let (page, taught) = match book.consider(context, &law, &taken).await? {
        Ok(considered) => considered,
        Err(Closed::Known(Some(again))) => {
            status.observation = Some(words(context, &again.taught));
            status.lesson = Some(Lesson {
                law,
                law_uid: again.law_uid,
                number: again.number,
                ..lesson
            });
            return Ok(None);
        }
        Err(Closed::Known(None)) => {
            status.observation = Some("Learnt".to_owned());
            return Ok(None);
        }
        Err(Closed::Newer(version)) => {
            // A newer program's law is not ours to write over.
            refuse(context, "NewerLaw");
            status.observation = Some(format!(
                "NewerLaw: its state has version {version}; it is left as it is"
            ));
            return Ok(None);
        }
    };
    let words = words(context, &taught);
    status.observation = Some(words.clone());
    if matches!(taught, Taught::Refused(_)) {
        return Ok(None);
    }
    status.lesson = Some(Lesson {
        law,
        law_uid: page.uid(),
        number: page.lessons(),
        ..lesson
    });
    Ok(Some(Learning {
        page,
        taken,
        taught,
        words,
    }))
}

fn refuse(context: &Context, reason: &str) -> String {
    let labels = vec![("reason", reason.to_owned())];
    context.tallies.count(&c::OBSERVATIONS_REFUSED, labels);
    reason.to_owned()
}

fn law_for(context: &Context, gpu: &Gpu) -> Result<String, &'static str> {
    let laws = context.caches.world.laws.all();
    let of_product = laws.iter().find(|law| gpu_of(law).as_ref() == Some(gpu));
    of_product
        .map(|law| law.name_any())
        .ok_or("NoLawForThisGpu")
}

fn words(context: &Context, taught: &Taught) -> String {
    match taught {
        Taught::Refused(why) => {
            refuse(context, "Impossible");
            format!("Refused: {why}")
        }
        Taught::Suspect(factor) => {
            refuse(context, "AnnotationSuspect");
            format!(
                "AnnotationSuspect: jobs of this namespace burn {factor:.2} times what their annotations say; the law did not learn from it, and predictions here are multiplied by it"
            )
        }
        Taught::Learnt(update) => {
            let error = update.error * 100.0;
            format!("Learnt: the prediction was off by {error:.1} %")
        }
    }
}

/// The job's record is written: the law in hand is the one that has learnt from it, and what
/// people are to know is told.
pub(super) async fn learnt(
    context: &Context,
    book: &mut LawBook,
    reservation: &CarbonReservation,
    learning: Learning,
) {
    let law = &learning.page.law;
    match &learning.taught {
        Taught::Suspect(_) => {
            let about = workload_reference(reservation, &learning.taken.namespace);
            warn(context, about, "AnnotationSuspect", &learning.words).await;
        }
        Taught::Learnt(update) if update.reset => {
            let labels = vec![
                ("gpu", law.gpu.to_string()),
                ("form", law.form.as_str().to_owned()),
            ];
            context.tallies.count(&c::LAW_SHIFTS, labels);
            let words = format!(
                "runs on {} keep missing the law by the same factor: another driver, software stack or power limit? It opens up and follows",
                law.gpu
            );
            let about = learning.page.object().object_ref(&());
            warn(context, about, "LevelMoved", &words).await;
        }
        _ => {}
    }
    book.keep(learning.page);
}

impl Learning {
    /// The write of the record was not heard of: it may have been done, so the lesson stands, and
    /// is given again with the next try.
    pub(super) fn unheard(self, book: &mut LawBook) {
        book.keep(self.page);
    }
}

fn workload_reference(reservation: &CarbonReservation, namespace: &str) -> ObjectReference {
    let workload = &reservation.spec.workload;
    let version = if workload.kind == "Job" {
        "batch/v1"
    } else {
        "v1"
    };
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(workload.kind.clone()),
        name: Some(workload.name.clone()),
        namespace: Some(namespace.to_owned()),
        uid: Some(workload.uid.clone()),
        ..ObjectReference::default()
    }
}

async fn warn(context: &Context, about: ObjectReference, reason: &str, words: &str) {
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(super::refusals::note(words)),
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
pub(super) fn say_suspects(
    context: &Context,
    status: &mut EnergyLawStatus,
    generation: Option<i64>,
) {
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

/// What there is to learn from a job beside its record, or why nothing is.
fn observe(
    reservation: &CarbonReservation,
    status: &ReservationStatus,
    work: Option<&Work>,
    pods: &[(&LedgerPage, &PodEnergy)],
) -> Result<(Gpu, Lesson), &'static str> {
    if status.estimated {
        return Err("NodeLost");
    }
    if status.pods.iter().any(|pod| pod.before_millijoules > 0) {
        return Err("BeganBeforeTheBudget");
    }
    let done = images_done(work, &status.pods)?;
    // One that failed has burned for what it says it made, and for nothing else.
    if work.map(|work| work.progress) != Some(Progress::Succeeded) && done.is_none() {
        return Err("NotSucceeded");
    }
    let ran = i64::try_from(status.pods.len()).unwrap_or(i64::MAX);
    // Where every pod says what it made, a retry is a start more, and no riddle.
    if ran != reservation.spec.pods && (done.is_none() || ran < reservation.spec.pods) {
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
    let lesson = Lesson {
        images_done: done,
        starts: if ran == reservation.spec.pods { 0 } else { ran },
        ..stack(pods)
    };
    Ok((gpu.clone(), lesson))
}

/// Driver and power limit as the exporters say, where they agree.
fn stack(pods: &[(&LedgerPage, &PodEnergy)]) -> Lesson {
    let mut drivers = pods.iter().map(|(page, _)| driver_branch(&page.driver));
    let driver = drivers.next().filter(|first| drivers.all(|d| d == *first));
    let mut limits = pods.iter().map(|(_, pod)| pod.power_limit_permille);
    let limit = limits.next().flatten();
    // What is beyond is no board's.
    let limit = limit.filter(|limit| (50..=2000).contains(limit));
    let limit = limit.filter(|first| limits.all(|l| l.is_some_and(|l| l.abs_diff(*first) <= 20)));
    Lesson {
        driver: driver.unwrap_or_default(),
        power_limit_permille: limit.and_then(|l| i64::try_from(l).ok()).unwrap_or(0),
        ..Lesson::default()
    }
}

/// A settled job as its law sees it, or why it cannot be learnt from: the same whenever it
/// is asked.
pub(super) fn observation(
    reservation: &CarbonReservation,
    lesson: &Lesson,
    catalogue: &Catalogue,
) -> Result<Observation, &'static str> {
    let spec = &reservation.spec;
    let annotations: BTreeMap<String, String> = spec
        .parameters
        .iter()
        .map(|(k, v)| (format!("jouleward.dev/{k}"), v.clone()))
        .collect();
    let workload = Workload::from_annotations(&annotations, catalogue);
    let workload = workload.map_err(|_| "MissingParameters")?;
    if annotations
        .get(WARM_UP.name)
        .is_some_and(|said| said.trim() == "true")
    {
        return Err("WarmUp");
    }
    if workload.is_batch_unknown() {
        return Err("UnknownBatch");
    }
    let small = |n: i64| u32::try_from(n).unwrap_or(1);
    let job = catalogue.job(&workload, small(spec.pods), small(spec.gpus));
    let (_, mut features) = job.ok_or("UnknownModel")?;
    if let Some(done) = lesson.images_done {
        // A retry may begin anew: each pod that ran makes as many as one is asked for.
        let ran = lesson.starts.max(spec.pods).max(1) as f64;
        if done as f64 > features.images / spec.pods.max(1) as f64 * ran {
            return Err("MoreDoneThanAsked");
        }
        features.images = done as f64;
    }
    if lesson.starts > 0 {
        features.starts = lesson.starts as f64;
    }
    features.stack = Stack {
        driver: Some(lesson.driver.clone()).filter(|driver| !driver.is_empty()),
        power: (lesson.power_limit_permille > 0)
            .then(|| lesson.power_limit_permille as f64 / 1000.0),
        ..features.stack
    };
    let status = reservation.status.as_ref();
    let millijoules = status.map_or(0, |status| status.measured_millijoules);
    Ok(Observation {
        features,
        energy: Joules(millijoules as f64 / 1000.0),
        // The exporter bills all that the board drew.
        basis: Basis::Gross,
    })
}

/// Images that the application says were made, all pods together: by the job's annotation, or
/// by the word of every pod.
fn images_done(work: Option<&Work>, pods: &[PodCharge]) -> Result<Option<i64>, &'static str> {
    let said = work.and_then(|work| work.annotations.get(IMAGES_DONE.name));
    let done = match said {
        Some(said) => {
            let done: u32 = said.trim().parse().map_err(|_| "ImagesDoneUnreadable")?;
            Some(i64::from(done))
        }
        None => pods.iter().map(|pod| pod.images_done).sum(),
    };
    match done.filter(|_| !pods.is_empty() || said.is_some()) {
        Some(0) => Err("NothingMade"),
        done => Ok(done),
    }
}

/// A law's status for people.
pub(super) fn describe(context: &Context, object: &EnergyLaw, law: &Law) -> EnergyLawStatus {
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = object.metadata.generation.unwrap_or(0);
    let basis = match law.basis() {
        Some(Basis::Gross) => "Gross",
        Some(Basis::Net) => "Net",
        None => "",
    };
    basis.clone_into(&mut status.basis);
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
