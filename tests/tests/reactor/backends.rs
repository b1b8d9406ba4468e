//! What becomes of commands whose backend dies.

use crate::limits::{SECOND, abort, statuses};
use crate::traces::{Backend, records, tracing};
use crate::worker::{ENTRIES, Worker, complete, io, null, read};
use bdev::channel::AnyChannel;
use bdev::ring::client::RingChannel;
use ipc::layout::telemetry::trace_reason;
use nvme_spec::Status;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::nvm::CopyRange;
use nvme_spec::{CommandId, Iova, Lba, Nsid};
use std::sync::atomic::Ordering;
use vireo_tests::client::Rig;
use vireo_worker::controller::Change;
use vireo_worker::reactor::Message;
use zerocopy::IntoBytes;

/// Puts a ring into the namespace's place. Returns what tells its channel from others.
fn install(worker: &Worker, rig: &Rig, ring: RingChannel) -> usize {
    let channel = Box::new(AnyChannel::Ring(ring));
    let name = std::ptr::from_ref::<AnyChannel>(&channel).addr();
    let generation = rig.layout.namespaces[0].generation.load(Ordering::Relaxed);
    worker.send(Message::Change(rig.layout.id(), Change::Channel(0, generation, channel)));
    name
}

/// A controller whose namespace is served by a ring, and the ring's name.
fn served(worker: &mut Worker) -> (Rig, Backend, usize) {
    let rig = worker.attach(1, 1, ENTRIES, None);
    worker.polls(2);
    let (backend, ring) = Backend::new(1);
    let name = install(worker, &rig, ring);
    worker.polls(2);
    (rig, backend, name)
}

/// The backend dies, and is proven to have nothing under way.
fn die(worker: &mut Worker, rig: &Rig, name: usize) {
    worker.change(rig, Change::BackendGone(0, name));
    worker.polls(3);
    worker.change(rig, Change::BackendEnded(0, name));
    worker.polls(3);
}

/// A successor, with the same device: it is empty, but what goes there goes there once.
fn succeed(worker: &mut Worker, rig: &Rig) -> (Backend, usize) {
    let (backend, ring) = Backend::new(2);
    let name = install(worker, rig, ring);
    worker.polls(5);
    (backend, name)
}

#[test]
fn commands_of_a_dead_backend_go_to_its_successor_when_nothing_of_them_is_under_way() {
    let mut worker = Worker::new();
    let (rig, first, name) = served(&mut worker);
    let mut queue = rig.queue(1, ENTRIES);
    let buffer = rig.buffers(1);
    rig.at(buffer, 4096).fill(0x5A);
    queue.push(io(NvmOpcode::WRITE, 1, 16, 8, buffer));
    queue.push(Command::nvm(NvmOpcode::FLUSH, CommandId(2), Nsid(1)));
    queue.push(io(NvmOpcode::WRITE_ZEROES, 3, 64, 8, 0));
    queue.push(io(NvmOpcode::VERIFY, 4, 0, 8, 0));
    queue.ring();
    worker.polls(5);
    drop(first);
    worker.change(&rig, Change::BackendGone(0, name));
    worker.pass(SECOND);
    let (mut second, ring) = Backend::new(2);
    install(&worker, &rig, ring);
    worker.pass(10 * SECOND);
    second.serve(&rig);
    worker.polls(5);
    assert!(statuses(&mut queue).is_empty(), "the first may still be at it");
    worker.change(&rig, Change::BackendEnded(0, name));
    worker.polls(5);
    assert!(statuses(&mut queue).is_empty(), "the second has them now");
    second.serve(&rig);
    worker.polls(5);
    let mut ended = statuses(&mut queue);
    ended.sort_unstable_by_key(|&(cid, _)| cid);
    assert_eq!(ended, (1..=4).map(|cid| (cid, Status::SUCCESS)).collect::<Vec<_>>());
    rig.at(buffer, 4096).fill(0);
    queue.push(read(5, 16, buffer));
    queue.ring();
    worker.polls(3);
    second.serve(&rig);
    worker.polls(3);
    assert_eq!(statuses(&mut queue), [(5, Status::SUCCESS)]);
    assert!(crate::worker::bytes(&rig.at(buffer, 4096)) == [0x5A; 4096], "it was written");
    let errors = rig.queues.counters[0].errors.load(Ordering::Relaxed);
    assert_eq!(errors, 0, "nobody heard of it");
}

