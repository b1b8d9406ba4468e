//! A run: queue pairs shared out over pinned threads, a warm-up, the measurement, the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use nvme_driver::QueueOptions;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::address::{Addresses, Choice};
use super::checking::{Checked, Checking};
use super::clock::Clock;
use super::lane::{Counts, Lane};
use super::options::{Completions, Load};
use super::pace::Pace;
use super::progress::Progress;
use super::tally::{Interval, Tally, Timeline};
use super::target::Session;
use super::verify::{Ledger, Verifier};
use super::watch::{Guard, Watched};
use crate::reach::{Failure, explain};

/// Turns between two looks at what time it is.
const TURNS: u32 = 64;
/// Looks for a completion in a turn, where there is one queue pair.
const LOOKS: u32 = 32;
/// Points of a time line, and the shortest interval between them.
const POINTS: u32 = 200;
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// From the threads' creation to their common start.
const RUN_UP: Duration = Duration::from_millis(10);
/// Longest sleep on interrupts.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// How much longer than an I/O's time-out the last ones are waited for: the reset of the controller.
const DRAIN_EXTRA: Duration = Duration::from_secs(2);
/// Between two looks whether the threads still live.
const WATCH: Duration = Duration::from_millis(100);
/// Longest wait for queue pairs to be deleted when everything is measured.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Ranges up to this many bytes are read again entirely in the end, not only what was written.
const SWEEP_ALL: u64 = 1 << 30;
/// Descriptions of errors and damage that are kept.
const NOTES_MAX: usize = 8;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How long was measured.
    pub seconds: f64,
    /// Threads that ran.
    pub threads: usize,
    /// Reads, then writes.
    pub kinds: [Tally; 2],
    /// Completions a second, reads and writes.
    pub rates: [f64; 2],
    /// The time line.
    pub timeline: Vec<Interval>,
    /// Seconds of each of its intervals.
    pub interval: f64,
    /// I/Os that failed.
    pub errors: u64,
    /// What the first of them said.
    pub error_notes: Vec<String>,
    /// What checking came to.
    pub checked: Option<Checked>,
    /// Where the first damage is.
    pub damage_notes: Vec<String>,
}

/// When what happens, in ticks.
#[derive(Debug, Clone, Copy)]
struct Times {
    start: u64,
    warm: u64,
    end: u64,
    interval: u64,
    points: usize,
    drain: Duration,
}

/// What one thread brings home.
struct Brought {
    lanes: Vec<(Counts, Option<Box<Checking>>)>,
    seconds: f64,
    fatal: Option<String>,
}

/// Runs the load. The session can be used again afterwards.
///
/// # Errors
/// [`Failure`] if it could not be run to its end.
pub fn measure(
    session: &Session,
    load: &Load,
    clock: &Clock,
    progress: &Progress,
) -> Result<Measured, Failure> {
    let mut lanes = lanes(session, load)?;
    let threads = load.cores.as_ref().map_or(1, Vec::len);
    // Shared out as cards are: queue pair i to thread i modulo threads.
    let mut hands: Vec<Vec<Lane>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, lane) in lanes.drain(..).enumerate() {
        hands[index % threads].push(lane);
    }
    let interval = (load.time / POINTS).max(INTERVAL_MIN);
    let start = clock.now() + clock.ticks(RUN_UP);
    let warm = start + clock.ticks(load.warm_up);
    let times = Times {
        start,
        warm,
        end: warm + clock.ticks(load.time),
        interval: clock.ticks(interval),
        points: load.time.div_duration_f64(interval).ceil() as usize,
        drain: load.io_timeout.mul_f64(1.5) + DRAIN_EXTRA,
    };
    let watched = Arc::new(Watched::new(threads));
    let brought = run_threads(hands, load, clock, times, &watched, progress);
    progress.clear();
    merge(brought?, load, interval)
}

