//! A thread that notices when another one is stuck in a write to a client's eventfd, and breaks the call.
//!
//! A client may make the description that it shares with us blocking and fill its counter; the write then waits for a
//! reader that never comes. The watchdog sends the stuck thread a signal whose handler does nothing and is installed
//! without SA_RESTART: the write ends with EINTR, which a write that did not wait never does, so
//! [`EventError::Interrupted`] is proof of a blocking descriptor and its controller can be failed.
//!
//! Hot path: a guarded signal is the eventfd write and two stores.

use crate::event::{EventError, EventFd};
use nix::errno::Errno;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a write may take by default. A write to an eventfd takes about a microsecond; a thread that was not
/// scheduled for this long loses nothing by the signal.
pub const DEFAULT_BOUND: Duration = Duration::from_millis(500);

/// Why the watchdog could not start.
#[derive(Debug, thiserror::Error)]
#[error("{call} for the watchdog")]
pub struct WatchdogError {
    call: &'static str,
    #[source]
    source: Errno,
}

/// The watching thread; ends when dropped.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    watched: Mutex<Vec<Weak<Slot>>>,
    stop: AtomicBool,
    broken: AtomicU64,
}

/// A watched thread. `calls` is odd while it is in a guarded call; each call has its own number.
#[derive(Debug)]
struct Slot {
    thread: libc::pid_t,
    calls: AtomicU64,
}

/// The right of the thread that made it to signal under the watchdog's eyes.
#[derive(Debug)]
pub struct Guard {
    slot: Arc<Slot>,
    /// The slot names a thread: it stays with it.
    not_send: PhantomData<*const ()>,
}

impl Watchdog {
    /// Starts the thread. A call that takes longer than `bound` is broken within twice of it.
    pub fn start(bound: Duration) -> Result<Self, WatchdogError> {
        install_handler()?;
        let shared = Arc::new(Shared {
            watched: Mutex::default(),
            stop: AtomicBool::new(false),
            broken: AtomicU64::new(0),
        });
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&its, bound))
            .map_err(|error| WatchdogError {
                call: "spawn",
                source: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Puts the calling thread under watch until the guard is dropped.
    pub fn guard(&self) -> Result<Guard, WatchdogError> {
        unblock_signal()?;
        let slot =
            Arc::new(Slot { thread: nix::unistd::gettid().as_raw(), calls: AtomicU64::new(0) });
        self.shared.watched().push(Arc::downgrade(&slot));
        Ok(Guard { slot, not_send: PhantomData })
    }

    /// Signals sent to stuck threads so far.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::Relaxed)
    }
}

impl Guard {
    /// [`EventFd::signal`], broken if it blocks.
    ///
    /// # Errors
    /// [`EventError::Interrupted`] if it blocked for longer than the bound.
    #[inline]
    pub fn signal(&self, event: &EventFd) -> Result<(), EventError> {
        self.signal_fd(event.as_fd())
    }

    /// [`Guard::signal`] for a descriptor that [`EventFd::from_client`] took and gave up again.
    ///
    /// # Errors
    /// As [`Guard::signal`].
    #[inline]
    pub fn signal_fd(&self, event: BorrowedFd<'_>) -> Result<(), EventError> {
        // Relaxed load: only this thread stores. Release stores: pair with the Acquire in `watch`; which number is seen
        // when does not matter, only whether it stays the same.
        let call = self.slot.calls.load(Ordering::Relaxed) + 1;
        self.slot.calls.store(call, Ordering::Release);
        let result = crate::event::signal(event);
        self.slot.calls.store(call + 1, Ordering::Release);
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}

impl Shared {
    fn watched(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Slot>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(shared: &Shared, bound: Duration) {
    let mut seen: Vec<(libc::pid_t, u64)> = Vec::new();
    // Acquire: pairs with the Release in `drop`.
    while !shared.stop.load(Ordering::Acquire) {
        thread::park_timeout(bound);
        let mut now = Vec::with_capacity(seen.len());
        shared.watched().retain(|slot| {
            let Some(slot) = slot.upgrade() else { return false };
            let call = slot.calls.load(Ordering::Acquire);
            if call % 2 == 1 {
                now.push((slot.thread, call));
                // In the same call as a bound ago. Repeated until the call is left: the first signal may have come in
                // the moment before the write began to wait.
                if seen.contains(&(slot.thread, call)) {
                    interrupt(slot.thread);
                    shared.broken.fetch_add(1, Ordering::Relaxed);
                }
            }
            true
        });
        seen = now;
    }
}

fn signal_number() -> libc::c_int {
    // Not one of those that people or runtimes send.
    libc::SIGRTMIN() + 7
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn install_handler() -> Result<(), WatchdogError> {
    // SAFETY: an all-zero sigaction is valid: no flags, so no SA_RESTART, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, which is safe in any context; the action is live.
    let result = unsafe { libc::sigaction(signal_number(), &action, std::ptr::null_mut()) };
    Errno::result(result).map(drop).map_err(|source| WatchdogError { call: "sigaction", source })
}

fn unblock_signal() -> Result<(), WatchdogError> {
    // SAFETY: the set is live and initialized by sigemptyset before it is used.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal_number());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(WatchdogError { call: "sigmask", source: Errno::from_raw(error) }),
    }
}

fn interrupt(thread: libc::pid_t) {
    // SAFETY: a signal to a thread of this process. Should the thread be gone and its number be another thread's of
    // ours, the handler does nothing there; a number outside of this process is refused by the kernel.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal_number()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd as RawEventFd};
    use std::time::Instant;

    const BOUND: Duration = Duration::from_millis(50);

    /// As a hostile client makes it: blocking, its counter full.
    fn stuck_event() -> EventFd {
        let raw = RawEventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        raw.write(u64::MAX - 1).unwrap();
        EventFd::from_client(raw.into()).unwrap()
    }

    #[test]
    fn a_write_that_blocks_is_broken_and_the_thread_goes_on() {
        let watchdog = Watchdog::start(BOUND).unwrap();
        let guard = watchdog.guard().unwrap();
        let good = EventFd::create().unwrap();
        for _ in 0..3 {
            let start = Instant::now();
            let error = guard.signal(&stuck_event()).unwrap_err();
            assert!(matches!(error, EventError::Interrupted), "{error}");
            assert!(start.elapsed() >= BOUND, "not before its time");
            guard.signal(&good).unwrap();
        }
        assert_eq!(good.drain().unwrap(), 3);
        assert!(watchdog.broken() >= 3);
    }

    #[test]
    fn only_the_stuck_thread_is_disturbed() {
        let watchdog = Arc::new(Watchdog::start(BOUND).unwrap());
        let (theirs, stuck) = (Arc::clone(&watchdog), stuck_event());
        let other = thread::spawn(move || theirs.guard().unwrap().signal(&stuck));
        let guard = watchdog.guard().unwrap();
        let event = EventFd::create().unwrap();
        while !other.is_finished() {
            // A nap that a signal would cut short with EINTR.
            let nap = nix::poll::poll(&mut [], nix::poll::PollTimeout::from(20_u8));
            assert_eq!(nap, Ok(0));
            guard.signal(&event).unwrap();
        }
        assert!(matches!(other.join().unwrap(), Err(EventError::Interrupted)));
    }

    #[test]
    fn threads_that_left_are_no_longer_watched() {
        let watchdog = Watchdog::start(BOUND).unwrap();
        drop(watchdog.guard().unwrap());
        thread::sleep(3 * BOUND);
        assert!(watchdog.shared.watched().is_empty());
        assert_eq!(watchdog.broken(), 0);
    }
}