#[test]
fn a_command_that_outlives_a_second_backend_fails_and_may_be_tried_again() {
    let mut worker = Worker::new();
    let (rig, _first, name) = served(&mut worker);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    die(&mut worker, &rig, name);
    let (_second, name) = succeed(&mut worker, &rig);
    assert!(statuses(&mut queue).is_empty());
    die(&mut worker, &rig, name);
    let entry = queue.pop().expect("it ends");
    assert_eq!((entry.cid.0, entry.status().code()), (1, Status::INTERNAL_PATH_ERROR));
    assert!(!entry.status().dnr());
    queue.acknowledge();
    // Another one is not counted as it.
    let (mut third, _) = succeed(&mut worker, &rig);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    third.serve(&rig);
    worker.polls(3);
    assert_eq!(statuses(&mut queue), [(1, Status::SUCCESS)]);
}

#[test]
fn what_must_not_run_twice_fails_with_its_backend() {
    let mut worker = Worker::new();
    let (rig, _first, name) = served(&mut worker);
    let mut queue = rig.queue(1, ENTRIES);
    let source = CopyRange { slba: Lba(0), nlb_z: 7, ..Default::default() };
    rig.at(rig.buffers(1), 32).copy_from([source].as_bytes());
    let copy = Command::nvm(NvmOpcode::COPY, CommandId(4), Nsid(1)).with_slba(Lba(200));
    queue.push(copy.with_prps(Iova(rig.buffers(1)), Iova(0)));
    queue.ring();
    worker.polls(3);
    die(&mut worker, &rig, name);
    assert_eq!(statuses(&mut queue), [(4, Status::INTERNAL_PATH_ERROR)]);
}

#[test]
fn what_waits_for_a_successor_is_aborted_and_ends_with_its_queue_and_in_time() {
    let mut worker = Worker::new();
    let (rig, _first, name) = served(&mut worker);
    let mut queue = rig.queue(1, ENTRIES);
    (1..=3).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(3);
    die(&mut worker, &rig, name);
    assert!(statuses(&mut queue).is_empty(), "no successor is there");
    assert!(abort(&mut worker, &rig, 1, 2));
    assert_eq!(statuses(&mut queue), [(2, Status::ABORT_REQUESTED)]);
    worker.pass(6 * SECOND);
    let mut ended = statuses(&mut queue);
    ended.sort_unstable_by_key(|&(cid, _)| cid);
    assert_eq!(ended, [1, 3].map(|cid| (cid, Status::INTERNAL_PATH_ERROR)));
    queue.push(read(4, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    worker.delete_queue(&rig, 1);
    let in_flight = rig.queues.submission_queues[1].fetched.load(Ordering::Relaxed);
    assert_eq!(in_flight, 4);
    worker.send(rig.channel(0, null(0)));
    worker.reset(&rig);
    let mut queue = rig.queue(1, ENTRIES);
    let entry = complete(&mut worker, &mut queue, read(7, 0, rig.buffers(1)));
    assert_eq!((entry.cid.0, entry.status()), (7, Status::SUCCESS));
}

#[test]
fn a_traced_command_that_goes_again_has_one_record() {
    let (mut worker, mut reader, _) = tracing(1, true);
    let (rig, _first, name) = served(&mut worker);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(9, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    die(&mut worker, &rig, name);
    let (mut second, _) = succeed(&mut worker, &rig);
    assert!(records(&mut reader).is_empty(), "it is not over");
    second.serve(&rig);
    worker.polls(5);
    assert_eq!(statuses(&mut queue), [(9, Status::SUCCESS)]);
    worker.polls(5);
    let [record] = records(&mut reader)[..] else { panic!("one record") };
    assert_eq!((record.cid, record.requests), (9, 2), "one of each backend's");
    assert_eq!(record.reason, trace_reason::SAMPLED | trace_reason::RING);
    assert!(record.done >= record.submitted && record.status == 0, "{record:?}");
}
