//! Abort.

use crate::event::request;
use crate::host::{Host, admin};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::{CommandId, Status};
use std::sync::atomic::Ordering;

fn abort(sqid: u16, cid: CommandId) -> Command {
    Command { cdw10: u32::from(cid.0) << 16 | u32::from(sqid), ..admin(AdminOpcode::ABORT) }
}

fn with_queue() -> (Host, usize) {
    let mut host = Host::enabled();
    host.run(crate::queue::create_cq(1));
    host.run(crate::queue::create_sq(1, 1));
    let row = &host.controller.segment().submission_queues[1];
    let worker = row.worker.load(Ordering::Relaxed) as usize;
    (host, worker)
}

fn answer(host: &mut Host, worker: usize, aborted: u32) {
    let number = host.controller.segment().settings.abort_number.load(Ordering::Acquire);
    let acknowledged = &host.workers[worker].queues.acknowledged;
    acknowledged.aborted.store(aborted, Ordering::Relaxed);
    acknowledged.abort_number.store(number, Ordering::Release);
    host.call(|controller, cx| controller.poll(cx));
}

#[test]
fn the_worker_of_the_queue_answers() {
    for aborted in [1, 0] {
        let (mut host, worker) = with_queue();
        let cid = host.submit(abort(1, CommandId(0x1234)));
        host.process();
        host.acknowledge();
        let command = host.controller.segment().settings.abort_command.load(Ordering::Relaxed);
        assert_eq!(command, 1 << 16 | 0x1234);
        assert!(host.completion().is_none());
        answer(&mut host, 1 - worker, 1);
        assert!(host.completion().is_none(), "another worker's answer");
        answer(&mut host, worker, aborted);
        let entry = host.completion().unwrap();
        assert_eq!((entry.cid, entry.dw0), (cid, 1 - aborted));
    }
}

#[test]
fn aborts_are_sent_one_at_a_time_up_to_the_limit() {
    let (mut host, worker) = with_queue();
    for target in 0..5 {
        host.submit(abort(1, CommandId(target)));
    }
    host.process();
    let refused = host.completion().unwrap();
    assert_eq!(refused.status().code(), Status::ABORT_LIMIT_EXCEEDED);
    for target in 0..4 {
        let command = host.controller.segment().settings.abort_command.load(Ordering::Relaxed);
        assert_eq!(command, 1 << 16 | target);
        assert!(host.completion().is_none());
        answer(&mut host, worker, 1);
        let next = host.controller.segment().settings.abort_command.load(Ordering::Relaxed);
        assert_eq!(next, 1 << 16 | target, "until every worker has seen it");
        answer(&mut host, 1 - worker, 0);
        assert_eq!(host.completion().unwrap().dw0, 0);
    }
}

#[test]
fn what_is_not_there_is_not_aborted() {
    let (mut host, _) = with_queue();
    for sqid in [2, 127, 128, 0xFFFF] {
        assert_eq!(host.run(abort(sqid, CommandId(1))).dw0, 1);
    }
    assert_eq!(host.run(abort(0, CommandId(0x7777))).dw0, 1);
}

#[test]
fn a_held_event_request_is_aborted() {
    let mut host = Host::enabled();
    let held = host.submit(request());
    host.process();
    let aborting = host.submit(abort(0, held));
    host.process();
    let first = host.completion().unwrap();
    assert_eq!((first.cid, first.status().code()), (held, Status::ABORT_REQUESTED));
    let second = host.completion().unwrap();
    assert_eq!((second.cid, second.dw0), (aborting, 0));
}

#[test]
fn an_abort_ends_when_its_worker_dies_or_its_queue_goes() {
    let (mut host, worker) = with_queue();
    host.submit(abort(1, CommandId(1)));
    host.submit(abort(1, CommandId(2)));
    host.process();
    host.submit(crate::queue::delete_sq(1));
    host.process();
    host.workers[worker].attached = false;
    answer(&mut host, 1 - worker, 0);
    let done: Vec<_> = std::iter::from_fn(|| host.completion()).collect();
    assert_eq!(done.len(), 3);
    assert_eq!((done[0].dw0, done[1].dw0), (1, 1));
}
