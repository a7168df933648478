//! What of the ledger somebody else deletes is made good: a record is made anew, or counted in its
//! statement where its namespace goes too; a statement is made anew. What was charged stays charged.

use super::context::{Context, Failure, carry_on};
use super::ledger::listed_elsewhere;
use super::memory::Memory;
use super::put_away::{Of, cutoff, namespace_uid, write};
use super::statements::{AT_ONCE, settled_by};
use super::stores::Removed;
use crate::api::{CarbonReservation, CarbonStatement};
use crate::clock;
use crate::contract as c;
use kube::api::{Api, ListParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

/// For how long records are made good in one cycle, µs: jobs wait meanwhile.
const A_CYCLE_US: u64 = 500_000;
/// A record that the API server refuses so often, and for so long, is counted instead of made anew;
/// twice, and it is given up.
const REFUSALS: u32 = 30;
const REFUSED_US: u64 = 120_000_000;

/// A record that is gone, and of which it is not settled why.
#[derive(Debug)]
pub(super) struct Missed {
    record: Arc<CarbonReservation>,
    /// `namespace/name`.
    key: String,
    /// µs, monotonic: when it was seen that it is gone.
    at: u64,
    /// UID of its namespace, as long as that was known.
    namespace_uid: String,
    /// Times that the API server refused what would make it good.
    refused: u32,
}

impl Missed {
    fn new(context: &Context, gone: Removed<CarbonReservation>) -> Self {
        let namespace = gone.value.namespace().unwrap_or_default();
        Self {
            namespace_uid: namespace_uid(context, &namespace),
            record: gone.value,
            key: gone.key,
            at: gone.at,
            refused: 0,
        }
    }

    fn uid(&self) -> &str {
        &self.record.spec.workload.uid
    }

    pub(super) fn is_of(&self, namespace: &str) -> bool {
        self.record.metadata.namespace.as_deref() == Some(namespace)
    }

    fn is_refused(&self, times: u32, micros: u64) -> bool {
        let long = micros.saturating_sub(self.at) > u64::from(times) * REFUSED_US;
        self.refused >= times * REFUSALS && long
    }
}

/// Makes good what others deleted, for a moment in each cycle.
pub(super) async fn run(
    context: &Context,
    memory: &mut Memory,
    micros: u64,
) -> Result<(), Failure> {
    statements(context, memory).await?;
    let removed = context.caches.reservations.take_removed();
    memory
        .missed
        .extend(removed.into_iter().map(|gone| Missed::new(context, gone)));
    let mut by_namespace: BTreeMap<String, Vec<Missed>> = BTreeMap::new();
    for missed in std::mem::take(&mut memory.missed) {
        let namespace = missed.record.namespace().unwrap_or_default();
        by_namespace.entry(namespace).or_default().push(missed);
    }
    let until = clock::monotonic_micros() + A_CYCLE_US;
    let mut result = Ok(());
    // No namespace keeps the others waiting for more than a cycle.
    let from = memory.missed_from.take().unwrap_or_default();
    let after = by_namespace.split_off(&from);
    for (namespace, missed) in after.into_iter().chain(by_namespace) {
        let waits = memory
            .gone
            .iter()
            .any(|gone| gone.value.spec.namespace == namespace);
        if waits || result.is_err() || clock::monotonic_micros() >= until {
            memory.missed.extend(missed);
            if !waits {
                memory.missed_from.get_or_insert(namespace);
            }
            continue;
        }
        let mut good = Good {
            context,
            namespace: &namespace,
            since: memory.leads_since,
            micros,
            until,
            left: missed,
        };
        let done = good.make().await;
        memory.missed.append(&mut good.left);
        result = carry_on(&namespace, done);
    }
    result
}

/// What is to be made good in one namespace.
struct Good<'a> {
    context: &'a Context,
    namespace: &'a str,
    /// µs, monotonic: since when this leader leads.
    since: Option<u64>,
    micros: u64,
    until: u64,
    left: Vec<Missed>,
}

