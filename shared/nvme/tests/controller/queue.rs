//! Creation and deletion of I/O queues.

use crate::host::{DATA, Host, admin};
use ipc::layout::controller::QueueState;
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::feature::FeatureId;
use nvme_spec::register::offset;
use nvme_spec::{Iova, Status};
use std::sync::atomic::Ordering;

const QUEUE: u64 = 0x30_0000;

/// Create I/O Completion Queue of 16 entries, contiguous, with interrupts by vector 1.
pub fn create_cq(qid: u16) -> Command {
    let command = Command {
        cdw10: 15 << 16 | u32::from(qid),
        cdw11: 1 << 16 | 0b11,
        ..admin(AdminOpcode::CREATE_IO_CQ)
    };
    command.with_prps(Iova(QUEUE), Iova(0))
}

/// Create I/O Submission Queue of 16 entries, contiguous.
pub fn create_sq(qid: u16, cqid: u16) -> Command {
    let command = Command {
        cdw10: 15 << 16 | u32::from(qid),
        cdw11: u32::from(cqid) << 16 | 1,
        ..admin(AdminOpcode::CREATE_IO_SQ)
    };
    command.with_prps(Iova(QUEUE + 0x1_0000), Iova(0))
}

pub fn delete_sq(qid: u16) -> Command {
    Command { cdw10: u32::from(qid), ..admin(AdminOpcode::DELETE_IO_SQ) }
}

pub fn delete_cq(qid: u16) -> Command {
    Command { cdw10: u32::from(qid), ..admin(AdminOpcode::DELETE_IO_CQ) }
}

#[test]
fn queues_become_rows_that_their_worker_takes_over() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.doorbells.store(3, 9);
    let cid = host.submit(create_cq(1));
    host.process();
    assert!(host.completion().is_none(), "before the worker knows");
    let row = &host.controller.segment().completion_queues[1];
    assert_eq!(row.state.load(Ordering::Acquire), QueueState::Active as u32);
    assert_eq!(row.entries.load(Ordering::Relaxed), 16);
    assert_eq!(
        (row.vector.load(Ordering::Relaxed), row.interrupts.load(Ordering::Relaxed)),
        (1, 1)
    );
    assert_eq!(row.base.load(Ordering::Relaxed), QUEUE);
    assert_eq!(host.doorbells.load(3), 0);
    let worker = row.worker.load(Ordering::Relaxed) as usize;
    host.acknowledge_one(1 - worker);
    assert!(host.completion().is_none(), "the other worker's word does not matter");
    host.acknowledge_one(worker);
    assert_eq!(host.completion().unwrap().cid, cid);
    assert!(host.run(create_sq(2, 1)).status().is_success());
    let row = &host.controller.segment().submission_queues[2];
    assert_eq!((row.cqid.load(Ordering::Relaxed), row.entries.load(Ordering::Relaxed)), (1, 16));
    assert_eq!(row.worker.load(Ordering::Relaxed) as usize, worker);
}

/// What a former queue of the same identifiers left, in the page or in the shadow buffer, is no command of the new one.
#[test]
fn queues_made_again_begin_at_zero_wherever_their_host_rings() {
    for shadow in [false, true] {
        let mut host = Host::enabled();
        host.acknowledge();
        let (doorbells, events) = (DATA, DATA + 0x1_0000);
        if shadow {
            let config = admin(AdminOpcode::DOORBELL_BUFFER_CONFIG);
            let config = config.with_prps(Iova(doorbells), Iova(events));
            assert!(host.run(config).status().is_success());
        }
        let cells = |host: &Host| {
            let word = |at: u64| {
                let mut bytes = [0; 4];
                host.memory.read(ipc::Iova(at), &mut bytes).unwrap();
                u32::from_le_bytes(bytes)
            };
            let page = [host.doorbells.load(2), host.doorbells.load(3)];
            let buffers = [doorbells + 8, doorbells + 12, events + 8, events + 12].map(word);
            (page, buffers)
        };
        let stale = |host: &mut Host| {
            host.doorbells.store(2, 7);
            host.doorbells.store(3, 5);
            for buffer in [doorbells, events] {
                host.fill(buffer, &[9; 32]);
            }
        };
        let left = if shadow { [0; 4] } else { [0x0909_0909; 4] };
        for _ in 0..2 {
            stale(&mut host);
            assert!(host.run(create_cq(1)).status().is_success());
            assert!(host.run(create_sq(1, 1)).status().is_success());
            assert_eq!(cells(&host), ([0; 2], left), "created, shadow: {shadow}");
            stale(&mut host);
            assert!(host.run(delete_sq(1)).status().is_success());
            assert!(host.run(delete_cq(1)).status().is_success());
            assert_eq!(cells(&host), ([0; 2], left), "deleted, shadow: {shadow}");
        }
    }
}

