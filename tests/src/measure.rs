//! Measuring: two threads on a core each, alternation with a base, medians of ratios.

use crate::client::rig::{BASE, CQ_AT};
use crate::client::{Commands, Pinned, Rig};
use crate::floor as bare;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nix::unistd::Pid;
use nvme_spec::Nsid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Entries of the queues.
pub const ENTRIES: u32 = 1024;
/// Core of the client.
pub const CLIENT: usize = 1;
/// Core of what is measured.
pub const SERVER: usize = 0;
/// Alternations.
const ROUNDS: usize = 7;
/// Part of its core that a thread must have had for a measurement to count.
const SHARE: f64 = 0.97;
/// Attempts at a measurement that counts.
const ATTEMPTS: usize = 8;

/// Runs a measurement, which yields its result and the part of their cores that its threads had, until they had them.
pub fn counted(mut measure: impl FnMut() -> (f64, f64)) -> f64 {
    let mut last = f64::NAN;
    for _ in 0..ATTEMPTS {
        let (result, share) = measure();
        last = result;
        if share >= SHARE {
            return result;
        }
    }
    last
}

/// Nanoseconds per command of the floor.
pub fn floor(depth: u16, total: u64) -> f64 {
    counted(|| {
        let (rig, _controller) = Rig::new(1, 1);
        let log = Segment::<QueuesLayout>::create("log", 1).expect("memfd");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let pinned = Pinned::to(SERVER);
                let sq = rig.at(BASE, ENTRIES as usize * 64);
                let cq = rig.at(BASE + CQ_AT, ENTRIES as usize * 16);
                bare::serve(1, ENTRIES, sq, cq, &rig.doorbells, &log.slots[..64], &stop);
                pinned.share()
            });
            let result = client(&rig, depth, total, 1 << 30);
            stop.store(true, Ordering::Relaxed);
            (result.0, result.1.min(server.join().unwrap_or(0.0)))
        })
    })
}

/// Drives queue pair 1 with reads of 4 KiB from a device of that many bytes: nanoseconds per command, and the part of
/// the core.
pub fn client(rig: &Rig, depth: u16, total: u64, device: u64) -> (f64, f64) {
    let pinned = Pinned::to(CLIENT);
    let mut commands = Commands::reads(Nsid(1), rig.buffers(1), device >> 9, 9);
    let mut queue = rig.queue(1, ENTRIES);
    queue.run(&mut commands, depth, total / 10);
    let start = Instant::now();
    queue.run(&mut commands, depth, total);
    let elapsed = start.elapsed();
    (elapsed.as_nanos() as f64 / total as f64, pinned.share())
}

/// Time that all threads of a process ran so far.
///
/// # Panics
/// If there is no such process.
pub fn ran(pid: Pid) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the heading of [`compare`]'s rows.
pub fn heading() {
    println!("{:<34} {:>11} {:>11} {:>6}", "", "ours", "base", "ratio");
}

/// Measures both in turn; prints the medians of each and of their ratios.
pub fn compare(
    name: &str,
    bar: &str,
    mut base: impl FnMut() -> f64,
    mut ours: impl FnMut() -> f64,
) {
    let pairs: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (base(), ours())).collect();
    let times = median(pairs.iter().map(|pair| pair.1).collect());
    let bases = median(pairs.iter().map(|pair| pair.0).collect());
    let ratios: Vec<f64> = pairs.iter().map(|(base, ours)| ours / base).collect();
    let (low, high) =
        ratios.iter().fold((f64::MAX, 0.0_f64), |(low, high), &r| (low.min(r), high.max(r)));
    println!(
        "{name:<34} {times:>8.1} ns {bases:>8.1} ns {:>6.2} ({low:.2} to {high:.2})  {bar}",
        median(ratios)
    );
}
