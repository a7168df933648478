//! The laws as the leader has them in hand: each learns from a job as the job is settled, and is
//! written once in a while. What a crash kept from being written is learnt again, in the same
//! order, from the lessons that the reservations carry.

use super::context::{Context, Failure, carry_on};
use super::learning::{describe, observation, say_suspects};
use super::world::law_of;
use crate::api::{CarbonReservation, EnergyLaw, EnergyLawStatus};
use crate::law::{Catalogue, Law, Observation, Outcome, Standings, StateError, Update};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// UIDs that a law's status names.
const REMEMBERED: usize = 64;
const TRIES: usize = 5;
/// Runs of a model before a namespace's runs of it are compared with others'.
const RUNS_TO_COMPARE: u64 = 3;

/// One job, as a law learns from it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Taken {
    /// Its number among the law's lessons; 0 until it has one.
    pub(super) number: i64,
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) run: Observation,
}

/// What became of a job as an observation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Taught {
    Learnt(Update),
    /// Its namespace is known to be off by this factor: it would only drag the law along.
    Suspect(f64),
    Refused(&'static str),
}

/// A law in hand.
#[derive(Debug, Clone)]
pub(super) struct Page {
    /// As it was read or written last.
    object: EnergyLaw,
    pub(super) law: Law,
    standings: Standings,
    /// Lessons taken so far, those that are not written yet among them.
    lessons: i64,
    learnt: VecDeque<String>,
    /// What is not written yet: many where many jobs end, and cloned with each.
    unwritten: Vec<Arc<(Taken, Taught)>>,
    /// When it was written last.
    written: Option<Timestamp>,
}

impl Page {
    fn of(object: EnergyLaw) -> Self {
        let status = object.status.clone().unwrap_or_default();
        Self {
            law: law_of(&object),
            standings: status.standings(),
            lessons: status.lessons,
            learnt: status.learnt.into(),
            unwritten: Vec::new(),
            written: status.last_fit.and_then(|at| at.parse().ok()),
            object,
        }
    }

    pub(super) fn object(&self) -> &EnergyLaw {
        &self.object
    }

    pub(super) fn uid(&self) -> String {
        self.object.metadata.uid.clone().unwrap_or_default()
    }

    /// Number of the newest lesson.
    pub(super) fn lessons(&self) -> i64 {
        self.lessons
    }

    /// True where this is the law that an object now tells of: of one product, one form, and
    /// not deleted and made anew in between.
    fn is_of(&self, object: &EnergyLaw) -> bool {
        self.object.metadata.uid == object.metadata.uid && self.object.spec == object.spec
    }

    /// Learns from a job; a page that refused it is as it was but for its first belief.
    fn take(&mut self, taken: &Taken, others: impl FnOnce() -> Vec<Law>) -> Taught {
        if self.law.observations == 0 {
            // It begins where its predictions did: with what another product has taught.
            self.law = Law::for_product(self.law.form, &self.law.gpu, &others());
        }
        let predicted = self.law.predict(&taken.run.features);
        let mut standings = self.standings.clone();
        // A model that few have run may be what is off: that is the law's to learn.
        if predicted.runs_of_model >= RUNS_TO_COMPARE {
            standings.note(&taken.namespace, predicted.median.0, taken.run.energy.0);
        }
        let taught = match standings.factor(&taken.namespace) {
            Some(factor) => Taught::Suspect(factor),
            None => match self.law.learn(&taken.run) {
                Outcome::Refused(why) => return Taught::Refused(why),
                Outcome::Learnt(update) => Taught::Learnt(update),
            },
        };
        self.standings = as_written(&standings);
        let number = if taken.number > 0 {
            taken.number
        } else {
            self.lessons + 1
        };
        self.lessons = self.lessons.max(number);
        self.learnt.push_back(taken.uid.clone());
        if self.learnt.len() > REMEMBERED {
            self.learnt.pop_front();
        }
        let taken = Taken {
            number,
            ..taken.clone()
        };
        self.unwritten.push(Arc::new((taken, taught.clone())));
        taught
    }

    fn has_learnt(&self, uid: &str) -> bool {
        self.unwritten_of(uid).is_some() || self.learnt.iter().any(|learnt| learnt == uid)
    }

    /// What became of a job that is not written yet.
    fn unwritten_of(&self, uid: &str) -> Option<&(Taken, Taught)> {
        let mut all = self.unwritten.iter().map(AsRef::as_ref);
        all.find(|(taken, _)| taken.uid == uid)
    }

