//! Queues: log, positions, room, doorbells that cannot be, memory that is not contiguous.

use crate::worker::{ENTRIES, Worker, malloc, null, read, status_of};
use ipc::dma_table::DmaRow;
use ipc::guest_memory::{Access, RegionId};
use ipc::iova::Iova;
use ipc::layout::queues::{FailureReason, SlotState};
use nvme_spec::Status;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use vireo_tests::client::rig::{BASE, CQ_AT};
use vireo_tests::client::{Queue, Rig};

fn slots_in(rig: &Rig, state: SlotState) -> Vec<usize> {
    let slots = rig.queues.slots.iter().enumerate();
    slots.filter(|(_, slot)| slot.state.load(Acquire) == state as u32).map(|(at, _)| at).collect()
}

#[test]
fn slot_is_the_log_until_the_completion_is_posted() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(1000)));
    let mut queue = rig.queue(1, ENTRIES);
    let commands = [read(11, 0, rig.buffers(1)), read(12, 8, rig.buffers(1))];
    commands.iter().for_each(|&command| queue.push(command));
    queue.ring();
    worker.polls(2);
    assert_eq!(rig.queues.submission_queues[1].fetched.load(Acquire), 2);
    let logged = slots_in(&rig, SlotState::Logged);
    assert_eq!(logged.len(), 2);
    for (fetch, (&at, command)) in logged.iter().zip(&commands).enumerate() {
        let slot = &rig.queues.slots[at];
        assert_eq!(slot.fetch.load(Relaxed), fetch as u64);
        assert_eq!(slot.command.load(Relaxed), 1 << 16 | u32::from(command.cid().0));
        let words: [u64; 8] = std::array::from_fn(|word| slot.sqe[word].load(Relaxed));
        assert_eq!(words, command.into_words());
    }
    assert!(queue.pop().is_none());
    assert_eq!(rig.queues.completion_queues[1].posted.load(Acquire), 0);
    worker.pass(1000);
    assert!(queue.pop().is_some() && queue.pop().is_some());
    assert_eq!(rig.queues.completion_queues[1].posted.load(Acquire), 2);
    assert!(slots_in(&rig, SlotState::Logged).is_empty());
    assert!(slots_in(&rig, SlotState::Noted).is_empty());
    let slot = &rig.queues.slots[logged[0]];
    assert_eq!(slot.outcome.load(Relaxed), 0);
    assert_eq!(slot.group.load(Relaxed) >> 16, 1, "the completion queue of the note");
    let noted: Vec<u64> =
        logged.iter().map(|&at| rig.queues.slots[at].cq_position.load(Relaxed)).collect();
    assert_eq!(noted.iter().sum::<u64>(), 1, "positions 0 and 1: {noted:?}");
}

#[test]
fn full_completion_queue_loses_no_completion() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, 4, Some(null(0)));
    let mut queue = rig.queue(1, 4);
    let mut seen = Vec::new();
    let mut submitted = 0_u16;
    for round in 0..50 {
        // Never more than three outstanding in the submission queue's terms: it has room once fetched.
        let fetched = rig.queues.submission_queues[1].fetched.load(Acquire) as u16;
        while submitted - fetched < 3 {
            queue.push(read(submitted, 0, rig.buffers(1)));
            submitted += 1;
        }
        queue.ring();
        worker.polls(3);
        let posted = rig.queues.completion_queues[1].posted.load(Acquire);
        assert!(posted as usize <= seen.len() + 3, "an entry that was not reaped is overwritten");
        if round % 3 == 0 {
            while let Some(entry) = queue.pop() {
                assert!(entry.status().is_success());
                seen.push(entry.cid.0);
            }
            queue.acknowledge();
        }
    }
    assert!(seen.len() > 40);
    assert!(seen.iter().enumerate().all(|(at, &cid)| usize::from(cid) == at), "{seen:?}");
}

