//! The consumer's process: `consumer --config dflux.toml --lane forward`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Applies a lane's events to its target.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration of all programs.
    #[arg(long, default_value = "./dflux.toml")]
    config: PathBuf,
    /// Direction of flow.
    #[arg(long, value_enum, default_value = "forward")]
    lane: Direction,
}

#[derive(Clone, Copy, ValueEnum)]
enum Direction {
    Forward,
    Reverse,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let lane = match arguments.lane {
        Direction::Forward => changelog::Lane::Forward,
        Direction::Reverse => changelog::Lane::Reverse,
    };
    service::program::run(
        &arguments.config,
        |config| &config.consumer.listen,
        move |context| consumer::lane::run(context, lane),
    )
}
