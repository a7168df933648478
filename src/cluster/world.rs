//! What predictions are made from, gathered from the cluster's objects. Pure functions of
//! the objects: webhook and controller build the same oracle.

use crate::api::{DiffusionModel, EnergyLaw, GridZone, GridZoneSpec, InvalidSpec, site_of};
use crate::budget::{Fleet, Labels, Oracle, Site};
use crate::carbon::{Intensity, Place, Pue, embedded};
use crate::contract::PRODUCT_LABEL;
use crate::law::{Catalogue, Form, Gpu, Law};
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node, by name and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    pub(super) labels: Arc<Labels>,
}

/// Objects that predictions rest on.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) laws: Vec<Arc<EnergyLaw>>,
    pub(super) models: Vec<Arc<DiffusionModel>>,
    pub(super) zones: Vec<Arc<GridZone>>,
    pub(super) nodes: Vec<NodeInfo>,
}

impl Objects {
    /// The oracle; objects that make no sense are left out here and reported elsewhere.
    pub(super) fn oracle(&self) -> Oracle {
        let (sites, fleet) = self.sites();
        let mut laws: BTreeMap<Gpu, Law> = self
            .laws
            .iter()
            .filter_map(|law| Some((gpu_of(law)?, law_of(law))))
            .collect();
        // A product that has learnt nothing yet is believed to be like one that has.
        let learnt: Vec<Law> = laws
            .values()
            .filter(|law| law.observations > 0)
            .cloned()
            .collect();
        for site in &sites {
            let own = laws.get(&site.gpu);
            if own.is_none_or(|law| law.observations == 0) {
                let form = own.map_or(Form::default(), |law| law.form);
                let law = Law::for_product(form, &site.gpu, &learnt);
                laws.insert(site.gpu.clone(), law);
            }
        }
        Oracle {
            catalogue: self.catalogue(),
            laws,
            suspects: self.suspects(),
            sites,
            fleet,
            fallback: self.fallback(),
        }
    }

    /// Namespaces that stand apart from the others on a product.
    fn suspects(&self) -> BTreeMap<(Gpu, String), f64> {
        let mut suspects = BTreeMap::new();
        for law in &self.laws {
            let (Some(gpu), Some(status)) = (gpu_of(law), &law.status) else {
                continue;
            };
            let standings = status.standings();
            for standing in &standings.0 {
                if let Some(factor) = standings
                    .factor(&standing.namespace)
                    .filter(|factor| *factor > 1.0)
                {
                    suspects.insert((gpu.clone(), standing.namespace.clone()), factor);
                }
            }
        }
        suspects
    }

    pub(super) fn catalogue(&self) -> Catalogue {
        let mut catalogue = Catalogue::built_in();
        for model in &self.models {
            let _ = model.spec.add_to(&model.name_any(), &mut catalogue);
        }
        catalogue
    }

    pub(super) fn zones(&self) -> Vec<(String, GridZoneSpec)> {
        self.zones
            .iter()
            .map(|zone| (zone.name_any(), zone.spec.clone()))
            .collect()
    }

    /// GPU products of the cluster, each with the grids it stands under, and the nodes there.
    fn sites(&self) -> (Vec<Site>, Fleet) {
        let zones = self.zones();
        let mut sites: Vec<Site> = Vec::new();
        let mut nodes = Vec::new();
        for node in &self.nodes {
            let Some(gpu) = node
                .labels
                .get(PRODUCT_LABEL)
                .and_then(|name| Gpu::parse(name))
            else {
                continue;
            };
            let (intensity, pue) = self.grid(&zones, &node.labels);
            let site = Site {
                gpu,
                intensity,
                pue,
            };
            let place = sites.iter().position(|known| *known == site);
            let place = place.unwrap_or_else(|| {
                sites.push(site);
                sites.len() - 1
            });
            nodes.push((node.name.clone(), node.labels.clone(), place));
        }
        (sites, Fleet::new(nodes))
    }

    /// The grid a node stands under.
    fn grid(
        &self,
        zones: &[(String, GridZoneSpec)],
        labels: &BTreeMap<String, String>,
    ) -> (Intensity, Pue) {
        site_of(zones, labels)
            .and_then(|name| zones.iter().find(|(zone, _)| zone == name))
            .and_then(|(name, zone)| zone.resolve(name).ok())
            .unwrap_or_else(world)
    }

    fn fallback(&self) -> (Intensity, Pue) {
        self.grid(&self.zones(), &BTreeMap::new())
    }
}

/// The world's mean: always there.
fn world() -> (Intensity, Pue) {
    embedded(&Place::World).unwrap_or_else(|_| unreachable!("the world's mean is a constant"))
}

/// The product of a law object.
pub(super) fn gpu_of(law: &EnergyLaw) -> Option<Gpu> {
    Gpu::parse(&law.spec.gpu)
}

/// The law as it stands: its saved state where that is of the asked form, else the prior.
pub(super) fn law_of(law: &EnergyLaw) -> Law {
    let gpu = gpu_of(law).unwrap_or_else(Gpu::unmeasured);
    let saved = law
        .status
        .as_ref()
        .map(|status| status.state.as_str())
        .filter(|state| !state.is_empty());
    saved
        .and_then(|state| Law::load(state).ok())
        .filter(|saved| saved.form == law.spec.form && saved.gpu == gpu)
        .unwrap_or_else(|| Law::prior(law.spec.form, &gpu))
}

/// Why a law's saved state cannot be used, if it cannot.
pub(super) fn law_problem(law: &EnergyLaw) -> Option<InvalidSpec> {
    if gpu_of(law).is_none() {
        return Some(InvalidSpec {
            field: "spec.gpu",
            problem: "names no product".to_owned(),
        });
    }
    let state = law
        .status
        .as_ref()
        .map(|status| status.state.as_str())
        .filter(|state| !state.is_empty())?;
    Law::load(state).err().map(|error| InvalidSpec {
        field: "status.state",
        problem: format!("{error}; the law starts anew from its prior"),
    })
}
