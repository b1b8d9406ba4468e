//! What is seen of a run's threads from outside, and whether they still move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::reach::Failure;

/// How long a thread may be silent, in parts of an I/O's time-out: the driver is resetting the controller then.
const SILENCE: f64 = 0.75;

/// What the threads tell whoever watches.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) threads: Vec<Seen>,
    pub(super) abort: AtomicBool,
    pub(super) sweeping: AtomicBool,
}

/// What is seen of one thread, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Seen {
    pub(super) ios: AtomicU64,
    /// Moves as long as the thread does.
    beats: AtomicU64,
    pub(super) done: AtomicBool,
}

/// Looks whether every thread still moves.
pub(super) struct Guard {
    limit: Duration,
    seen: Vec<(u64, Instant)>,
}

impl Watched {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            threads: (0..threads).map(|_| Seen::default()).collect(),
            abort: AtomicBool::new(false),
            sweeping: AtomicBool::new(false),
        }
    }

    /// Completions so far.
    pub(super) fn ios(&self) -> u64 {
        self.threads.iter().map(|seen| seen.ios.load(Ordering::Relaxed)).sum()
    }
}

impl Guard {
    /// `io_timeout` is an I/O's.
    pub(super) fn new(io_timeout: Duration, threads: usize) -> Self {
        Self { limit: io_timeout.mul_f64(SILENCE), seen: vec![(0, Instant::now()); threads] }
    }

    /// Fails if a thread has been silent for too long.
    pub(super) fn look(&mut self, watched: &Watched) -> Result<(), Failure> {
        for (seen, (last, since)) in watched.threads.iter().zip(&mut self.seen) {
            let beats = seen.beats.load(Ordering::Relaxed);
            if beats != *last || seen.done.load(Ordering::Relaxed) {
                (*last, *since) = (beats, Instant::now());
            } else if since.elapsed() > self.limit {
                watched.abort.store(true, Ordering::Relaxed);
                return Err(Failure::new(
                    "target hangs: i/os do not end, and its controller is not reset in time; see its log, then restart \
                     it, or say a longer --io-timeout",
                ));
            }
        }
        Ok(())
    }
}

impl Seen {
    /// The thread moves.
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stands_still_is_noticed_unless_it_is_done() {
        let watched = Watched::new(2);
        let mut guard = Guard::new(Duration::from_millis(40), 2);
        watched.threads[1].done.store(true, Ordering::Relaxed);
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(100) {
            watched.threads[0].beat();
            assert_eq!(guard.look(&watched), Ok(()));
        }
        let failure = loop {
            if let Err(failure) = guard.look(&watched) {
                break failure;
            }
            assert!(started.elapsed() < Duration::from_secs(60));
        };
        assert!(failure.text.contains("hangs") && failure.text.contains("--io-timeout"));
        assert!(watched.abort.load(Ordering::Relaxed));
    }
}
