//! A namespace's ledger as the API server has it: budgets, reservations, the grants that are on
//! their way between the two, and the statement of those reservations that are put away.

use super::context::{Context, Failure};
use super::verdicts::Terms;
use crate::api::{CarbonBudget, CarbonReservation, CarbonStatement, GrantInFlight};
use crate::budget::{Book, Granting, Period};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

/// A namespace's ledger, read fresh from the API server.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) budgets: Vec<CarbonBudget>,
    pub(super) reservations: Vec<Arc<CarbonReservation>>,
    pub(super) statement: Option<CarbonStatement>,
    index: OnceLock<Index>,
}

/// UIDs that a ledger is asked after again and again.
#[derive(Debug, Default)]
struct Index {
    /// Of workloads with a record.
    own: HashSet<String>,
    /// Of pods that another record than their own lists.
    listed: HashSet<String>,
    /// Of what the statement has counted of late.
    put_away: HashSet<String>,
}

impl Ledger {
    pub(super) fn new(
        budgets: Vec<CarbonBudget>,
        reservations: Vec<Arc<CarbonReservation>>,
        statement: Option<CarbonStatement>,
    ) -> Self {
        Self {
            budgets,
            reservations,
            statement,
            index: OnceLock::new(),
        }
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let status = self.statement.iter().filter_map(|s| s.status.as_ref());
            let own = self.records().map(|r| r.spec.workload.uid.clone());
            let listed = listed_elsewhere(self.records());
            Index {
                own: own.collect(),
                listed: listed.into_iter().map(str::to_owned).collect(),
                put_away: status.flat_map(|s| s.put_away.iter().cloned()).collect(),
            }
        })
    }

    /// Reads a namespace's budgets, then its reservations, then its statement: a reservation
    /// missing here is still among the budgets' grants in flight or in the statement by now, so
    /// none is overlooked.
    pub(super) async fn read(context: &Context, namespace: &str) -> Result<Self, Failure> {
        let budgets: Api<CarbonBudget> = Api::namespaced(context.client.clone(), namespace);
        let reservations: Api<CarbonReservation> =
            Api::namespaced(context.client.clone(), namespace);
        let everything = ListParams::default();
        let mut budgets = context.call(budgets.list(&everything)).await?.items;
        budgets.sort_by_key(ResourceExt::name_any);
        let reservations = context.call(reservations.list(&everything)).await?;
        let reservations = reservations.into_iter().map(Arc::new).collect();
        let statements: Api<CarbonStatement> = Api::all(context.client.clone());
        let statement = context.call(statements.get_opt(namespace)).await?;
        Ok(Self::new(budgets, reservations, statement))
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &CarbonReservation> {
        self.reservations.iter().map(AsRef::as_ref)
    }

    pub(super) fn has(&self, uid: &str) -> bool {
        self.index().own.contains(uid) || self.has_put_away(uid)
    }

    /// True where the statement has counted a workload, or a pod of it, of late.
    pub(super) fn has_put_away(&self, uid: &str) -> bool {
        self.index().put_away.contains(uid)
    }

    /// One budget's book, with these grants in flight.
    pub(super) fn book(&self, budget: &str, granting: &[GrantInFlight]) -> Book {
        let Index {
            listed, put_away, ..
        } = self.index();
        let status = self.statement.as_ref().and_then(|s| s.status.as_ref());
        let counts = |uid: &str| !listed.contains(uid) && !put_away.contains(uid);
        let entries = self.reservations.iter();
        Book {
            entries: entries
                .filter(|r| counts(r.spec.workload.uid.as_str()))
                .filter_map(|r| r.entry(budget))
                .collect(),
            granting: granting.iter().map(Granting::from).collect(),
            put_away: status.map_or_else(Vec::new, |status| status.of(budget)),
        }
    }

    /// True where a job's record lists a pod: it is charged there.
    pub(super) fn lists(&self, pod: &str) -> bool {
        self.index().listed.contains(pod) || self.has_put_away(pod)
    }

    /// Grants of a budget that have no reservation yet.
    pub(super) fn in_flight(&self, budget: &CarbonBudget) -> Vec<GrantInFlight> {
        let status = budget.status.clone().unwrap_or_default();
        status
            .granting
            .into_iter()
            .filter(|grant| !self.has(&grant.uid))
            .collect()
    }

    /// Grants in flight that some budget of theirs does not carry: a leader died, or lost a
    /// race, between two budgets.
    pub(super) fn half_committed(&self) -> HashSet<String> {
        let mut carriers: HashMap<String, (BTreeSet<String>, BTreeSet<String>)> = HashMap::new();
        for budget in &self.budgets {
            for grant in self.in_flight(budget) {
                let (asked, carrying) = carriers.entry(grant.uid).or_default();
                asked.extend(grant.budgets);
                carrying.insert(budget.name_any());
            }
        }
        let there = |name: &String| self.budgets.iter().any(|b| b.name_any() == *name);
        carriers
            .into_iter()
            .filter(|(_, (asked, carrying))| {
                asked
                    .iter()
                    .any(|name| there(name) && !carrying.contains(name))
            })
            .map(|(uid, _)| uid)
            .collect()
    }

    /// All grants in flight, by UID.
    pub(super) fn flying(&self) -> BTreeMap<String, GrantInFlight> {
        self.budgets
            .iter()
            .flat_map(|budget| self.in_flight(budget))
            .map(|grant| (grant.uid.clone(), grant))
            .collect()
    }

    /// The budgets that make sense, with totals from these very objects.
    pub(super) fn terms(&self, now: Timestamp) -> Vec<Terms> {
        self.budgets
            .iter()
            .filter_map(|budget| {
                let terms = Terms::of(budget)?;
                let book = self.book(&terms.name, &self.in_flight(budget));
                let since = budget.measured_since();
                let totals = terms.policy.totals(&book, since, now);
                let rolls = matches!(terms.policy.period, Period::Rolling(..));
                let days = if rolls {
                    book.charged_by_day()
                } else {
                    BTreeMap::new()
                };
                Some(Terms {
                    totals,
                    days,
                    ..terms
                })
            })
            .collect()
    }
}

