//! Logging: text on a terminal, JSON where nobody is watching.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Starts logging to standard error; `filter` as in `info,jouleward=debug`.
///
/// # Errors
/// What is wrong with the filter, in words.
pub fn init(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call, in a test, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    Ok(())
}

/// The library takes a mistyped level for a module's name: here it is an error.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    let allowed = "a level is off, error, warn, info, debug or trace, for example \
                   info,jouleward=debug";
    for directive in filter.split(',').filter(|part| !part.contains('[')) {
        let level = directive.rsplit('=').next().unwrap_or(directive).trim();
        if !LEVELS.contains(&level.to_lowercase().as_str()) {
            return Err(format!("{level:?} is no level; {allowed}"));
        }
    }
    // It repeats what every caller here says of a failed call.
    let filter = format!("{filter},kube_client::client::builder=off");
    EnvFilter::try_new(filter).map_err(|error| format!("{error}; {allowed}"))
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_mistyped_level_is_an_error_that_names_the_levels() {
        for filter in [
            "info",
            "info,jouleward=debug",
            "WARN",
            "jouleward::node=trace,off",
        ] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
        for filter in ["inof", "jouleward=loud", "", "info,,debug"] {
            let error = parse(filter).unwrap_err();
            assert!(error.contains("off, error, warn"), "{filter}: {error}");
        }
    }
}
