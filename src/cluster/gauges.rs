//! The controller's gauges, from the caches at the end of a cycle.

use super::context::Context;
use super::objects::Work;
use super::world::law_of;
use crate::api::EnergyLawStatus;
use crate::contract as c;
use crate::serve::exposition::Family;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Renews what a scrape shows.
pub(super) fn publish(context: &Context, works: &[Work]) {
    let mut families = budgets(context);
    families.extend(held(context, works));
    families.extend(laws(context));
    families.push(intensities(context));
    context.gauges.store(Arc::new(families));
}

fn grams(milligrams: i64) -> f64 {
    milligrams as f64 / 1000.0
}

fn budgets(context: &Context) -> Vec<Family> {
    let mut limit = Family::new(c::BUDGET_LIMIT);
    let mut used = Family::new(c::BUDGET_USED);
    let mut reserved = Family::new(c::BUDGET_RESERVED);
    let mut remaining = Family::new(c::BUDGET_REMAINING);
    for budget in context.caches.world.budgets.all() {
        let Some(status) = &budget.status else {
            continue;
        };
        let labels = vec![
            ("namespace", budget.namespace().unwrap_or_default()),
            ("budget", budget.name_any()),
        ];
        limit.add(labels.clone(), grams(status.limit_milligrams));
        used.add(labels.clone(), grams(status.consumed_milligrams));
        reserved.add(labels.clone(), grams(status.reserved_milligrams));
        remaining.add(labels, grams(status.remaining_milligrams));
    }
    vec![limit, used, reserved, remaining]
}

fn held(context: &Context, works: &[Work]) -> Vec<Family> {
    let now = context.now().as_second();
    let mut by_namespace: BTreeMap<String, (u32, i64)> = BTreeMap::new();
    for budget in context.caches.world.budgets.all() {
        by_namespace
            .entry(budget.namespace().unwrap_or_default())
            .or_default();
    }
    for work in works.iter().filter(|work| work.held) {
        let slot = by_namespace.entry(work.namespace.clone()).or_default();
        slot.0 += 1;
        slot.1 = slot.1.max(now - work.since.as_second());
    }
    let mut jobs = Family::new(c::HELD_JOBS);
    let mut age = Family::new(c::HELD_AGE);
    for (namespace, (count, oldest)) in by_namespace {
        jobs.add(vec![("namespace", namespace.clone())], f64::from(count));
        age.add(vec![("namespace", namespace)], oldest as f64);
    }
    vec![jobs, age]
}

fn laws(context: &Context) -> Vec<Family> {
    let mut error = Family::new(c::LAW_ERROR);
    let mut observations = Family::new(c::LAW_OBSERVATIONS);
    let mut suspect = Family::new(c::ANNOTATION_SUSPECT);
    for object in context.caches.world.laws.all() {
        let law = law_of(&object);
        let labels = vec![
            ("gpu", law.gpu.to_string()),
            ("form", law.form.as_str().to_owned()),
        ];
        if let Some(recent) = law.recent_error() {
            error.add(labels.clone(), recent);
        }
        observations.add(labels, law.observations as f64);
        let standings = object.status.as_ref().map(EnergyLawStatus::standings);
        let standings = standings.unwrap_or_default();
        for standing in &standings.0 {
            if standings.is_suspect(&standing.namespace) {
                let factor = standing.off.exp();
                let namespace = standing.namespace.clone();
                let labels = vec![("namespace", namespace), ("gpu", law.gpu.to_string())];
                suspect.add(labels, factor);
            }
        }
    }
    vec![error, observations, suspect]
}

fn intensities(context: &Context) -> Family {
    let mut family = Family::new(c::INTENSITY);
    for zone in context.caches.world.zones.all() {
        let Ok((intensity, _)) = zone.spec.resolve(&zone.name_any()) else {
            continue;
        };
        let labels = vec![
            ("zone", zone.name_any()),
            ("source", intensity.source.clone()),
            ("signal", format!("{:?}", intensity.signal)),
            ("basis", format!("{:?}", intensity.basis)),
            ("kind", format!("{:?}", intensity.kind)),
        ];
        family.add(labels, intensity.grams_per_kwh);
    }
    family
}
