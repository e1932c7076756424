//! How a service stops: one signal that every task can wait for.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Cheap to clone. Set once, never unset.
#[derive(Clone, Debug)]
pub struct Shutdown {
    receiver: watch::Receiver<bool>,
    sender: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let (sender, receiver) = watch::channel(false);
        Shutdown { receiver, sender }
    }
}

impl Shutdown {
    /// Begins at SIGTERM or SIGINT. Call once, in a tokio runtime.
    pub fn on_signals() -> std::io::Result<Shutdown> {
        let shutdown = Shutdown::default();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let sender = shutdown.sender.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            sender.send_replace(true);
        });
        Ok(shutdown)
    }

    /// Tells everybody to stop.
    pub fn begin(&self) {
        self.sender.send_replace(true);
    }

    pub fn begun(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Returns when stopping has begun. Cancel-safe.
    pub async fn wait(&self) {
        let mut receiver = self.receiver.clone();
        // The sender lives as long as this value, so waiting can only end by the signal.
        let _ = receiver.wait_for(|begun| *begun).await;
    }
}
