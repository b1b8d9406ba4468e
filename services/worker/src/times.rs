//! What the poll thread does with its time. On the hot path: one addition and one branch a poll with work.
//!
//! The clock is read where the thread is idle anyway, and once in some thousand polls with work. Time is busy up to the
//! last look that found work, the few vain ones in between included; the rest is spun or slept away.

use ipc::layout::telemetry::{TelemetryLayout, add};
use ipc::segment::Segment;
use std::sync::Arc;

/// Polls with work between two looks at the clock.
const WORKED: u32 = 4096;

/// The poll thread's account.
pub struct Times {
    segment: Option<Arc<Segment<TelemetryLayout>>>,
    /// When the last entry was made.
    since: u64,
    /// Polls with work since then.
    worked: u32,
}

impl Times {
    /// An account that is written to the segment, whose times nobody else writes.
    pub fn new(segment: Arc<Segment<TelemetryLayout>>) -> Self {
        Self { segment: Some(segment), since: 0, worked: 0 }
    }

    /// An account that nobody sees.
    pub fn unseen() -> Self {
        Self { segment: None, since: 0, worked: 0 }
    }

    /// The time begins.
    pub fn start(&mut self, now: u64) {
        (self.since, self.worked) = (now, 0);
    }

    /// There was work. True if [`Self::mark`] is to be called.
    #[inline(always)]
    pub fn worked(&mut self) -> bool {
        self.worked += 1;
        self.worked >= WORKED
    }

    /// The time since the last entry was busy.
    #[cold]
    pub fn mark(&mut self, now: u64) {
        let (spent, polls) = self.close(now);
        if let Some(segment) = &self.segment {
            add(&segment.times.busy, spent);
            add(&segment.times.polls, polls);
        }
    }

    /// The last `polls` were in vain. Busy was the time before if it had any work.
    pub fn mark_idle(&mut self, now: u64, polls: u64) {
        let busy = self.worked > 0;
        let (spent, worked) = self.close(now);
        if let Some(segment) = &self.segment {
            let times = &segment.times;
            add(if busy { &times.busy } else { &times.spinning }, spent);
            add(&times.polls, worked + polls);
        }
    }

    /// The thread is about to pause.
    pub fn sleeping(&self) {
        if let Some(segment) = &self.segment {
            segment.times.fall_asleep(telemetry::io_trace::monotonic());
        }
    }

    /// The time since the last entry was slept away, in a nap if that ends by itself.
    pub fn slept(&mut self, now: u64, nap: bool) {
        let (spent, _) = self.close(now);
        if let Some(segment) = &self.segment {
            let times = &segment.times;
            times.wake(spent);
            add(if nap { &times.naps } else { &times.sleeps }, 1);
        }
    }

    fn close(&mut self, now: u64) -> (u64, u64) {
        let spent = now.saturating_sub(self.since);
        let worked = u64::from(self.worked);
        (self.since, self.worked) = (now, 0);
        (spent, worked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn all_time_is_busy_spun_or_slept() {
        let segment = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 1).unwrap());
        let mut times = Times::new(Arc::clone(&segment));
        let seen = || {
            let TelemetryLayout { times, .. } = &**segment;
            [
                &times.busy,
                &times.spinning,
                &times.sleeping,
                &times.polls,
                &times.naps,
                &times.sleeps,
            ]
            .map(|counter| counter.load(Ordering::Relaxed))
        };
        times.start(100);
        assert!(!times.worked());
        times.mark_idle(300, 64);
        assert_eq!(seen(), [200, 0, 0, 65, 0, 0]);
        times.mark_idle(350, 64);
        assert_eq!(seen(), [200, 50, 0, 129, 0, 0]);
        times.slept(1350, true);
        times.slept(2350, false);
        assert_eq!(seen(), [200, 50, 2000, 129, 1, 1]);
        let due = (0..WORKED).filter(|_| times.worked()).count();
        assert_eq!(due, 1, "the last of them asks for the clock");
        times.mark(3000);
        assert_eq!(seen(), [850, 50, 2000, 129 + u64::from(WORKED), 1, 1]);
    }
}
