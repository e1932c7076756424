//! `dflux`: the operator's command. Exit codes: 0 done, 1 failed, 2 refused (nothing was changed), 3 aborted and safe, 4 ambiguous.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use control::cutover::drive::Controller;
use control::cutover::event::Direction;
use control::error::Exit;
use control::{Error, assess, cleanup, prepare, repair, resync, status};
use service::{Config, Hint};

/// Moves a live PostgreSQL database to another server.
#[derive(Debug, Parser)]
#[command(name = "dflux", version)]
struct Arguments {
    /// The configuration of all programs.
    #[arg(long, global = true, default_value = "./dflux.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says everything that stands in the way, how long it will take, and the plan. Changes nothing.
    Assess {
        /// Writes the report as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Makes both databases ready; later builds indexes, foreign keys and triggers, and what the source has made since.
    Prepare,
    /// Says where the migration stands.
    Status {
        #[arg(long, conflicts_with = "watch")]
        json: bool,
        /// Progress bars and lag, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Reads a table again while the rest keeps flowing.
    Resync {
        table: String,
        /// From the topics, into this target; else from the source, into every target of the migration.
        #[arg(long)]
        replay: bool,
        /// Only the rows that the validator finds to be wrong now, into this target; then checks again.
        #[arg(long, conflicts_with = "replay")]
        rows: bool,
        /// Returns when the table is live again.
        #[arg(long)]
        wait: bool,
        /// Longest wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        timeout: u64,
    },
    /// Moves the application to the target.
    Cutover {
        #[command(subcommand)]
        verb: CutoverVerb,
    },
    /// Takes the application back to the source, with every write that the target has acknowledged.
    Rollback {
        #[command(subcommand)]
        verb: RollbackVerb,
    },
    /// Gives up the way back: its slot and the target's fence are removed, the source stays closed.
    Finalize,
    /// Removes slot, publication, topics, schemas and settings that dflux made. Migrated tables stay.
    Cleanup {
        /// Really removes; without it, only says what would go.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum CutoverVerb {
    /// Whether it could begin now. Changes nothing.
    Check,
    /// Begins it, or goes on with one that another process has left.
    Start,
    /// Gives it up, as long as it is not past its point of no return.
    Abort,
    /// Where it stands, and whether there is a way back.
    Status {
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum RollbackVerb {
    /// Whether it could begin now. Changes nothing.
    Check,
    /// Begins it, or goes on with one that another process has left.
    Start,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Failed } else { Exit::Done };
            // Nowhere else to say that it could not be said.
            let _ = error.print();
            return exit.into();
        }
    };
    // What it does it says on standard output; the log is for who asks for it.
    if std::env::var_os("RUST_LOG").is_some() {
        service::telemetry::start_logging();
    }
    let outcome = Config::load(&arguments.config).map_err(Error::from).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|source| service::Error::Runtime { source })?;
        runtime.block_on(run(&config, arguments.command))
    });
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("{}", service::report(&error, error.hint()));
            error.exit().into()
        }
    }
}

async fn run(config: &Config, command: Command) -> Result<Exit, Error> {
    match command {
        Command::Assess { json } => assess::run(config, json.as_deref()).await,
        Command::Prepare => prepare::run(config).await,
        Command::Status { json, watch } => status::run(config, json, watch).await,
        Command::Resync { table, rows: true, timeout, .. } => {
            repair::run(config, &table, Duration::from_secs(timeout)).await
        }
        Command::Resync { table, replay, wait, timeout, .. } => {
            let from = if replay { resync::From::Topics } else { resync::From::Source };
            resync::run(config, &table, from, wait.then(|| Duration::from_secs(timeout))).await
        }
        Command::Cutover { verb } => {
            let mut controller = Controller::new(config).await?;
            match verb {
                CutoverVerb::Check => controller.check(Direction::Forward).await,
                CutoverVerb::Start => controller.start(Direction::Forward).await,
                CutoverVerb::Abort => controller.abort().await,
                CutoverVerb::Status { json } => controller.status(json).await,
            }
        }
        Command::Rollback { verb } => {
            let mut controller = Controller::new(config).await?;
            match verb {
                RollbackVerb::Check => controller.check(Direction::Back).await,
                RollbackVerb::Start => controller.start(Direction::Back).await,
            }
        }
        Command::Finalize => Controller::new(config).await?.finalize().await,
        Command::Cleanup { yes } => cleanup::run(config, yes).await,
    }
}
