//! What the frontend asks by number, and when it is answered.

use crate::worker::{BLOCKS, ENTRIES, Worker, io, malloc, null, read, status_of};
use ipc::dma_table::DmaRow;
use ipc::guest_memory::{Access, RegionId};
use ipc::iova::Iova;
use ipc::layout::controller::{ControllerState, QueueState, namespace_flags};
use nvme_spec::Status;
use nvme_spec::command::NvmOpcode;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use vireo_tests::client::Rig;
use vireo_worker::controller::Request;
use vireo_worker::reactor::{Message, Notice};

const LATENCY: u64 = 1_000_000;

/// A controller with one command in flight at its device.
fn busy(worker: &mut Worker) -> Rig {
    let rig = worker.attach(1, 2, ENTRIES, Some(null(LATENCY)));
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(io(NvmOpcode::WRITE, 1, 0, 8, rig.buffers(1)));
    queue.ring();
    worker.polls(2);
    rig
}

#[test]
fn reset_is_acknowledged_when_the_device_is_done_and_posts_nothing() {
    let mut worker = Worker::new();
    let rig = busy(&mut worker);
    let generation = rig.layout.signals.reset_generation.fetch_add(1, Release) + 1;
    worker.polls(5);
    let acknowledged = || rig.queues.acknowledged.reset_generation.load(Acquire);
    assert!(acknowledged() < generation);
    worker.pass(LATENCY);
    assert_eq!(acknowledged(), generation);
    assert!(rig.queue(1, ENTRIES).pop().is_none());
    assert_eq!(rig.queues.completion_queues[1].posted.load(Acquire), 0);
}

