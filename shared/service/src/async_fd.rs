//! Descriptors on the runtime's readiness queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::unix::AsyncFd;

/// Puts `inner` on the runtime's readiness queue. `inner` owns its descriptor and keeps it until it is dropped, as all
/// of `ipc`'s types do.
///
/// # Panics
/// Outside of a runtime.
///
/// # Errors
/// The kernel's, if the descriptor cannot be polled or there is no room for it.
#[expect(
    deprecated,
    reason = "its successor is unsafe because a type could close its descriptor early; ours do not"
)]
pub fn register<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(inner)
}
