//! What the API server knows of Dynamic Resource Allocation and the kubelet does not tell:
//! which claims are for administration, whose pods watch GPUs that others hold, and which
//! UUID a device's name means. Asked only where `--resource-claims` gives the right to.

use super::devices::{Claim, DRA_DRIVER};
use crate::clock;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::{Client, discovery};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

const GROUP: &str = "resource.k8s.io";
const DEADLINE: Duration = Duration::from_secs(3);
/// ResourceSlices are read at most this often, and after an error nothing sooner.
const PAUSE_US: u64 = 10_000_000;

/// ResourceSlices are read anew after so long while claims are used.
const SLICES_US: u64 = 300_000_000;

/// A device: its pool and its name.
type Device = (String, String);

/// Claims and slices as they were read.
pub(super) struct Dra {
    client: Client,
    node: String,
    kinds: Option<(ApiResource, ApiResource)>,
    /// Devices that a claim has for administration, by `namespace/name`.
    claims: HashMap<String, HashSet<Device>>,
    uuids: HashMap<Device, String>,
    /// µs, monotonic: not before.
    slices_again: u64,
    /// µs, monotonic: until when the UUIDs are taken for those that there are.
    slices_until: u64,
    again: u64,
    state: DraState,
}

/// How asking the API server goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DraState {
    /// Failed questions by code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Why the last one failed, in words.
    pub(super) trouble: Option<String>,
}

