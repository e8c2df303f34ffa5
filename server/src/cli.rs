//! The command line.

mod client;
mod import;
mod reindex;
mod serve;
mod top;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::auth::{self, Scope};
use crate::config::{Config, DEFAULT_YAML};
use crate::domain::Mode;
use crate::http::openapi_json;
use client::{Client, ClientOptions};

/// What ends a command: printed for the person who gave it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Threads for file and index work; more than this at a time would only wait for the disk.
const BLOCKING_THREADS: usize = 64;

#[derive(Parser)]
#[command(
    name = "sextant-server",
    version,
    about = "Semantic search: text in, ranked documents out"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::ServeOptions),
    /// Import documents from a file into a collection of a running server.
    Import(import::ImportOptions),
    /// Take a collection over to another model or other text fields while it is searched.
    Reindex(reindex::ReindexOptions),
    /// Search a running server.
    Search {
        query: String,
        #[arg(long, default_value = "exercises")]
        collection: String,
        /// Most hits to show, 1 to 100.
        #[arg(long, default_value_t = 10)]
        limit: u32,
        /// The collection's default when not given.
        #[arg(long, value_enum)]
        mode: Option<Mode>,
        /// A filter as JSON, as in '{"must":[{"field":"level","eq":"beginner"}]}'.
        #[arg(long)]
        filter: Option<String>,
        /// Print the server's answer as it is.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Embed texts by a running server: one JSON array of numbers a line.
    Embed {
        #[arg(required = true)]
        texts: Vec<String>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show what a running server does, again and again.
    Top(top::TopOptions),
    /// Make API keys.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Check or show the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the OpenAPI description of the HTTP interface.
    Openapi,
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a key, add its hash to a file and print the key, this once.
    Add {
        /// What the key is known by in the file.
        #[arg(long)]
        name: String,
        #[arg(long, value_enum, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        #[arg(long)]
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read the file and the environment and name everything that is wrong.
    Check {
        #[arg(long, env = "SEXTANT_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Print the configuration in force, or the commented defaults.
    Show {
        #[arg(long, env = "SEXTANT_CONFIG")]
        config: Option<PathBuf>,
        /// Print every field with its default and its meaning.
        #[arg(long)]
        default: bool,
    },
}

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(cli.command));
            // What is still blocked on a disk must not keep the process.
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            outcome
        });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(options) => return serve::serve(options).await,
        Command::Import(options) => import::import(options).await?,
        Command::Reindex(options) => reindex::reindex(options).await?,
        Command::Search { query, collection, limit, mode, filter, json, client } => {
            let request = client::search_request(&query, limit, mode, filter.as_deref())?;
            let client = Client::new(&client)?;
            if json {
                print(&client.search_raw(&collection, &request).await?)?;
            } else {
                let found = client.search(&collection, &request).await?;
                print(&client::as_text(&found, std::io::stdout().is_terminal()))?;
            }
        }
        Command::Embed { texts, client } => {
            for vector in Client::new(&client)?.embed(texts).await? {
                print(&(serde_json::to_string(&vector)? + "\n"))?;
            }
        }
        Command::Top(options) => top::top(options).await?,
        Command::Keys { command: KeysCommand::Add { name, scopes, file } } => {
            let (key, entry) = auth::generate(&name, &scopes);
            auth::add_to_file(&file, entry)?;
            print(&format!("{key}\n"))?;
            eprintln!("This key is shown once; {} holds its hash.", file.display());
        }
        Command::Config { command: ConfigCommand::Check { config } } => {
            let config = Config::load(config.as_deref(), std::env::vars())?;
            serve::check(&config)?;
            print("the configuration is valid\n")?;
        }
        Command::Config { command: ConfigCommand::Show { default: true, .. } } => {
            print(DEFAULT_YAML)?;
        }
        Command::Config { command: ConfigCommand::Show { config, default: false } } => {
            let config = Config::load(config.as_deref(), std::env::vars())?;
            print(&serde_saphyr::to_string(&config)?)?;
        }
        Command::Openapi => print(&openapi_json()?)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sextant-server", &mut script);
            print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints; a reader that has left, as `head` does, is no error.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
