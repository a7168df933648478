//! Conditions, by the Kubernetes conventions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observed aspect of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed, in CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in CamelCase, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Generation of the object that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When the status last changed, RFC 3339.
    pub last_transition_time: String,
}

/// Sets a condition by type; its time moves only where its status does.
pub fn set_condition(conditions: &mut Vec<Condition>, new: Condition) {
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == new.type_)
    {
        Some(old) if old.status == new.status => {
            let since = std::mem::take(&mut old.last_transition_time);
            *old = Condition {
                last_transition_time: since,
                ..new
            };
        }
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &str, at: &str) -> Condition {
        Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: "Test".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: at.into(),
        }
    }

    #[test]
    fn the_time_of_a_condition_moves_only_with_its_status() {
        let mut conditions = vec![];
        for (status, at) in [("True", "1"), ("True", "2"), ("False", "3")] {
            set_condition(&mut conditions, ready(status, at));
        }
        assert_eq!(conditions, vec![ready("False", "3")]);
        set_condition(&mut conditions, ready("False", "4"));
        assert_eq!(conditions[0].last_transition_time, "3");
    }
}
