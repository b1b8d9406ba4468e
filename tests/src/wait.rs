//! Waiting with a bound. No test depends on how fast the machine is: bounds are far above what anything takes, and only
//! tell a hang from work.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung. A machine that stalls for ten seconds may do so twice.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether the machine goes on.
const TICK: Duration = Duration::from_millis(10);
/// How much later than due a look has to be for a stall.
const STALL: Duration = Duration::from_millis(200);
/// Times that a scene is played that stalls of the machine spoil.
const TAKES: usize = 5;

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

/// Plays a scene in which something has to be done before something else comes to its end, such as a slow device. If it
/// fails and the machine stalled meanwhile, it is played again, a few times at most; a failure without a stall is one.
///
/// # Panics
/// As the scene does.
pub fn despite_stalls(mut scene: impl FnMut()) {
    for take in 1.. {
        let watch = Watch::start();
        let played = catch_unwind(AssertUnwindSafe(&mut scene));
        let stalled = watch.longest();
        match played {
            Ok(()) => return,
            Err(panic) if stalled < STALL || take == TAKES => resume_unwind(panic),
            Err(_) => eprintln!("--- the machine stalled for {stalled:?}: once more ---"),
        }
    }
}

/// Plays a scene that measures until one take is good, `takes` times at most: a machine that others use is late at one time
/// and not at another.
///
/// # Panics
/// As the last take does.
pub fn one_of(takes: usize, mut scene: impl FnMut()) {
    for _ in 1..takes {
        if catch_unwind(AssertUnwindSafe(&mut scene)).is_ok() {
            return;
        }
        eprintln!("--- once more ---");
    }
    scene();
}

/// A thread that wants to run every few milliseconds, and notes how late it was at worst.
struct Watch {
    stop: Arc<AtomicBool>,
    /// Milliseconds.
    longest: Arc<AtomicU64>,
}

impl Watch {
    fn start() -> Self {
        let watch = Self { stop: Arc::default(), longest: Arc::default() };
        let (stop, longest) = (Arc::clone(&watch.stop), Arc::clone(&watch.longest));
        std::thread::spawn(move || {
            // Relaxed: numbers that guard nothing.
            while !stop.load(Ordering::Relaxed) {
                let due = Instant::now() + TICK;
                std::thread::sleep(TICK);
                let late = due.elapsed().as_millis() as u64;
                longest.fetch_max(late, Ordering::Relaxed);
            }
        });
        watch
    }

    /// The longest stall so far; one that has just ended is waited for.
    fn longest(&self) -> Duration {
        std::thread::sleep(2 * TICK);
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
