//! Speed, as ratios to the floor that is measured in the same run, alternating with it.
//!
//! `cargo bench -p vireo-tests` prints a table. Arguments after `--` choose rows by their name. Client and worker are
//! threads of this process here, each pinned to a core, over the same segments that processes share; a run in which one
//! of them did not get its core is repeated.

use bdev::channel::{AnyChannel, Geometry};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use nvme_spec::Nsid;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vireo_tests::client::{Commands, Pinned, Rig};
use vireo_tests::measure::{CLIENT, ENTRIES, SERVER, client, compare, counted, floor, heading};
use vireo_worker::clock::Monotonic;
use vireo_worker::notify::EventNotifier;
use vireo_worker::reactor::{Message, Reactor};
use vireo_worker::sleep;

/// Bytes of the memory block device.
const DEVICE: u64 = 1 << 30;

/// What a worker serves in one measurement.
enum Device {
    Null,
    Malloc(Arc<DeviceMemory>),
}

impl Device {
    fn channel(&self) -> AnyChannel {
        let geometry = Geometry { size: DEVICE, read_only: false };
        match self {
            Self::Null => AnyChannel::Null(NullChannel::new(geometry, 0)),
            Self::Malloc(memory) => AnyChannel::Malloc(
                MallocChannel::lease(memory.clone(), false, 0, None).expect("lease 0"),
            ),
        }
    }
}

/// Runs `drive` against a worker with these controllers.
fn with_worker<T>(
    rigs: &[Rig],
    controllers: Vec<vireo_worker::controller::Controller>,
    device: &Device,
    drive: impl FnOnce() -> T,
) -> (T, f64) {
    let (mut reactor, control) = Reactor::new(Monotonic::default(), EventNotifier);
    for controller in controllers {
        control.send(Message::Attach(Box::new(controller))).ok().expect("room");
    }
    let kick = EventFd::create().expect("eventfd");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, kick) = (&stop, &kick);
        let worker = scope.spawn(move || {
            let pinned = Pinned::to(SERVER);
            sleep::run(&mut reactor, kick, Duration::from_micros(500), stop);
            pinned.share()
        });
        for rig in rigs {
            rig.settle(rig.publish());
            control.send(rig.channel(0, device.channel())).ok().expect("room");
        }
        let result = drive();
        stop.store(true, Ordering::Relaxed);
        kick.signal().ok();
        (result, worker.join().unwrap_or(0.0))
    })
}

/// Nanoseconds per command of a worker, one queue pair.
fn target(device: &Device, depth: u16, total: u64) -> f64 {
    counted(|| {
        let (rig, controller) = Rig::new(1, 1);
        rig.add_namespace(0, DEVICE >> 9, 9);
        rig.add_queue(1, ENTRIES, None);
        let rigs = [rig];
        let ((time, share), worker) =
            with_worker(&rigs, vec![controller], device, || client(&rigs[0], depth, total, DEVICE));
        (time, share.min(worker))
    })
}

/// Nanoseconds per command of `count` controllers with `queues` queue pairs each, of which the first `busy` of each
/// controller have commands at `depth`.
fn many(count: usize, queues: usize, busy: usize, depth: u16, time: Duration) -> f64 {
    counted(|| {
        let mut rigs = Vec::new();
        let mut controllers = Vec::new();
        for id in 0..count {
            let (rig, controller) = Rig::new(id as u128 + 1, queues);
            rig.add_namespace(0, DEVICE >> 9, 9);
            (1..=queues).for_each(|qid| rig.add_queue(qid, ENTRIES, None));
            rigs.push(rig);
            controllers.push(controller);
        }
        let ((result, share), worker) = with_worker(&rigs, controllers, &Device::Null, || {
            let pinned = Pinned::to(CLIENT);
            let mut pairs: Vec<_> = rigs
                .iter()
                .flat_map(|rig| {
                    (1..=busy).map(move |qid| {
                        let commands = Commands::reads(Nsid(1), rig.buffers(qid), DEVICE >> 9, 9);
                        (rig.queue(qid, ENTRIES), commands)
                    })
                })
                .collect();
            for (queue, commands) in &mut pairs {
                (0..depth).for_each(|cid| queue.push(commands.next(cid)));
                queue.ring();
            }
            let mut turn = |time: Duration| {
                let start = Instant::now();
                let mut completed = 0;
                while start.elapsed() < time {
                    for _ in 0..64 {
                        for (queue, commands) in &mut pairs {
                            completed += queue.turn(commands);
                        }
                    }
                }
                start.elapsed().as_nanos() as f64 / completed.max(1) as f64
            };
            turn(time / 5);
            (turn(time), pinned.share())
        });
        (result, share.min(worker))
    })
}

