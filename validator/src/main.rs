//! The program `validator`: without a command the service, with `check` one comparison.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::{Config, Hint as _, Shutdown, report};
use validator::coverage::Coverage;
use validator::levels::Levels;
use validator::pipeline::{self, Validator};
use validator::report::Report;
use validator::verdict::Verdict;
use validator::{Error, observe};

/// Proves that the target holds what the source holds, while both are written to.
#[derive(Debug, Parser)]
#[command(name = "validator", version)]
struct Arguments {
    /// The configuration of the migration.
    #[arg(long, global = true, default_value = "dflux.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compares once. Exit code: 0 match, 1 mismatch, 2 inconclusive, 3 error.
    Check {
        /// Only this table, as schema.table.
        #[arg(long)]
        table: Option<String>,
        /// An earlier report as JSON: of a table that matched in it only the rows that have changed since are compared.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// Levels to run, as 0,2: 0 schema and types, 1 rows, 2 column sums, 3 distributions, 4 null rates, 5 records in depth.
        /// Without level 2 nothing is called a match.
        #[arg(long, default_value = "0,1,2,3,4,5")]
        levels: Levels,
        /// Show the values of differing records, and not only their types and lengths.
        #[arg(long)]
        show_values: bool,
        /// Write the report as JSON to this file, `-` for standard output in place of the table.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Write the report as a page of HTML to this file.
        #[arg(long)]
        html: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap's own code for wrong usage is 2, which here means inconclusive.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Verdict::Error.code() } else { 0 });
        }
    };
    match arguments.command {
        None => service::program::run(&arguments.config, |config| &config.validator.listen, pipeline::run),
        Some(Command::Check { table, since, levels, show_values, json, html }) => {
            let files = Files { json: json.as_deref(), html: html.as_deref() };
            match check(&arguments.config, table.as_deref(), since.as_deref(), (levels, show_values), files) {
                Ok(verdict) => ExitCode::from(verdict.code()),
                Err(error) => {
                    eprintln!("{}", report(&error, error.hint()));
                    ExitCode::from(Verdict::Error.code())
                }
            }
        }
    }
}

/// Where the report goes beside standard output.
#[derive(Clone, Copy)]
struct Files<'a> {
    json: Option<&'a Path>,
    html: Option<&'a Path>,
}

fn check(
    config: &Path,
    table: Option<&str>,
    since: Option<&Path>,
    (levels, show_values): (Levels, bool),
    files: Files<'_>,
) -> Result<Verdict, Error> {
    service::telemetry::start_logging();
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| service::Error::Runtime { source })?;
    runtime.block_on(async {
        observe::describe();
        let validator = Validator::new(config, Shutdown::default())?.with(levels, show_values);
        let mut validator = match since {
            Some(path) => validator.since(covered(path)?),
            None => validator,
        };
        let report = validator.check_changed(table).await?;
        publish(&report, files)?;
        Ok(report.verdict)
    })
}

/// What an earlier report proved, by table.
fn covered(path: &Path) -> Result<HashMap<String, Coverage>, Error> {
    #[derive(serde::Deserialize)]
    struct Earlier {
        tables: Vec<Table>,
    }
    #[derive(serde::Deserialize)]
    struct Table {
        table: String,
        coverage: Option<Coverage>,
    }
    let failed = |source| Error::Earlier { path: path.display().to_string(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let earlier: Earlier = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    Ok(earlier.tables.into_iter().filter_map(|table| Some((table.table, table.coverage?))).collect())
}

fn publish(report: &Report, files: Files<'_>) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::Write { path: path.display().to_string(), source };
    if let Some(path) = files.html {
        std::fs::write(path, validator::html::page(report)).map_err(|source| failed(path, source))?;
    }
    let Some(path) = files.json else {
        print!("{}", report.printed());
        return Ok(());
    };
    let text = serde_json::to_string_pretty(report).map_err(|error| failed(path, error.into()))?;
    if path == Path::new("-") {
        println!("{text}");
        return Ok(());
    }
    print!("{}", report.printed());
    std::fs::write(path, text + "\n").map_err(|source| failed(path, source))
}