#[test]
fn completion_queues_spread_and_their_submission_queues_follow() {
    let mut host = Host::enabled();
    for qid in 1..=8 {
        assert!(host.run(create_cq(qid)).status().is_success());
    }
    let segment = host.controller.segment().clone();
    let worker = |qid: usize| segment.completion_queues[qid].worker.load(Ordering::Relaxed);
    assert_eq!((1..=8).filter(|&qid| worker(qid) == 0).count(), 4);
    for (sqid, cqid) in [(1, 3), (2, 3), (3, 3), (4, 6)] {
        assert!(host.run(create_sq(sqid, cqid)).status().is_success());
        let row = &segment.submission_queues[usize::from(sqid)];
        assert_eq!(row.worker.load(Ordering::Relaxed), worker(usize::from(cqid)));
    }
}

#[test]
fn an_invalid_completion_queue_is_refused() {
    let mut host = Host::enabled();
    assert!(host.run(create_cq(1)).status().is_success());
    let base = create_cq(2);
    let cases = [
        ("admin", create_cq(0), Status::INVALID_QUEUE_ID),
        ("beyond", create_cq(9), Status::INVALID_QUEUE_ID),
        ("far beyond", create_cq(0xFFFF), Status::INVALID_QUEUE_ID),
        ("in use", create_cq(1), Status::INVALID_QUEUE_ID),
        ("one entry", Command { cdw10: 2, ..base }, Status::INVALID_QUEUE_SIZE),
        ("too many", Command { cdw10: 4096 << 16 | 2, ..base }, Status::INVALID_QUEUE_SIZE),
        ("most", Command { cdw10: 0xFFFF << 16 | 2, ..base }, Status::INVALID_QUEUE_SIZE),
        ("not contiguous", Command { cdw11: 0b10, ..base }, Status::INVALID_FIELD),
        ("vector", Command { cdw11: 4 << 16 | 0b11, ..base }, Status::INVALID_INTERRUPT_VECTOR),
        ("offset", base.with_prps(Iova(QUEUE + 8), Iova(0)), Status::PRP_OFFSET_INVALID),
    ];
    for (what, command, status) in cases {
        assert_eq!(host.status(command), status, "{what}");
    }
    let without_interrupts = Command { cdw11: 4 << 16 | 1, ..base };
    assert!(host.run(without_interrupts).status().is_success());
    let largest = Command { cdw10: 4095 << 16 | 3, ..create_cq(3) };
    assert!(host.run(largest).status().is_success());
}

#[test]
fn an_invalid_submission_queue_is_refused() {
    let mut host = Host::enabled();
    assert!(host.run(create_cq(1)).status().is_success());
    assert!(host.run(create_sq(1, 1)).status().is_success());
    let base = create_sq(2, 1);
    let cases = [
        ("admin", create_sq(0, 1), Status::INVALID_QUEUE_ID),
        ("beyond", create_sq(9, 1), Status::INVALID_QUEUE_ID),
        ("in use", create_sq(1, 1), Status::INVALID_QUEUE_ID),
        ("admin completion queue", create_sq(2, 0), Status::INVALID_QUEUE_ID),
        ("completion queue beyond", create_sq(2, 9), Status::INVALID_QUEUE_ID),
        ("no completion queue", create_sq(2, 2), Status::COMPLETION_QUEUE_INVALID),
        ("one entry", Command { cdw10: 2, ..base }, Status::INVALID_QUEUE_SIZE),
        ("too many", Command { cdw10: 4096 << 16 | 2, ..base }, Status::INVALID_QUEUE_SIZE),
        ("not contiguous", Command { cdw11: 1 << 16, ..base }, Status::INVALID_FIELD),
        ("nvm set", Command { cdw12: 1, ..base }, Status::INVALID_FIELD),
        ("offset", base.with_prps(Iova(QUEUE + 0x800), Iova(0)), Status::PRP_OFFSET_INVALID),
    ];
    for (what, command, status) in cases {
        assert_eq!(host.status(command), status, "{what}");
    }
}

#[test]
fn entry_sizes_are_checked_when_a_queue_is_made() {
    let mut host = Host::new();
    host.enable_with(Host::cc().with_iosqes(0).with_iocqes(0));
    assert_eq!(host.status(create_cq(1)), Status::INVALID_QUEUE_SIZE);
    host.write32(offset::CC, Host::cc().with_iosqes(7).into_bits());
    assert!(host.run(create_cq(1)).status().is_success());
    assert_eq!(host.status(create_sq(1, 1)), Status::INVALID_QUEUE_SIZE);
    host.write32(offset::CC, Host::cc().into_bits());
    assert!(host.run(create_sq(1, 1)).status().is_success());
}

#[test]
fn queues_are_page_aligned_at_every_page_size() {
    let mut host = Host::new();
    host.enable_with(Host::cc().with_mps(4));
    let aligned_to_4k = create_cq(1).with_prps(Iova(QUEUE + 0x1000), Iova(0));
    assert_eq!(host.status(aligned_to_4k), Status::PRP_OFFSET_INVALID);
    assert!(host.run(create_cq(1)).status().is_success());
}

