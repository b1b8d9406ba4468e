//! What is recorded of traced commands.

use crate::limits::{Limits, MILLISECOND, SECOND, abort, statuses};
use crate::worker::{DEVICE, ENTRIES, Worker, complete, io, malloc, null, read};
use bdev::channel::{AnyChannel, Geometry};
use bdev::fault::{Effect, FaultChannel, Plan, Rule, When};
use bdev::request::{ErrorKind, Op};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{RegionId, RegionTable};
use ipc::layout::limits::{Limit, Rate};
use ipc::layout::telemetry::{
    PAUSE_STEP, Policy, TRACE_DEPTH, TelemetryLayout, TraceRecord, trace_reason,
};
use ipc::segment::Segment;
use ipc::trace::TraceReader;
use nvme_spec::command::{Command, Fuse, NvmOpcode};
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::{CommandId, Iova, Lba, Nsid, Status};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vireo_tests::client::Rig;
use vireo_tests::wait::until;
use vireo_worker::reactor::Message;
use vireo_worker::tracer::Tracer;
use zerocopy::IntoBytes;

/// A worker that traces, and where its records come out.
pub fn tracing(sample: u32, exports: bool) -> (Worker, TraceReader, Arc<Segment<TelemetryLayout>>) {
    tracing_by(Policy { sample, slow_us: 0 }, exports)
}

fn tracing_by(
    policy: Policy,
    exports: bool,
) -> (Worker, TraceReader, Arc<Segment<TelemetryLayout>>) {
    let segment = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 1).unwrap());
    segment.policy.word.store(policy.to_word(), Ordering::Relaxed);
    let (writer, reader) = ipc::trace::ends(&segment).unwrap();
    let tracer = Tracer::new(Arc::clone(&segment), Some(writer));
    let tracer = if exports { tracer } else { tracer.for_captures_alone() };
    let mut worker = Worker::new();
    worker.reactor.trace_by(Arc::new(tracer));
    (worker, reader, segment)
}

pub fn records(reader: &mut TraceReader) -> Vec<TraceRecord> {
    std::iter::from_fn(|| reader.take()).collect()
}

/// A ring of a memory device, whose backend traces, too.
pub struct Backend {
    server: RingServer,
    device: AnyChannel,
    records: TraceReader,
}

impl Backend {
    /// And the worker's end of the ring.
    pub fn new(id: u128) -> (Self, RingChannel) {
        let kick = || EventFd::create().unwrap();
        let segment = create_segment("channel", id, 16).unwrap();
        let shared = segment.fd().try_clone_to_owned().unwrap();
        let telemetry = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 2).unwrap());
        let (writer, records) = ipc::trace::ends(&telemetry).unwrap();
        let server = RingServer::new(segment, kick()).unwrap();
        let server = server.traced_by(Arc::new(Mutex::new(writer)));
        let geometry = Geometry { size: DEVICE, read_only: false };
        let ring = RingChannel::new(Segment::open(shared).unwrap(), kick(), geometry).unwrap();
        (Self { server, device: malloc().1, records }, ring)
    }

    /// Carries out what is in the ring.
    pub fn serve(&mut self, rig: &Rig) {
        let mut memory = RegionTable::new();
        memory.insert(RegionId(0), Arc::clone(&rig.guest)).ok();
        self.server.serve(&mut self.device, &memory, 0, 0);
        self.server.publish();
    }
}

