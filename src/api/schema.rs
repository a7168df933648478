//! The CustomResourceDefinitions, as they are applied: generated from the Rust types, with
//! what the derive cannot say set here.

use super::{
    CarbonBudget, CarbonReservation, CarbonStatement, DiffusionModel, EnergyLaw, GridZone,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Lists that are maps by a key, so that server-side apply merges their items.
const LIST_MAPS: &[(&str, &[&str])] = &[
    ("conditions", &["type"]),
    ("granting", &["uid"]),
    ("pods", &["uid"]),
    ("charges", &["budget", "day"]),
    ("joined", &["name"]),
];

/// All of them, in the order of the loop.
pub fn custom_resource_definitions() -> Vec<Value> {
    [
        CarbonBudget::crd(),
        CarbonReservation::crd(),
        CarbonStatement::crd(),
        EnergyLaw::crd(),
        DiffusionModel::crd(),
        GridZone::crd(),
    ]
    .into_iter()
    .map(finish)
    .collect()
}

fn finish(crd: CustomResourceDefinition) -> Value {
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    walk(&mut crd);
    crd["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "jouleward" });
    crd
}

fn walk(value: &mut Value) {
    let Value::Object(object) = value else {
        if let Value::Array(items) = value {
            items.iter_mut().for_each(walk);
        }
        return;
    };
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for (name, keys) in LIST_MAPS {
            if let Some(list) = properties
                .get_mut(*name)
                .filter(|list| list["type"] == "array")
            {
                list["x-kubernetes-list-type"] = json!("map");
                list["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
    }
    object.values_mut().for_each(walk);
}