/// Runs the threads. One that hangs in the driver is left behind: it ends with the process.
fn run_threads(
    hands: Vec<Vec<Lane>>,
    load: &Load,
    clock: &Clock,
    times: Times,
    watched: &Arc<Watched>,
    progress: &Progress,
) -> Result<Vec<Brought>, Failure> {
    let (sender, receiver) = channel();
    let mut threads: Vec<JoinHandle<()>> = Vec::with_capacity(hands.len());
    for (index, mut hand) in hands.into_iter().enumerate() {
        let sender = sender.clone();
        let core = load.cores.as_ref().and_then(|cores| cores.get(index).copied());
        let (load, clock, seen) = (load.clone(), clock.clone(), Arc::clone(watched));
        let thread = std::thread::Builder::new().name(format!("load-{index}")).spawn(move || {
            let brought = drive(&mut hand, index, core, &load, &clock, times, &seen);
            seen.threads[index].done.store(true, Ordering::Relaxed);
            // Nobody listens any more only if the whole run is given up.
            sender.send(brought).ok();
            // The queue pairs go after it: a target that hangs takes its time to delete them.
            drop(hand);
        });
        threads.push(thread.map_err(|error| {
            watched.abort.store(true, Ordering::Relaxed);
            Failure::new(format!("start a thread: {error}"))
        })?);
    }
    drop(sender);
    let began = Instant::now();
    let mut guard = Guard::new(load.io_timeout, threads.len());
    let mut brought = Vec::with_capacity(threads.len());
    while brought.len() < threads.len() {
        match receiver.recv_timeout(WATCH) {
            Ok(one) => brought.push(one),
            Err(RecvTimeoutError::Timeout) => {
                guard.look(watched)?;
                let sweeping = watched.sweeping.load(Ordering::Relaxed);
                progress.show(began.elapsed(), load, watched.ios(), sweeping);
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let ended = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) && ended.elapsed() < CLOSE_MAX {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(brought)
}

/// Queue pairs with their buffers and their share of the blocks.
fn lanes(session: &Session, load: &Load) -> Result<Vec<Lane>, Failure> {
    let checks = load.verify.is_some() && load.pattern.writes();
    let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let queues = u64::from(load.queues);
    (0..queues)
        .map(|index| {
            let share = |index| {
                (u128::from(session.blocks) * u128::from(index) / u128::from(queues)) as u64
            };
            let (first, end) = (share(index), share(index + 1));
            // Blocks of its own only where two queue pairs must not meet.
            let (from, blocks) = if checks { (first, end - first) } else { (0, session.blocks) };
            let choice = match load.zipf {
                Some(theta) => Choice::Zipf { theta, key: load.seed },
                None if load.pattern.is_random() => Choice::Even,
                None => Choice::Sequential { start: first - from },
            };
            let seed = load.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index);
            let addresses = Addresses::new(from, blocks, load.read_percent, seed, choice);
            let checking = load.verify.map(|method| {
                let lba_size = session.namespace.block_size() as usize;
                let ledger = checks.then(|| Ledger::new(from, blocks));
                let sweep_all = blocks.saturating_mul(load.block_size) <= SWEEP_ALL;
                let verifier = Verifier { method, run, lba_size };
                Checking::new(verifier, ledger, load.block_size as usize, sweep_all)
            });
            lane(session, load, addresses, checking)
        })
        .collect()
}

fn lane(
    session: &Session,
    load: &Load,
    addresses: Addresses,
    checking: Option<Checking>,
) -> Result<Lane, Failure> {
    let interrupt = load.completions == Completions::Interrupt;
    let options = QueueOptions { depth: load.depth, interrupt };
    let queue = session.controller.queue_pair(&options).map_err(|error| explain(&error))?;
    if queue.depth() < load.depth {
        return Err(Failure::new(format!(
            "controller takes {} commands a queue pair, not {}: say --depth {}",
            queue.depth(),
            load.depth,
            queue.depth()
        )));
    }
    if interrupt && queue.event().is_none() {
        return Err(Failure::new(
            "controller has no interrupts (MSI-X): say --completions polled".to_owned(),
        ));
    }
    let block = load.block_size as usize;
    let buffer = session.controller.allocate(block * usize::from(load.depth));
    let buffer = buffer.map_err(|error| explain(&error))?;
    let mut buffers = buffer.into_chunks(block);
    if load.pattern.writes() {
        // Not zeroes: targets treat those specially.
        let mut noise = vec![0; block];
        let mut rng = SmallRng::seed_from_u64(load.seed);
        for buffer in &mut buffers {
            rng.fill_bytes(&mut noise);
            buffer.copy_from(&noise);
        }
    }
    let namespace = session.namespace.clone();
    Ok(Lane::new(queue, namespace, session.geometry, addresses, buffers, checking))
}

/// What a thread does.
fn drive(
    lanes: &mut [Lane],
    index: usize,
    core: Option<usize>,
    load: &Load,
    clock: &Clock,
    times: Times,
    watched: &Watched,
) -> Brought {
    let mut fatal = core.and_then(|core| pin(core).err());
    while clock.now() < times.start {
        std::hint::spin_loop();
    }
    let rate = load.rate.map(|rate| rate / f64::from(load.queues));
    for lane in lanes.iter_mut() {
        lane.set_pace(rate.map(|rate| Pace::new(rate, clock.ticks_per_second(), times.start)));
    }
    let interrupt = load.completions == Completions::Interrupt;
    let mut counted_from = None;
    let mut counted = Vec::new();
    let mut seconds = 0.0;
    while fatal.is_none() {
        let mut taken = 0;
        for _ in 0..TURNS {
            let in_turn = turn(lanes, clock);
            taken += in_turn;
            if in_turn == 0 && interrupt {
                sleep(lanes, load.rate.is_some());
                break;
            }
        }
        if taken == 0 {
            std::hint::spin_loop();
        }
        let now = clock.now();
        lanes.iter_mut().for_each(|lane| lane.keep_time(now));
        let ios =
            lanes.iter().map(|lane| lane.counts.kinds[0].ios + lane.counts.kinds[1].ios).sum();
        watched.threads[index].ios.store(ios, Ordering::Relaxed);
        watched.threads[index].beat();
        fatal = lanes.iter_mut().find_map(|lane| lane.fatal.take());
        match counted_from {
            None if now >= times.warm => {
                for lane in lanes.iter_mut() {
                    lane.start_counting(Timeline::new(now, times.interval, times.points));
                }
                counted_from = Some(now);
            }
            Some(from) if now >= times.end || watched.abort.load(Ordering::Relaxed) => {
                seconds = clock.seconds(now - from);
                counted = lanes.iter().map(|lane| lane.counts.clone()).collect();
                break;
            }
            None | Some(_) => {}
        }
    }
    if fatal.is_some() {
        watched.abort.store(true, Ordering::Relaxed);
    } else {
        fatal = finish(lanes, index, load, clock, times.drain, watched);
    }
    if counted.is_empty() {
        counted = lanes.iter().map(|lane| lane.counts.clone()).collect();
    }
    for (counts, lane) in counted.iter_mut().zip(lanes.iter()) {
        // Failures count whenever they come.
        (counts.errors, counts.notes) = (lane.counts.errors, lane.counts.notes.clone());
    }
    let checking = lanes.iter_mut().map(|lane| lane.checking.take());
    Brought { lanes: counted.into_iter().zip(checking).collect(), seconds, fatal }
}

#[inline]
fn turn(lanes: &mut [Lane], clock: &Clock) -> usize {
    let mut taken = 0;
    // Where nobody else waits, a completion is seen as soon as it is there.
    let looks = if lanes.len() == 1 { LOOKS } else { 0 };
    for lane in lanes {
        taken += lane.turn(clock, looks);
    }
    taken
}

/// Waits for what is outstanding, then reads again what was written.
fn finish(
    lanes: &mut [Lane],
    index: usize,
    load: &Load,
    clock: &Clock,
    drain: Duration,
    watched: &Watched,
) -> Option<String> {
    let interrupt = load.completions == Completions::Interrupt;
    lanes.iter_mut().for_each(Lane::stop);
    let began = Instant::now();
    let seen = &watched.threads[index];
    while lanes.iter().any(Lane::is_busy) {
        seen.beat();
        if turn(lanes, clock) == 0 && interrupt {
            sleep(lanes, false);
        }
        if let Some(fatal) = lanes.iter_mut().find_map(|lane| lane.fatal.take()) {
            return Some(fatal);
        }
        if began.elapsed() > drain {
            return Some("outstanding i/os do not end: the target hangs; see its log".to_owned());
        }
    }
    if load.verify.is_some() {
        watched.sweeping.store(true, Ordering::Relaxed);
        for lane in lanes.iter_mut() {
            lane.sweep(|| {
                seen.beat();
                !watched.abort.load(Ordering::Relaxed)
            });
        }
    }
    lanes.iter_mut().find_map(|lane| lane.fatal.take())
}

/// Sleeps until an interrupt comes. With a limited rate only for as long as the clock can be left alone.
fn sleep(lanes: &mut [Lane], paced: bool) {
    let most = if paced { Duration::from_millis(1) } else { SLEEP_MAX };
    if let [lane] = lanes {
        return lane.queue_mut().wait(most);
    }
    for lane in lanes.iter_mut() {
        lane.queue_mut().ring();
    }
    let mut fds: Vec<PollFd<'_>> = lanes
        .iter()
        .filter_map(|lane| lane.queue().event())
        .map(|event| PollFd::new(event, PollFlags::POLLIN))
        .collect();
    let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::ZERO);
    // An interrupted sleep is a short sleep.
    poll(&mut fds, timeout).ok();
    for lane in lanes {
        lane.queue_mut().wait(Duration::ZERO);
    }
}

fn pin(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| format!("pin a thread to core {core}: {error}"))
}

