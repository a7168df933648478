//! Where a pod's scheduling constraints let it run: its node selector and required node affinity
//! against the labels of the cluster's nodes, as the scheduler reads them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

/// Stands for a node's name among its labels, as `metadata.name` does in an affinity's
/// `matchFields`; no label has such a key.
pub const NODE_NAME: &str = "/metadata.name";

/// A node's labels.
pub type Labels = BTreeMap<String, String>;

/// What a pod asks of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The node that it is bound to.
    pub node: Option<String>,
    /// Alternatives; what each asks must all hold. None for anywhere.
    pub terms: Vec<Vec<Requirement>>,
}

/// What is asked of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

/// As in a `NodeSelectorRequirement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

impl Operator {
    /// `None` for one that is not known.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => return None,
        })
    }
}

impl Requirement {
    /// True where a node with these labels has what is asked. A label that is missing is not in
    /// any list, and is neither greater nor smaller than anything.
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let number = |text: &String| text.parse::<i64>().ok();
        let compared = || {
            let asked = self.values.first().and_then(number);
            value.and_then(number).zip(asked)
        };
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compared().is_some_and(|(value, asked)| value > asked),
            Operator::Lt => compared().is_some_and(|(value, asked)| value < asked),
        }
    }
}

impl Placement {
    /// True where any node will do.
    pub fn is_anywhere(&self) -> bool {
        self.node.is_none() && self.terms.is_empty()
    }
}

/// The nodes that have GPUs: name, labels, and which site each stands at.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    nodes: Vec<(String, Arc<Labels>, usize)>,
    index: OnceLock<Index>,
}

/// A label with more values than this tells single nodes apart, not kinds of nodes.
const VALUES_OF_A_KIND: usize = 32;

#[derive(Debug, Clone, Default)]
struct Index {
    by_name: HashMap<String, usize>,
    /// Labels that tell single nodes apart: key → value → nodes.
    single: HashMap<String, HashMap<String, Vec<usize>>>,
    /// Sets of the other labels, and the sites that nodes with them stand at.
    kinds: BTreeMap<Labels, BTreeSet<usize>>,
}

impl Fleet {
    pub fn new(nodes: Vec<(String, Arc<Labels>, usize)>) -> Self {
        Self {
            nodes,
            index: OnceLock::new(),
        }
    }

    /// Sites where a pod may run; empty where no node is as it asks, or none is known.
    pub fn sites(&self, placement: &Placement) -> BTreeSet<usize> {
        let index = self.index.get_or_init(|| Index::of(&self.nodes));
        if let Some(name) = &placement.node {
            let bound = index.by_name.get(name);
            return bound.map(|node| self.nodes[*node].2).into_iter().collect();
        }
        if placement.terms.is_empty() {
            return self.nodes.iter().map(|(_, _, site)| *site).collect();
        }
        let terms = placement.terms.iter().filter(|term| !term.is_empty());
        terms.flat_map(|term| self.of_term(index, term)).collect()
    }

    fn of_term(&self, index: &Index, term: &[Requirement]) -> BTreeSet<usize> {
        let mut single = term.iter().filter(|r| index.single.contains_key(&r.key));
        let Some(first) = single.next() else {
            let all = |labels: &Labels| term.iter().all(|r| r.holds(labels));
            let kinds = index.kinds.iter().filter(|(labels, _)| all(labels));
            return kinds.flat_map(|(_, sites)| sites).copied().collect();
        };
        let named = [first].into_iter().chain(single);
        let named = named.filter(|r| r.operator == Operator::In);
        let lists = named.map(|r| {
            let nodes = r.values.iter().filter_map(|v| index.single[&r.key].get(v));
            nodes.flatten().copied().collect::<Vec<usize>>()
        });
        let candidates = lists.min_by_key(Vec::len);
        let candidates = candidates.unwrap_or_else(|| (0..self.nodes.len()).collect());
        let nodes = candidates.into_iter().map(|node| &self.nodes[node]);
        nodes
            .filter(|(_, labels, _)| term.iter().all(|r| r.holds(labels)))
            .map(|(_, _, site)| *site)
            .collect()
    }
}

