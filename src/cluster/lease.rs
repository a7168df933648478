//! The leader's lease: a pure state machine, and the writes it asks for.
//!
//! Every write carries the resourceVersion that was read: of two candidates one loses. A
//! foreign lease expires when its record has not changed for the lease's duration on *my*
//! monotonic clock; clocks of machines are never compared. Who could not renew for the
//! renew deadline steps down, also when the API server cannot be reached.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use std::time::Duration;

/// How long a lease holds, by when its holder steps down, how often it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub duration: Duration,
    pub renew_deadline: Duration,
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(6),
            renew_deadline: Duration::from_secs(4),
            retry: Duration::from_secs(1),
        }
    }
}

/// What is known of the lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// Changes with every write of the record.
    pub version: String,
    pub holder: String,
    pub transitions: i32,
    /// µs, monotonic: when this version was first seen.
    pub seen: u64,
}

/// What to do about the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Mine: renew it.
    Renew,
    /// Nobody's, or expired: take it, as the holder number given.
    Take(i32),
    /// Another's, and alive.
    Wait,
}

/// Decides, from what is known and the time.
pub fn decide(me: &str, watched: &Watched, terms: &Terms, now: u64) -> Action {
    let age = Duration::from_micros(now.saturating_sub(watched.seen));
    if watched.holder == me {
        Action::Renew
    } else if watched.holder.is_empty() || age >= terms.duration {
        Action::Take(watched.transitions.saturating_add(1))
    } else {
        Action::Wait
    }
}

impl Watched {
    /// Takes a record in; its time moves only where its version did.
    pub fn observe(&mut self, lease: &Lease, now: u64) {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if version == self.version && !version.is_empty() {
            return;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        *self = Self {
            version,
            holder: spec.holder_identity.unwrap_or_default(),
            transitions: spec.lease_transitions.unwrap_or(0),
            seen: now,
        };
    }
}

/// One look at the lease and the write it asks for; true while it is mine. An error leaves
/// the claim as it was: the caller's deadline decides. `highest` is the number of the last
/// leader that wrote anything: this one's is not lower.
pub async fn tend(
    api: &Api<Lease>,
    name: &str,
    me: &str,
    watched: &mut Watched,
    terms: &Terms,
    highest: i32,
    now: u64,
) -> Result<bool, kube::Error> {
    let found = api.get_opt(name).await?;
    if let Some(lease) = &found {
        watched.observe(lease, now);
    } else {
        *watched = Watched {
            seen: now,
            ..Watched::default()
        };
    }
    // A lease that was deleted begins at one again, but the budgets remember their leaders.
    let next = highest.saturating_add(1);
    let transitions = match decide(me, watched, terms, now) {
        Action::Wait => return Ok(false),
        Action::Renew if watched.transitions < highest => next,
        Action::Renew => watched.transitions,
        Action::Take(transitions) => transitions.max(next),
    };
    let record = record(name, me, transitions, found.as_ref(), terms);
    let written = match &found {
        Some(_) => api.replace(name, &PostParams::default(), &record).await,
        None => api.create(&PostParams::default(), &record).await,
    };
    match written {
        Ok(lease) => {
            watched.observe(&lease, now);
            Ok(true)
        }
        // Another was faster: not mine.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lease back, so that the next leader need not wait.
pub async fn give_back(api: &Api<Lease>, name: &str, me: &str) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(name).await? else {
        return Ok(());
    };
    let Some(spec) = lease
        .spec
        .as_mut()
        .filter(|spec| spec.holder_identity.as_deref() == Some(me))
    else {
        return Ok(());
    };
    spec.holder_identity = Some(String::new());
    api.replace(name, &PostParams::default(), &lease)
        .await
        .map(|_| ())
}

fn record(name: &str, me: &str, transitions: i32, found: Option<&Lease>, terms: &Terms) -> Lease {
    let now = MicroTime(crate::clock::now());
    let old = found
        .and_then(|lease| lease.spec.clone())
        .unwrap_or_default();
    let acquired = if old.holder_identity.as_deref() == Some(me) {
        old.acquire_time
    } else {
        Some(now.clone())
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: found.and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: i32::try_from(terms.duration.as_secs()).ok(),
            acquire_time: acquired,
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn watched(holder: &str, seen: u64) -> Watched {
        Watched {
            version: "1".into(),
            holder: holder.into(),
            transitions: 3,
            seen,
        }
    }

    #[test]
    fn a_foreign_lease_is_taken_only_after_it_stood_still_for_its_duration() {
        let terms = Terms::default();
        assert_eq!(
            decide("me", &watched("you", 0), &terms, 5_999_999),
            Action::Wait
        );
        assert_eq!(
            decide("me", &watched("you", 0), &terms, 6_000_000),
            Action::Take(4)
        );
        assert_eq!(decide("me", &watched("", 0), &terms, 1), Action::Take(4));
        assert_eq!(
            decide("me", &watched("me", 0), &terms, 99_000_000),
            Action::Renew
        );
    }

    #[test]
    fn seeing_the_same_record_again_does_not_make_it_younger() {
        let mut known = Watched::default();
        let mut lease = record("x", "you", 1, None, &Terms::default());
        lease.metadata.resource_version = Some("7".into());
        known.observe(&lease, 10);
        known.observe(&lease, 20);
        assert_eq!(known.seen, 10);
    }

    proptest! {
        /// The holder steps down before anyone else takes over, whatever their clocks' offset.
        #[test]
        fn at_no_time_do_two_believe_to_lead(renewed in 0_u64..1_000_000_000, later in 0_u64..20_000_000) {
            let terms = Terms::default();
            let now = renewed + later;
            let holder_leads = Duration::from_micros(later) < terms.renew_deadline;
            let other_takes = decide("b", &watched("a", renewed), &terms, now) != Action::Wait;
            prop_assert!(!(holder_leads && other_takes));
        }
    }
}
