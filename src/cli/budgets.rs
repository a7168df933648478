//! The budgets that a command is about, of a cluster or of files, with the records of their jobs.

use super::arguments::{objects, read, wrong};
use super::cluster_commands::client;
use crate::api::{CarbonBudget, CarbonReservation};
use anyhow::Context;
use clap::Args;
use kube::api::{Api, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::PathBuf;

/// Which budgets.
#[derive(Debug, Args)]
pub(super) struct BudgetArguments {
    /// Namespace to look at.
    #[arg(short, long, required_unless_present_any = ["all_namespaces", "filename"])]
    namespace: Option<String>,
    /// Every namespace.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// CarbonBudgets, and CarbonReservations where records are asked for, in YAML, JSON or JSON lines, as
    /// the controller hands records on, instead of a cluster's; may be repeated.
    #[arg(short, long)]
    filename: Vec<PathBuf>,
}

impl BudgetArguments {
    /// The budgets by namespace and name, and the records of all namespaces asked for, those of a
    /// cluster only where they are wanted.
    ///
    /// # Errors
    /// Files or a cluster that cannot be read; no budget, with what to do.
    pub(super) async fn read(
        &self,
        records_too: bool,
        none: &str,
    ) -> anyhow::Result<(Vec<CarbonBudget>, Vec<CarbonReservation>)> {
        let (mut budgets, mut records) = (Vec::new(), Vec::new());
        for path in &self.filename {
            let (more_budgets, more_records) = of_file(path)?;
            budgets.extend(more_budgets);
            records.extend(more_records);
        }
        let namespace = self.namespace.as_deref();
        if self.filename.is_empty() {
            let client = client().await?;
            budgets = list(&client, namespace).await?;
            if records_too {
                records = list(&client, namespace).await?;
            }
        }
        budgets.retain(|budget| namespace.is_none() || budget.namespace() == self.namespace);
        if budgets.is_empty() {
            let place = namespace.map_or(String::new(), |name| format!(" in namespace {name}"));
            return Err(wrong(format!("there is no CarbonBudget{place}: {none}")));
        }
        budgets.sort_by_key(|budget| (budget.namespace(), budget.name_any()));
        Ok((budgets, records))
    }
}

fn of_file(path: &PathBuf) -> anyhow::Result<(Vec<CarbonBudget>, Vec<CarbonReservation>)> {
    let hint = "give CarbonBudgets and CarbonReservations, as kubectl get -o yaml writes them";
    let text = read(path, "--filename:", hint)?;
    let objects = objects(&text)
        .map_err(|error| wrong(format!("{} is no YAML: {error}; {hint}", path.display())))?;
    let (mut budgets, mut records) = (Vec::new(), Vec::new());
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let named = format!("{}: {kind} {name}", path.display());
        let broken = |error: serde_json::Error| wrong(format!("{named}: {error}"));
        match kind.as_str() {
            "CarbonBudget" => budgets.push(serde_json::from_value(object).map_err(broken)?),
            "CarbonReservation" => records.push(serde_json::from_value(object).map_err(broken)?),
            _ => {}
        }
    }
    Ok((budgets, records))
}

/// Objects of a kind of ours, of one namespace or of all.
async fn list<K>(client: &kube::Client, namespace: Option<&str>) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api: Api<K> = match namespace {
        Some(name) => Api::namespaced(client.clone(), name),
        None => Api::all(client.clone()),
    };
    let list = api.list(&ListParams::default()).await;
    let kind = K::plural(&()).into_owned();
    let list = list.with_context(|| format!("the cluster could not be asked for {kind}"))?;
    Ok(list.items)
}
