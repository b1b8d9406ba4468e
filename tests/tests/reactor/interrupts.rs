//! When the guest is signalled, and when not.

use crate::worker::{ENTRIES, Worker, null, read};
use ipc::event::EventFd;
use std::sync::atomic::Ordering::Relaxed;
use vireo_tests::client::Rig;
use vireo_worker::controller::Change;

fn connect(worker: &mut Worker, rig: &Rig, vector: usize) -> EventFd {
    let event = EventFd::create().unwrap();
    let theirs = event.try_clone().unwrap();
    worker.change(rig, Change::SetVectors(vector, vec![Some(theirs)]));
    worker.polls(1);
    event
}

#[test]
fn idle_guest_is_signalled_once_per_batch() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let event = connect(&mut worker, &rig, 1);
    let mut queue = rig.queue(1, ENTRIES);
    for _ in 0..3 {
        (0..20).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        worker.polls(1);
        assert_eq!(event.drain().unwrap(), 1);
        while queue.pop().is_some() {}
        queue.acknowledge();
        worker.polls(5);
        assert_eq!(event.drain().unwrap(), 0);
    }
}

#[test]
fn reaping_guest_is_left_alone_until_it_stops() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let event = connect(&mut worker, &rig, 1);
    let mut queue = rig.queue(1, ENTRIES);
    let submit = |queue: &mut vireo_tests::client::Queue<'_>| {
        queue.push(read(1, 0, rig.buffers(1)));
        queue.ring();
    };
    submit(&mut queue);
    submit(&mut queue);
    worker.polls(1);
    assert_eq!(event.drain().unwrap(), 1);
    for _ in 0..10 {
        // It reaps one of two, then one more comes.
        queue.pop().unwrap();
        queue.acknowledge();
        submit(&mut queue);
        worker.polls(1);
        assert_eq!(event.drain().unwrap(), 0, "its head moves");
    }
    assert!(worker.reactor.poll() > 0, "an entry that is owed counts as work");
    worker.polls(3);
    assert_eq!(event.drain().unwrap(), 1, "two polls saw the same head");
    worker.polls(10);
    assert_eq!(event.drain().unwrap(), 0, "once");
}

#[test]
fn vector_without_an_eventfd_latches_and_fires_once() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let mut queue = rig.queue(1, ENTRIES);
    (0..3).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(5);
    assert_eq!(worker.reactor.poll(), 0, "nothing is owed any more");
    let event = connect(&mut worker, &rig, 1);
    assert_eq!(event.drain().unwrap(), 1);
    let other = connect(&mut worker, &rig, 1);
    assert_eq!(other.drain().unwrap(), 0);
}

#[test]
fn polled_queue_is_never_signalled() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    rig.add_queue(1, ENTRIES, None);
    worker.settle(&rig);
    let event = connect(&mut worker, &rig, 0);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(5);
    assert!(queue.pop().is_some());
    assert_eq!(event.drain().unwrap(), 0);
}

#[test]
fn coalescing_waits_for_number_or_time() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, ENTRIES, Some(null(0)));
    let settings = &rig.layout.settings;
    settings.coalescing_threshold.store(3, Relaxed);
    settings.coalescing_time.store(2, Relaxed);
    settings.coalescing_disabled[0].store(1 << 2, Relaxed);
    worker.settle(&rig);
    let (event, exempt) = (connect(&mut worker, &rig, 1), connect(&mut worker, &rig, 2));
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(0, 0, rig.buffers(1)));
    queue.ring();
    worker.pass(100_000);
    assert_eq!(event.drain().unwrap(), 0, "one of four, after 100 of 200 microseconds");
    worker.pass(150_000);
    assert_eq!(event.drain().unwrap(), 1, "the time is over");
    while queue.pop().is_some() {}
    queue.acknowledge();
    worker.polls(2);
    (0..4).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
    queue.ring();
    worker.polls(3);
    assert_eq!(event.drain().unwrap(), 1, "four of four");
    let mut other = rig.queue(2, ENTRIES);
    other.push(read(0, 0, rig.buffers(2)));
    other.ring();
    worker.polls(3);
    assert_eq!(exempt.drain().unwrap(), 1, "feature 09h exempts this vector");
}

#[test]
fn filled_blocking_eventfd_fails_its_controller_alone() {
    // The counter's greatest value: one more blocks a descriptor that blocks, and is EAGAIN here, where it does not.
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let event = connect(&mut worker, &rig, 1);
    nix::unistd::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(5);
    assert!(queue.pop().is_some(), "a full counter is a signal that was not taken yet");
}