impl Good<'_> {
    async fn make(&mut self) -> Result<(), Failure> {
        let caches = &self.context.caches;
        // What this leader puts away itself comes back here, and its watch knows of it by now.
        let seen = caches.statements.get(&format!("/{}", self.namespace));
        self.drop_counted(seen.as_deref());
        let back = |missed: &Missed| caches.reservations.get(&missed.key).is_some();
        self.left.retain(|missed| !back(missed));
        if self.left.is_empty() {
            return Ok(());
        }
        let api: Api<CarbonStatement> = Api::all(self.context.client.clone());
        let statement = self.context.call(api.get_opt(self.namespace)).await?;
        if statement.is_none() && seen.is_some() {
            // It is gone itself, and is made anew first.
            return Ok(());
        }
        self.drop_counted(statement.as_ref());
        let (since, moment) = (self.since, cutoff(self.context));
        // The leader of then may have put away more since than its list holds.
        let by_another = |missed: &Missed| {
            since.is_none_or(|since| missed.at < since) && settled_by(&missed.record, moment)
        };
        self.left.retain(|missed| !by_another(missed));
        let known = caches.namespaces.get(&format!("/{}", self.namespace));
        let stands = known.is_some_and(|known| known.metadata.deletion_timestamp.is_none());
        let (restore, count): (Vec<Missed>, Vec<Missed>) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|missed| stands && !missed.is_refused(1, self.micros));
        self.left = restore;
        let restored = self.restore_all().await;
        let counted = self.count_all(statement, count).await;
        self.give_up();
        restored.and(counted)
    }

    fn drop_counted(&mut self, statement: Option<&CarbonStatement>) {
        let status = statement.and_then(|known| known.status.as_ref());
        let counted = status.into_iter().flat_map(|status| &status.put_away);
        let counted: HashSet<&str> = counted.map(String::as_str).collect();
        self.left.retain(|missed| !counted.contains(missed.uid()));
    }

    async fn restore_all(&mut self) -> Result<(), Failure> {
        let mut missed = std::mem::take(&mut self.left).into_iter();
        let mut failed = Vec::new();
        let mut result = Ok(());
        for mut one in missed.by_ref() {
            let done = restore(self.context, self.namespace, &one.record).await;
            if let Err(error) = done {
                one.refused += u32::from(matches!(error, Failure::Invalid(_)));
                failed.push(one);
                result = Err(error);
            }
            if matches!(result, Err(Failure::Deposed)) || self.is_late() {
                break;
            }
        }
        // Those that were not tried come first the next time.
        self.left.extend(missed.chain(failed));
        result
    }

    /// Counts in the statement what goes with its namespace: many with one write.
    async fn count_all(
        &mut self,
        mut statement: Option<CarbonStatement>,
        mut missed: Vec<Missed>,
    ) -> Result<(), Failure> {
        if missed.is_empty() {
            return Ok(());
        }
        // Another leader may have made one anew, and its own end will be seen.
        let there = match self.there().await {
            Ok(there) => there,
            Err(error) => {
                self.left.append(&mut missed);
                return Err(error);
            }
        };
        missed.retain(|missed| !there.contains(missed.uid()));
        // A pod's record beside its job's counts nowhere.
        let records: Vec<Arc<CarbonReservation>> =
            missed.iter().map(|missed| missed.record.clone()).collect();
        let listed = listed_elsewhere(records.iter().map(AsRef::as_ref));
        // Of two namespaces of one name each has lines of its own.
        missed.sort_by(|a, b| a.namespace_uid.cmp(&b.namespace_uid));
        while !missed.is_empty() && !self.is_late() {
            let uid = missed[0].namespace_uid.clone();
            let same = missed
                .iter()
                .take_while(|missed| missed.namespace_uid == uid);
            let rest = missed.split_off(same.count().min(AT_ONCE));
            let counts = |missed: &Missed| !listed.contains(missed.uid());
            let records: Vec<_> = missed.iter().map(|m| (&*m.record, counts(m))).collect();
            let of = Of {
                namespace: self.namespace,
                uid: &uid,
            };
            match write(self.context, of, statement, &records).await {
                Ok(written) => {
                    tracing::warn!(
                        namespace = self.namespace,
                        records = missed.len(),
                        "records went with their namespace: its statement has what was charged"
                    );
                    statement = Some(written);
                    missed = rest;
                }
                Err(error) => {
                    let refused = u32::from(matches!(error, Failure::Invalid(_)));
                    for one in &mut missed {
                        one.refused += refused;
                    }
                    self.left.extend(missed.into_iter().chain(rest));
                    return Err(error);
                }
            }
        }
        self.left.append(&mut missed);
        Ok(())
    }

    /// UIDs of workloads that have a record now.
    async fn there(&self) -> Result<HashSet<String>, Failure> {
        let client = self.context.client.clone();
        let api: Api<CarbonReservation> = Api::namespaced(client, self.namespace);
        let list = self.context.call(api.list(&ListParams::default())).await?;
        Ok(list.into_iter().map(|r| r.spec.workload.uid).collect())
    }

    fn give_up(&mut self) {
        let micros = self.micros;
        self.left.retain(|missed| {
            let given_up = missed.is_refused(2, micros);
            if given_up {
                tracing::error!(
                    namespace = self.namespace,
                    record = missed.record.name_any(),
                    milligrams = missed.record.spec.reserved_milligrams,
                    "a deleted record can be neither made anew nor counted, and is given up"
                );
            }
            !given_up
        });
    }

    fn is_late(&self) -> bool {
        clock::monotonic_micros() >= self.until
    }
}

