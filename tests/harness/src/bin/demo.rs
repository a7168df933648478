//! `make demo`: the loop, closed before your eyes, on a real control plane with two
//! simulated GPU nodes. Exits with 0 only if it closed.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own, with its own settings"
)]

use anyhow::ensure;
use harness::jobs::{self, Generate};
use harness::{NodeOptions, Process, Stack, eventually};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;

const TEAM: &str = "team-a";

/// One finished job, for the summary.
struct Row {
    name: String,
    predicted: f64,
    uncertainty: f64,
    measured: f64,
    charged: i64,
}

struct Screen {
    colour: bool,
}

impl Screen {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn head(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("31", text)
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let screen = Screen {
        colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let keep = std::env::var_os("KEEP").is_some();
    let folder = harness::target()
        .join("demo")
        .join(std::process::id().to_string());
    std::fs::create_dir_all(&folder)?;

    screen.head("Starting a Kubernetes control plane, two simulated GPU nodes, and Jouleward");
    let mut stack = Stack::start(&folder).await?;
    println!("  control plane   {}", stack.plane.url);
    let controller = stack.controller(0, &[], &[])?;
    let webhook = stack.webhook()?;
    for (name, product) in [
        ("gpu-a100", "NVIDIA A100-SXM4-40GB"),
        ("gpu-a100-b", "NVIDIA A100-SXM4-40GB"),
    ] {
        let options = NodeOptions {
            product: product.to_owned(),
            liars: 0.05,
            // A world that the law does not begin near, so that there is something to learn.
            burn: 0.65,
            ..NodeOptions::default()
        };
        stack.add_node(name, &options).await?;
        println!(
            "  node            {name}: 2 × {product}, exporter at {}:9402",
            stack.nodes.last().map_or("", |n| &n.ip)
        );
    }
    stack.ready(10, 9403).await?;
    stack.ready(20, 9404).await?;
    println!(
        "  controller      {}:9403, webhook {}:9443",
        stack.address(10),
        stack.address(20)
    );
    leader(&stack).await?;

    let client = stack.client.clone();
    jobs::namespace(&client, TEAM).await?;
    let terms = json!({ "limit": "6g", "mode": "Enforce" });
    jobs::budget(&client, TEAM, "images", terms).await?;
    println!(
        "  budget          {TEAM}/images: 6 g of CO2e a month, enforced; grid 400 g/kWh, PUE 1.25"
    );

    let rows = stream(&screen, &stack).await?;
    let refused = refuse(&screen, &stack)?;
    let held = hold(&screen, &stack).await?;
    summary(&screen, &stack, &rows, refused, held).await?;
    if keep {
        leave(stack, controller, webhook);
    }
    Ok(())
}

async fn leader(stack: &Stack) -> anyhow::Result<()> {
    let webhook = format!("{}:9404", stack.address(20));
    eventually("a leader", Duration::from_secs(30), || async {
        let (_, text) = harness::stack::get(&webhook, "/metrics", "text/plain").await?;
        Ok(text.contains("\njouleward_leader_stale 0").then_some(()))
    })
    .await
}

/// A stream of jobs of mixed sizes: each predicted, measured, learnt from.
async fn stream(screen: &Screen, stack: &Stack) -> anyhow::Result<Vec<Row>> {
    screen.head("A stream of jobs: the law learns, the budget fills");
    println!(
        "  {:<28} {:>20} {:>11} {:>8}   {:<12} budget",
        "job", "predicted", "measured", "off by", "law's error"
    );
    let mut rows = Vec::new();
    for number in 0..18_u32 {
        let ask = Generate {
            model: ["sd1.5", "sdxl", "sd2"][number as usize % 3],
            size: [512, 640, 768][number as usize / 2 % 3],
            steps: 12 + number * 5 % 12,
            images: 2 + number % 3,
        };
        let name = format!("job-{number:02}");
        let author = stack.plane.client("author").await?;
        let job = jobs::create_job(&author, TEAM, &ask.job(&name)).await?;
        let record = jobs::settled(&stack.client, TEAM, &job.uid().unwrap_or_default()).await?;
        let row = row(
            &format!("{name} {} {}px ×{}", ask.model, ask.size, ask.images),
            &record.data,
        );
        let off = (row.predicted / row.measured - 1.0) * 100.0;
        let law = jobs::laws(&stack.client).get("a100-sxm4-40gb").await?;
        let error = law.data["status"]["error"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        println!(
            "  {:<28} {:>20} {:>9.0} J {:>8}   {:<12} {}",
            row.name,
            format!("{:.0} J ± {:.0} %", row.predicted, row.uncertainty),
            row.measured,
            if off.abs() < 8.0 {
                screen.good(&format!("{off:+.1} %"))
            } else {
                format!("{off:+.1} %")
            },
            error,
            bar(&budget(stack).await?),
        );
        if off < -40.0 {
            println!(
                "    ran twice the steps it was annotated with: charged as measured, counts less in the law"
            );
        }
        rows.push(row);
    }
    Ok(rows)
}

fn row(name: &str, record: &Value) -> Row {
    let joules = |value: &Value| value.as_f64().unwrap_or(0.0) / 1000.0;
    Row {
        name: name.to_owned(),
        predicted: joules(&record["spec"]["predictedMillijoules"]),
        uncertainty: record["spec"]["predictedUncertaintyPermille"]
            .as_f64()
            .unwrap_or(0.0)
            / 10.0,
        measured: joules(&record["status"]["measuredMillijoules"]),
        charged: record["status"]["chargedMilligrams"].as_i64().unwrap_or(0),
    }
}

async fn budget(stack: &Stack) -> anyhow::Result<Value> {
    Ok(jobs::budgets(&stack.client, TEAM).get("images").await?.data["status"].clone())
}

/// Used, reserved and free, twenty cells wide.
fn bar(status: &Value) -> String {
    let get = |name: &str| status[name].as_i64().unwrap_or(0);
    let limit = get("limitMilligrams").max(1);
    let cells = |mg: i64| usize::try_from((mg * 20 / limit).clamp(0, 20)).unwrap_or(0);
    let (used, reserved) = (
        cells(get("consumedMilligrams")),
        cells(get("reservedMilligrams")),
    );
    let free = 20_usize.saturating_sub(used + reserved);
    format!(
        "{}{}{} {}",
        "█".repeat(used),
        "▒".repeat(reserved),
        "·".repeat(free),
        status["used"].as_str().unwrap_or("")
    )
}

/// A job that can never fit is refused at once, with numbers.
fn refuse(screen: &Screen, stack: &Stack) -> anyhow::Result<bool> {
    screen.head("A job that is larger than the budget");
    let ask = Generate {
        model: "sdxl",
        size: 1024,
        steps: 50,
        images: 200,
    };
    let said = stack.plane.kubectl(
        "author",
        &["create", "-n", TEAM, "-f", "-"],
        Some(&ask.job("too-large").to_string()),
    )?;
    println!(
        "  $ kubectl create -f too-large.yaml\n  {}",
        screen.bad(said.err.trim())
    );
    Ok(!said.ok && said.err.contains("needs"))
}

/// A job that does not fit now waits, and is released when another's grams come back.
async fn hold(screen: &Screen, stack: &Stack) -> anyhow::Result<bool> {
    screen.head("A job that does not fit now");
    let client = &stack.client;
    let status = budget(stack).await?;
    let left = status["remainingMilligrams"].as_i64().unwrap_or(0);
    let ask = Generate {
        model: "sd1.5",
        size: 512,
        steps: 20,
        images: 8,
    };
    let price = jobs::price(client, TEAM, &ask).await?;
    // Room for one of them and a quarter.
    let used = status["consumedMilligrams"].as_i64().unwrap_or(0);
    jobs::amend(
        client,
        TEAM,
        "images",
        json!({ "limit": format!("{}mg", used + price * 5 / 4) }),
    )
    .await?;
    println!(
        "  the platform team lowers the limit: {left} mg were left, now there is room for one job of {price} mg"
    );
    jobs::create_job(client, TEAM, &ask.placeholder("takes-the-room")).await?;
    jobs::released(client, TEAM, "takes-the-room").await?;
    let job = jobs::create_job(client, TEAM, &ask.job("waits")).await?;
    ensure!(jobs::is_held(&job), "the second job is held");
    eventually("the hold is shown", Duration::from_secs(10), || async {
        Ok((budget(stack).await?["heldJobs"].as_i64() >= Some(1)).then_some(()))
    })
    .await?;
    println!("  job waits       {}", screen.bad("held"));
    let events = stack.plane.kubectl(
        "author",
        &["events", "-n", TEAM, "--for", "job/waits"],
        None,
    )?;
    for line in events
        .out
        .lines()
        .filter(|line| line.contains("WaitingForBudget"))
    {
        println!(
            "  event           {}",
            line.split_once("WaitingForBudget")
                .map_or(line, |(_, rest)| rest.trim())
        );
    }
    jobs::remove_job(client, TEAM, "takes-the-room").await?;
    println!("  the other job is deleted: its grams come back");
    jobs::released(client, TEAM, "waits").await?;
    println!("  job waits       {}", screen.good("released"));
    let record = jobs::settled(client, TEAM, &job.uid().unwrap_or_default()).await?;
    let row = row("waits", &record.data);
    println!(
        "  job waits       done: {:.0} J measured, {} mg charged",
        row.measured, row.charged
    );
    Ok(true)
}

async fn summary(
    screen: &Screen,
    stack: &Stack,
    rows: &[Row],
    refused: bool,
    held: bool,
) -> anyhow::Result<()> {
    screen.head("What was seen");
    let (first, last) = (median(&rows[..6]), median(&rows[rows.len() - 6..]));
    // The budget's figures follow the last record within a cycle of the leader.
    let given_back = || async {
        let status = budget(stack).await?;
        Ok((status["reservedMilligrams"] == 0).then_some(status))
    };
    let patience = Duration::from_secs(10);
    let status = match eventually("all is given back", patience, given_back).await {
        Ok(status) => status,
        Err(_) => budget(stack).await?,
    };
    let truth: f64 = stack.truth().values().sum();
    let law = jobs::laws(&stack.client).get("a100-sxm4-40gb").await?;
    let checks = [
        (
            "every job was predicted, measured and charged",
            rows.iter().all(|r| r.predicted > 0.0 && r.charged > 0),
        ),
        (
            "the law has learnt",
            law.data["status"]["observations"].as_i64() >= Some(15),
        ),
        ("its error fell", last < first && last < 8.0),
        ("a job too large was refused with numbers", refused),
        ("a job was held and then released", held),
        ("nothing stays reserved", status["reservedMilligrams"] == 0),
    ];
    println!(
        "  prediction error   {first:.1} % over the first six jobs, {last:.1} % over the last six (medians)"
    );
    println!(
        "  burned, truly      {truth:.0} J by all pods; charged {}",
        status["used"].as_str().unwrap_or("")
    );
    println!(
        "  budget             {} used, {} reserved, {} left of {} mg",
        status["used"].as_str().unwrap_or(""),
        status["reserved"].as_str().unwrap_or(""),
        status["remaining"].as_str().unwrap_or(""),
        status["limitMilligrams"]
    );
    for (what, is) in checks {
        println!(
            "  {} {what}",
            if is {
                screen.good("✓")
            } else {
                screen.bad("✗")
            }
        );
    }
    let failed: Vec<&str> = checks
        .iter()
        .filter(|(_, is)| !is)
        .map(|(what, _)| *what)
        .collect();
    ensure!(
        failed.is_empty(),
        "the loop did not close: {}",
        failed.join("; ")
    );
    Ok(())
}

/// One wrong annotation must not hide how good the law is.
fn median(rows: &[Row]) -> f64 {
    let mut errors: Vec<f64> = rows
        .iter()
        .map(|r| (r.predicted / r.measured - 1.0).abs() * 100.0)
        .collect();
    errors.sort_by(f64::total_cmp);
    let at = |index: usize| errors.get(index).copied().unwrap_or(0.0);
    // Of an even number the mean of the two in the middle.
    f64::midpoint(at((errors.len().max(1) - 1) / 2), at(errors.len() / 2))
}

/// Leaves everything running, and says what to look at.
fn leave(stack: Stack, controller: Process, webhook: Process) {
    let mut ids: Vec<String> = stack
        .plane
        .processes()
        .map(|p| p.id().to_string())
        .collect();
    println!("\nEverything runs on. To look at it:\n");
    println!(
        "  export KUBECONFIG={}",
        stack.plane.kubeconfig("admin").display()
    );
    println!(
        "  alias kubectl='{} kubectl'",
        stack.plane.binaries.join("plane").display()
    );
    println!("  kubectl get carbonbudgets,carbonreservations,energylaws -A");
    println!(
        "  curl http://{}:9403/metrics    # controller",
        stack.address(10)
    );
    let Stack {
        mut plane, nodes, ..
    } = stack;
    for node in nodes {
        println!(
            "  curl http://{}:9402/metrics    # exporter of {}",
            node.ip, node.name
        );
        ids.extend([node.node.id().to_string(), node.exporter.id().to_string()]);
        node.node.leave();
        node.exporter.leave();
    }
    ids.extend([controller.id().to_string(), webhook.id().to_string()]);
    controller.leave();
    webhook.leave();
    plane.keep_running();
    println!("\nTo end it: kill {}", ids.join(" "));
}
