//! `GridZone`: which nodes stand under which grid, its intensity and the site's PUE.

use super::{Condition, InvalidSpec};
use crate::carbon::{Basis, Intensity, Kind, Place, Pue, Signal, embedded};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A grid zone.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "jouleward.dev",
    version = "v1alpha1",
    kind = "GridZone",
    status = "GridZoneStatus",
    shortname = "gz",
    category = "carbon",
    doc = "Which nodes stand in which grid zone, where its carbon intensity comes from, and the site's PUE.",
    printcolumn(name = "g/kWh", type_ = "integer", json_path = ".status.gramsPerKwh"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".status.kind"),
    printcolumn(name = "PUE", type_ = "string", json_path = ".status.pue"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".status.source",
        priority = "1"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct GridZoneSpec {
    /// Labels that a node of this zone has; none = every node that no other zone selects.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Where the intensity comes from.
    pub source: GridSource,
    /// Power usage effectiveness of the site, for example "1.2"; default: the cloud
    /// region's, else 1.56, marked as assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[1-4]([.][0-9]{1,3})?$')").message("write a number from 1 to 4.999 in quotes, for example \"1.2\""))]
    #[schemars(length(max = 8))]
    pub pue: Option<String>,
}

/// Exactly one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.staticGramsPerKwh), has(self.country), has(self.cloudRegion), has(self.gridZone)].filter(x, x).size() == 1").message("set exactly one of staticGramsPerKwh, country, cloudRegion or gridZone, for example country: DEU"))]
pub struct GridSource {
    /// Grams of CO2e a kilowatt-hour, average and lifecycle, as the operator knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2000))]
    pub static_grams_per_kwh: Option<i64>,
    /// Yearly mean of a country, ISO 3166-1 alpha-3, for example DEU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 3))]
    pub country: Option<String>,
    /// Yearly mean and PUE of a cloud region, for example aws/eu-central-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub cloud_region: Option<String>,
    /// Yearly mean of a US balancing authority, for example US-CAL-CISO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub grid_zone: Option<String>,
}

/// The zone now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GridZoneStatus {
    /// Generation of the spec this status is for.
    pub observed_generation: i64,
    /// Intensity in use.
    pub grams_per_kwh: i64,
    /// Measured, Estimated, Forecast or Static.
    pub kind: String,
    /// Average or Marginal.
    pub signal: String,
    /// Lifecycle or Direct.
    pub basis: String,
    /// Who says so.
    pub source: String,
    /// PUE in use.
    pub pue: String,
    /// Where the PUE is from.
    pub pue_source: String,
    /// Nodes in this zone.
    pub nodes: i64,
    /// Ready.
    pub conditions: Vec<Condition>,
}

impl GridZoneSpec {
    /// The intensity and PUE that the zone stands for.
    pub fn resolve(&self, name: &str) -> Result<(Intensity, Pue), InvalidSpec> {
        let source = &self.source;
        let place = match (&source.country, &source.cloud_region, &source.grid_zone) {
            (Some(code), None, None) => Place::Country(code.clone()),
            (None, Some(region), None) => {
                let (provider, region) = region.split_once('/').ok_or_else(|| InvalidSpec {
                    field: "spec.source.cloudRegion",
                    problem: format!(
                        "{region:?} is not provider/region, for example aws/eu-central-1"
                    ),
                })?;
                Place::Region {
                    provider: provider.to_owned(),
                    region: region.to_owned(),
                }
            }
            (None, None, Some(zone)) => Place::GridZone(zone.clone()),
            _ => Place::World,
        };
        let wrong = |problem: String| InvalidSpec {
            field: "spec.source",
            problem,
        };
        let (mut intensity, mut pue) =
            embedded(&place).map_err(|error| wrong(error.to_string()))?;
        if let Some(grams) = source.static_grams_per_kwh {
            intensity = Intensity {
                zone: name.to_owned(),
                grams_per_kwh: grams as f64,
                signal: Signal::Average,
                basis: Basis::Lifecycle,
                kind: Kind::Static,
                source: format!("GridZone {name}"),
                relative_uncertainty: 0.1,
            }
            .check()
            .map_err(|error| wrong(error.to_string()))?;
        }
        if let Some(text) = &self.pue {
            let value = text
                .parse()
                .ok()
                .filter(|value: &f64| (1.0..5.0).contains(value));
            let value = value.ok_or_else(|| InvalidSpec {
                field: "spec.pue",
                problem: format!("{text:?} is not a number from 1 to 4.999, for example \"1.2\""),
            })?;
            pue = Pue {
                value,
                source: format!("GridZone {name}"),
            };
        }
        Ok((intensity, pue))
    }
}

/// The zone that a node stands in: the most specific selector that matches, ties by name.
pub fn site_of<'a>(
    zones: &'a [(String, GridZoneSpec)],
    labels: &BTreeMap<String, String>,
) -> Option<&'a str> {
    zones
        .iter()
        .filter(|(_, zone)| {
            zone.node_selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
        .max_by_key(|(name, zone)| (zone.node_selector.len(), std::cmp::Reverse(name.clone())))
        .map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(selector: &[(&str, &str)], source: GridSource) -> GridZoneSpec {
        let node_selector = selector
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        GridZoneSpec {
            node_selector,
            source,
            pue: None,
        }
    }

    #[test]
    fn the_most_specific_selector_wins() {
        let country = GridSource {
            country: Some("DEU".into()),
            ..GridSource::default()
        };
        let zones = vec![
            ("all".to_owned(), zone(&[], country.clone())),
            ("north".to_owned(), zone(&[("site", "north")], country)),
        ];
        let labels = BTreeMap::from([("site".to_owned(), "north".to_owned())]);
        assert_eq!(site_of(&zones, &labels), Some("north"));
        assert_eq!(site_of(&zones, &BTreeMap::new()), Some("all"));
    }

    #[test]
    fn a_country_nobody_knows_is_named_with_what_is_allowed() {
        let source = GridSource {
            country: Some("XXX".into()),
            ..GridSource::default()
        };
        let error = zone(&[], source).resolve("z").unwrap_err();
        assert!(
            error.to_string().contains("\"XXX\"") && error.to_string().contains("DEU"),
            "{error}"
        );
    }
}
