//! The controller: watches, leads, scrapes, and runs the cycle gather → decide → apply →
//! status whenever something changed.

use super::caches::Watches;
use super::context::Context;
pub use super::context::Settings;
use super::energy::Pages;
use super::lease::{self, Watched};
use super::memory::Memory;
use super::stores::last_heard;
use super::{certificates, cycle};
use crate::clock;
use crate::contract::{self as c, LEASE};
use crate::serve::exposition::{Family, render};
use crate::serve::http::{Answer, Call, Server, readiness};
use crate::serve::shutdown::{Stop, until_stopped};
use hyper::StatusCode;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Runs until told to stop.
pub async fn run(client: Client, settings: Settings, stop: Stop) -> Result<(), std::io::Error> {
    let server = Server::bind(settings.listen).await?;
    let context = Arc::new(Context::new(client, settings));
    tracing::info!(identity = context.settings.identity, "controller starts");
    let mut tasks = JoinSet::new();
    let mut watches = Watches {
        tasks: &mut tasks,
        client: &context.client,
        changed: &context.changed,
        heard: &context.heard,
        stop: &stop,
    };
    context
        .caches
        .watch(&mut watches, &context.settings.namespace);
    tasks.spawn(hold_lease(context.clone(), stop.clone()));
    tasks.spawn(scrape(context.clone(), stop.clone()));
    tasks.spawn(certificates::keep(context.clone(), stop.clone()));
    tasks.spawn(work(context.clone(), stop.clone()));
    let shown = context.clone();
    let handler = move |call: Call| {
        let context = shown.clone();
        async move { answer(&call, &context) }
    };
    tasks.spawn(server.run(None, handler, stop.clone()));
    until_stopped(tasks, &stop, "controller").await
}

async fn hold_lease(context: Arc<Context>, stop: Stop) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let terms = context.settings.lease;
    let me = context.settings.identity.clone();
    let mut watched = Watched::default();
    while !stop.is_stopped() {
        let asked = clock::monotonic_micros();
        let highest = highest_epoch(&context);
        let mine = context
            .call(lease::tend(
                &api,
                LEASE,
                &me,
                &mut watched,
                &terms,
                highest,
                asked,
            ))
            .await;
        match mine {
            Ok(true) => {
                let deadline = u64::try_from(terms.renew_deadline.as_micros()).unwrap_or(u64::MAX);
                if !context.is_leading() {
                    tracing::info!(epoch = watched.transitions, "leads");
                }
                context.lead(
                    i64::from(watched.transitions),
                    asked.saturating_add(deadline),
                );
                context.changed.notify_one();
            }
            Ok(false) => {
                // One that is forced beside the true leader has the same right to write.
                context.lead(i64::from(watched.transitions), 0);
            }
            Err(error) => {
                tracing::warn!(error = %crate::serve::telemetry::chain(&error), "the lease could not be tended");
            }
        }
        tokio::select! {
            () = stop.wait() => break,
            () = tokio::time::sleep(terms.retry) => {}
        }
    }
    context.lead(context.epoch(), 0);
    let _ = context.call(lease::give_back(&api, LEASE, &me)).await;
}

/// The number of the last leader that wrote a budget or a statement.
fn highest_epoch(context: &Context) -> i32 {
    let budgets = context.caches.world.budgets.all();
    let budgets = budgets.iter();
    let budgets = budgets.filter_map(|budget| Some(budget.status.as_ref()?.lease_epoch));
    let statements = context.caches.statements.all();
    let statements = statements.iter();
    let statements = statements.filter_map(|known| Some(known.status.as_ref()?.lease_epoch));
    let epochs = budgets.chain(statements);
    i32::try_from(epochs.max().unwrap_or(0)).unwrap_or(i32::MAX - 1)
}

async fn scrape(context: Arc<Context>, stop: Stop) {
    let mut pages = Pages::default();
    loop {
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if !context.is_leading() {
            continue;
        }
        let Some(tls) = context.ledger_tls.load_full() else {
            for exporter in context.caches.exporters.all() {
                let node = vec![("node", exporter.node.clone())];
                context.tallies.count(&c::EXPORTER_ERRORS, node);
            }
            continue;
        };
        pages.forget_nodes(&context.caches.world.nodes.all());
        let exporters = context.caches.exporters.all();
        for (node, error) in pages.refresh(exporters, &tls.1).await {
            tracing::debug!(node, %error, "an exporter does not answer");
            context
                .tallies
                .count(&c::EXPORTER_ERRORS, vec![("node", node)]);
        }
        let pods = &context.caches.pods;
        pages.name_pods(|name| pods.get(name).map(|pod| pod.uid.clone()));
        if let Ok(mut shared) = context.pages.lock() {
            *shared = Arc::new(pages.clone());
        }
        context.changed.notify_one();
    }
}

/// The cycle: at once after a change, at least once a second.
async fn work(context: Arc<Context>, stop: Stop) {
    let mut memory = Memory::default();
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(1), context.changed.notified()).await;
        // Events come in swarms.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if stop.is_stopped() {
            return;
        }
        if !context.caches.synced() || !context.is_leading() {
            memory.forget();
            continue;
        }
        let began = clock::monotonic_micros();
        Box::pin(cycle::run(&context, &mut memory)).await;
        let seconds = clock::monotonic_micros().saturating_sub(began) as f64 / 1e6;
        context
            .tallies
            .observe(&c::CYCLE_SECONDS, Vec::new(), seconds);
    }
}

fn answer(call: &Call, context: &Context) -> Answer {
    match call.path.as_str() {
        "/metrics" => {
            let mut families = context.gauges.load().as_ref().clone();
            let mut leader = Family::new(c::LEADER);
            let leads = f64::from(u8::from(context.is_leading()));
            leader.add(vec![("identity", context.settings.identity.clone())], leads);
            families.push(leader);
            families.extend(context.tallies.families(c::CONTROLLER_METRICS));
            let (body, content_type) = render(families, call.accept.as_deref());
            Answer {
                status: StatusCode::OK,
                content_type,
                body: body.into(),
            }
        }
        "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let synced = context.caches.synced();
            let caches = if synced { "ok" } else { "not synced yet" };
            let text = format!("caches: {caches}\n{}", last_heard(&context.heard));
            Answer::text(readiness(synced), text)
        }
        _ => Answer::not_found(),
    }
}
