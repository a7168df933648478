//! Putting records away: the statement's write, then the records are handed on, then deleted.

use super::context::{Context, Failure, carry_on};
use super::energy::Pages;
use super::ledger::{Ledger, listed_elsewhere};
use super::memory::Memory;
use super::statements::{Present, count, finish, ripe, settled_by};
use crate::api::{CarbonReservation, CarbonStatement, CarbonStatementSpec};
use crate::clock;
use crate::contract as c;
use crate::serve::crash;
use futures::{FutureExt, StreamExt, stream};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use std::collections::{BTreeSet, HashSet};

/// For how long records are put away in one cycle, µs: jobs wait meanwhile.
const A_CYCLE_US: u64 = 500_000;
/// Deletions that are on their way at once.
const DELETIONS: usize = 16;
/// Records that are named and will not go, for a finalizer of somebody's, before no more are put
/// away beside them.
const STUCK: usize = 64;
const NOT_HANDED_ON: &str = "records cannot be handed on";

/// Puts away what is ripe, one namespace after the other, for a moment in each cycle.
pub(super) async fn run(
    context: &Context,
    memory: &mut Memory,
    pages: &Pages,
    micros: u64,
) -> Result<(), Failure> {
    let due = micros.saturating_sub(memory.put_away_at) >= look_every_us(context);
    if memory.put_away_from.is_none() && !due {
        return Ok(());
    }
    let from = memory.put_away_from.take().unwrap_or_else(|| {
        memory.put_away_at = micros;
        String::new()
    });
    let until = clock::monotonic_micros() + A_CYCLE_US;
    let present = Present::of(context, memory, pages, micros);
    let moment = cutoff(context);
    let records = context.caches.reservations.all();
    let some = records.iter().filter(|r| settled_by(r, moment));
    let some = some.filter(|record| present.misses(record));
    let namespaces: BTreeSet<String> = some.filter_map(|record| record.namespace()).collect();
    for namespace in namespaces.range(from..) {
        if clock::monotonic_micros() >= until {
            memory.put_away_from = Some(namespace.clone());
            return Ok(());
        }
        if memory.misses_a_record_of(namespace) {
            continue;
        }
        match put_away(context, namespace, &present, moment).await {
            // Where records are handed on to is the same for all.
            Err(Failure::Invalid(why)) if why == NOT_HANDED_ON => return Ok(()),
            done => carry_on(namespace, done)?,
        }
    }
    Ok(())
}

/// Looks lie as far apart as lets many records go with one write, a minute at most.
fn look_every_us(context: &Context) -> u64 {
    let kept = context.settings.keep_records.as_micros() / 24;
    u64::try_from(kept).unwrap_or(u64::MAX).min(60_000_000)
}

/// What was settled by then may be put away.
pub(super) fn cutoff(context: &Context) -> Timestamp {
    let kept = SignedDuration::try_from(context.settings.keep_records);
    let kept = kept.unwrap_or(SignedDuration::MAX);
    context.now().checked_sub(kept).unwrap_or(Timestamp::MIN)
}

/// Puts away what is ripe in one namespace. The statement's write comes first: from then on the
/// records count no more, and a crash leaves only what is to be deleted.
async fn put_away(
    context: &Context,
    namespace: &str,
    present: &Present,
    moment: Timestamp,
) -> Result<(), Failure> {
    let ledger = Ledger::read(context, namespace).await?;
    if ledger.statement.is_none() && is_known(context, namespace) {
        // Somebody deleted it, and it is made anew first.
        return Ok(());
    }
    let left: Vec<&CarbonReservation> = ledger
        .records()
        .filter(|r| r.is_settled() && ledger.has_put_away(&r.spec.workload.uid))
        .collect();
    let stuck: Vec<String> = left.iter().map(|r| r.spec.workload.uid.clone()).collect();
    if !left.is_empty() {
        delete(context, &left).await?;
    }
    // What is forgotten of the statement's list must be gone by then, and this leader must know
    // that it is gone: else it would take it for deleted by somebody.
    if left.len() > STUCK || !watched(context, namespace, &ledger) {
        return Ok(());
    }
    let ripe = ripe(&ledger, present, moment);
    if ripe.is_empty() {
        return Ok(());
    }
    let listed = listed_elsewhere(ledger.records());
    let counts = |record: &CarbonReservation| !listed.contains(&*record.spec.workload.uid);
    crash::point("before-statement");
    let new: Vec<(&CarbonReservation, bool)> = ripe.iter().map(|r| (*r, counts(r))).collect();
    let mut statement = ledger.statement.clone();
    if let Some(status) = statement.as_mut().and_then(|known| known.status.as_mut()) {
        // What will not go stays named.
        status.put_away.retain(|uid| !stuck.contains(uid));
        status.put_away.extend(stuck);
    }
    let uid = &namespace_uid(context, namespace);
    write(context, Of { namespace, uid }, statement, &new).await?;
    crash::point("after-statement");
    let labels = vec![("namespace", namespace.to_owned())];
    let number = ripe.len() as f64;
    context.tallies.add(&c::RECORDS_PUT_AWAY, labels, number);
    delete(context, &ripe).await
}

