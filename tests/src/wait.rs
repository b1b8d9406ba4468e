//! Waiting with a bound. No test depends on how fast the machine is: bounds are far above what anything takes, and only
//! tell a hang from work.

use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is a value; `None` after `bound`.
pub fn within<T>(bound: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + bound;
    loop {
        if let Some(value) = ask() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within [`PATIENCE`]; `what` says what was awaited.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let held = within(PATIENCE, || condition().then_some(()));
    assert!(held.is_some(), "{what}: not within {PATIENCE:?}");
}
