//! A whole target in one thread, driven from a seed by a client that knows what it must read. `VIREO_SEED=N` runs one
//! seed, `VIREO_SEEDS=N` so many,
//! `VIREO_TRACE=1` prints each completion.

mod layout;
mod model;
mod scenario;

use scenario::{Scenario, Troubles};
use std::ops::Range;

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it failed with VIREO_SEED={}", self.0);
        }
    }
}

/// The seeds of a test: those that the environment names, or so many from `from` on.
fn seeds(from: u64, count: u64) -> Range<u64> {
    let variable = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    if let Some(seed) = variable("VIREO_SEED") {
        return seed..seed + 1;
    }
    from..from + variable("VIREO_SEEDS").unwrap_or(count)
}

fn run(from: u64, count: u64, troubles: Troubles) {
    for seed in seeds(from, count) {
        let named = Seed(seed);
        Scenario::new(seed, troubles).run();
        drop(named);
    }
}

#[test]
fn every_command_completes_once_and_reads_what_was_written() {
    run(1_000, 80, Troubles::default());
}

#[test]
fn a_device_that_fails_and_delays_breaks_no_promise() {
    run(2_000, 80, Troubles { faults: true, ..Troubles::default() });
}

#[test]
fn resets_with_commands_in_flight_leave_no_late_write() {
    run(3_000, 80, Troubles { resets: true, faults: true, ..Troubles::default() });
}

#[test]
fn memory_that_was_unmapped_is_touched_no_more() {
    run(4_000, 80, Troubles { unmaps: true, faults: true, ..Troubles::default() });
}

#[test]
fn a_worker_that_dies_leaves_a_controller_that_a_reset_revives() {
    run(5_000, 80, Troubles { deaths: true, resets: true, ..Troubles::default() });
}

#[test]
fn clients_that_go_without_a_word_leave_nothing_behind() {
    run(6_000, 60, Troubles { disconnects: true, faults: true, ..Troubles::default() });
}

#[test]
fn limits_and_pauses_hold_commands_up_and_lose_none() {
    run(9_000, 80, Troubles { limits: true, faults: true, ..Troubles::default() });
}

#[test]
#[should_panic]
fn a_device_that_loses_writes_is_found_out() {
    run(8_000, 20, Troubles { lies: true, ..Troubles::default() });
}

#[test]
fn all_troubles_at_once() {
    let troubles = Troubles {
        faults: true,
        resets: true,
        unmaps: true,
        deaths: true,
        disconnects: true,
        limits: true,
        lies: false,
    };
    run(7_000, 120, troubles);
}
