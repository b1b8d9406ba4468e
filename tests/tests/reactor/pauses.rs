//! Pauses: what goes on to its end, what waits, and what becomes of it.

use crate::limits::{Limits, MILLISECOND, Reader, SECOND, abort, statuses};
use crate::worker::{ENTRIES, Worker, null};
use ipc::layout::limits::Rate;
use ipc::layout::queues::QueuesLayout;
use nvme_spec::Status;
use std::sync::atomic::Ordering;
use vireo_tests::client::Rig;

/// Pauses, or goes on. Returns the number.
fn pause(worker: &mut Worker, rig: &Rig) -> u64 {
    let number = rig.layout.settings.pause_number.fetch_add(1, Ordering::Relaxed) + 1;
    worker.settle(rig);
    number
}

fn paused(queues: &QueuesLayout) -> u64 {
    queues.acknowledged.pause_number.load(Ordering::Acquire)
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_holds_the_rest() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(10 * MILLISECOND)));
    let mut reader = Reader::new(&rig, 1);
    reader.fill(4);
    worker.polls(10);
    let number = pause(&mut worker, &rig);
    assert_ne!(paused(&rig.queues), number, "four are in flight");
    reader.fill(12);
    worker.pass(11 * MILLISECOND);
    worker.polls(10);
    assert_eq!((reader.take(), paused(&rig.queues)), (4, number));
    worker.pass(SECOND);
    assert_eq!(reader.take(), 0, "nothing is fetched");
    let fetched = rig.queues.submission_queues[1].fetched.load(Ordering::Relaxed);
    assert_eq!(fetched, 4);
    assert!(worker.reactor.prepare_sleep(), "there is nothing to do");
    worker.reactor.woken();
    // A queue that is made, and one that is deleted, need no I/O.
    let number = pause(&mut worker, &rig);
    assert_eq!(paused(&rig.queues), number, "it goes on at once");
    worker.polls(10);
    worker.pass(11 * MILLISECOND);
    assert_eq!(reader.take(), 8);
}

#[test]
fn what_waits_for_a_limit_waits_through_a_pause() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 100, &mut worker, &[&rig]);
    let mut reader = Reader::new(&rig, 1);
    reader.fill(40);
    worker.polls(50);
    let done = reader.take();
    let number = pause(&mut worker, &rig);
    assert_eq!(paused(&rig.queues), number);
    worker.pass(10 * SECOND);
    assert_eq!(reader.take(), 0);
    assert!(worker.reactor.prepare_sleep());
    assert_eq!(worker.reactor.deadline(), None, "only a resumption helps");
    worker.reactor.woken();
    assert!(abort(&mut worker, &rig, 1, 39), "it is aborted all the same");
    assert_eq!(statuses(&mut reader.queue), [(39, Status::ABORT_REQUESTED)]);
    reader.outstanding -= 1;
    pause(&mut worker, &rig);
    for _ in 0..1000 {
        worker.pass(MILLISECOND);
        reader.take();
    }
    assert_eq!(reader.done, 39);
    assert!(done < 20, "{done} went before the pause");
}

#[test]
fn a_shutdown_ends_what_a_pause_holds() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 1, &mut worker, &[&rig]);
    let mut reader = Reader::new(&rig, 1);
    reader.fill(5);
    worker.polls(50);
    reader.take();
    pause(&mut worker, &rig);
    let stopped = ipc::layout::controller::ControllerState::Stopped as u32;
    rig.layout.signals.state.store(stopped, Ordering::Relaxed);
    worker.settle(&rig);
    let cids: Vec<u16> = statuses(&mut reader.queue).into_iter().map(|(cid, _)| cid).collect();
    assert_eq!(cids, [1, 2, 3, 4]);
}
