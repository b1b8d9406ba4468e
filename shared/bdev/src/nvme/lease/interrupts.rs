//! How long a worker polls for what its drive has under way, and what wakes it when it sleeps instead.
//!
//! Whether polling pays is learned from the last sleep that an interrupt ended: had a longer poll seen its end, the next is
//! longer. The event is never read, only its edges are taken: it is the drive's to write to, which may be another process that
//! makes it block, or fills it. Signals that come while the worker polls cost it nothing. While the lender has the drive send none, and
//! since whoever relies on a foreign process looks for himself now and then, every sleep has an end.

use crate::error::Error;
use ipc::event::EventFd;
use ipc::layout::drive_lease::DriveLeaseLayout;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

/// Nanoseconds that commands are polled for if that pays: a flash drive is faster.
const POLL: u64 = 250_000;
/// Longest sleep, in nanoseconds: a reset, or a signal that a target forgot, is noticed then. Shorter than the engine's
/// looks at the age of commands.
const SLEEP_MAX: u64 = 100_000_000;
/// Shortest sleep without interrupts.
const NAP_MIN: u64 = 250_000;

/// The holder's side of a lease's interrupts.
pub(super) struct Interrupts {
    edges: Epoll,
    /// Completions signal, as the lender said last.
    heard: bool,
    /// The count of sleeps as the lender is told.
    sleeps: u32,
    /// A sleep has begun since the last completion.
    slept: bool,
    /// When something was submitted or completed last.
    stirred: u64,
    /// Nanoseconds after that before a sleep.
    poll: u64,
}

impl Interrupts {
    /// Of a lease whose completions signal `event`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(event: &EventFd) -> Result<Self, Error> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |error: Errno| Error::system(what, error)
        };
        let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("epoll_create"))?;
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        edges.add(event, edge).map_err(system("epoll_ctl"))?;
        Ok(Self { edges, heard: false, sleeps: 0, slept: false, stirred: 0, poll: POLL })
    }

    /// A command was submitted.
    #[inline]
    pub fn submitted(&mut self, now: u64) {
        self.stirred = now;
    }

    /// Commands have completed.
    #[inline]
    pub fn completed(&mut self, now: u64) {
        if std::mem::take(&mut self.slept) {
            let waited = now.saturating_sub(self.stirred);
            // The end of a nap that nobody ended tells nothing of the drive: a fast one would be napped upon again and again.
            self.poll = if waited < POLL || !self.heard { POLL } else { 0 };
        }
        self.stirred = now;
    }

    /// When to look at commands that are with the drive; `now` or earlier: at once, and again.
    pub fn deadline(&self, now: u64) -> u64 {
        let waited = now.saturating_sub(self.stirred);
        if waited < self.poll {
            return now;
        }
        let sleep = match self.heard {
            true => SLEEP_MAX,
            // In proportion, so that few looks find little late.
            false => (waited / 8).clamp(NAP_MIN, SLEEP_MAX),
        };
        now.saturating_add(sleep)
    }

    /// Before a sleep with commands outstanding: from here on signals end it. `false`: the deadline is another one now.
    pub fn park(&mut self, segment: &DriveLeaseLayout) -> bool {
        self.slept = true;
        self.sleeps = self.sleeps.wrapping_add(1) | 1;
        segment.holder.sleeps.store(self.sleeps, Ordering::Relaxed);
        // Pairs with the lender's between `interrupts` and its look at `sleeps`.
        fence(Ordering::SeqCst);
        // Acquire: pairs with the lender's Release; completions that are not seen after this signal.
        let heard = segment.lender.interrupts.load(Ordering::Acquire) != 0;
        if heard {
            self.take_edges();
        }
        std::mem::replace(&mut self.heard, heard) == heard
    }

    /// After a sleep, and after a [`park`](Self::park) that nobody slept upon.
    #[inline]
    pub fn unpark(&mut self, segment: &DriveLeaseLayout) {
        if self.is_parked() {
            self.sleeps = self.sleeps.wrapping_add(1);
            segment.holder.sleeps.store(self.sleeps, Ordering::Relaxed);
        }
    }

    /// What is readable when a signal came since [`park`](Self::park); there is nothing while nobody sends any.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        (self.heard && self.is_parked()).then(|| self.edges.0.as_fd())
    }

    fn is_parked(&self) -> bool {
        self.sleeps & 1 != 0
    }

    /// Forgets signals of before.
    fn take_edges(&self) {
        let mut edge = [EpollEvent::empty()];
        // One event is registered. What is not taken wakes once too often.
        self.edges.wait(&mut edge, EpollTimeout::ZERO).ok();
    }
}
