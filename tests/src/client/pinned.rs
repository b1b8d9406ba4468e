//! A thread on a core of its own, and whether it got that core.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::time::{Duration, Instant};

/// Since when this thread has been pinned.
pub struct Pinned {
    started: Instant,
    cpu: Duration,
    /// Where it ran before.
    before: Option<CpuSet>,
}

impl Pinned {
    /// Pins this thread to a core (modulo the cores there are).
    pub fn to(core: usize) -> Self {
        // Of the machine, not of this thread: it may be pinned already.
        let cores = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1) as usize;
        let before = sched_getaffinity(Pid::from_raw(0)).ok();
        let mut set = CpuSet::new();
        set.set(core % cores.max(1)).ok();
        sched_setaffinity(Pid::from_raw(0), &set).ok();
        Self { started: Instant::now(), cpu: cpu_time(), before }
    }

    /// The part of the time since then in which this thread ran, 0 to 1.
    pub fn share(&self) -> f64 {
        let wall = self.started.elapsed().as_secs_f64();
        (cpu_time() - self.cpu).as_secs_f64() / wall.max(1e-9)
    }
}

impl Drop for Pinned {
    /// Lets it run where it did before, and so whatever it starts.
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            sched_setaffinity(Pid::from_raw(0), before).ok();
        }
    }
}

/// What this thread has run so far.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