impl Index {
    fn of(nodes: &[(String, Arc<Labels>, usize)]) -> Self {
        let mut values: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for (key, value) in nodes.iter().flat_map(|(_, labels, _)| labels.iter()) {
            values.entry(key).or_default().insert(value);
        }
        let single: BTreeSet<&str> = values
            .iter()
            .filter(|(_, values)| values.len() > VALUES_OF_A_KIND)
            .map(|(key, _)| *key)
            .collect();
        let mut index = Self::default();
        for (number, (name, labels, site)) in nodes.iter().enumerate() {
            index.by_name.insert(name.clone(), number);
            let mut kind = Labels::new();
            for (key, value) in labels.iter() {
                if single.contains(key.as_str()) {
                    let by_value = index.single.entry(key.clone()).or_default();
                    by_value.entry(value.clone()).or_default().push(number);
                } else {
                    kind.insert(key.clone(), value.clone());
                }
            }
            index.kinds.entry(kind).or_default().insert(*site);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asks(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement {
            key: key.into(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    /// Pools of A100 and H100 over two zones, a hundred nodes.
    fn fleet() -> Fleet {
        let node = |n: usize| {
            let labels = [
                ("kubernetes.io/hostname", format!("node-{n}")),
                ("pool", if n < 60 { "a100" } else { "h100" }.to_owned()),
                (
                    "zone",
                    if n.is_multiple_of(2) { "a" } else { "b" }.to_owned(),
                ),
                ("gpus", if n < 60 { "4" } else { "8" }.to_owned()),
            ];
            let labels = labels.map(|(key, value)| (key.to_owned(), value));
            (
                format!("node-{n}"),
                Arc::new(Labels::from(labels)),
                usize::from(n >= 60),
            )
        };
        Fleet::new((0..100).map(node).collect())
    }

    fn at(terms: Vec<Vec<Requirement>>) -> Vec<usize> {
        let placement = Placement { node: None, terms };
        fleet().sites(&placement).into_iter().collect()
    }

    #[test]
    fn a_pool_a_host_name_or_a_number_names_the_site_as_the_scheduler_would() {
        let host = "kubernetes.io/hostname";
        assert_eq!(at(vec![]), [0, 1]);
        assert_eq!(at(vec![vec![asks("pool", Operator::In, &["h100"])]]), [1]);
        assert_eq!(
            at(vec![vec![asks("pool", Operator::NotIn, &["h100"])]]),
            [0]
        );
        assert_eq!(at(vec![vec![asks("gpus", Operator::Gt, &["4"])]]), [1]);
        assert_eq!(at(vec![vec![asks("gpus", Operator::Lt, &["8"])]]), [0]);
        assert_eq!(at(vec![vec![asks(host, Operator::In, &["node-7"])]]), [0]);
        assert_eq!(at(vec![vec![asks(host, Operator::Exists, &[])]]), [0, 1]);
        let both = [
            asks(host, Operator::In, &["node-7", "node-70"]),
            asks("zone", Operator::In, &["a"]),
        ];
        assert_eq!(at(vec![both.to_vec()]), [1]);
        let either = vec![
            vec![asks("pool", Operator::In, &["a100"])],
            vec![asks(host, Operator::In, &["node-99"])],
        ];
        assert_eq!(at(either), [0, 1]);
    }

    #[test]
    fn what_no_node_has_and_a_term_that_asks_nothing_are_nowhere() {
        assert!(at(vec![vec![asks("pool", Operator::In, &["b200"])]]).is_empty());
        assert!(at(vec![vec![asks("gpus", Operator::Gt, &["many"])]]).is_empty());
        assert!(at(vec![vec![]]).is_empty());
    }

    #[test]
    fn a_pod_that_is_bound_is_at_its_nodes_site() {
        let bound = |name: &str| Placement {
            node: Some(name.into()),
            terms: vec![],
        };
        assert_eq!(fleet().sites(&bound("node-80")), BTreeSet::from([1]));
        assert!(fleet().sites(&bound("node-800")).is_empty());
    }

    proptest! {
        #[test]
        fn the_index_says_what_asking_every_node_says(
            terms in proptest::collection::vec(proptest::collection::vec(
                ("(pool|zone|gpus|kubernetes.io/hostname|none)", 0_usize..6, proptest::collection::vec("(a|b|a100|h100|[48]|node-[0-9]{1,2})", 0..3)),
                0..3,
            ), 1..3),
        ) {
            let operators = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist, Operator::Gt, Operator::Lt];
            let terms: Vec<Vec<Requirement>> = terms
                .into_iter()
                .map(|term| term.into_iter().map(|(key, op, values)| Requirement { key, operator: operators[op], values }).collect())
                .collect();
            let fleet = fleet();
            let asked = |labels: &Labels| terms.iter().any(|t| !t.is_empty() && t.iter().all(|r| r.holds(labels)));
            let plain: BTreeSet<usize> = fleet.nodes.iter().filter(|(_, labels, _)| asked(labels)).map(|(_, _, site)| *site).collect();
            prop_assert_eq!(fleet.sites(&Placement { node: None, terms: terms.clone() }), plain);
        }
    }
}