/// True where this leader's watch knows of a statement, or of one that is gone.
fn is_known(context: &Context, namespace: &str) -> bool {
    let statements = &context.caches.statements;
    statements.get(&format!("/{namespace}")).is_some()
        || statements.has_removed(|gone| gone.spec.namespace == namespace)
}

/// True once this leader's watch has seen those records go that the statement has counted.
fn watched(context: &Context, namespace: &str, ledger: &Ledger) -> bool {
    let there: HashSet<&str> = ledger
        .records()
        .map(|r| r.spec.workload.uid.as_str())
        .collect();
    let known = context.caches.reservations.within(namespace);
    let mut known = known.iter().map(|r| r.spec.workload.uid.as_str());
    !known.any(|uid| ledger.has_put_away(uid) && !there.contains(uid))
}

/// A namespace by name and UID; the UID is empty where it is not known any more.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) namespace: &'a str,
    pub(super) uid: &'a str,
}

/// The guarded write of a statement; gives it as it is then.
pub(super) async fn write(
    context: &Context,
    of: Of<'_>,
    statement: Option<CarbonStatement>,
    records: &[(&CarbonReservation, bool)],
) -> Result<CarbonStatement, Failure> {
    let namespace = of.namespace;
    let api: Api<CarbonStatement> = Api::all(context.client.clone());
    let params = PostParams::default();
    context.check_leading()?;
    let mut statement = if let Some(statement) = statement {
        statement
    } else {
        let spec = CarbonStatementSpec {
            namespace: namespace.to_owned(),
        };
        let new = CarbonStatement::new(namespace, spec);
        context.call(api.create(&params, &new)).await?
    };
    let status = statement.status.get_or_insert_default();
    if status.lease_epoch > context.epoch() {
        return Err(Failure::Deposed);
    }
    let today = context.now().to_zoned(TimeZone::UTC).date();
    for (record, counts) in records {
        count(status, record, of.uid, *counts, today);
    }
    finish(status, context.epoch());
    statement.metadata.managed_fields = None;
    context
        .call(api.replace_status(namespace, &params, &statement))
        .await
}

/// Empty where it is not known any more.
pub(super) fn namespace_uid(context: &Context, namespace: &str) -> String {
    let known = context.caches.namespaces.get(&format!("/{namespace}"));
    let uid = known.and_then(|known| known.metadata.uid.clone());
    uid.unwrap_or_default()
}

/// Hands records on, and deletes them.
async fn delete(context: &Context, records: &[&CarbonReservation]) -> Result<(), Failure> {
    context
        .settings
        .archive
        .write(records)
        .await
        .map_err(|error| {
            tracing::error!(%error, "records cannot be handed on, and stay until they can");
            Failure::Invalid(NOT_HANDED_ON.to_owned())
        })?;
    let gone = records.iter().map(|record| {
        let done = delete_one(context, record);
        done.map(|done| (record.name_any(), done)).boxed()
    });
    let gone: Vec<_> = gone.collect();
    let mut gone = stream::iter(gone).buffer_unordered(DELETIONS);
    while let Some((name, done)) = gone.next().await {
        carry_on(&name, done)?;
    }
    Ok(())
}

async fn delete_one(context: &Context, record: &CarbonReservation) -> Result<(), Failure> {
    context.check_leading()?;
    let namespace = record.namespace().unwrap_or_default();
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), &namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: record.metadata.uid.clone(),
        resource_version: None,
    });
    crash::point("before-delete");
    match context.call(api.delete(&record.name_any(), &params)).await {
        Ok(_) | Err(Failure::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}