/// Creates an object that somebody deleted, and says so; or gives the one that is there meanwhile.
/// True where it was created.
async fn made_anew<K>(context: &Context, api: &Api<K>, fresh: &K) -> Result<(K, bool), Failure>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    let name = fresh.name_any();
    match context
        .call(api.create(&PostParams::default(), fresh))
        .await
    {
        Ok(there) => {
            tracing::warn!(
                kind = %K::kind(&()),
                namespace = fresh.meta().namespace,
                name,
                "somebody deleted it: it is made anew, what was charged stays charged"
            );
            Ok((there, true))
        }
        Err(Failure::Conflict) => Ok((context.call(api.get(&name)).await?, false)),
        Err(error) => Err(error),
    }
}

/// Makes a record anew that somebody deleted, as it was known last.
async fn restore(
    context: &Context,
    namespace: &str,
    record: &CarbonReservation,
) -> Result<(), Failure> {
    let api: Api<CarbonReservation> = Api::namespaced(context.client.clone(), namespace);
    let name = record.name_any();
    context.check_leading()?;
    let mut fresh = CarbonReservation::new(&name, record.spec.clone());
    fresh.metadata.namespace = Some(namespace.to_owned());
    let (mut there, is_new) = made_anew(context, &api, &fresh).await?;
    if is_new {
        let labels = vec![("namespace", namespace.to_owned())];
        context.tallies.count(&c::RECORDS_RESTORED, labels);
    }
    let ours = record.status.clone().unwrap_or_default();
    let theirs = there.status.clone().unwrap_or_default();
    // Another leader may have made it anew already, and have heard of more since.
    let (more, same) = (
        theirs.charged_milligrams > ours.charged_milligrams,
        theirs.charged_milligrams == ours.charged_milligrams,
    );
    if more || (same && (theirs.settled || !ours.settled) && theirs.pods.len() >= ours.pods.len()) {
        return Ok(());
    }
    there.metadata.managed_fields = None;
    there.status = Some(ours);
    context
        .call(api.replace_status(&name, &PostParams::default(), &there))
        .await?;
    Ok(())
}

/// Makes statements anew that somebody deleted, as they were known last.
async fn statements(context: &Context, memory: &mut Memory) -> Result<(), Failure> {
    memory.gone.extend(context.caches.statements.take_removed());
    let mut gone = std::mem::take(&mut memory.gone).into_iter();
    let mut result = Ok(());
    for removed in gone.by_ref() {
        let done = restore_statement(context, &removed.value).await;
        let is_good = done.is_ok();
        result = carry_on(&removed.value.name_any(), done);
        if !is_good {
            memory.gone.push(removed);
        }
        if result.is_err() {
            break;
        }
    }
    memory.gone.extend(gone);
    result
}

async fn restore_statement(context: &Context, statement: &CarbonStatement) -> Result<(), Failure> {
    let name = statement.name_any();
    let api: Api<CarbonStatement> = Api::all(context.client.clone());
    context.check_leading()?;
    let fresh = CarbonStatement::new(&name, statement.spec.clone());
    let (mut there, _) = made_anew(context, &api, &fresh).await?;
    let ours = statement.status.clone().unwrap_or_default();
    let theirs = there.status.clone().unwrap_or_default();
    if theirs.lease_epoch > context.epoch() {
        return Err(Failure::Deposed);
    }
    // Another leader may have made it anew already, and have counted more since.
    if theirs.jobs > ours.jobs || theirs == ours {
        return Ok(());
    }
    there.metadata.managed_fields = None;
    there.status = Some(ours);
    context
        .call(api.replace_status(&name, &PostParams::default(), &there))
        .await?;
    Ok(())
}
