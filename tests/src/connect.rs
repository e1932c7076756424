//! A real Kafka Connect worker (standalone, one process) with one sink, for programs that read our topics through it.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::{Launch, Process};
use crate::registry::get;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(120);

/// Apicurio's own interface, where its converters and deserializers ask, from the address of its Confluent-compatible one.
pub fn native_registry(confluent: &str) -> String {
    confluent.replace("/apis/ccompat/v7", "/apis/registry/v2")
}

#[derive(Debug)]
pub struct Worker {
    process: Process,
}

impl Worker {
    /// Starts a worker with the connector that these properties describe; returns when it runs.
    ///
    /// # Errors
    /// When Connect cannot be fetched, or did not come up, with its log.
    pub fn start(brokers: &str, connector: &str) -> Result<Worker> {
        let folder = scratch::folder("connect")?;
        let port = ports::free()?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Failure::io(format!("writing {}", path.display())))?;
            Ok(path)
        };
        let worker = format!(
            "bootstrap.servers={brokers}
listeners=http://127.0.0.1:{port}
offset.storage.file.filename={}/offsets
offset.flush.interval.ms=1000
plugin.discovery=service_load
consumer.auto.offset.reset=earliest
key.converter=org.apache.kafka.connect.converters.ByteArrayConverter
value.converter=org.apache.kafka.connect.converters.ByteArrayConverter
",
            folder.display()
        );
        let (worker, connector) = (write("worker.properties", &worker)?, write("connector.properties", connector)?);
        let classpath = format!("{}/*", cache::part(&["connect"])?.display());
        let process = Launch::new("connect", "java", &folder)
            .arguments(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"])
            .arguments(["-Duser.timezone=UTC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
            .arguments(["-cp", &classpath, "org.apache.kafka.connect.cli.ConnectStandalone"])
            .arguments([worker.display().to_string(), connector.display().to_string()])
            .start()?;
        let status = format!("http://127.0.0.1:{port}/connectors?expand=status");
        process.wait_until("Kafka Connect runs its sink", STARTED_WITHIN, || {
            let answer = get(&status).map_err(|failure| failure.to_string())?;
            // One for the connector and one for its task.
            if answer.matches("RUNNING").count() >= 2 { Ok(()) } else { Err(answer) }
        })?;
        Ok(Worker { process })
    }

    /// As [`Process::wait_until`].
    ///
    /// # Errors
    /// When the worker ended, or the condition did not come true.
    pub fn wait_until<T, E: std::fmt::Display>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl FnMut() -> std::result::Result<T, E>,
    ) -> Result<T> {
        self.process.wait_until(what, limit, ask)
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}
