//! A simulated API server: objects with versions, guarded writes, patches, and a history that
//! watches follow. Requests are data; whether and when they arrive is the scheduler's.

use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One request as it came over the wire.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

/// A status code and a body.
pub(super) type Answer = (u16, Value);

/// Where a path leads.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    plural: String,
    namespace: String,
    name: Option<String>,
    status: bool,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        parts.drain(..if parts.first() == Some(&"api") { 2 } else { 3 }.min(parts.len()));
        let mut namespace = String::new();
        if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts[1].clone_into(&mut namespace);
            parts.drain(..2);
        }
        Some(Self {
            plural: (*parts.first()?).to_owned(),
            namespace,
            name: parts.get(1).map(|name| (*name).to_owned()),
            status: parts.get(2) == Some(&"status"),
        })
    }

    fn key(&self) -> Key {
        let name = self.name.clone().unwrap_or_default();
        (self.plural.clone(), self.namespace.clone(), name)
    }
}

/// Plural, namespace, name.
pub(super) type Key = (String, String, String);

/// What became of an object: its key, and the object unless it was deleted.
pub(super) type Change = (Key, Option<Value>);

#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) objects: BTreeMap<Key, Value>,
    /// What happened, by plural: what watches see, in this order.
    pub(super) history: BTreeMap<String, Vec<Change>>,
    version: u64,
    uids: u64,
    /// Stamp of what is created now.
    pub(super) now: String,
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": reason, "code": code,
    });
    (code, status)
}

impl Server {
    /// Objects of one kind.
    pub(super) fn all<'a>(&'a self, plural: &'a str) -> impl Iterator<Item = &'a Value> {
        let own = self.objects.iter().filter(move |(key, _)| key.0 == plural);
        own.map(|(_, object)| object)
    }

    /// Handles one request.
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let Some(place) = Place::of(&request.path) else {
            return failure(404, "NotFound");
        };
        let body = || serde_json::from_slice::<Value>(&request.body).unwrap_or_default();
        match (&request.method, &place.name) {
            (&Method::GET, None) => self.list(&place),
            (&Method::GET, Some(_)) => match self.objects.get(&place.key()) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound"),
            },
            (&Method::POST, None) => self.create(place, body()),
            (&Method::PUT, Some(_)) => self.replace(&place, &body()),
            (&Method::PATCH, Some(_)) => self.patch(&place, request),
            (&Method::DELETE, Some(_)) => self.delete(&place.key(), &body()),
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, place: &Place) -> Answer {
        let here = |key: &Key| {
            key.0 == place.plural && (place.namespace.is_empty() || key.1 == place.namespace)
        };
        let items = self.objects.iter().filter(|(key, _)| here(key));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        let version = self.version.to_string();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": version }, "items": items,
        });
        (200, list)
    }

    fn create(&mut self, mut place: Place, mut object: Value) -> Answer {
        if place.plural == "events" {
            return (201, object);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        place.name = Some(name.to_owned());
        let key = place.key();
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists");
        }
        self.uids += 1;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("uid-{}", self.uids));
        metadata["namespace"] = json!(place.namespace);
        metadata["creationTimestamp"] = json!(self.now);
        metadata["generation"] = json!(1);
        (201, self.put(key, object))
    }

    /// Puts an object into a collection, as a person or another controller would.
    pub(super) fn make(&mut self, plural: &str, namespace: &str, object: Value) -> Value {
        let place = Place {
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: None,
            status: false,
        };
        self.create(place, object).1
    }

    /// Changes an object, as a person or another controller would.
    pub(super) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        if let Some(mut object) = self.objects.get(key).cloned() {
            let spec = object["spec"].clone();
            change(&mut object);
            if object["spec"] != spec {
                let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
                object["metadata"]["generation"] = json!(generation + 1);
            }
            self.put(key.clone(), object);
        }
    }

    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let history = self.history.entry(key.0.clone()).or_default();
        history.push((key.clone(), Some(object.clone())));
        self.objects.insert(key, object.clone());
        object
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if self.objects.remove(key).is_some() {
            let history = self.history.entry(key.0.clone()).or_default();
            history.push((key.clone(), None));
        }
    }

    fn delete(&mut self, key: &Key, body: &Value) -> Answer {
        let Some(object) = self.objects.get(key) else {
            return failure(404, "NotFound");
        };
        let asked = &body["preconditions"]["uid"];
        if asked.is_string() && *asked != object["metadata"]["uid"] {
            return failure(409, "Conflict");
        }
        self.remove(key);
        let done = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
        (200, done)
    }

    fn replace(&mut self, place: &Place, body: &Value) -> Answer {
        let key = place.key();
        let Some(before) = self.objects.get(&key) else {
            return failure(404, "NotFound");
        };
        let asked = body["metadata"]["resourceVersion"].as_str();
        if asked.is_some_and(|asked| Some(asked) != before["metadata"]["resourceVersion"].as_str())
        {
            return failure(409, "Conflict");
        }
        let mut after = before.clone();
        let part = if place.status { "status" } else { "spec" };
        after[part] = body[part].clone();
        (200, self.put(key, after))
    }

    fn patch(&mut self, place: &Place, request: &Request) -> Answer {
        let key = place.key();
        let Some(mut object) = self.objects.get(&key).cloned() else {
            return failure(404, "NotFound");
        };
        let before = object.clone();
        if request.content_type.contains("json-patch") {
            let patch = serde_json::from_slice::<json_patch::Patch>(&request.body);
            let patched = patch.map(|patch| json_patch::patch(&mut object, &patch));
            if !matches!(patched, Ok(Ok(()))) {
                return failure(422, "Invalid");
            }
        } else {
            let patch: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let asked = patch["metadata"]["resourceVersion"].as_str();
            if asked
                .is_some_and(|asked| Some(asked) != before["metadata"]["resourceVersion"].as_str())
            {
                return failure(409, "Conflict");
            }
            json_patch::merge(&mut object, &patch);
        }
        // What changes nothing is no write.
        if object == before {
            return (200, before);
        }
        (200, self.put(key, object))
    }
}
