//! Admission reviews on the wire: what is read of a request, and what is answered. Typed to
//! the last field, since a tree of JSON values costs more than the decision.

use super::wire::Lite;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

#[derive(Debug, Deserialize)]
pub(super) struct Review {
    pub(super) request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) uid: String,
    pub(super) kind: GroupKind,
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) operation: String,
    #[serde(default)]
    pub(super) user_info: UserInfo,
    #[serde(default)]
    pub(super) object: Option<Lite>,
    #[serde(default)]
    pub(super) old_object: Option<Lite>,
}

#[derive(Debug, Deserialize)]
pub(super) struct GroupKind {
    pub(super) kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UserInfo {
    pub(super) username: String,
}

/// The answer, as the API server reads it. kube's own type writes the patch as an array of
/// numbers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'r> {
    pub(super) uid: &'r str,
    pub(super) allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answered<'r> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) response: Response<'r>,
}

/// One step of a JSON patch (RFC 6902).
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) op: &'static str,
    pub(super) path: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Put>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Put {
    Nothing {},
    List([(); 0]),
    Switch(bool),
    Text(String),
    Named { name: &'static str },
}

impl Change {
    pub(super) fn add(path: impl Into<Cow<'static, str>>, value: Put) -> Self {
        Self {
            op: "add",
            path: path.into(),
            value: Some(value),
        }
    }

    pub(super) fn remove(path: String) -> Self {
        Self {
            op: "remove",
            path: path.into(),
            value: None,
        }
    }
}