#[test]
fn tail_past_the_queue_stops_that_queue_alone() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, ENTRIES, Some(null(0)));
    rig.kick.drain().unwrap();
    rig.doorbells.store(2, ENTRIES);
    worker.polls(3);
    let position = &rig.queues.submission_queues[1];
    assert_eq!(position.invalid_doorbell.load(Acquire), ENTRIES + 1);
    assert!(rig.kick.drain().unwrap() > 0, "the frontend is told");
    assert_eq!(rig.queues.acknowledged.failure.load(Acquire), FailureReason::None as u32);
    let mut other = rig.queue(2, ENTRIES);
    let command = read(1, 0, rig.buffers(2));
    assert_eq!(status_of(&mut worker, &mut other, command), Status::SUCCESS);
    // What is in the queue is not fetched any more, until it is made anew.
    rig.doorbells.store(2, 1);
    worker.polls(3);
    assert_eq!(position.fetched.load(Acquire), 0);
    rig.doorbells.store(2, 0);
    rig.add_queue(1, ENTRIES, None);
    worker.settle(&rig);
    assert_eq!(position.invalid_doorbell.load(Acquire), 0);
    let mut again = rig.queue(1, ENTRIES);
    let command = read(1, 0, rig.buffers(1));
    assert_eq!(status_of(&mut worker, &mut again, command), Status::SUCCESS);
}

#[test]
fn head_past_what_was_posted_stops_that_queue_alone() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, 4, Some(null(0)));
    let mut queue = rig.queue(1, 4);
    rig.doorbells.store(3, 3);
    for cid in 0..3 {
        queue.push(read(cid, 0, rig.buffers(1)));
    }
    queue.ring();
    worker.polls(3);
    rig.doorbells.store(3, 9);
    queue.push(read(3, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    assert_eq!(rig.queues.completion_queues[1].invalid_doorbell.load(Acquire), 10);
    let mut other = rig.queue(2, 4);
    let command = read(1, 0, rig.buffers(2));
    assert_eq!(status_of(&mut worker, &mut other, command), Status::SUCCESS);
}

/// However the guest rings, there is nothing to do for it until the queue is made anew.
#[test]
fn worker_sleeps_on_a_head_that_cannot_be() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, 4, Some(null(0)));
    // Both submission queues complete to the first completion queue, which they fill.
    rig.layout.submission_queues[2].cqid.store(1, Relaxed);
    rig.layout.submission_queues[2].generation.fetch_add(1, Relaxed);
    worker.settle(&rig);
    let (mut first, mut second) = (rig.queue(1, 4), rig.queue(2, 4));
    (0..3).for_each(|cid| first.push(read(cid, 0, rig.buffers(1))));
    first.ring();
    worker.polls(3);
    second.push(read(3, 0, rig.buffers(1)));
    second.ring();
    rig.doorbells.store(3, 9);
    worker.polls(1000);
    assert_eq!(rig.queues.completion_queues[1].invalid_doorbell.load(Acquire), 10);
    assert_eq!(rig.queues.submission_queues[2].fetched.load(Acquire), 0);
    assert!(worker.reactor.prepare_sleep(), "nothing can be done for this guest");
    worker.reactor.woken();
    // A submission queue that is made for it is not served either.
    rig.layout.submission_queues[2].generation.fetch_add(1, Relaxed);
    worker.settle(&rig);
    worker.polls(1000);
    assert_eq!(rig.queues.submission_queues[2].fetched.load(Acquire), 0);
    assert!(worker.reactor.prepare_sleep(), "nothing can be done for this guest");
    worker.reactor.woken();
    rig.doorbells.store(3, 0);
    rig.doorbells.store(2, 0);
    rig.add_queue(1, 4, Some(1));
    worker.settle(&rig);
    let command = read(4, 0, rig.buffers(1));
    assert_eq!(status_of(&mut worker, &mut rig.queue(1, 4), command), Status::SUCCESS);
}

