//! The real programs (producer, consumer, validator, dflux) as they are deployed: a process, a configuration file, a log,
//! and the /health, /ready and /metrics that they offer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{Launch, Process, Resident};
use crate::{Failure, Result, cache, ports, registry};

const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// A service that is to be started.
#[derive(Debug, Clone)]
pub struct Start {
    program: String,
    config: PathBuf,
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Start {
    /// `program` is `producer`, `consumer` or `validator`, from the folder that cargo built into. Its log is
    /// `program.log` beside the configuration.
    pub fn new(program: &str, config: &Path) -> Self {
        Start {
            program: program.to_owned(),
            config: config.to_owned(),
            name: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The name in messages and of the log, for a second instance.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// An environment variable, `DFLUX__CONSUMER__…` to override a setting, or `RUST_LOG`.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it with a `listen` address of its own (by environment, so that several can share one file). Returns at
    /// once: see `Service::wait_healthy`.
    ///
    /// # Errors
    /// When the program is not built or cannot be started.
    pub fn start(self) -> Result<Service> {
        let address = format!("127.0.0.1:{}", ports::free()?);
        let listen = format!("DFLUX__{}__LISTEN", self.program.to_uppercase());
        let folder = self.config.parent().unwrap_or(Path::new("/")).to_owned();
        let mut launch = Launch::new(&self.name, cache::program(&self.program)?, &folder)
            .arguments(["--config".to_owned(), self.config.display().to_string()])
            .arguments(self.arguments.clone())
            .environment(&listen, &address);
        for (name, value) in &self.environment {
            launch = launch.environment(name, value.as_str());
        }
        Ok(Service { process: launch.start()?, address, start: self })
    }
}

/// A running service; killed when dropped.
#[derive(Debug)]
pub struct Service {
    process: Process,
    address: String,
    start: Start,
}

impl Service {
    /// Waits until /health answers with success. Ends early, with the log, when the service does.
    ///
    /// # Errors
    /// When it ended or was not healthy in time.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        self.process.wait_until(&format!("{} is healthy", self.process.name()), limit, || self.health()).map(|_| ())
    }

    /// The body of /health.
    ///
    /// # Errors
    /// When it does not answer with success; the body is in the text.
    pub fn health(&self) -> Result<String> {
        registry::get(&format!("http://{}/health", self.address))
    }

    /// The body of /ready.
    ///
    /// # Errors
    /// When it does not answer with success; the body is in the text.
    pub fn ready(&self) -> Result<String> {
        registry::get(&format!("http://{}/ready", self.address))
    }

    /// All samples of /metrics: `name` or `name{labels}` to value.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        Ok(samples(&registry::get(&format!("http://{}/metrics", self.address))?))
    }

    /// The sum over all labels of one metric; `None` while it has no sample.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let samples = self.metrics()?;
        let of_this_name = |sample: &&String| sample.split('{').next() == Some(name);
        let found: Vec<f64> = samples.keys().filter(of_this_name).filter_map(|key| samples.get(key).copied()).collect();
        Ok(if found.is_empty() { None } else { Some(found.iter().sum()) })
    }

    /// `host:port` of /health, /ready and /metrics.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn resident_bytes(&self) -> Option<Resident> {
        self.process.resident_bytes()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// `kill -STOP`: a service that hangs, its connections open.
    pub fn pause(&self) {
        self.process.pause();
    }

    pub fn resume(&self) {
        self.process.resume();
    }

    /// SIGTERM, and waits; returns the exit code (`None` when a signal ended it).
    ///
    /// # Errors
    /// When it did not end within 30 s and had to be killed.
    pub fn terminate(&self) -> Result<Option<i32>> {
        Ok(self.process.stop(Signal::SIGTERM, STOPPED_WITHIN)?.code())
    }

    /// Kills it if it runs, and starts it again with the same arguments. Its log goes on in the same file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(self) -> Result<Service> {
        self.process.kill();
        let start = self.start.clone();
        drop(self);
        start.start()
    }

    /// All that it and its predecessors of this name have logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// What a program that runs to its end said.
#[derive(Debug)]
pub struct Said {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// # Errors
    /// With everything that it said, when it did not end with `code`.
    pub fn expect_code(self, code: i32) -> Result<Said> {
        if self.code == Some(code) {
            return Ok(self);
        }
        Err(Failure::Other(format!("exit code {:?} instead of {code}\n{}{}", self.code, self.stdout, self.stderr)))
    }
}

/// Runs one of the programs to its end: `run("dflux", config, ["assess"])`, `run("validator", config, ["check"])`.
/// `--config FILE` comes after the arguments.
///
/// # Errors
/// When it is not built or cannot be started; any exit code is an answer.
pub fn run<S: Into<String>>(program: &str, config: &Path, arguments: impl IntoIterator<Item = S>) -> Result<Said> {
    run_with(program, config, arguments, &[])
}

/// The same with environment variables on top.
///
/// # Errors
/// As `run`.
pub fn run_with<S: Into<String>>(
    program: &str,
    config: &Path,
    arguments: impl IntoIterator<Item = S>,
    environment: &[(&str, &Path)],
) -> Result<Said> {
    let mut command = std::process::Command::new(cache::program(program)?);
    command.envs(environment.iter().copied()).args(arguments.into_iter().map(Into::into)).arg("--config").arg(config);
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.map_err(Failure::io(format!("starting {program}")))?;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::samples;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let read = samples("# TYPE a counter\na 3\nb{table=\"x y\"} 0.5\n\nrubbish\n");
        assert_eq!(read.len(), 2);
        assert_eq!(read["a"], 3.0);
        assert_eq!(read["b{table=\"x y\"}"], 0.5);
    }
}
