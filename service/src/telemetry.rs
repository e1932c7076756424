//! Logs to standard error, metrics at `/metrics`, health at `/health`.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::{Error, Shutdown};

/// What `/health` says: the state in a word or two, and whether it is well. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<(bool, String)>>,
}

impl Default for Health {
    fn default() -> Self {
        Health { state: Arc::new(Mutex::new((true, "starting".into()))) }
    }
}

impl Health {
    pub fn well(&self, state: &str) {
        self.set(true, state);
    }

    pub fn unwell(&self, state: &str) {
        self.set(false, state);
    }

    fn set(&self, well: bool, state: &str) {
        let mut held = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if (held.0, held.1.as_str()) != (well, state) {
            *held = (well, state.to_owned());
        }
    }

    fn get(&self) -> (bool, String) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
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

/// Answers `/metrics` and `/health` until the shutdown.
///
/// # Errors
/// `Listen` if the address is not free.
pub async fn serve(listen: &str, metrics: PrometheusHandle, health: Health, shutdown: Shutdown) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: listen.to_owned(), source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let upkeep = metrics.clone();
    let router = Router::new()
        .route(
            "/metrics",
            get(move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()) }),
        )
        .route(
            "/health",
            get(move || async move {
                let (well, state) = health.get();
                let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (status, format!("{state}\n")).into_response()
            }),
        );
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
