//! The one binary: see `jouleward --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jouleward::cli::main()
}