impl Dra {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            kinds: None,
            claims: HashMap::new(),
            uuids: HashMap::new(),
            slices_again: 0,
            slices_until: 0,
            again: 0,
            state: DraState::default(),
        }
    }

    pub(super) fn state(&self) -> &DraState {
        &self.state
    }

    /// The claims that make a holder, under the UUIDs of their devices as far as they are
    /// known. A claim that cannot be read counts as an ordinary one.
    pub(super) async fn complete(&mut self, claims: Vec<Claim>) -> Vec<Claim> {
        let named = |claim: &Claim| claim.holder.claim.clone();
        let names: BTreeSet<String> = claims.iter().filter_map(named).collect();
        // A claim of the same name may be another's by the time it is listed again.
        self.claims.retain(|name, _| names.contains(name));
        if names.is_empty() {
            self.state.trouble = None;
        }
        let now = clock::monotonic_micros();
        if !names.is_empty() && now >= self.again {
            let learning = self.learn(&names, &claims, now);
            let learnt = tokio::time::timeout(DEADLINE, learning).await;
            self.note(now, learnt);
        }
        let held = claims.into_iter().filter(|claim| !self.administers(claim));
        held.map(|claim| self.named(claim)).collect()
    }

    fn note(&mut self, now: u64, learnt: Result<kube::Result<()>, tokio::time::error::Elapsed>) {
        let (code, words) = match learnt {
            Ok(Ok(())) => {
                self.state.trouble = None;
                return;
            }
            Ok(Err(kube::Error::Api(status))) => (status.reason.clone(), status.message.clone()),
            Ok(Err(error)) => ("unreachable".to_owned(), error.to_string()),
            Err(_) => ("timeout".to_owned(), "no answer in 3 s".to_owned()),
        };
        self.again = now + PAUSE_US;
        if self.state.trouble.is_none() {
            tracing::warn!(code, words, "resource claims cannot be read");
        }
        *self.state.errors.entry(code).or_default() += 1;
        self.state.trouble = Some(words);
    }

    async fn learn(
        &mut self,
        names: &BTreeSet<String>,
        claims: &[Claim],
        now: u64,
    ) -> kube::Result<()> {
        let (claim_kind, slice_kind) = match &self.kinds {
            Some(kinds) => kinds.clone(),
            None => self.kinds.insert(kinds(&self.client).await?).clone(),
        };
        let mut failed = None;
        for name in names {
            if self.claims.contains_key(name) {
                continue;
            }
            let (namespace, claim) = name.split_once('/').unwrap_or(("", name));
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, &claim_kind);
            match api.get_opt(claim).await {
                Ok(found) => {
                    let administered = found.map(|claim| administered(&claim.data));
                    self.claims
                        .insert(name.clone(), administered.unwrap_or_default());
                    // Its device may bear the name of one that is no more.
                    self.slices_until = 0;
                }
                // The others may be told all the same.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let unknown = |claim: &Claim| device(claim).is_some_and(|d| !self.uuids.contains_key(&d));
        let wanted = now >= self.slices_until || claims.iter().any(unknown);
        if wanted && now >= self.slices_again {
            self.slices_again = now + PAUSE_US;
            self.slices_until = now + SLICES_US;
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &slice_kind);
            let selector = format!("spec.nodeName={},spec.driver={DRA_DRIVER}", self.node);
            match api.list(&ListParams::default().fields(&selector)).await {
                Ok(slices) => {
                    self.uuids = slices.iter().flat_map(|slice| uuids(&slice.data)).collect();
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn administers(&self, claim: &Claim) -> bool {
        let of = claim.holder.claim.as_ref();
        let devices = of.and_then(|name| self.claims.get(name));
        devices.is_some_and(|devices| device(claim).is_some_and(|d| devices.contains(&d)))
    }

    fn named(&self, claim: Claim) -> Claim {
        let uuid = device(&claim).and_then(|device| self.uuids.get(&device));
        match uuid {
            Some(uuid) => Claim {
                device: uuid.clone(),
                ..claim
            },
            None => claim,
        }
    }
}

/// A claim's device; `None` for a device plugin's.
fn device(claim: &Claim) -> Option<Device> {
    Some((claim.pool.clone()?, claim.device.clone()))
}

/// ResourceClaim and ResourceSlice in the version that the API server prefers.
async fn kinds(client: &Client) -> kube::Result<(ApiResource, ApiResource)> {
    let group = discovery::group(client, GROUP).await?;
    let kind = |name: &str| {
        let found = group.recommended_kind(name).map(|(kind, _)| kind);
        found.ok_or_else(|| {
            let missing = format!("{GROUP}/{name}");
            kube::Error::Discovery(kube::error::DiscoveryError::MissingKind(missing))
        })
    };
    Ok((kind("ResourceClaim")?, kind("ResourceSlice")?))
}

/// Devices that a claim was given for administration; `claim` is the object without its
/// metadata, of v1, v1beta2 or v1beta1 alike.
fn administered(claim: &Value) -> HashSet<Device> {
    let results = claim["status"]["allocation"]["devices"]["results"].as_array();
    let results = results.into_iter().flatten();
    results
        .filter(|result| result["adminAccess"] == true && result["driver"] == DRA_DRIVER)
        .filter_map(|result| Some((text(&result["pool"])?, text(&result["device"])?)))
        .collect()
}

/// UUIDs by device; v1beta1 has the attributes a level deeper.
fn uuids(slice: &Value) -> Vec<(Device, String)> {
    let pool = text(&slice["spec"]["pool"]["name"]);
    let devices = slice["spec"]["devices"].as_array().into_iter().flatten();
    devices
        .filter_map(|device| {
            let attributes = match &device["attributes"] {
                Value::Null => &device["basic"]["attributes"],
                attributes => attributes,
            };
            let uuid = text(&attributes["uuid"]["string"])?;
            Some(((pool.clone()?, text(&device["name"])?), uuid))
        })
        .collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pair(pool: &str, device: &str) -> Device {
        (pool.to_owned(), device.to_owned())
    }

    #[test]
    fn only_results_with_admin_access_are_for_administration() {
        let result = |driver: &str, device: &str, admin: Value| json!({ "driver": driver, "pool": "n", "device": device, "adminAccess": admin });
        let claim = json!({ "status": { "allocation": { "devices": { "results": [
            result(DRA_DRIVER, "gpu-0", json!(true)),
            result(DRA_DRIVER, "gpu-1", json!(false)),
            result(DRA_DRIVER, "gpu-2", Value::Null),
            result("fpga.example.com", "gpu-3", json!(true)),
            { "adminAccess": true, "driver": DRA_DRIVER },
        ] } } } });
        assert_eq!(administered(&claim), HashSet::from([pair("n", "gpu-0")]));
        assert!(administered(&json!({ "status": 7 })).is_empty());
    }

    #[test]
    fn a_slice_names_uuids_in_every_version() {
        let uuid = json!({ "uuid": { "string": "GPU-1" } });
        let slice = json!({ "spec": { "pool": { "name": "n" }, "devices": [
            { "name": "gpu-0", "attributes": uuid },
            { "name": "gpu-1", "basic": { "attributes": uuid } },
            { "name": "gpu-2", "attributes": { "uuid": { "int": 7 } } },
            { "attributes": uuid },
        ] } });
        let named = ["gpu-0", "gpu-1"].map(|name| (pair("n", name), "GPU-1".to_owned()));
        assert_eq!(uuids(&slice), named);
    }
}
