//! What a service tells its keeper (systemd or `vireo up`): ready, stopping, how it is, that it lives. Without a keeper
//! all of it does nothing.

use sd_notify::NotifyState;
use std::time::Duration;
use tracing::warn;

/// The service serves all that it was told to.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The service has begun to stop.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line on how the service is.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The service lives. Only to be called while every thread of it makes progress.
pub fn feed_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often the watchdog wants to be fed: half of the keeper's bound; `None` without one.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|bound| bound / 2)
}

/// Feeds the watchdog for as long as this is polled and `lives` says yes: for a process whose runtime does all its work,
/// or whose other threads can be asked. Without a watchdog it only waits. Never ends.
pub async fn keep_fed(mut lives: impl FnMut() -> bool) {
    let Some(interval) = watchdog_interval() else {
        return std::future::pending().await;
    };
    loop {
        if lives() {
            feed_watchdog();
        }
        tokio::time::sleep(interval).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "keeper cannot be told");
    }
}