#[test]
fn deleted_queue_drains_and_its_successor_works() {
    let mut worker = Worker::new();
    let rig = busy(&mut worker);
    rig.layout.submission_queues[1].state.store(QueueState::Deleting as u32, Release);
    let version = rig.publish();
    let mut queue = rig.queue(1, ENTRIES);
    worker.polls(5);
    assert!(!rig.is_acknowledged(version));
    worker.pass(LATENCY);
    assert!(rig.is_acknowledged(version));
    assert!(queue.pop().is_some(), "what was in flight has its completion");
    rig.doorbells.store(2, 0);
    rig.doorbells.store(3, 0);
    rig.at(rig.buffers(1) - (256 << 10), 64 << 10).fill(0);
    rig.add_queue(1, ENTRIES, None);
    worker.settle(&rig);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(9, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(2);
    worker.pass(LATENCY);
    assert_eq!(queue.pop().unwrap().cid.0, 9);
}

#[test]
fn unmap_waits_for_commands_that_touch_the_range_alone() {
    let mut worker = Worker::new();
    let mut rig = worker.attach(1, 1, ENTRIES, Some(null(LATENCY)));
    let extra = |page: u64| DmaRow {
        iova: Iova(0x5_0000_0000 + page * 4096),
        size: 4096,
        region: Some(RegionId(0)),
        offset: 0x10_0000 + page * 4096,
        access: Access::READ_WRITE,
    };
    (0..4).for_each(|page| {
        rig.dma.map(extra(page)).unwrap();
    });
    {
        let mut queue = rig.queue(1, ENTRIES);
        queue.push(read(1, 0, 0x5_0000_0000));
        queue.push(read(2, 0, 0x5_0000_1000));
        queue.ring();
    }
    worker.polls(2);
    let acknowledged = |rig: &Rig| rig.queues.acknowledged.dma_version.load(Acquire);
    let untouched = rig.dma.unmap(Iova(0x5_0000_3000), 4096).unwrap();
    worker.polls(2);
    assert_eq!(acknowledged(&rig), untouched, "nobody touches it");
    let touched = rig.dma.unmap(Iova(0x5_0000_1000), 4096).unwrap();
    worker.polls(5);
    assert_eq!(acknowledged(&rig), touched - 1);
    let later = rig.dma.unmap(Iova(0x5_0000_2000), 4096).unwrap();
    worker.polls(5);
    assert_eq!(acknowledged(&rig), touched - 1, "in order");
    worker.pass(LATENCY);
    assert_eq!(acknowledged(&rig), later);
    // What was unmapped is not found any more, though it was in the cache.
    let mut queue = rig.queue(1, ENTRIES);
    while queue.pop().is_some() {}
    queue.acknowledge();
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, 0));
    queue.push(read(2, 0, 0));
    queue.push(read(3, 0, 0x5_0000_1000));
    queue.ring();
    worker.polls(3);
    let posted = rig.queues.completion_queues[1].posted.load(Acquire);
    assert_eq!(posted, 3);
    let third = rig.at(rig.buffers(1) - (256 << 10) + 32, 16).load_words::<2>(0).unwrap();
    let third = nvme_spec::Completion::from_halves(third);
    assert_eq!(third.status().code(), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn command_that_was_not_sent_on_is_aborted() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, None);
    // Notices leave with the poll after the one that made them.
    worker.polls(1);
    let wanted = worker.notices().into_iter().any(|notice| {
        matches!(notice, Notice::Request(1, Request::OpenChannel { namespace: 0, .. }))
    });
    assert!(wanted, "a channel is asked for");
    let mut queue = rig.queue(1, ENTRIES);
    (1..=3).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(3);
    assert!(queue.pop().is_none(), "they wait for the channel");
    let abort = |worker: &mut Worker, command: u32| {
        let settings = &rig.layout.settings;
        settings.abort_command.store(command, Relaxed);
        let number = settings.abort_number.fetch_add(1, Release) + 1;
        rig.publish();
        worker.polls(3);
        assert_eq!(rig.queues.acknowledged.abort_number.load(Acquire), number);
        rig.queues.acknowledged.aborted.load(Relaxed)
    };
    assert_eq!(abort(&mut worker, 1 << 16 | 2), 1);
    let entry = queue.pop().unwrap();
    assert_eq!((entry.cid.0, entry.status().code()), (2, Status::ABORT_REQUESTED));
    assert_eq!(abort(&mut worker, 1 << 16 | 2), 0, "it is not there any more");
    assert_eq!(abort(&mut worker, 2 << 16 | 1), 0, "no such queue");
    let (_, channel) = malloc();
    worker.send(rig.channel(0, channel));
    worker.polls(3);
    let rest: Vec<u16> = std::iter::from_fn(|| queue.pop()).map(|entry| entry.cid.0).collect();
    assert_eq!(rest, [1, 3]);
}

#[test]
fn commands_wait_for_a_channel_but_not_for_ever() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, None);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.pass(4_000_000_000);
    assert!(queue.pop().is_none());
    worker.pass(2_000_000_000);
    let status = queue.pop().unwrap().status();
    assert_eq!(status.code(), Status::INTERNAL_PATH_ERROR);
    assert!(!status.dnr(), "trying again may help");
}

#[test]
fn format_and_removal_wait_for_what_is_in_flight() {
    for removal in [false, true] {
        let mut worker = Worker::new();
        let rig = busy(&mut worker);
        let row = &rig.layout.namespaces[0];
        match removal {
            true => row.state.store(0, Release),
            false => row.flags.store(namespace_flags::FORMATTING, Relaxed),
        }
        let version = rig.publish();
        worker.polls(3);
        assert!(!rig.is_acknowledged(version));
        let mut other = rig.queue(2, ENTRIES);
        let status = status_of(&mut worker, &mut other, read(5, 0, rig.buffers(2)));
        let expected = match removal {
            true => Status::INVALID_NAMESPACE_OR_FORMAT,
            false => Status::FORMAT_IN_PROGRESS,
        };
        assert_eq!(status, expected);
        worker.pass(LATENCY);
        assert!(rig.is_acknowledged(version));
    }
}

