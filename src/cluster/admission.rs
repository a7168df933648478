//! Admission reviews on the wire: what is read of a request, and what is answered. Typed to
//! the last field, since a tree of JSON values costs more than the decision.

use super::wire::Lite;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review<'b> {
    #[serde(borrow, default)]
    pub(super) api_version: Cow<'b, str>,
    #[serde(borrow, default)]
    pub(super) kind: Cow<'b, str>,
    pub(super) request: Request,
}

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// A body that is no review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("not an AdmissionReview: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error(
        "apiVersion {api_version:?}, kind {kind:?}: {API_VERSION}, {KIND} is answered; set admissionReviewVersions: [v1]"
    )]
    Unknown { api_version: String, kind: String },
}

impl<'b> Review<'b> {
    pub(super) fn read(body: &'b [u8]) -> Result<Self, ReviewError> {
        let review: Self = serde_json::from_slice(body)?;
        if review.api_version == API_VERSION && review.kind == KIND {
            return Ok(review);
        }
        let short = |text: &str| text.chars().take(80).collect();
        Err(ReviewError::Unknown {
            api_version: short(&review.api_version),
            kind: short(&review.kind),
        })
    }
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
    /// What the API server's audit log is to tell, under the webhook's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) audit_annotations: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answered<'r> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'r>,
}

impl<'r> Answered<'r> {
    pub(super) fn of(response: Response<'r>) -> Self {
        Self {
            api_version: API_VERSION,
            kind: KIND,
            response,
        }
    }
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
