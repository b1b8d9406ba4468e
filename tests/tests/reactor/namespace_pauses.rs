//! Pauses of one namespace: its commands are held, those of others go on.

use crate::limits::{Limits, MILLISECOND, Reader, SECOND, abort, statuses};
use crate::worker::{BLOCKS, ENTRIES, Worker, complete, io, malloc, null, read, status_of};
use ipc::layout::controller::ControllerState;
use ipc::layout::limits::Rate;
use nvme_spec::command::{Command, Fuse, NvmOpcode};
use nvme_spec::nvm::DatasetRange;
use nvme_spec::{CommandId, Iova, Lba, Nsid, Status};
use std::sync::atomic::Ordering;
use vireo_tests::client::Rig;
use zerocopy::IntoBytes;

/// Pauses the namespace in a row under that number; 0 lets it go on.
fn pause(worker: &mut Worker, rig: &Rig, row: usize, number: u64) {
    rig.layout.namespaces[row].pause_number.store(number, Ordering::Relaxed);
    worker.settle(rig);
}

/// The number of the namespace's pause that is in effect.
fn paused(rig: &Rig, row: usize) -> u64 {
    rig.queues.paused[row].load(Ordering::Acquire)
}

/// Pauses the controller, or lets it go on.
fn pause_controller(worker: &mut Worker, rig: &Rig) {
    rig.layout.settings.pause_number.fetch_add(1, Ordering::Relaxed);
    worker.settle(rig);
}

/// A second namespace, which answers at once.
pub fn add_other(worker: &mut Worker, rig: &Rig) {
    rig.add_namespace(1, BLOCKS, 9);
    worker.settle(rig);
    worker.send(rig.channel(1, null(0)));
    worker.polls(2);
}

fn of_other(command: Command) -> Command {
    Command { nsid: Nsid(2), ..command }
}

/// A Dataset Management of `count` ranges.
fn deallocate(rig: &Rig, cid: u16, count: u32) -> Command {
    let list = rig.buffers(1) + 0x10_000;
    for index in 0..u64::from(count) {
        let range = DatasetRange { slba: Lba(index * 8), length: 8, ..Default::default() };
        rig.at(list + index * 16, 16).copy_from(range.as_bytes());
    }
    let command = Command::nvm(NvmOpcode::DATASET_MANAGEMENT, CommandId(cid), Nsid(1));
    Command { cdw10: count - 1, cdw11: 4, ..command.with_prps(Iova(list), Iova(0)) }
}

#[test]
fn a_paused_namespace_holds_its_commands_and_others_go_on() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(10 * MILLISECOND)));
    add_other(&mut worker, &rig);
    let mut queue = rig.queue(1, ENTRIES);
    let buffer = rig.buffers(1);
    (0..4).for_each(|cid| queue.push(read(cid, 0, buffer)));
    queue.ring();
    worker.polls(10);
    pause(&mut worker, &rig, 0, 7);
    assert_eq!(paused(&rig, 0), 0, "four are in flight");
    queue.push(read(4, 0, buffer));
    queue.push(of_other(read(5, 0, buffer)));
    queue.ring();
    worker.polls(10);
    assert_eq!(statuses(&mut queue), [(5, Status::SUCCESS)]);
    worker.pass(11 * MILLISECOND);
    assert_eq!((statuses(&mut queue).len(), paused(&rig, 0)), (4, 7));
    // Far beyond what a command waits for a channel.
    worker.pass(100 * SECOND);
    assert_eq!(statuses(&mut queue), []);
    assert!(worker.reactor.prepare_sleep(), "there is nothing to do");
    assert_eq!(worker.reactor.deadline(), None, "only a resumption helps");
    worker.reactor.woken();
    let other = of_other(read(6, 0, buffer));
    assert_eq!(status_of(&mut worker, &mut queue, other), Status::SUCCESS);
    pause(&mut worker, &rig, 0, 0);
    worker.polls(10);
    worker.pass(11 * MILLISECOND);
    assert_eq!(statuses(&mut queue), [(4, Status::SUCCESS)]);
    pause(&mut worker, &rig, 0, 8);
    assert_eq!((paused(&rig, 0), paused(&rig, 1)), (8, 0), "at once");
}

#[test]
fn held_commands_are_aborted_and_end_with_their_queue_or_namespace() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, ENTRIES, Some(malloc().1));
    pause(&mut worker, &rig, 0, 1);
    let [mut first, mut second] = [1, 2].map(|qid| rig.queue(qid, ENTRIES));
    for (queue, cids) in [(&mut first, 0..4), (&mut second, 4..7)] {
        cids.for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        worker.polls(10);
    }
    assert!(abort(&mut worker, &rig, 1, 2));
    assert!(!abort(&mut worker, &rig, 2, 2), "that one is another queue's");
    assert_eq!(statuses(&mut first), [(2, Status::ABORT_REQUESTED)]);
    worker.delete_queue(&rig, 1);
    let deleted = Status::ABORTED_SQ_DELETION;
    assert_eq!(statuses(&mut first), [0, 1, 3].map(|cid| (cid, deleted)));
    rig.layout.namespaces[0].state.store(0, Ordering::Release);
    worker.settle(&rig);
    worker.polls(10);
    let gone = Status::INVALID_NAMESPACE_OR_FORMAT;
    assert_eq!(statuses(&mut second), [4, 5, 6].map(|cid| (cid, gone)));
}