#[test]
fn write_protection_waits_for_writes_and_refuses_later_ones() {
    let mut worker = Worker::new();
    let rig = busy(&mut worker);
    rig.layout.namespaces[0].flags.store(namespace_flags::WRITE_PROTECTED, Relaxed);
    let version = rig.publish();
    worker.polls(3);
    assert!(!rig.is_acknowledged(version));
    let mut other = rig.queue(2, ENTRIES);
    let write = io(NvmOpcode::WRITE, 5, 0, 8, rig.buffers(2));
    assert_eq!(status_of(&mut worker, &mut other, write), Status::NAMESPACE_WRITE_PROTECTED);
    worker.pass(LATENCY);
    assert!(rig.is_acknowledged(version));
}

#[test]
fn stopped_controller_fetches_nothing() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    rig.layout.signals.state.store(ControllerState::Stopped as u32, Relaxed);
    worker.settle(&rig);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(10);
    assert!(queue.pop().is_none());
    rig.layout.signals.state.store(ControllerState::Enabled as u32, Relaxed);
    worker.settle(&rig);
    worker.polls(2);
    assert!(queue.pop().is_some());
}

#[test]
fn admin_doorbell_kicks_the_frontend() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    rig.kick.drain().unwrap();
    rig.doorbells.store(0, 1);
    worker.polls(3);
    assert_eq!(rig.kick.drain().unwrap(), 1);
}

#[test]
fn detached_controller_comes_back_when_nothing_is_in_flight() {
    let mut worker = Worker::new();
    let rig = busy(&mut worker);
    worker.send(Message::Detach(rig.layout.id()));
    worker.polls(5);
    let detached = |worker: &Worker| {
        worker.notices().iter().any(|notice| matches!(notice, Notice::Detached(_)))
    };
    assert!(!detached(&worker));
    worker.pass(LATENCY);
    assert!(detached(&worker));
    assert!(rig.queue(1, ENTRIES).pop().is_none());
}

/// However long a block device takes, the thread need not look all the time whether it has come.
#[test]
fn worker_sleeps_while_a_controller_waits_to_be_detached() {
    let mut worker = Worker::new();
    let rig = busy(&mut worker);
    worker.send(Message::Detach(rig.layout.id()));
    worker.polls(1000);
    assert_eq!(worker.reactor.poll(), 0);
    assert!(worker.reactor.prepare_sleep());
    worker.reactor.woken();
    worker.pass(LATENCY);
    assert!(worker.notices().iter().any(|notice| matches!(notice, Notice::Detached(_))));
    assert!(worker.reactor.prepare_sleep());
}

#[test]
fn shadow_doorbells_are_served_and_ring_before_sleep() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let (shadow, index) = (rig.buffers(1) + 0x10_0000, rig.buffers(1) + 0x10_1000);
    let settings = &rig.layout.settings;
    settings.doorbells_mapped.store(0, Relaxed);
    settings.shadow_doorbells.store(shadow, Relaxed);
    settings.shadow_event_indexes.store(index, Relaxed);
    settings.shadow_enabled.store(1, Relaxed);
    worker.settle(&rig);
    assert!(!worker.reactor.must_look(), "sleep is complete");
    let mut queue = rig.queue(1, ENTRIES);
    let tail = |value| rig.at(shadow, 4096).store_u32(8, value, Release);
    for turn in 1..=5_u32 {
        queue.push(read(turn as u16, 0, rig.buffers(1)));
        tail(turn);
        assert!(!worker.reactor.prepare_sleep(), "the doorbell moved");
        worker.polls(2);
        assert_eq!(queue.pop().unwrap().cid.0, turn as u16);
        rig.at(shadow, 4096).store_u32(12, turn, Release);
        worker.polls(5);
        assert!(worker.reactor.prepare_sleep());
        assert_eq!(rig.at(index, 4096).load_u32(8, Acquire), Some(turn), "event index at the tail");
        worker.reactor.woken();
    }
    tail(ENTRIES + 3);
    worker.polls(2);
    let position = &rig.queues.submission_queues[1];
    assert_eq!(position.invalid_doorbell.load(Acquire), ENTRIES + 4);
    assert_eq!(BLOCKS, 2048);
}
