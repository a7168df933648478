//! `/v1/energy`: a pod's own energy, for the application beside the sidecar, so that it can
//! log joules an image.

use super::attribution::Holder;
use super::shared::Shared;
use crate::serve::http::{Answer, Call};
use hyper::StatusCode;
use serde_json::json;

/// The pod's energy so far, as JSON, or at `/v1/energy/joules` as a number in text;
/// `?since=` takes the microjoules of an earlier answer and gives what came since.
pub(super) fn energy(call: &Call, shared: &Shared, own: &Holder, made: Option<u64>) -> Answer {
    let since = match since(&call.query) {
        Ok(since) => since,
        Err(why) => return Answer::text(StatusCode::BAD_REQUEST, why),
    };
    let page = shared.ledger.load();
    let line = page.pods.iter().find(|pod| pod.uid == own.uid);
    let microjoules = line.map_or(0, |pod| pod.microjoules);
    let later = microjoules.saturating_sub(since);
    match call.path.as_str() {
        "/v1/energy/joules" => Answer::text(StatusCode::OK, format!("{:.6}\n", later as f64 / 1e6)),
        "/v1/energy" => {
            let body = json!({
                "namespace": own.namespace, "pod": own.pod, "uid": own.uid,
                "ready": page.ready, "microjoules": microjoules, "since": since,
                "microjoulesSince": later, "joulesSince": later as f64 / 1e6,
                "imagesDone": made,
            });
            Answer::json(serde_json::to_vec(&body).unwrap_or_default())
        }
        _ => Answer::not_found(),
    }
}

fn since(query: &str) -> Result<u64, String> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let Some((_, text)) = fields.find(|(name, _)| *name == "since") else {
        return Ok(0);
    };
    text.parse().map_err(|_| {
        format!(
            "since={text:?} is no whole number: give the microjoules of an earlier answer, \
             for example /v1/energy?since=1250000\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::since;

    #[test]
    fn since_is_a_whole_number_of_microjoules_or_absent() {
        assert_eq!(since(""), Ok(0));
        assert_eq!(since("a=b&since=12"), Ok(12));
        for wrong in ["since=", "since=-1", "since=1.5", "since=x"] {
            assert!(
                since(wrong).unwrap_err().contains("earlier answer"),
                "{wrong}"
            );
        }
    }
}
