//! The frame of a service's `main`: what can fail at once fails before anything runs, and ends with one printed report.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use crate::telemetry::{self, Health};
use crate::{Config, Error, Hint, Shutdown, report};

/// Exit code of a program that ends with an error.
pub const FAILED: u8 = 1;

/// What a service is given to work with.
#[derive(Clone, Debug)]
pub struct Context {
    pub config: Config,
    pub health: Health,
    pub shutdown: Shutdown,
}

/// Loads the configuration, starts logging, metrics and signals, and runs `work` to its end.
///
/// Exit code 0 after a shutdown, [`FAILED`] after an error, which is printed with its causes and hint.
pub fn run<Work, Running, Failure>(config: &Path, listen: fn(&Config) -> &str, work: Work) -> ExitCode
where
    Work: FnOnce(Context) -> Running,
    Running: Future<Output = Result<(), Failure>>,
    Failure: std::error::Error + Hint + From<Error> + 'static,
{
    telemetry::start_logging();
    let started = Config::load(config).map_err(Failure::from).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|source| Failure::from(Error::Runtime { source }))?;
        runtime.block_on(async {
            let context = Context {
                config,
                health: Health::default(),
                shutdown: Shutdown::on_signals().map_err(|source| Error::Runtime { source })?,
            };
            let metrics = telemetry::install_metrics()?;
            let address = listen(&context.config).to_owned();
            telemetry::serve(&address, metrics, context.health.clone(), context.shutdown.clone()).await?;
            work(context).await
        })
    });
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = error.hint();
            eprintln!("{}", report(&error, hint));
            ExitCode::from(FAILED)
        }
    }
}