fn merge(brought: Vec<Brought>, load: &Load, interval: Duration) -> Result<Measured, Failure> {
    let mut measured = Measured {
        seconds: 0.0,
        threads: brought.len(),
        kinds: [Tally::new(), Tally::new()],
        rates: [0.0; 2],
        timeline: Vec::new(),
        interval: interval.as_secs_f64(),
        errors: 0,
        error_notes: Vec::new(),
        checked: load.verify.map(|_| Checked::default()),
        damage_notes: Vec::new(),
    };
    if let Some(fatal) = brought.iter().find_map(|one| one.fatal.as_ref()) {
        return Err(Failure::new(fatal));
    }
    for one in brought {
        measured.seconds = f64::max(measured.seconds, one.seconds);
        for (counts, checking) in one.lanes {
            for kind in 0..2 {
                measured.rates[kind] += counts.kinds[kind].ios as f64 / one.seconds.max(1e-9);
                measured.kinds[kind].add(&counts.kinds[kind]);
            }
            measured.errors += counts.errors;
            measured.error_notes.extend(counts.notes);
            let intervals = counts.timeline.into_intervals();
            if measured.timeline.len() < intervals.len() {
                measured.timeline.resize(intervals.len(), Interval::default());
            }
            measured.timeline.iter_mut().zip(&intervals).for_each(|(sum, one)| sum.add(one));
            if let (Some(sum), Some(checking)) = (&mut measured.checked, checking) {
                sum.add(&checking.checked);
                measured.damage_notes.extend(checking.notes);
            }
        }
    }
    measured.error_notes.truncate(NOTES_MAX);
    measured.damage_notes.truncate(NOTES_MAX);
    Ok(measured)
}

impl Measured {
    /// Reads and writes together.
    #[must_use]
    pub fn all(&self) -> Tally {
        let mut all = self.kinds[0].clone();
        all.add(&self.kinds[1]);
        all
    }

    /// Completions a second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        self.rates.iter().sum()
    }

    /// Whether every I/O succeeded and no damage was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.checked.is_none_or(|checked| checked.damaged() == 0)
    }
}
