//! The wish to stop: SIGTERM or SIGINT, or the process's own.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Seen by all parts of a process; clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    wish: watch::Sender<bool>,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT from now on. In a runtime only.
    pub fn listen() -> io::Result<Self> {
        let shutdown = Self::manual();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "stopping");
            told.request();
        });
        Ok(shutdown)
    }

    /// Stops on [`Shutdown::request`] alone.
    pub fn manual() -> Self {
        Self { wish: watch::Sender::new(false) }
    }

    /// Wishes the process to stop.
    pub fn request(&self) {
        self.wish.send_replace(true);
    }

    /// True once it is to stop.
    pub fn is_requested(&self) -> bool {
        *self.wish.borrow()
    }

    /// Waits until it is to stop.
    pub async fn requested(&self) {
        // The sender lives as long as self: waiting cannot fail.
        self.wish.subscribe().wait_for(|&wish| wish).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn sigterm_is_seen_by_every_clone() {
        let shutdown = Shutdown::listen().unwrap();
        let other = shutdown.clone();
        assert!(!other.is_requested());
        raise(Signal::SIGTERM).unwrap();
        other.requested().await;
        assert!(shutdown.is_requested());
        shutdown.requested().await;
    }
}
