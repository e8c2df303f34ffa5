//! The operator's commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    sextant_operator::cli::main()
}