/// Nanoseconds per copy of 4 KiB from a random place of a device to one of 128 buffers, the next one prefetched, on one
/// core.
fn copy_loop(device: &DeviceMemory, total: u64) -> f64 {
    let (rig, _controller) = Rig::new(1, 1);
    counted(|| {
        let pinned = Pinned::to(SERVER);
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            ((u128::from(random) * u128::from(DEVICE >> 12)) >> 64) as u64 * 4096
        };
        let buffers: Vec<_> =
            (0..128).map(|cid| rig.at(rig.buffers(1) + cid * 4096, 4096)).collect();
        let start = Instant::now();
        let mut place = next();
        for copy in 0..total as usize {
            let following = next();
            if let Some(source) = device.slice(following, 4096) {
                source.prefetch();
            }
            if let Some(source) = device.slice(place, 4096) {
                buffers[copy % 128].copy_from_slice(&source);
            }
            place = following;
        }
        black_box(&buffers);
        (start.elapsed().as_nanos() as f64 / total as f64, pinned.share())
    })
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let chosen =
        |name: &str| wanted.is_empty() || wanted.iter().any(|want| name.contains(want.as_str()));
    heading();
    let null = Device::Null;
    if chosen("null-d1") {
        compare(
            "null-d1, 4 KiB reads",
            "bar: 1.3 floors",
            || floor(1, 300_000),
            || target(&null, 1, 300_000),
        );
    }
    if chosen("null-d128") {
        compare(
            "null-d128, 4 KiB reads",
            "bar: 55 ns",
            || floor(128, 4_000_000),
            || target(&null, 128, 4_000_000),
        );
    }
    let memory = || {
        let memory = Arc::new(DeviceMemory::create("bench", DEVICE).expect("1 GiB of memory"));
        memory.slice(0, DEVICE).expect("whole").fill(1);
        memory
    };
    if chosen("malloc-d1") || chosen("malloc-d128") {
        let memory = memory();
        let malloc = Device::Malloc(memory.clone());
        if chosen("malloc-d1") {
            compare(
                "malloc-d1, 4 KiB random reads",
                "bar: 800 ns",
                || floor(1, 200_000),
                || target(&malloc, 1, 200_000),
            );
        }
        if chosen("malloc-d128") {
            compare(
                "malloc-d128, 4 KiB random reads",
                "bar: 1.15 copy loops",
                || copy_loop(&memory, 1_000_000),
                || target(&malloc, 128, 1_000_000),
            );
        }
    }
    if chosen("scale") {
        let time = Duration::from_millis(300);
        let one = || many(1, 1, 1, 32, time);
        for queues in [4, 16, 64] {
            compare(
                &format!("scale: {queues} queue pairs, d32 each"),
                "base: 1 queue pair",
                one,
                || many(1, queues, queues, 32, time),
            );
        }
        for controllers in [4, 16] {
            compare(
                &format!("scale: {controllers} controllers, d32 each"),
                "base: 1 controller",
                one,
                || many(controllers, 1, 1, 32, time),
            );
        }
    }
    if chosen("idle") {
        let time = Duration::from_millis(300);
        compare(
            "idle: 1 busy at d1, 63 idle queues",
            "base: no idle queue",
            || many(1, 1, 1, 1, time),
            || many(1, 64, 1, 1, time),
        );
    }
}