#[test]
fn a_command_that_waited_for_its_channel_is_traced_through_the_backend() {
    let (mut worker, mut reader, _) = tracing(1, true);
    let rig = worker.attach(1, 1, ENTRIES, None);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(7, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(10);
    assert!(records(&mut reader).is_empty(), "it is not done");
    let (mut backend, ring) = Backend::new(1);
    worker.send(rig.channel(0, AnyChannel::Ring(ring)));
    worker.polls(5);
    backend.serve(&rig);
    worker.polls(5);
    assert_eq!(queue.pop().map(|entry| entry.status().code()), Some(Status::SUCCESS));
    let [record] = records(&mut reader)[..] else { panic!("one record") };
    let [part] = records(&mut backend.records)[..] else { panic!("one record") };
    assert_eq!(part.trace, record.trace, "the backend knows whose part it is");
    assert_eq!(record.reason, trace_reason::SAMPLED | trace_reason::RING);
    assert!(record.submitted > record.translated, "it waited");
    assert!(record.submitted <= part.fetched && part.done <= record.done);
}

#[test]
fn exactly_the_next_commands_are_captured_whatever_the_policy() {
    for (sample, exports) in [(0, true), (0, false), (3, false)] {
        let (mut worker, mut reader, segment) = tracing(sample, exports);
        let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
        let mut queue = rig.queue(1, ENTRIES);
        complete(&mut worker, &mut queue, read(1, 0, rig.buffers(1)));
        worker.send(Message::Capture(1, 5));
        for cid in 10..30 {
            complete(&mut worker, &mut queue, read(cid, 8, rig.buffers(1)));
        }
        let captured: Vec<u16> = records(&mut reader)
            .iter()
            .filter(|record| record.is_captured())
            .map(|record| record.cid)
            .collect();
        assert_eq!(captured, [10, 11, 12, 13, 14]);
        // Every third of 21 is sampled all the while.
        let buckets = &rig.queues.latency[0].buckets;
        let sampled: u64 = buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum();
        assert_eq!(sampled, if sample == 3 { 7 } else { 0 });
        assert_eq!(segment.policy.dropped.load(Ordering::Relaxed), 0);
        worker.send(Message::Capture(1, 5));
        worker.send(Message::Capture(1, 0));
        complete(&mut worker, &mut queue, read(1, 0, rig.buffers(1)));
        assert!(records(&mut reader).iter().all(|record| !record.is_captured()));
    }
}

#[test]
fn failures_are_captured_and_commands_of_a_batch_as_well() {
    let (mut worker, mut reader, _) = tracing(0, false);
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let mut queue = rig.queue(1, ENTRIES);
    worker.send(Message::Capture(1, 3));
    let mut wrong = io(NvmOpcode::READ, 2, 0, 8, rig.buffers(1));
    wrong.nsid = Nsid(9);
    for command in
        [read(1, 0, rig.buffers(1)), wrong, read(3, 0, rig.buffers(1)), read(4, 0, rig.buffers(1))]
    {
        queue.push(command);
    }
    queue.ring();
    worker.polls(5);
    let seen: Vec<(u16, bool)> =
        records(&mut reader).iter().map(|record| (record.cid, record.status != 0)).collect();
    assert_eq!(seen, [(1, false), (2, true), (3, false)]);
}

/// A worker that captures what comes through a ring, `count` commands of it.
fn capturing_a_ring(count: u32) -> (Worker, TraceReader, Rig, Backend) {
    let (mut worker, reader, _) = tracing(0, true);
    let rig = worker.attach(1, 1, ENTRIES, None);
    let (backend, ring) = Backend::new(1);
    worker.send(rig.channel(0, AnyChannel::Ring(ring)));
    worker.send(Message::Capture(1, count));
    worker.polls(5);
    (worker, reader, rig, backend)
}

/// Worker and backend in turn, as often as the longest command here takes.
fn serve(worker: &mut Worker, backend: &mut Backend, rig: &Rig) {
    for _ in 0..8 {
        worker.polls(3);
        backend.serve(rig);
    }
    worker.polls(3);
}

/// A fused pair on the block `slba`: that it holds zeroes, and what is at `data` to be written.
fn pair(rig: &Rig, cid: u16, slba: u64, data: u64) -> [Command; 2] {
    [
        io(NvmOpcode::COMPARE, cid, slba, 1, rig.buffers(1)).with_fuse(Fuse::FIRST),
        io(NvmOpcode::WRITE, cid + 1, slba, 1, data).with_fuse(Fuse::SECOND),
    ]
}

#[test]
fn a_fused_pair_is_one_traced_command_through_the_backend() {
    let (mut worker, mut reader, rig, mut backend) = capturing_a_ring(3);
    let mut queue = rig.queue(1, ENTRIES);
    let new = rig.buffers(1) + 4096;
    rig.at(new, 512).fill(9);
    let apart = [pair(&rig, 7, 0, new)[0], pair(&rig, 7, 1, new)[1]];
    for command in [pair(&rig, 1, 5, new), pair(&rig, 3, 5, new), apart].concat() {
        queue.push(command);
    }
    queue.ring();
    serve(&mut worker, &mut backend, &rig);
    assert_eq!(statuses(&mut queue).len(), 6);
    worker.polls(3);
    let told = |record: &TraceRecord| {
        let status = Status::from_raw(record.status).code();
        (record.cid, record.opcode, record.is_fused(), status, record.requests)
    };
    let mut found = records(&mut reader);
    found.sort_unstable_by_key(|record| record.cid);
    let compare = NvmOpcode::COMPARE.0;
    let expected = [
        (1, compare, true, Status::SUCCESS, 1),
        (3, compare, true, Status::COMPARE_FAILURE, 1),
        (7, compare, true, Status::INVALID_FIELD, 0),
    ];
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
    assert!(found.iter().all(TraceRecord::is_captured));
    let parts: Vec<u64> = records(&mut backend.records).iter().map(|part| part.trace).collect();
    assert_eq!(parts, [found[0].trace, found[1].trace]);
    assert!(found[..2].iter().all(|record| (record.by_ring, record.bytes) == (1, 512)));

    // Nobody captures or samples this one, and it fails.
    pair(&rig, 9, 5, new).into_iter().for_each(|command| queue.push(command));
    queue.ring();
    serve(&mut worker, &mut backend, &rig);
    assert_eq!(statuses(&mut queue).len(), 2);
    worker.polls(3);
    let [failed] = records(&mut reader)[..] else { panic!("one record") };
    assert_eq!(failed.reason, trace_reason::FAILED | trace_reason::FUSED);
    assert_eq!(told(&failed), (9, compare, true, Status::COMPARE_FAILURE, 1));
    assert!(failed.translated > 0 && failed.submitted >= failed.translated);
}

#[test]
fn each_request_of_a_command_of_several_is_traced() {
    let (mut worker, mut reader, rig, mut backend) = capturing_a_ring(2);
    let mut queue = rig.queue(1, ENTRIES);
    let list = rig.buffers(1);
    let range = |slba, length| DatasetRange { slba: Lba(slba), length, ..Default::default() };
    rig.at(list, 48).copy_from([range(8, 8), range(32, 1), range(64, 16)].as_bytes());
    let source = |slba, nlb_z| CopyRange { slba: Lba(slba), nlb_z, ..Default::default() };
    rig.at(list + 4096, 64).copy_from([source(0, 3), source(8, 0)].as_bytes());
    let of = |opcode, cid| Command::nvm(opcode, CommandId(cid), Nsid(1));
    let deallocate = of(NvmOpcode::DATASET_MANAGEMENT, 1).with_prps(Iova(list), Iova(0));
    let copy = of(NvmOpcode::COPY, 2).with_prps(Iova(list + 4096), Iova(0)).with_slba(Lba(200));
    for (command, requests, bytes) in [
        (Command { cdw10: 2, cdw11: 4, ..deallocate }, 3, 25 * 512),
        (Command { cdw12: 1, ..copy }, 2, 5 * 512),
    ] {
        queue.push(command);
        queue.ring();
        serve(&mut worker, &mut backend, &rig);
        assert_eq!(statuses(&mut queue), [(command.cid().0, Status::SUCCESS)]);
        worker.polls(3);
        let [record] = records(&mut reader)[..] else { panic!("one record") };
        assert_eq!(
            (record.requests, record.by_ring, record.bytes),
            (requests, requests as u8, bytes)
        );
        let parts = records(&mut backend.records);
        assert_eq!(parts.len(), usize::from(requests));
        assert!(parts.iter().all(|part| part.trace == record.trace));
        let mut last = record.submitted;
        for part in &parts {
            assert!(last <= part.fetched && part.fetched <= part.done, "one after the other");
            last = part.done;
        }
        assert!(last <= record.done);
    }
}

#[test]
fn all_that_is_under_way_is_captured() {
    let (mut worker, mut reader, segment) = tracing(0, false);
    let entries = 512;
    let rig = worker.attach(1, 1, entries, Some(null(MILLISECOND)));
    let mut queue = rig.queue(1, entries);
    worker.send(Message::Capture(1, 300));
    (0..400).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(50);
    worker.pass(2 * MILLISECOND);
    worker.pass(2 * MILLISECOND);
    assert_eq!(statuses(&mut queue).len(), 400);
    worker.polls(5);
    let mut captured: Vec<u16> = records(&mut reader).iter().map(|record| record.cid).collect();
    captured.sort_unstable();
    assert_eq!(captured, (0..300).collect::<Vec<u16>>());
    assert_eq!(segment.policy.dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn captured_commands_whose_records_find_no_room_are_made_up_for() {
    let (mut worker, mut reader, segment) = tracing(0, false);
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let mut queue = rig.queue(1, ENTRIES);
    let most = TRACE_DEPTH + 60;
    worker.send(Message::Capture(1, most as u32));
    let mut found = 0;
    // Nobody takes records out, then somebody does.
    for turn in 0..most.div_ceil(50) + 4 {
        (0..50).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        worker.polls(10);
        assert_eq!(statuses(&mut queue).len(), 50);
        worker.polls(5);
        if turn >= most.div_ceil(50) {
            found += records(&mut reader).len();
        }
    }
    assert_eq!(found, most);
    assert!(segment.policy.dropped.load(Ordering::Relaxed) >= 60);
}

#[track_caller]
fn in_order(record: &TraceRecord) {
    let TraceRecord { fetched, held, started, translated, submitted, done, posted, .. } = *record;
    let times = [fetched, held.max(fetched), started, translated, submitted, done, posted];
    assert!(times.is_sorted() && fetched > 0, "{record:?}");
}

#[test]
fn what_waits_for_a_limit_is_captured_and_sampled_with_that_as_a_stage() {
    for (sample, capture) in [(0, 40), (1, 0), (3, 0)] {
        let limits = Limits::new();
        let (mut worker, mut reader, _) = tracing(sample, sample > 0);
        let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
        limits.namespace(0, Rate::Iops, 100, &mut worker, &[&rig]);
        worker.send(Message::Capture(rig.layout.id(), capture));
        let mut queue = rig.queue(1, ENTRIES);
        (0..20).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        // Pairs wait as one.
        for cid in (20..40).step_by(2) {
            let [first, second] = pair(&rig, cid, 0, rig.buffers(1));
            queue.push(first);
            queue.push(second);
        }
        queue.ring();
        let mut done = 0;
        for _ in 0..100 {
            worker.pass(10 * MILLISECOND);
            done += statuses(&mut queue).len();
        }
        assert_eq!(done, 40);
        worker.polls(5);
        let found = records(&mut reader);
        // 30 that are commands to whoever looks, of 40 whose turns are counted.
        let expected = if sample == 3 { 12..=14 } else { 30..=30 };
        assert!(expected.contains(&found.len()), "{} of {sample}", found.len());
        found.iter().for_each(in_order);
        let held = found.iter().filter(|record| record.held != 0).count();
        let throttled = rig.queues.throttled[0].commands.load(Ordering::Relaxed);
        assert!(throttled >= 15 && held as u64 <= throttled, "{held} of {throttled}");
        assert!(held >= 5, "{held}");
        let iops = Some(Limit { of_controller: false, rate: Rate::Iops });
        let limit = |record: &TraceRecord| if record.held == 0 { None } else { iops };
        assert!(found.iter().all(|record| record.limit == limit(record)), "{found:?}");
        if sample != 3 {
            assert_eq!(held as u64, throttled, "all of them");
        }
        let fused = found.iter().filter(|record| record.is_fused() && record.held != 0);
        assert!(fused.count() >= 2);
    }
}

#[test]
fn throttled_commands_are_told_of_if_they_are_slow_or_fail_and_else_not() {
    for (slow_us, reason) in [(1, trace_reason::SLOW), (u32::MAX, 0)] {
        let limits = Limits::new();
        let (mut worker, mut reader, _) = tracing_by(Policy { sample: 0, slow_us }, true);
        let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
        limits.namespace(0, Rate::Iops, 10, &mut worker, &[&rig]);
        let mut queue = rig.queue(1, ENTRIES);
        (0..8).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.push(read(8, 1 << 40, rig.buffers(1)));
        queue.push(read(9, 0, rig.buffers(1)));
        queue.ring();
        worker.polls(10);
        assert!(abort(&mut worker, &rig, 1, 9), "it waits");
        let began = std::time::Instant::now();
        let mut done = 0;
        // What is slow is so by the machine's clock, not by the worker's.
        until("all are done, some time later", || {
            worker.pass(50 * MILLISECOND);
            done += statuses(&mut queue).len();
            done == 10 && began.elapsed().as_millis() >= 2
        });
        worker.polls(5);
        let found = records(&mut reader);
        let of = |cid| found.iter().find(|record| record.cid == cid);
        let reasons = trace_reason::REASONS;
        let failed = of(8).expect("it failed");
        assert_eq!(failed.reason & reasons, trace_reason::FAILED | reason);
        assert!(failed.held > 0 && failed.submitted == 0, "{failed:?}");
        let aborted = of(9).expect("it was aborted");
        assert_eq!(Status::from_raw(aborted.status).code(), Status::ABORT_REQUESTED);
        assert!(aborted.started == aborted.done && aborted.translated == 0, "{aborted:?}");
        match of(7) {
            Some(slow) => {
                assert_eq!(slow.reason & reasons, trace_reason::SLOW);
                in_order(slow);
            }
            None => assert_eq!((reason, found.len()), (0, 2)),
        }
    }
}

#[test]
fn a_pause_is_told_of_by_what_waits_through_it() {
    let limits = Limits::new();
    let (mut worker, mut reader, _) = tracing(1, true);
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 100, &mut worker, &[&rig]);
    let mut queue = rig.queue(1, ENTRIES);
    (0..40).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(50);
    let before = statuses(&mut queue).len();
    rig.layout.settings.pause_number.fetch_add(1, Ordering::Relaxed);
    worker.settle(&rig);
    assert!(abort(&mut worker, &rig, 1, 39), "it waits");
    rig.layout.settings.pause_number.fetch_add(1, Ordering::Relaxed);
    worker.settle(&rig);
    for _ in 0..100 {
        worker.pass(10 * MILLISECOND);
        statuses(&mut queue);
    }
    worker.polls(5);
    let found = records(&mut reader);
    assert_eq!(found.len(), 40);
    let paused: Vec<&TraceRecord> = found.iter().filter(|record| record.paused != 0).collect();
    assert_eq!(paused.len(), 40 - before);
    assert!(paused.len() >= 20, "{}", paused.len());
    for record in paused {
        let TraceRecord { held, paused, resumed, started, .. } = *record;
        let times = [held, paused + PAUSE_STEP, resumed + PAUSE_STEP, started + PAUSE_STEP];
        assert!(times.is_sorted(), "{record:?}");
        let aborted = record.cid == 39;
        assert_eq!(record.reason & trace_reason::FAILED != 0, aborted, "{record:?}");
    }
}

#[test]
fn a_command_whose_channel_comes_late_is_slow_by_that_wait() {
    let (mut worker, mut reader, _) = tracing_by(Policy { sample: 0, slow_us: 10_000 }, true);
    let rig = worker.attach(1, 1, ENTRIES, None);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(7, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(10);
    worker.pass(20 * MILLISECOND);
    worker.send(rig.channel(0, null(0)));
    worker.polls(5);
    assert_eq!(statuses(&mut queue), [(7, Status::SUCCESS)]);
    worker.polls(5);
    let [record] = records(&mut reader)[..] else { panic!("one record") };
    assert_eq!((record.reason, record.requests), (trace_reason::SLOW, 1));
    assert!(record.translated > 0 && record.submitted > record.translated, "it waited");
}

#[test]
fn a_pair_whose_channel_never_comes_ends_with_both_halves() {
    let (mut worker, mut reader, _) = tracing(0, true);
    let rig = worker.attach(1, 1, ENTRIES, None);
    let mut queue = rig.queue(1, ENTRIES);
    pair(&rig, 1, 0, rig.buffers(1)).into_iter().for_each(|command| queue.push(command));
    queue.ring();
    worker.polls(10);
    worker.pass(6 * SECOND);
    let mut ended = statuses(&mut queue);
    ended.sort_unstable_by_key(|(cid, _)| *cid);
    let status = Status::INTERNAL_PATH_ERROR;
    assert_eq!(ended, [(1, status), (2, status)]);
    worker.polls(5);
    let [record] = records(&mut reader)[..] else { panic!("one record") };
    assert_eq!(record.reason, trace_reason::FAILED | trace_reason::FUSED);
    assert!(record.requests == 0 && record.submitted == record.done, "{record:?}");
}

#[test]
fn a_copy_that_fails_says_where_and_is_told_of() {
    let (mut worker, mut reader, _) = tracing(0, true);
    let effect = Effect::Fail(ErrorKind::Medium);
    let rule = Rule { op: Some(Op::Copy), range: None, when: When::Nth(2), effect };
    let plan = Plan { seed: 1, rules: vec![rule] };
    let channel = AnyChannel::Fault(FaultChannel::new(malloc().1, plan));
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let source = |slba| CopyRange { slba: Lba(slba), nlb_z: 0, ..Default::default() };
    rig.at(rig.buffers(1), 96).copy_from([source(0), source(1), source(2)].as_bytes());
    let copy = Command::nvm(NvmOpcode::COPY, CommandId(4), Nsid(1)).with_slba(Lba(200));
    let copy = Command { cdw12: 2, ..copy.with_prps(Iova(rig.buffers(1)), Iova(0)) };
    let entry = complete(&mut worker, &mut queue, copy);
    assert_eq!((entry.status().is_success(), entry.dw0), (false, 1), "the second range");
    worker.polls(5);
    let [record] = records(&mut reader)[..] else { panic!("one record") };
    assert_eq!((record.reason, record.requests), (trace_reason::FAILED, 2));
}
