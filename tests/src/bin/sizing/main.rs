//! What to order for a load, computed from outputs of `bench` that are kept in `docs/measured/`. Writes the
//! tables of `docs/sizing.md`, which says how they are computed and what they rest on.

mod assumptions;
mod document;
mod measured;
mod model;
mod outputs;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use assumptions::Assumptions;
use measured::Measured;
use model::Model;

/// What ends it early.
type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
#[command(name = "sizing", about = "Writes the tables of docs/sizing.md")]
struct Cli {
    /// Folder with what `bench` printed.
    #[arg(long, default_value = "docs/measured")]
    measured: PathBuf,
    /// Document with places for the tables.
    #[arg(long, default_value = "docs/sizing.md")]
    document: PathBuf,
    /// Write nothing; fail when the document has other tables.
    #[arg(long, conflicts_with = "print")]
    check: bool,
    /// Write nothing; print the tables.
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    assumptions: Assumptions,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let (measured, sources) = Measured::read(&cli.measured)?;
    let model = Model { measured: &measured, assumed: &cli.assumptions };
    let tables = tables::all(&model, &sources);
    if cli.print {
        for (name, table) in &tables {
            println!("\n{name}:\n\n{table}");
        }
        return Ok(());
    }
    let path = cli.document.display();
    let before =
        std::fs::read_to_string(&cli.document).map_err(|error| format!("{path}: {error}"))?;
    let after = document::fill(&before, &tables).map_err(|error| format!("{path}: {error}"))?;
    if before == after {
        return Ok(());
    }
    if cli.check {
        return Err(format!("{path} is not up to date: make sizing").into());
    }
    std::fs::write(&cli.document, after)?;
    Ok(())
}