#[test]
fn one_queue_does_not_starve_another() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 2, 1024, Some(null(0)));
    let mut greedy = rig.queue(1, 1024);
    (0..1023).for_each(|cid| greedy.push(read(cid % 128, 0, rig.buffers(1))));
    greedy.ring();
    let mut modest = rig.queue(2, 1024);
    modest.push(read(1, 0, rig.buffers(2)));
    modest.ring();
    worker.polls(1);
    assert!(modest.pop().is_some());
    let fetched = rig.queues.submission_queues[1].fetched.load(Acquire);
    assert!(fetched <= 32, "a bounded burst: {fetched}");
}

#[test]
fn queues_need_not_be_contiguous_in_memory() {
    let mut worker = Worker::new();
    let (_, channel) = malloc();
    let mut rig = worker.attach(1, 1, 1024, Some(channel));
    // The same memory once more, at other addresses, its pages in reverse order.
    let (elsewhere, pages) = (BASE + (64 << 30), 24_u64);
    for page in 0..pages {
        let row = DmaRow {
            iova: Iova(elsewhere + page * 4096),
            size: 4096,
            region: Some(RegionId(0)),
            offset: (pages - 1 - page) * 4096,
            access: Access::READ_WRITE,
        };
        rig.dma.map(row).expect("room");
    }
    // 16 pages of entries, then 4 pages of completions.
    rig.add_queue(1, 1024, None);
    rig.layout.submission_queues[1].base.store(elsewhere, Relaxed);
    rig.layout.completion_queues[1].base.store(elsewhere + 16 * 4096, Relaxed);
    worker.settle(&rig);
    let place = |offset: u64| {
        let (page, within) = (offset / 4096, offset % 4096);
        BASE + (pages - 1 - page) * 4096 + within
    };
    let (mut tail, mut head, mut phase) = (0_u64, 0_u64, true);
    for cid in 0..3000_u16 {
        let command = read(cid, 0, rig.buffers(1));
        rig.at(place(tail * 64), 64).store_words(0, command.into_words());
        tail = (tail + 1) % 1024;
        rig.doorbells.store(2, tail as u32);
        worker.polls(1);
        let entry = rig.at(place(16 * 4096 + head * 16), 16).load_words::<2>(0).unwrap();
        let entry = nvme_spec::Completion::from_halves(entry);
        assert_eq!((entry.phase(), entry.cid.0), (phase, cid));
        assert!(entry.status().is_success());
        head = (head + 1) % 1024;
        phase ^= head == 0;
        rig.doorbells.store(3, head as u32);
    }
}

#[test]
fn queue_without_memory_fails_the_controller_and_a_reset_mends_it() {
    let mut worker = Worker::new();
    let rig = worker.attach(1, 1, ENTRIES, Some(null(0)));
    rig.add_queue(1, ENTRIES, None);
    rig.layout.completion_queues[1].base.store(0x1000, Relaxed);
    worker.settle(&rig);
    let mut queue = rig.queue(1, ENTRIES);
    queue.push(read(1, 0, rig.buffers(1)));
    queue.ring();
    worker.polls(3);
    let failure = &rig.queues.acknowledged.failure;
    assert_eq!(failure.load(Acquire), FailureReason::QueueUnmapped as u32);
    rig.doorbells.clear();
    let generation =
        rig.layout.signals.reset_generation.fetch_add(1, std::sync::atomic::Ordering::Release) + 1;
    rig.add_queue(1, ENTRIES, None);
    assert_eq!(rig.layout.completion_queues[1].base.load(Relaxed), BASE + CQ_AT);
    worker.settle(&rig);
    assert_eq!(rig.queues.acknowledged.reset_generation.load(Acquire), generation);
    assert_eq!(failure.load(Acquire), FailureReason::None as u32);
    let mut queue: Queue<'_> = rig.queue(1, ENTRIES);
    let command = read(1, 0, rig.buffers(1));
    assert_eq!(status_of(&mut worker, &mut queue, command), Status::SUCCESS);
}
