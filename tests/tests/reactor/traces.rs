//! What is recorded of traced commands.

use crate::worker::{DEVICE, ENTRIES, Worker, complete, io, malloc, null, read};
use bdev::channel::{AnyChannel, Geometry};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{RegionId, RegionTable};
use ipc::layout::telemetry::{Policy, TelemetryLayout, TraceRecord, trace_reason};
use ipc::segment::Segment;
use ipc::trace::TraceReader;
use nvme_spec::command::NvmOpcode;
use nvme_spec::{Nsid, Status};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vireo_tests::client::Rig;
use vireo_worker::reactor::Message;
use vireo_worker::tracer::Tracer;

/// A worker that traces, and where its records come out.
fn tracing(sample: u32, exports: bool) -> (Worker, TraceReader, Arc<Segment<TelemetryLayout>>) {
    let segment = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 1).unwrap());
    segment.policy.word.store(Policy { sample, slow_us: 0 }.to_word(), Ordering::Relaxed);
    let (writer, reader) = ipc::trace::ends(&segment).unwrap();
    let tracer = Tracer::new(Arc::clone(&segment), Some(writer));
    let tracer = if exports { tracer } else { tracer.for_captures_alone() };
    let mut worker = Worker::new();
    worker.reactor.trace_by(Arc::new(tracer));
    (worker, reader, segment)
}

fn records(reader: &mut TraceReader) -> Vec<TraceRecord> {
    std::iter::from_fn(|| reader.take()).collect()
}

/// A ring of a memory device, whose backend traces, too.
struct Backend {
    server: RingServer,
    device: AnyChannel,
    records: TraceReader,
}

impl Backend {
    fn new(id: u128) -> (Self, RingChannel) {
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

    fn serve(&mut self, rig: &Rig) {
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