/// Pods that another record than their own lists. A leader that did not know of the one may
/// have made the other; what a pod burns counts once, where it was listed by its job.
pub(super) fn listed_elsewhere<'a>(
    reservations: impl IntoIterator<Item = &'a CarbonReservation>,
) -> HashSet<&'a str> {
    let mut listed = HashSet::new();
    for reservation in reservations {
        let own = &reservation.spec.workload.uid;
        let pods = reservation.status.iter().flat_map(|status| &status.pods);
        let others = pods.map(|pod| pod.uid.as_str()).filter(|pod| pod != own);
        listed.extend(others);
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CarbonBudgetSpec;

    fn budget(name: &str, grants: &[(&str, &[&str])]) -> CarbonBudget {
        let spec: CarbonBudgetSpec = serde_json::from_str(r#"{"limit":"5kg"}"#).unwrap();
        let mut budget = CarbonBudget::new(name, spec);
        let in_flight = |(uid, budgets): &(&str, &[&str])| GrantInFlight {
            uid: (*uid).into(),
            kind: "Job".into(),
            name: (*uid).into(),
            milligrams: 1,
            budgets: budgets.iter().map(|name| (*name).into()).collect(),
        };
        budget.status = Some(crate::api::BudgetStatus {
            granting: grants.iter().map(in_flight).collect(),
            ..Default::default()
        });
        budget
    }

    fn half(budgets: Vec<CarbonBudget>) -> Vec<String> {
        let ledger = Ledger::new(budgets, vec![], None);
        ledger.half_committed().into_iter().collect()
    }

    #[test]
    fn a_grant_stands_only_where_every_budget_of_its_carries_it() {
        let both: (&str, &[&str]) = ("j", &["a", "b"]);
        assert!(half(vec![budget("a", &[both]), budget("b", &[both])]).is_empty());
        assert_eq!(half(vec![budget("a", &[both]), budget("b", &[])]), ["j"]);
    }

    #[test]
    fn a_budget_that_came_later_or_went_does_not_break_a_grant() {
        let both: (&str, &[&str]) = ("j", &["a", "b"]);
        assert!(half(vec![budget("a", &[both])]).is_empty(), "b was deleted");
        let three = vec![budget("a", &[both]), budget("b", &[both]), budget("c", &[])];
        assert!(half(three).is_empty(), "c was created");
    }
}