    fn is_due(&self, context: &Context) -> bool {
        let waits = !self.unwritten.is_empty();
        let long_ago = |at: Timestamp| {
            let since = context.now().duration_since(at);
            // A stamp of the future is of a clock that was set back.
            since.is_negative() || since.unsigned_abs() >= context.settings.law_write
        };
        waits && self.written.is_none_or(long_ago)
    }

    /// One try to write it; gives the object as it is then.
    async fn write(&self, context: &Context) -> Result<EnergyLaw, Failure> {
        context.check_leading()?;
        let mut object = self.object.clone();
        object.status.get_or_insert_default().state = self.law.save();
        let mut status = describe(context, &object, &self.law);
        status.learnt = self.learnt.iter().cloned().collect();
        status.lessons = self.lessons;
        status.last_fit = Some(context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        status.set_standings(&self.standings);
        say_suspects(context, &mut status, self.object.metadata.generation);
        let mut written = object;
        written.metadata.managed_fields = None;
        written.status = Some(status);
        let api: Api<EnergyLaw> = Api::all(context.client.clone());
        let name = self.object.name_any();
        let params = PostParams::default();
        context
            .call(api.replace_status(&name, &params, &written))
            .await
    }
}

/// All laws in hand, by name.
#[derive(Debug, Default)]
pub(super) struct LawBook {
    pages: HashMap<String, Page>,
    caught_up: bool,
}

/// Why a law cannot be learnt with.
#[derive(Debug)]
pub(super) enum Closed {
    /// Its state is a newer program's, and not ours to write over.
    Newer(u32),
    /// It has learnt from this job already; what became of it, where that is not written yet.
    Known(Option<Again>),
}

/// A lesson that was given before, to a record whose write was not heard of.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) law_uid: String,
    pub(super) number: i64,
    pub(super) taught: Taught,
}

impl LawBook {
    /// The law's page after it has learnt from a job, and what became of the job; the page is
    /// in hand once it is [kept](Self::keep).
    pub(super) async fn consider(
        &mut self,
        context: &Context,
        name: &str,
        taken: &Taken,
    ) -> Result<Result<(Page, Taught), Closed>, Failure> {
        let seen = context.caches.world.laws.all();
        let seen = seen.iter().find(|law| law.name_any() == name);
        let in_hand = self.pages.get(name);
        if !in_hand.is_some_and(|page| seen.is_some_and(|seen| page.is_of(seen))) {
            match open(context, name, in_hand).await? {
                Ok(page) => self.pages.insert(name.to_owned(), page),
                Err(newer) => return Ok(Err(newer)),
            };
        }
        let Some(page) = self.pages.get(name) else {
            return Err(Failure::NotFound);
        };
        if page.has_learnt(&taken.uid) {
            // Its record's write was not heard of: it is the same lesson again.
            let again = page.unwritten_of(&taken.uid);
            let again = again.map(|(before, taught)| Again {
                law_uid: page.uid(),
                number: before.number,
                taught: taught.clone(),
            });
            return Ok(Err(Closed::Known(again)));
        }
        let mut after = page.clone();
        let taught = after.take(taken, || others(context));
        Ok(Ok((after, taught)))
    }

    /// Takes a considered page in hand: the job's record says so by now.
    pub(super) fn keep(&mut self, page: Page) {
        self.pages.insert(page.object.name_any(), page);
    }

