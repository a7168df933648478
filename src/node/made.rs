//! `/v1/images`: what the application beside the sidecar has made so far. It goes into the
//! container's termination message, which the API server keeps after the pod has ended.

use crate::law::workload::IMAGES_DONE;
use crate::serve::http::{Answer, Call};
use hyper::{Method, StatusCode};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Mutex;

/// As for the annotation.
const MOST: u64 = 10_000_000;

/// Images told so far, and where they are kept.
#[derive(Debug)]
pub(super) struct Made {
    message: PathBuf,
    done: Mutex<Option<u64>>,
}

impl Made {
    pub(super) fn new(message: PathBuf) -> Self {
        Self {
            message,
            done: Mutex::new(None),
        }
    }

    pub(super) fn so_far(&self) -> Option<u64> {
        self.done.lock().map_or(None, |done| *done)
    }

    /// `POST ?done=` takes the images made so far, which never fall; `GET` gives them back.
    pub(super) fn answer(&self, call: &Call) -> Answer {
        if call.path != "/v1/images" {
            return Answer::not_found();
        }
        match call.method {
            Method::GET => self.tell(StatusCode::OK),
            Method::POST | Method::PUT => match parse(&call.query) {
                Ok(done) => self.take(done),
                Err(why) => Answer::text(StatusCode::BAD_REQUEST, why),
            },
            _ => Answer::text(
                StatusCode::METHOD_NOT_ALLOWED,
                "POST /v1/images?done=N tells what is made, GET reads it\n",
            ),
        }
    }

    fn tell(&self, status: StatusCode) -> Answer {
        let body = json!({ "imagesDone": self.so_far() });
        Answer {
            status,
            ..Answer::json(serde_json::to_vec(&body).unwrap_or_default())
        }
    }

    fn take(&self, done: u64) -> Answer {
        let Ok(mut known) = self.done.lock() else {
            return Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "told in vain\n");
        };
        let done = known.unwrap_or(0).max(done);
        *known = Some(done);
        // Mounted as a file of its own: another cannot be put in its place.
        let written = std::fs::write(&self.message, json!({ IMAGES_DONE.name: done }).to_string());
        drop(known);
        match written {
            Ok(()) => self.tell(StatusCode::OK),
            Err(error) => Answer::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "{} cannot be written ({error}): the controller will not learn of it; give --termination-message the container's terminationMessagePath\n",
                    self.message.display()
                ),
            ),
        }
    }
}

fn parse(query: &str) -> Result<u64, String> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let Some((_, text)) = fields.find(|(name, _)| *name == "done") else {
        return Err(
            "done is missing: POST /v1/images?done=12 after the twelfth image\n".to_owned(),
        );
    };
    let done = text.parse().ok().filter(|done| *done <= MOST);
    done.ok_or_else(|| {
        format!(
            "done={text:?} is not a whole number from 0 to {MOST}: give all images made so far\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: Method, query: &str) -> Call {
        Call {
            method,
            path: "/v1/images".to_owned(),
            query: query.to_owned(),
            accept: None,
            content_type: None,
            body: hyper::body::Bytes::new(),
        }
    }

    #[test]
    fn what_was_made_never_falls_and_is_in_the_termination_message() {
        let name = format!("jouleward-made-{}", std::process::id());
        let message = std::env::temp_dir().join(name);
        let made = Made::new(message.clone());
        assert_eq!(made.so_far(), None);
        for (told, kept) in [("done=3", 3), ("done=12", 12), ("x=1&done=5", 12)] {
            assert_eq!(
                made.answer(&call(Method::POST, told)).status,
                StatusCode::OK
            );
            assert_eq!(made.so_far(), Some(kept));
            let text = std::fs::read_to_string(&message).unwrap();
            assert_eq!(text, format!("{{\"jouleward.dev/images-done\":{kept}}}"));
        }
        let answer = made.answer(&call(Method::GET, ""));
        assert_eq!(&answer.body[..], b"{\"imagesDone\":12}");
        std::fs::remove_file(&message).unwrap();
    }

    #[test]
    fn what_is_no_number_is_refused_with_what_is_allowed() {
        let made = Made::new(PathBuf::from("/nowhere/at/all"));
        for wrong in ["", "done=", "done=-1", "done=1.5", "done=99999999999"] {
            let answer = made.answer(&call(Method::POST, wrong));
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong}");
        }
        assert_eq!(made.so_far(), None);
        let vain = made.answer(&call(Method::POST, "done=1"));
        assert_eq!(vain.status, StatusCode::INTERNAL_SERVER_ERROR);
        let why = String::from_utf8(vain.body.to_vec()).unwrap();
        assert!(why.contains("terminationMessagePath"), "{why}");
        let other = made.answer(&call(Method::DELETE, "done=1"));
        assert_eq!(other.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