#[test]
fn deletion_waits_for_the_worker_and_goes_in_order() {
    let mut host = Host::enabled();
    host.run(create_cq(1));
    host.run(create_sq(1, 1));
    assert_eq!(host.status(delete_cq(1)), Status::INVALID_QUEUE_DELETION);
    for qid in [0, 2, 128, 0xFFFF] {
        assert_eq!(host.status(delete_sq(qid)), Status::INVALID_QUEUE_ID);
        assert_eq!(host.status(delete_cq(qid)), Status::INVALID_QUEUE_ID);
    }
    host.submit(delete_sq(1));
    host.submit(delete_sq(1));
    host.submit(delete_cq(1));
    host.submit(create_sq(1, 1));
    host.process();
    let early: Vec<_> =
        std::iter::from_fn(|| host.completion()).map(|c| c.status().code()).collect();
    let invalid = Status::INVALID_QUEUE_ID;
    assert_eq!(early, [invalid, Status::INVALID_QUEUE_DELETION, invalid], "while it is deleted");
    let row = &host.controller.segment().submission_queues[1];
    assert_eq!(row.state.load(Ordering::Relaxed), QueueState::Deleting as u32);
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success());
    let row = &host.controller.segment().submission_queues[1];
    assert_eq!(row.state.load(Ordering::Relaxed), QueueState::Free as u32);
    assert!(host.run(delete_cq(1)).status().is_success());
    assert_eq!(host.status(delete_cq(1)), Status::INVALID_QUEUE_ID);
}

#[test]
fn a_queue_made_again_is_another_generation() {
    let mut host = Host::enabled();
    host.run(create_cq(1));
    let segment = host.controller.segment().clone();
    let first = segment.completion_queues[1].generation.load(Ordering::Relaxed);
    host.run(delete_cq(1));
    host.run(create_cq(1));
    assert_ne!(segment.completion_queues[1].generation.load(Ordering::Relaxed), first);
}

#[test]
fn a_queue_waits_for_a_worker_that_serves_the_controller() {
    let mut host = Host::enabled();
    host.workers.iter_mut().for_each(|seat| seat.attached = false);
    host.submit(create_cq(1));
    host.process();
    host.acknowledge();
    assert!(host.completion().is_none(), "no worker is there");
    // The same queue once more: whichever comes first takes the place.
    host.submit(create_cq(1));
    host.process();
    host.workers.iter_mut().for_each(|seat| seat.attached = true);
    host.call(|controller, cx| controller.poll(cx));
    host.acknowledge();
    let statuses = [host.completion().unwrap().status(), host.completion().unwrap().status()];
    assert_eq!(statuses.iter().filter(|status| status.is_success()).count(), 1, "{statuses:?}");
    assert!(
        statuses.iter().any(|status| status.code() == Status::INVALID_QUEUE_ID),
        "{statuses:?}"
    );
    // A reset ends the wait.
    host.workers.iter_mut().for_each(|seat| seat.attached = false);
    host.submit(create_cq(2));
    host.process();
    host.enable();
    host.workers.iter_mut().for_each(|seat| seat.attached = true);
    host.call(|controller, cx| controller.poll(cx));
    host.acknowledge();
    assert!(host.completion().is_none(), "a command of before the reset");
}

#[test]
fn number_of_queues_is_settled_before_there_are_any() {
    let mut host = Host::enabled();
    let set = Command {
        cdw10: u32::from(FeatureId::NUMBER_OF_QUEUES.0),
        cdw11: 63 << 16 | 63,
        ..admin(AdminOpcode::SET_FEATURES)
    };
    assert_eq!(host.run(set).dw0, 7 << 16 | 7);
    for cdw11 in [0xFFFF, 0xFFFF << 16] {
        assert_eq!(host.status(Command { cdw11, ..set }), Status::INVALID_FIELD);
    }
    host.run(create_cq(1));
    assert_eq!(host.status(set), Status::COMMAND_SEQUENCE_ERROR);
}

#[test]
fn more_waiting_commands_than_are_held_stay_in_the_queue() {
    let mut host = Host::enabled();
    host.acknowledge();
    let segment = host.controller.segment().clone();
    let fetched = || segment.admin.fetched.load(Ordering::Relaxed);
    let submit = |host: &mut Host| {
        (0..31).for_each(|_| {
            host.submit(crate::feature::set(FeatureId::ARBITRATION, 0));
        });
        while host.process() {}
    };
    submit(&mut host);
    assert_eq!(fetched(), 31);
    submit(&mut host);
    assert_eq!(fetched(), 32, "as many as wait at a time");
    assert!(host.completion().is_none());
    let mut done = 0;
    for _ in 0..8 {
        host.acknowledge();
        done += std::iter::from_fn(|| host.completion()).count();
        host.process();
    }
    assert_eq!((done, fetched()), (62, 62));
}