    /// Writes the laws that have learnt and were not written for a while.
    pub(super) async fn flush(&mut self, context: &Context) -> Result<(), Failure> {
        let due = self.pages.iter().filter(|(_, page)| page.is_due(context));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            carry_on(&name, self.write(context, &name).await)?;
        }
        Ok(())
    }

    async fn write(&mut self, context: &Context, name: &str) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let Some(page) = self.pages.get_mut(name) else {
                return Ok(());
            };
            match page.write(context).await {
                Ok(object) => {
                    crate::serve::crash::point("after-learning");
                    page.object = object;
                    page.unwritten.clear();
                    page.written = Some(context.now());
                    return Ok(());
                }
                Err(Failure::Conflict) => match open(context, name, self.pages.get(name)).await? {
                    Ok(page) => _ = self.pages.insert(name.to_owned(), page),
                    Err(_) => _ = self.pages.remove(name),
                },
                Err(Failure::NotFound) => {
                    self.pages.remove(name);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Conflict)
    }

    /// Opens the laws at the start of a leadership, so that lessons that nobody wrote are not
    /// left until the next job of their product ends.
    pub(super) async fn catch_up(&mut self, context: &Context) -> Result<(), Failure> {
        if self.caught_up {
            return Ok(());
        }
        for law in context.caches.world.laws.all() {
            let name = law.name_any();
            let cached = context.caches.reservations.all();
            let lessons = lessons_of(context, &law, cached.iter().map(AsRef::as_ref));
            if self.pages.contains_key(&name) || lessons.is_empty() {
                continue;
            }
            match open(context, &name, None).await {
                Ok(Ok(page)) => _ = self.pages.insert(name, page),
                Ok(Err(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.caught_up = true;
        Ok(())
    }
}

fn others(context: &Context) -> Vec<Law> {
    let laws = context.caches.world.laws.all();
    laws.iter().map(|law| law_of(law)).collect()
}

/// Standings at the precision that they are written with, so that a restart changes nothing.
fn as_written(standings: &Standings) -> Standings {
    let mut status = EnergyLawStatus::default();
    status.set_standings(standings);
    status.standings()
}

/// Reads a law, and learns what the reservations and an earlier page have that it has not.
async fn open(
    context: &Context,
    name: &str,
    before: Option<&Page>,
) -> Result<Result<Page, Closed>, Failure> {
    let api: Api<EnergyLaw> = Api::all(context.client.clone());
    let object = context.call(api.get(name)).await?;
    let state = object.status.as_ref().map_or("", |s| s.state.as_str());
    if let Err(StateError::Newer(version)) = Law::load(state) {
        return Ok(Err(Closed::Newer(version)));
    }
    let mut page = Page::of(object);
    // A watch may be behind; a new leader asks once, and afterwards knows its own.
    let mut lessons = if before.is_some() {
        let cached = context.caches.reservations.all();
        lessons_of(context, &page.object, cached.iter().map(AsRef::as_ref))
    } else {
        lessons_of(context, &page.object, &listed(context).await?)
    };
    let own = before.filter(|before| before.uid() == page.uid());
    let own: Vec<&Taken> = own
        .into_iter()
        .flat_map(|before| before.unwritten.iter().map(|lesson| &lesson.0))
        .collect();
    let is_own = |taken: &Taken| own.iter().any(|own| own.uid == taken.uid);
    if page.lessons == 0 && page.law.observations > 0 {
        // A program that does not count lessons wrote it last: nothing older is learnt twice.
        let older = lessons.iter().filter(|taken| !is_own(taken));
        page.lessons = older.map(|taken| taken.number).max().unwrap_or(0);
        lessons.retain(is_own);
    }
    for taken in own {
        let new = taken.number > page.lessons;
        if new && !lessons.iter().any(|known| known.uid == taken.uid) {
            lessons.push(taken.clone());
        }
    }
    lessons.sort_by(|a, b| (a.number, &a.uid).cmp(&(b.number, &b.uid)));
    for taken in lessons {
        if !page.has_learnt(&taken.uid) {
            page.take(&taken, || others(context));
        }
    }
    Ok(Ok(page))
}

async fn listed(context: &Context) -> Result<Vec<CarbonReservation>, Failure> {
    let api: Api<CarbonReservation> = Api::all(context.client.clone());
    let everything = ListParams::default();
    Ok(context.call(api.list(&everything)).await?.items)
}

/// Lessons that settled reservations have for a law, and that its object does not have yet.
fn lessons_of<'a>(
    context: &Context,
    object: &EnergyLaw,
    reservations: impl IntoIterator<Item = &'a CarbonReservation>,
) -> Vec<Taken> {
    let status = object.status.clone().unwrap_or_default();
    let catalogue: &Catalogue = &context.oracle().catalogue;
    let mut found: Vec<Taken> = Vec::new();
    for reservation in reservations.into_iter().filter(|r| r.is_settled()) {
        let lesson = reservation.status.as_ref().and_then(|s| s.lesson.as_ref());
        let Some(lesson) = lesson.filter(|lesson| {
            Some(&lesson.law_uid) == object.metadata.uid.as_ref() && lesson.number > status.lessons
        }) else {
            continue;
        };
        // A model that is gone from the catalogue since cannot be learnt from any more.
        let Ok(run) = observation(reservation, lesson, catalogue) else {
            continue;
        };
        let uid = reservation.spec.workload.uid.clone();
        let namespace = reservation.namespace().unwrap_or_default();
        found.push(Taken {
            number: lesson.number,
            uid,
            namespace,
            run,
        });
    }
    found
}
