//! `stack`: the local stack and the jobs on it, behind `./dev`. A job is a module with its own arguments and a `run`; it
//! gets its line in `Job` and in `main`.

mod bench;
mod demo;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The local stack of dflux and the jobs on it")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Start source and target PostgreSQL, Kafka and the registry, and write .run/NAME/dflux.toml
    Up(up::Arguments),
    /// Migrate a pgbench database that is being written to, and prove that the copy is exact
    Demo(demo::Arguments),
    /// Measure against PostgreSQL's own logical replication
    Bench(bench::Arguments),
    /// Stop what `up` started and remove its data
    Down(up::Arguments),
}

fn main() -> std::process::ExitCode {
    let outcome = match Arguments::parse().job {
        Job::Up(arguments) => up::start(&arguments),
        Job::Demo(arguments) => demo::run(&arguments),
        Job::Bench(arguments) => bench::run(&arguments),
        Job::Down(arguments) => up::stop(&arguments),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            if !failure.hint().is_empty() {
                eprintln!("hint: {}", failure.hint());
            }
            std::process::ExitCode::FAILURE
        }
    }
}
