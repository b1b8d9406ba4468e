//! Signalling clients' eventfds from the one thread that serves all controllers of this process: no client may stop it.
//!
//! A client can make the description that it shares with us blocking and fill its counter. A full counter is seen
//! before the write, and counts as signalled; a client that fills it in between is caught by the watchdog, and dropped.

use ipc::event::EventError;
use ipc::watchdog::Guard;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cell::RefCell;
use std::os::fd::BorrowedFd;

thread_local! {
    static GUARD: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

/// The write blocked: the client is hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupt eventfd blocks the device")]
pub struct Stuck;

/// Puts this thread's signals under a watchdog's eyes.
pub fn watch(guard: Guard) {
    GUARD.set(Some(guard));
}

/// Signals an eventfd of a client's.
///
/// # Errors
/// [`Stuck`] if the watchdog had to break the write.
pub fn signal(event: BorrowedFd<'_>) -> Result<(), Stuck> {
    let mut ready = [PollFd::new(event, PollFlags::POLLOUT)];
    let writable = poll(&mut ready, PollTimeout::ZERO).is_ok_and(|count| count > 0);
    if !writable {
        return Ok(());
    }
    let result = GUARD.with_borrow(|guard| match guard {
        Some(guard) => guard.signal_fd(event),
        None => ipc::event::signal(event),
    });
    match result {
        Err(EventError::Interrupted) => Err(Stuck),
        // A descriptor that cannot be written at all was refused when it came.
        Ok(()) | Err(EventError::NotEventFd { .. } | EventError::System { .. }) => Ok(()),
    }
}
