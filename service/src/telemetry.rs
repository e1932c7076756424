//! Logs to standard error, metrics at `/metrics`, liveness at `/health`, readiness at `/ready`.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::{Error, Shutdown};

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    /// Something is wrong; it tries again, or it ends.
    Unwell,
    /// Nothing is wrong, and it does not do its job yet.
    Well,
    /// It does its job.
    Ready,
}

/// What `/health` and `/ready` say: the state in a word or two. `/health` succeeds unless it is unwell, `/ready` only while it
/// does its job. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<(Condition, String)>>,
}

impl Default for Health {
    fn default() -> Self {
        Health { state: Arc::new(Mutex::new((Condition::Well, "starting".into()))) }
    }
}

impl Health {
    /// It does its job.
    pub fn ready(&self, state: &str) {
        self.set(Condition::Ready, state);
    }

    /// Nothing is wrong, and it does not do its job: it begins, or it ends.
    pub fn well(&self, state: &str) {
        self.set(Condition::Well, state);
    }

    pub fn unwell(&self, state: &str) {
        self.set(Condition::Unwell, state);
    }

    fn set(&self, condition: Condition, state: &str) {
        let mut held = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if (held.0, held.1.as_str()) != (condition, state) {
            *held = (condition, state.to_owned());
        }
    }

    /// Success from this condition on.
    fn answer(&self, least: Condition) -> (StatusCode, String) {
        let (condition, state) = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let status = if condition >= least { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, format!("{state}\n"))
    }
}

/// Starts logging: `RUST_LOG` chooses (default `info`), `DFLUX_LOG=json` writes JSON lines.
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,librdkafka=off,rdkafka=off"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let json = std::env::var("DFLUX_LOG").is_ok_and(|format| format == "json");
    // A second call in one process (tests) keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
}

/// Installs the metrics recorder of this process. Histograms are in seconds.
///
/// # Errors
/// If one is installed already.
pub fn install_metrics() -> Result<PrometheusHandle, Error> {
    let buckets = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    let failed = |error: metrics_exporter_prometheus::BuildError| Error::Metrics { message: error.to_string() };
    PrometheusBuilder::new().set_buckets(&buckets).map_err(failed)?.install_recorder().map_err(failed)
}

/// Answers `/metrics`, `/health` and `/ready` until the shutdown.
///
/// # Errors
/// `Listen` if the address is not free.
pub async fn serve(listen: &str, metrics: PrometheusHandle, health: Health, shutdown: Shutdown) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: listen.to_owned(), source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let (upkeep, readiness) = (metrics.clone(), health.clone());
    let router = Router::new()
        .route(
            "/metrics",
            get(move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()) }),
        )
        .route("/health", get(move || async move { health.answer(Condition::Well) }))
        .route("/ready", get(move || async move { readiness.answer(Condition::Ready) }));
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let ended = axum::serve(listener, router).with_graceful_shutdown(async move { stop.wait().await }).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the metrics listener ended");
        }
    });
    tokio::spawn(async move {
        // Histograms gather samples until they are drained; without a scraper nobody would.
        while !shutdown.begun() {
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_secs(5)) => upkeep.run_upkeep(),
                () = shutdown.wait() => break,
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_begins_is_alive_and_not_ready() {
        let health = Health::default();
        let codes = || [Condition::Well, Condition::Ready].map(|least| health.answer(least).0.as_u16());
        assert_eq!(codes(), [200, 503]);
        health.ready("streaming");
        assert_eq!(codes(), [200, 200]);
        health.unwell("Kafka is away");
        assert_eq!((codes(), health.answer(Condition::Ready).1.as_str()), ([503, 503], "Kafka is away\n"));
        health.well("stopping");
        assert_eq!(codes(), [200, 503]);
    }
}
