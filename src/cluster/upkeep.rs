//! What must be true of the cluster whoever waits: labels on budgeted namespaces, a law
//! for every GPU product, and statuses of zones and models that say what is in use.

use super::context::{Context, Failure, carry_on};
use super::learning::describe;
use super::verdicts::{Terms, strictest};
use super::world::{gpu_of, law_of};
use crate::api::{
    DiffusionModelStatus, EnergyLaw, EnergyLawSpec, GridZone, GridZoneStatus, InvalidSpec,
    set_condition, site_of,
};
use crate::contract::{MODE_LABEL, PRODUCT_LABEL, WEBHOOKS};
use crate::law::{Catalogue, Form, Gpu};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Brings all of it up to date; writes only what differs.
pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    carry_on("namespaces", namespaces(context).await)?;
    carry_on("laws", laws(context).await)?;
    carry_on("zones", zones(context).await)?;
    carry_on("models", models(context).await)
}

/// Webhooks select namespaces by the strictest mode of their budgets.
async fn namespaces(context: &Context) -> Result<(), Failure> {
    let mut wanted: BTreeMap<String, Vec<Terms>> = BTreeMap::new();
    for budget in context.caches.world.budgets.all() {
        if budget.metadata.deletion_timestamp.is_none()
            && let (Some(namespace), Some(terms)) = (budget.namespace(), Terms::of(&budget))
        {
            wanted.entry(namespace).or_default().push(terms);
        }
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    // Asked once a cycle, and only where a label is missing.
    let mut selected: Option<bool> = None;
    for (name, labels) in labels(context) {
        let mode = wanted
            .get(&name)
            .and_then(|terms| strictest(terms))
            .map(|mode| format!("{mode:?}").to_lowercase());
        if labels.get(MODE_LABEL) != mode.as_ref() {
            // Where nothing selects on it, as while Jouleward is being removed, it would
            // only be left behind.
            if mode.is_some() {
                let there = match selected {
                    Some(there) => there,
                    None => *selected.insert(installed(context).await?),
                };
                if !there {
                    continue;
                }
            }
            context.check_leading()?;
            let patch = json!({ "metadata": { "labels": { MODE_LABEL: mode } } });
            let patched = context
                .call(api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)))
                .await;
            carry_on(&name, patched.map(|_| ()))?;
        }
    }
    Ok(())
}

/// Namespaces that exist, with their labels.
fn labels(context: &Context) -> Vec<(String, BTreeMap<String, String>)> {
    let namespaces = context.caches.namespaces.all();
    let of = |n: &std::sync::Arc<kube::core::PartialObjectMeta<Namespace>>| {
        (n.name_any(), n.labels().clone())
    };
    namespaces.iter().map(of).collect()
}

async fn installed(context: &Context) -> Result<bool, Failure> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let found = context.call(api.get_metadata_opt(WEBHOOKS)).await?;
    Ok(found.is_some())
}

/// One law for each product that a node has.
async fn laws(context: &Context) -> Result<(), Failure> {
    let api: Api<EnergyLaw> = Api::all(context.client.clone());
    let laws = context.caches.world.laws.all();
    let known: BTreeSet<Gpu> = laws.iter().filter_map(|law| gpu_of(law)).collect();
    let nodes = context.caches.world.nodes.all();
    let products = nodes
        .iter()
        .filter_map(|node| node.labels.get(PRODUCT_LABEL));
    let products: BTreeMap<Gpu, &String> = products
        .filter_map(|name| Some((Gpu::parse(name)?, name)))
        .collect();
    for (gpu, product) in products.iter().filter(|(gpu, _)| !known.contains(gpu)) {
        context.check_leading()?;
        let spec = EnergyLawSpec {
            gpu: (*product).clone(),
            form: Form::default(),
        };
        let law = EnergyLaw::new(&gpu.law_name(), spec);
        let created = context.call(api.create(&PostParams::default(), &law)).await;
        carry_on(product, created.map(|_| ()))?;
    }
    for law in laws {
        let wanted = describe(context, &law, &law_of(&law));
        if law.status.as_ref() != Some(&wanted) {
            context.check_leading()?;
            let mut written = (*law).clone();
            written.metadata.managed_fields = None;
            written.status = Some(wanted);
            let replaced = context
                .call(api.replace_status(&law.name_any(), &PostParams::default(), &written))
                .await;
            carry_on(&law.name_any(), replaced.map(|_| ()))?;
        }
    }
    Ok(())
}

async fn zones(context: &Context) -> Result<(), Failure> {
    let objects = context.caches.world.objects();
    let specs = objects.zones();
    let api: Api<GridZone> = Api::all(context.client.clone());
    for zone in &objects.zones {
        let name = zone.name_any();
        let nodes = objects
            .nodes
            .iter()
            .filter(|node| site_of(&specs, &node.labels) == Some(&name))
            .count();
        let wanted = zone_status(context, zone, &name, nodes);
        if zone.status.as_ref() != Some(&wanted) {
            context.check_leading()?;
            let patch = json!({ "status": wanted });
            let patched = context
                .call(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)))
                .await;
            carry_on(&name, patched.map(|_| ()))?;
        }
    }
    Ok(())
}

fn zone_status(context: &Context, zone: &GridZone, name: &str, nodes: usize) -> GridZoneStatus {
    let generation = zone.metadata.generation;
    let mut status = zone.status.clone().unwrap_or_default();
    status.observed_generation = generation.unwrap_or(0);
    status.nodes = i64::try_from(nodes).unwrap_or(i64::MAX);
    let ready = match zone.spec.resolve(name) {
        Ok((intensity, pue)) => {
            #[expect(clippy::cast_possible_truncation, reason = "at most 2000 g/kWh")]
            let grams = intensity.grams_per_kwh.round() as i64;
            status.grams_per_kwh = grams;
            status.kind = format!("{:?}", intensity.kind);
            status.signal = format!("{:?}", intensity.signal);
            status.basis = format!("{:?}", intensity.basis);
            status.source = intensity.source;
            status.pue = format!("{:.2}", pue.value);
            status.pue_source = pue.source;
            context.condition(
                "Ready",
                true,
                "Resolved",
                "the intensity is in use".to_owned(),
                generation,
            )
        }
        Err(error) => {
            context.condition("Ready", false, "InvalidSpec", error.to_string(), generation)
        }
    };
    set_condition(&mut status.conditions, ready);
    status
}

async fn models(context: &Context) -> Result<(), Failure> {
    let api: Api<crate::api::DiffusionModel> = Api::all(context.client.clone());
    for model in context.caches.world.models.all() {
        let name = model.name_any();
        let problem: Option<InvalidSpec> =
            model.spec.add_to(&name, &mut Catalogue::built_in()).err();
        let generation = model.metadata.generation;
        let ready = match &problem {
            None => context.condition(
                "Ready",
                true,
                "Usable",
                "the model is in the catalogue".to_owned(),
                generation,
            ),
            Some(error) => {
                context.condition("Ready", false, "InvalidSpec", error.to_string(), generation)
            }
        };
        let mut wanted: DiffusionModelStatus = model.status.clone().unwrap_or_default();
        wanted.observed_generation = generation.unwrap_or(0);
        set_condition(&mut wanted.conditions, ready);
        if model.status.as_ref() != Some(&wanted) {
            context.check_leading()?;
            let patch = json!({ "status": wanted });
            let patched = context
                .call(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)))
                .await;
            carry_on(&name, patched.map(|_| ()))?;
        }
    }
    Ok(())
}
