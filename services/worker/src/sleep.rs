//! Spin, nap, sleep: what the poll thread does between polls without work.
//!
//! It spins as long as that is likely to pay, then naps with a bound that doubles up to the configured one, and sleeps
//! for good only where everybody who has work for it will wake it: with doorbells that are mapped into a guest it has to
//! look for itself.

use crate::clock::Clock;
use crate::notify::Notifier;
use crate::reactor::Reactor;
use crate::times::Times;
use ipc::event::EventFd;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Nanoseconds without work before the first nap.
pub const SPIN: u64 = 50_000;
/// Nanoseconds of the first nap.
const FIRST_NAP: u64 = 20_000;
/// Polls between two decisions, so that spinning reads no clock.
const POLLS: u32 = 64;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Poll again at once.
    Spin,
    /// Wait for a wake-up, at most this many nanoseconds.
    Nap(u64),
    /// Wait for a wake-up.
    Sleep,
}

/// Decides. Knows nothing but polls and the time.
#[derive(Clone, Debug)]
pub struct Idle {
    max_nap: u64,
    polls: u32,
    idle_since: Option<u64>,
    nap: u64,
}

impl Idle {
    /// With naps of at most `max_nap` nanoseconds.
    pub fn new(max_nap: u64) -> Self {
        Self { max_nap, polls: 0, idle_since: None, nap: FIRST_NAP }
    }

    /// There was work.
    #[inline]
    pub fn worked(&mut self) {
        self.polls = 0;
        self.idle_since = None;
        self.nap = FIRST_NAP;
    }

    /// There was none. True if [`Self::step`] is to be asked.
    #[inline]
    pub fn idled(&mut self) -> bool {
        self.polls += 1;
        if self.polls < POLLS {
            return false;
        }
        self.polls = 0;
        true
    }

    /// Whether there has been no work for so long that the next one need not be noticed at once: a pause takes as long
    /// as some of the commands.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.idle_since.is_some()
    }

    /// What to do at `now`, where sleep is bounded if `must_look`, and something is due at `deadline`.
    pub fn step(&mut self, now: u64, must_look: bool, deadline: Option<u64>) -> Step {
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) < SPIN {
            return Step::Spin;
        }
        let due = deadline.map(|deadline| deadline.saturating_sub(now));
        if due.is_some_and(|due| due < FIRST_NAP) {
            return Step::Spin;
        }
        let nap = self.nap.min(self.max_nap);
        self.nap = self.nap.saturating_mul(2).min(self.max_nap);
        // One decision per nap from here on.
        self.polls = POLLS;
        match due {
            Some(due) if must_look => Step::Nap(nap.min(due)),
            Some(due) => Step::Nap(due),
            None if must_look => Step::Nap(nap),
            None => Step::Sleep,
        }
    }
}

/// Polls until told to stop. `kick` wakes the thread; whoever sets `stop` signals it too.
pub fn run<C: Clock, N: Notifier>(
    reactor: &mut Reactor<C, N>,
    kick: &EventFd,
    max_nap: Duration,
    stop: &AtomicBool,
) {
    run_timed(reactor, kick, max_nap, stop, &mut Times::unseen());
}

/// The same, and writes down what becomes of the time.
pub fn run_timed<C: Clock, N: Notifier>(
    reactor: &mut Reactor<C, N>,
    kick: &EventFd,
    max_nap: Duration,
    stop: &AtomicBool,
    times: &mut Times,
) {
    let mut idle = Idle::new(max_nap.as_nanos() as u64);
    times.start(reactor.now());
    loop {
        if reactor.poll() > 0 {
            idle.worked();
            if times.worked() {
                times.mark(reactor.now());
            }
            continue;
        }
        if !idle.idled() {
            if idle.is_long() {
                std::hint::spin_loop();
            }
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let now = reactor.now();
        times.mark_idle(now, u64::from(POLLS));
        let bound = match idle.step(now, reactor.must_look(), reactor.deadline()) {
            Step::Spin => continue,
            Step::Nap(nanoseconds) => Some(Duration::from_nanos(nanoseconds)),
            Step::Sleep => None,
        };
        if reactor.prepare_sleep() {
            times.sleeping();
            wait(reactor, kick, bound);
            reactor.woken();
            times.slept(reactor.now(), bound.is_some());
        }
    }
}

/// Waits until the kick or the event of a device is signalled, or the time is over.
fn wait<C: Clock, N: Notifier>(reactor: &Reactor<C, N>, kick: &EventFd, bound: Option<Duration>) {
    let kicked = PollFd::new(kick.as_fd(), PollFlags::POLLIN);
    let mut devices = Vec::new();
    reactor.events(&mut devices);
    let mut alone = [kicked.clone()];
    let fds = match devices.is_empty() {
        true => &mut alone[..],
        false => {
            devices.push(kicked);
            &mut devices[..]
        }
    };
    // Interrupted or failed: the next poll looks at everything anyway.
    let ready = ppoll(fds, bound.map(TimeSpec::from_duration), None).is_ok_and(|ready| ready > 0);
    // It is the last one.
    if ready && fds.last().and_then(PollFd::any).unwrap_or(true) {
        kick.drain().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_grow_to_their_bound_and_end_with_work() {
        let mut idle = Idle::new(500_000);
        assert_eq!(idle.step(0, true, None), Step::Spin);
        assert_eq!(idle.step(SPIN - 1, true, None), Step::Spin);
        let naps: Vec<Step> = (0..7).map(|_| idle.step(SPIN, true, None)).collect();
        assert_eq!(naps[0], Step::Nap(20_000));
        assert_eq!(naps[1], Step::Nap(40_000));
        assert_eq!(naps[6], Step::Nap(500_000));
        idle.worked();
        assert_eq!(idle.step(SPIN, true, None), Step::Spin);
        assert_eq!(idle.step(2 * SPIN, true, None), Step::Nap(20_000));
    }

    #[test]
    fn sleeps_for_good_only_if_everybody_rings() {
        let mut idle = Idle::new(500_000);
        idle.step(0, false, None);
        assert_eq!(idle.step(SPIN, false, None), Step::Sleep);
        assert_eq!(idle.step(SPIN, true, None), Step::Nap(40_000));
    }

    #[test]
    fn never_oversleeps_what_is_due() {
        let mut idle = Idle::new(500_000);
        idle.step(0, false, None);
        assert_eq!(idle.step(SPIN, false, Some(SPIN + 1_000_000)), Step::Nap(1_000_000));
        assert_eq!(idle.step(SPIN, false, Some(SPIN + 1_000)), Step::Spin);
        assert_eq!(idle.step(SPIN, true, Some(0)), Step::Spin);
    }
}
