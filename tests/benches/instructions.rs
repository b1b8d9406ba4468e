//! The worker's own cost of a null read: run under callgrind by `tests/bench/instructions.sh`, which counts what happens
//! within [`worker`]. Client and worker take turns in one thread, so that the count is the same every time.
//!
//! Arguments: commands per turn, turns, and one command in how many is traced (0: none; nothing of tracing is there if it
//! is not given).

use bdev::channel::{AnyChannel, Geometry};
use bdev::null::NullChannel;
use ipc::layout::telemetry::{Policy, TelemetryLayout};
use ipc::segment::Segment;
use ipc::trace::TraceReader;
use nvme_spec::Nsid;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vireo_tests::client::{Commands, Rig};
use vireo_worker::clock::Manual;
use vireo_worker::notify::EventNotifier;
use vireo_worker::reactor::{Message, Reactor};
use vireo_worker::tracer::Tracer;

/// Entries of the queues.
const ENTRIES: u32 = 1024;
/// Bytes of the device.
const DEVICE: u64 = 1 << 30;

/// What is counted.
#[inline(never)]
fn worker(reactor: &mut Reactor<Manual, EventNotifier>) -> usize {
    reactor.poll()
}

/// Has one command in `sample` traced; where its records come out.
fn trace(reactor: &mut Reactor<Manual, EventNotifier>, sample: u32) -> TraceReader {
    let segment = Segment::<TelemetryLayout>::create("telemetry", 1).expect("a segment");
    let segment = Arc::new(segment);
    segment.policy.word.store(Policy { sample, slow_us: 10_000 }.to_word(), Ordering::Relaxed);
    let (writer, reader) = ipc::trace::ends(&segment).expect("an eventfd");
    reactor.trace_by(Arc::new(Tracer::new(segment, Some(writer))));
    reader
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let depth = numbers.next().map_or(32, |depth| depth as u16);
    let turns = numbers.next().map_or(100_000, u64::from);
    let (rig, controller) = Rig::new(1, 1);
    rig.add_namespace(0, DEVICE >> 9, 9);
    rig.add_queue(1, ENTRIES, None);
    rig.publish();
    let (mut reactor, control) = Reactor::new(Manual::default(), EventNotifier);
    let mut records = numbers.next().map(|sample| trace(&mut reactor, sample));
    control.send(Message::Attach(Box::new(controller))).ok().expect("room");
    (0..8).for_each(|_| {
        reactor.poll();
    });
    let geometry = Geometry { size: DEVICE, read_only: false };
    let channel = AnyChannel::Null(NullChannel::new(geometry, 0));
    control.send(rig.channel(0, channel)).ok().expect("room");
    (0..8).for_each(|_| {
        reactor.poll();
    });
    let mut queue = rig.queue(1, ENTRIES);
    let mut commands = Commands::reads(Nsid(1), rig.buffers(1), DEVICE >> 9, 9);
    (0..depth).for_each(|cid| queue.push(commands.next(cid)));
    queue.ring();
    let (mut completed, mut spent) = (0, Duration::ZERO);
    let timed = std::env::args().any(|arg| arg == "time");
    for _ in 0..turns {
        let start = timed.then(Instant::now);
        worker(&mut reactor);
        spent += start.map_or(Duration::ZERO, |start| start.elapsed());
        completed += queue.turn(&mut commands);
        // As the control thread does, which is another one.
        while records.as_mut().is_some_and(|records| records.take().is_some()) {}
    }
    println!("reads {completed}");
    if timed {
        println!("worker: {:.1} ns a read", spent.as_nanos() as f64 / completed.max(1) as f64);
    }
}
