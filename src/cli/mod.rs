//! The command line: one file a subcommand. Errors are printed once, here.

mod arguments;
mod budgets;
mod cluster_commands;
mod crds;
mod debug;
mod explain;
mod exporter;
mod fit;
mod measured;
mod model;
mod output;
mod plan;
mod plot;
mod predict;
mod prometheus;
mod queue;
mod reference;
mod report;
mod score;

use crate::serve::shutdown;
use crate::serve::telemetry;
use clap::{Parser, Subcommand};
use std::future::Future;
use std::process::ExitCode;

/// Keeps the carbon of image and video generation inside a budget, on Kubernetes.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, propagate_version = true)]
#[command(after_help = "Examples:
  jouleward predict --model flux.1-dev --gpu NVIDIA-A100-SXM4-40GB --num-inference-steps 28
  jouleward explain --model sdxl --gpu NVIDIA-H100-80GB-HBM3
  jouleward plan --model flux.1-dev --images-per-hour 500
  jouleward fit runs.csv -o json
  jouleward crds | kubectl apply --server-side -f -
Exit codes: 0 done, 1 failed, 2 wrong flags or input.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged, for example info or info,jouleward=debug.
    #[arg(
        long,
        global = true,
        env = "JOULEWARD_LOG",
        default_value = "info",
        hide_env = true
    )]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    Predict(predict::Predict),
    Explain(explain::Explain),
    Plan(plan::Plan),
    Fit(fit::Fit),
    Score(score::Score),
    Plot(plot::Plot),
    Model(model::Model),
    Exporter(exporter::Exporter),
    Controller(cluster_commands::Controller),
    Webhook(cluster_commands::Webhook),
    Release(cluster_commands::Release),
    Uninstall(cluster_commands::Uninstall),
    Report(report::Report),
    Queue(queue::Queue),
    Crds(crds::Crds),
    Debug(debug::Debug),
    #[command(hide = true)]
    Reference(reference::Reference),
}

/// Wrong input, as against something that failed: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongInput(pub String);

/// Runs the command line.
pub fn main() -> ExitCode {
    // One TLS provider for the whole process; a second call is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_flags(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jouleward: {}", causes(&error));
            ExitCode::from(if error.is::<WrongInput>() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    telemetry::init(&cli.log).map_err(|why| WrongInput(format!("--log {:?}: {why}", cli.log)))?;
    match cli.command {
        Command::Predict(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Fit(command) => serve(|_| command.run()),
        Command::Score(command) => command.run(),
        Command::Plot(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Crds(command) => command.run(),
        Command::Reference(command) => command.run(),
        Command::Exporter(command) => serve(|stop| command.run(stop)),
        Command::Controller(command) => serve(|stop| command.run(stop)),
        Command::Webhook(command) => serve(|stop| command.run(stop)),
        Command::Debug(command) => serve(|_| command.run()),
        Command::Release(command) => serve(|_| command.run()),
        Command::Uninstall(command) => serve(|_| command.run()),
        Command::Report(command) => serve(|_| command.run()),
        Command::Queue(command) => serve(|_| command.run()),
    }
}

/// An error with its causes in one line, each said once: many libraries repeat theirs.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.replace('\n', " ")
}

/// What the parsers of single values leave unsaid.
const EXAMPLES: &[(&str, &str)] = &[
    ("invalid socket address syntax", "0.0.0.0:9402"),
    ("invalid float literal", "1.5"),
    ("invalid digit found in string", "10"),
];

/// Help and version as they are; what is wrong in one sentence, with where to look.
fn wrong_flags(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if asked {
        let _ = error.print();
    } else {
        eprintln!("jouleward: {}", one_sentence(&error.to_string()));
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// What clap says over several lines, without its headings.
fn one_sentence(said: &str) -> String {
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let lines = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let mut sentence = String::new();
    for line in lines {
        if let Some(usage) = line.strip_prefix("Usage: ") {
            sentence = format!("{sentence}; usage: {usage}, and --help says more");
        } else if sentence.is_empty() {
            line.clone_into(&mut sentence);
        } else if line.starts_with('[') || line.starts_with("tip:") {
            sentence = format!("{sentence}; {}", line.trim_matches(['[', ']']));
        } else {
            sentence = format!("{sentence} {line}");
        }
    }
    let example = EXAMPLES.iter().find(|(said, _)| sentence.contains(said));
    if let Some((_, example)) = example {
        sentence = format!("{sentence}, for example {example}");
    }
    sentence
}

/// `jouleward … | head` is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Runs an async command until it ends or a signal comes; a second signal ends the
/// process at once.
fn serve<F>(run: impl FnOnce(shutdown::Stop) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (stopper, stop) = shutdown::pair();
        let work = run(stop);
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            signal = shutdown::signalled() => signal?,
        }
        tracing::info!("stopping");
        stopper.stop();
        tokio::select! {
            result = &mut work => result,
            signal = shutdown::signalled() => {
                signal?;
                anyhow::bail!("stopped at once by a second signal")
            }
        }
    })
}