#[test]
fn a_reset_drops_what_is_held_and_a_shutdown_ends_it() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(malloc().1));
    pause(&mut worker, &rig, 0, 1);
    for stops in [false, true] {
        let mut queue = rig.queue(1, ENTRIES);
        (0..5).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        worker.polls(10);
        if stops {
            let stopped = ControllerState::Stopped as u32;
            rig.layout.signals.state.store(stopped, Ordering::Relaxed);
            worker.settle(&rig);
            let ended = statuses(&mut queue);
            assert_eq!(ended, [0, 1, 2, 3, 4].map(|cid| (cid, Status::ABORT_REQUESTED)));
            break;
        }
        worker.reset(&rig);
        assert_eq!(paused(&rig, 0), 1, "it stays paused");
    }
}

#[test]
fn flushes_of_all_fused_pairs_and_ranges_are_held_whole() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(malloc().1));
    add_other(&mut worker, &rig);
    let mut queue = rig.queue(1, ENTRIES);
    pause(&mut worker, &rig, 0, 1);
    queue.push(Command::nvm(NvmOpcode::FLUSH, CommandId(1), Nsid::BROADCAST));
    let fused = |opcode, cid, fuse| io(opcode, cid, 0, 1, rig.buffers(1)).with_fuse(fuse);
    queue.push(fused(NvmOpcode::COMPARE, 2, Fuse::FIRST));
    queue.push(fused(NvmOpcode::WRITE, 3, Fuse::SECOND));
    // More than can be under way at a time: they take nothing from others' ranges.
    (4..10).for_each(|cid| queue.push(deallocate(&rig, cid, 2)));
    queue.ring();
    worker.polls(10);
    assert_eq!(statuses(&mut queue), []);
    let other = of_other(deallocate(&rig, 10, 2));
    assert_eq!(status_of(&mut worker, &mut queue, other), Status::SUCCESS);
    assert!(abort(&mut worker, &rig, 1, 9));
    assert_eq!(statuses(&mut queue), [(9, Status::ABORT_REQUESTED)]);
    pause(&mut worker, &rig, 0, 0);
    worker.polls(20);
    let mut ended = statuses(&mut queue);
    ended.sort_by_key(|(cid, _)| *cid);
    assert_eq!(ended, [1, 2, 3, 4, 5, 6, 7, 8].map(|cid| (cid, Status::SUCCESS)));
}

#[test]
fn a_pause_waits_for_ranges_that_have_begun() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(10 * MILLISECOND)));
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(deallocate(&rig, 1, 3));
    queue.ring();
    worker.polls(10);
    pause(&mut worker, &rig, 0, 1);
    for _ in 0..2 {
        worker.pass(11 * MILLISECOND);
        assert_eq!((statuses(&mut queue).len(), paused(&rig, 0)), (0, 0));
    }
    worker.pass(11 * MILLISECOND);
    assert_eq!((statuses(&mut queue).len(), paused(&rig, 0)), (1, 1));
}

#[test]
fn ranges_that_a_controllers_pause_stopped_are_held_with_their_namespace() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(malloc().1));
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(deallocate(&rig, 1, 128));
    queue.ring();
    worker.reactor.poll();
    pause_controller(&mut worker, &rig);
    assert_eq!(statuses(&mut queue), [], "some ranges are left");
    pause(&mut worker, &rig, 0, 1);
    assert_eq!(paused(&rig, 0), 1);
    pause_controller(&mut worker, &rig);
    worker.pass(100 * SECOND);
    assert_eq!(statuses(&mut queue), []);
    pause(&mut worker, &rig, 0, 0);
    worker.polls(100);
    assert_eq!(statuses(&mut queue), [(1, Status::SUCCESS)]);
}

#[test]
fn what_a_pause_held_comes_under_the_limits() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 100, &mut worker, &[&rig]);
    let mut reader = Reader::new(&rig, 1);
    reader.fill(20);
    worker.polls(50);
    let before = reader.take();
    assert!((1..20).contains(&before), "some wait for the limit: {before} went");
    pause(&mut worker, &rig, 0, 1);
    reader.fill(40);
    worker.pass(10 * SECOND);
    assert_eq!((reader.take(), paused(&rig, 0)), (0, 1));
    assert!(worker.reactor.prepare_sleep());
    assert_eq!(worker.reactor.deadline(), None, "only a resumption helps");
    worker.reactor.woken();
    pause(&mut worker, &rig, 0, 0);
    worker.polls(100);
    let burst = reader.take();
    assert!(burst <= 12, "{burst} go at once");
    for _ in 0..1000 {
        worker.pass(MILLISECOND);
        reader.take();
    }
    assert_eq!((reader.outstanding, reader.done), (0, before + 40));
}

#[test]
fn held_commands_leave_slots_to_other_queues() {
    let mut worker = Worker::new();
    let entries = 4096;
    let rig = worker.attach(1, 2, entries, Some(malloc().1));
    add_other(&mut worker, &rig);
    pause(&mut worker, &rig, 0, 1);
    let mut held = worker.overfill(&rig, entries);
    let mut other = rig.queue(2, entries);
    let command = of_other(read(1, 0, rig.buffers(2)));
    assert!(complete(&mut worker, &mut other, command).status().is_success());
    pause(&mut worker, &rig, 0, 0);
    worker.polls(5000);
    assert_eq!(statuses(&mut held).len(), entries as usize - 1);
}
