//! The producer service: source PostgreSQL to Kafka.

use std::path::PathBuf;
use std::process::ExitCode;

use changelog::Lane;
use clap::{Parser, ValueEnum};
use service::program;

#[derive(Parser)]
#[command(name = "producer", version, about = "dflux producer: a PostgreSQL database to Kafka")]
struct Arguments {
    /// The configuration of all programs.
    #[arg(long, default_value = "./dflux.toml")]
    config: PathBuf,
    /// forward: source to target. reverse: back, for a rollback.
    #[arg(long, value_enum, default_value_t = LaneName::Forward)]
    lane: LaneName,
}

#[derive(Clone, Copy, ValueEnum)]
enum LaneName {
    Forward,
    Reverse,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let lane = match arguments.lane {
        LaneName::Forward => Lane::Forward,
        LaneName::Reverse => Lane::Reverse,
    };
    program::run(&arguments.config, |config| &config.producer.listen, |context| producer::pipeline::run(context, lane))
}
