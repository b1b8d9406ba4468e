//! Limits: what waits, for how long, and what becomes of it.

use crate::worker::{BLOCKS, ENTRIES, Worker, complete, io, malloc, null, read};
use ipc::layout::limits::{LimitsLayout, RATES, Rate};
use ipc::segment::Segment;
use nvme_spec::command::{Command, Fuse, NvmOpcode};
use nvme_spec::{CommandId, Nsid, Status};
use std::sync::atomic::Ordering;
use vireo_tests::client::{Queue, Rig};
use vireo_worker::reactor::Message;

pub const MILLISECOND: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MILLISECOND;

/// The limits of a subsystem.
pub struct Limits(Segment<LimitsLayout>);

impl Limits {
    pub fn new() -> Self {
        Self(Segment::create("limits", 9).expect("memfd"))
    }

    /// A controller in `row` with queues of `entries`, and a namespace of a memory device.
    pub fn attach(&self, worker: &mut Worker, row: u32, queues: usize, entries: u32) -> Rig {
        // No machine's clock is where it began.
        worker.pass(SECOND);
        let (rig, mut controller) = Rig::new(row.into(), queues);
        let fd = self.0.fd().try_clone_to_owned().expect("descriptor");
        controller.limit_by(Segment::open(fd).expect("map"), row);
        rig.add_namespace(0, BLOCKS, 9);
        (1..=queues).for_each(|qid| rig.add_queue(qid, entries, Some(qid as u32)));
        worker.send(Message::Attach(Box::new(controller)));
        worker.settle(&rig);
        worker.send(rig.channel(0, malloc().1));
        worker.polls(2);
        rig
    }

    /// Limits a namespace, and has the workers of `rigs` see it.
    pub fn namespace(
        &self,
        row: usize,
        rate: Rate,
        value: u64,
        worker: &mut Worker,
        rigs: &[&Rig],
    ) {
        self.set(&self.0.namespaces[row], rate, value, worker, rigs);
    }

    /// The same of a controller.
    pub fn controller(
        &self,
        row: usize,
        rate: Rate,
        value: u64,
        worker: &mut Worker,
        rigs: &[&Rig],
    ) {
        self.set(&self.0.controllers[row], rate, value, worker, rigs);
    }

    fn set(
        &self,
        row: &ipc::layout::limits::LimitRow,
        rate: Rate,
        value: u64,
        worker: &mut Worker,
        rigs: &[&Rig],
    ) {
        let mut rates = [0; RATES];
        rates[rate as usize] = value;
        row.set(rates);
        self.0.generation.0.fetch_add(1, Ordering::Release);
        rigs.iter().for_each(|rig| worker.settle(rig));
    }
}

/// A guest that keeps reads outstanding.
pub struct Reader<'a> {
    pub queue: Queue<'a>,
    read: Command,
    pub outstanding: u16,
    next: u16,
    pub done: u64,
}

impl<'a> Reader<'a> {
    pub fn new(rig: &'a Rig, qid: usize) -> Self {
        Self::of(rig, qid, ENTRIES, Nsid(1))
    }

    /// Of another namespace, by a queue of another length.
    pub fn of(rig: &'a Rig, qid: usize, entries: u32, nsid: Nsid) -> Self {
        let read = Command { nsid, ..read(0, 0, rig.buffers(qid)) };
        Self { queue: rig.queue(qid, entries), read, outstanding: 0, next: 0, done: 0 }
    }

    pub fn fill(&mut self, depth: u16) {
        while self.outstanding < depth {
            let cdw0 = self.read.cdw0.with_cid(CommandId(self.next));
            self.queue.push(Command { cdw0, ..self.read });
            self.next = (self.next + 1) % 1000;
            self.outstanding += 1;
        }
        self.queue.ring();
    }

    /// Takes what completed; every command succeeds.
    pub fn take(&mut self) -> u64 {
        let mut taken = 0;
        while let Some(entry) = self.queue.pop() {
            assert!(entry.status().is_success(), "{entry:?}");
            taken += 1;
        }
        self.queue.acknowledge();
        self.outstanding -= taken as u16;
        self.done += taken;
        taken
    }
}

/// Lets readers of that depth read for so long, in steps of a millisecond.
fn run(worker: &mut Worker, readers: &mut [Reader<'_>], depth: u16, nanoseconds: u64) {
    for _ in 0..nanoseconds / MILLISECOND {
        readers.iter_mut().for_each(|reader| reader.fill(depth));
        worker.pass(MILLISECOND);
        for reader in readers.iter_mut() {
            reader.take();
        }
    }
}

#[track_caller]
fn near(count: u64, expected: u64) {
    // A burst of 100 ms more, and what is under way at the ends.
    let bounds = expected..=expected + expected / 10 + 2;
    assert!(bounds.contains(&count), "{count} is not in {bounds:?}");
}

#[test]
fn a_limit_is_kept_changed_and_removed_while_commands_run() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    let mut readers = [Reader::new(&rig, 1)];
    run(&mut worker, &mut readers, 32, 20 * MILLISECOND);
    assert!(readers[0].done >= 20 * 31, "nothing is limited: {}", readers[0].done);

    limits.namespace(0, Rate::Iops, 2000, &mut worker, &[&rig]);
    let before = readers[0].done;
    run(&mut worker, &mut readers, 32, SECOND);
    near(readers[0].done - before, 2000);

    limits.namespace(0, Rate::Bandwidth, 4096 * 500, &mut worker, &[&rig]);
    let before = readers[0].done;
    run(&mut worker, &mut readers, 32, SECOND);
    near(readers[0].done - before, 500);
    let throttled = &rig.queues.throttled[0];
    assert!(throttled.commands.load(Ordering::Relaxed) > 500);
    assert!(throttled.waited_ns.load(Ordering::Relaxed) > SECOND, "32 wait at a time");

    limits.namespace(0, Rate::Bandwidth, 0, &mut worker, &[&rig]);
    let before = readers[0].done;
    run(&mut worker, &mut readers, 32, 20 * MILLISECOND);
    assert!(readers[0].done - before >= 20 * 31, "what waited goes, and nothing waits any more");
}

#[test]
fn a_controllers_limit_is_that_of_all_its_queues() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 5, 3, ENTRIES);
    limits.controller(5, Rate::ReadIops, 1200, &mut worker, &[&rig]);
    let mut readers = [1, 2, 3].map(|qid| Reader::new(&rig, qid));
    run(&mut worker, &mut readers, 8, SECOND);
    near(readers.iter().map(|reader| reader.done).sum(), 1200);
    // Others' limits are not its own.
    limits.controller(4, Rate::Iops, 1, &mut worker, &[&rig]);
    limits.controller(5, Rate::WriteIops, 1, &mut worker, &[&rig]);
    let before = readers[0].done;
    run(&mut worker, &mut readers, 8, 20 * MILLISECOND);
    assert!(readers[0].done - before >= 19 * 8, "reads are no writes");
}

#[test]
fn controllers_that_share_a_namespace_share_its_limit_evenly() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rigs = [0, 1].map(|row| limits.attach(&mut worker, row, 1, ENTRIES));
    limits.namespace(0, Rate::Iops, 2000, &mut worker, &[&rigs[0], &rigs[1]]);
    let mut readers = [Reader::new(&rigs[0], 1), Reader::new(&rigs[1], 1)];
    for _ in 0..1000 {
        // One is greedy, the other has two commands at a time.
        readers[0].fill(48);
        readers[1].fill(2);
        worker.pass(MILLISECOND);
        for reader in readers.iter_mut() {
            reader.take();
        }
    }
    let [greedy, modest] = [readers[0].done, readers[1].done];
    near(greedy + modest, 2000);
    assert!(modest > 600, "the greedy one leaves {modest} of {}", greedy + modest);
}

#[test]
fn a_transfer_larger_than_a_burst_passes_and_is_paid_for() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Bandwidth, 64 << 10, &mut worker, &[&rig]);
    let mut queue = rig.queue(1, ENTRIES);
    // A second's share, in one command after the other.
    for cid in 0..8 {
        let entry =
            complete(&mut worker, &mut queue, io(NvmOpcode::WRITE, cid, 0, 16, rig.buffers(1)));
        assert!(entry.status().is_success());
        worker.pass(125 * MILLISECOND);
    }
    queue.push(io(NvmOpcode::WRITE, 9, 0, 16, rig.buffers(1)));
    queue.push(io(NvmOpcode::WRITE, 10, 0, 16, rig.buffers(1)));
    queue.ring();
    worker.polls(100);
    assert!(queue.pop().is_some());
    assert!(queue.pop().is_none(), "the second waits for the first to be paid");
    worker.pass(130 * MILLISECOND);
    assert!(queue.pop().is_some());
}

#[test]
fn a_thread_sleeps_until_the_next_command_is_due() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 10, &mut worker, &[&rig]);
    let mut reader = Reader::new(&rig, 1);
    reader.fill(8);
    worker.polls(200);
    assert_eq!(reader.take(), 2, "one, and what was saved up");
    let now = worker.reactor.now();
    let due = worker.reactor.deadline().expect("something is due");
    assert!((now + 1..=now + 100 * MILLISECOND).contains(&due), "{due} at {now}");
    assert!(worker.reactor.prepare_sleep(), "there is nothing to do");
    worker.reactor.woken();
    worker.pass(due - now - 1);
    assert_eq!(reader.take(), 0);
    worker.pass(1);
    assert_eq!(reader.take(), 1);
}

#[test]
fn other_namespaces_and_queues_go_on() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let entries = 4096;
    let rig = limits.attach(&mut worker, 0, 2, entries);
    rig.add_namespace(1, BLOCKS, 9);
    worker.settle(&rig);
    worker.send(rig.channel(1, null(0)));
    limits.namespace(0, Rate::Iops, 1, &mut worker, &[&rig]);
    // More than there are slots, of the limited namespace.
    let mut limited = worker.overfill(&rig, entries);
    let mut other = Reader::of(&rig, 2, entries, Nsid(2));
    run(&mut worker, std::slice::from_mut(&mut other), 16, 20 * MILLISECOND);
    assert!(other.done >= 19 * 16, "the other queue finds slots: {}", other.done);
    // In one queue, commands of another namespace pass those that wait.
    limits.namespace(0, Rate::Iops, 0, &mut worker, &[&rig]);
    worker.polls(5000);
    let done = std::iter::from_fn(|| limited.pop()).count();
    assert_eq!(done, entries as usize - 1, "what waited is all done");
    limited.acknowledge();
    limits.namespace(0, Rate::Iops, 1, &mut worker, &[&rig]);
    for cid in 0..3 {
        limited.push(read(cid, 0, rig.buffers(1)));
    }
    limited.push(Command { nsid: Nsid(2), ..read(3, 0, rig.buffers(1)) });
    limited.ring();
    worker.polls(100);
    let done: Vec<u16> = std::iter::from_fn(|| limited.pop()).map(|entry| entry.cid.0).collect();
    assert_eq!(done, [0, 3]);
}

/// Has the worker look for a command to abort, and answers whether it was.
pub fn abort(worker: &mut Worker, rig: &Rig, sqid: u16, cid: u16) -> bool {
    let settings = &rig.layout.settings;
    settings.abort_command.store(u32::from(sqid) << 16 | u32::from(cid), Ordering::Relaxed);
    settings.abort_number.fetch_add(1, Ordering::Release);
    worker.settle(rig);
    rig.queues.acknowledged.aborted.load(Ordering::Relaxed) == 1
}

pub fn statuses(queue: &mut Queue<'_>) -> Vec<(u16, Status)> {
    let entries = std::iter::from_fn(|| queue.pop());
    let found = entries.map(|entry| (entry.cid.0, entry.status().code())).collect();
    queue.acknowledge();
    found
}

#[test]
fn waiting_commands_are_aborted_and_end_with_their_queue() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 2, ENTRIES);
    limits.namespace(0, Rate::Iops, 1, &mut worker, &[&rig]);
    let [mut first, mut second] = [1, 2].map(|qid| rig.queue(qid, ENTRIES));
    for (queue, cids) in [(&mut first, 0..6), (&mut second, 6..8)] {
        cids.for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        worker.polls(10);
    }
    assert_eq!(statuses(&mut first), [(0, Status::SUCCESS)]);
    assert!(abort(&mut worker, &rig, 1, 3), "in the middle of the line");
    assert!(abort(&mut worker, &rig, 1, 1), "the first, which has its place");
    assert!(!abort(&mut worker, &rig, 1, 0), "that one is done");
    assert!(!abort(&mut worker, &rig, 2, 2), "that one is another queue's");
    let aborted = Status::ABORT_REQUESTED;
    assert_eq!(statuses(&mut first), [(3, aborted), (1, aborted)]);

    worker.delete_queue(&rig, 1);
    let deleted = Status::ABORTED_SQ_DELETION;
    assert_eq!(statuses(&mut first), [2, 4, 5].map(|cid| (cid, deleted)));
    // Who is left waits no longer for those who are gone.
    worker.pass(SECOND + MILLISECOND);
    assert_eq!(statuses(&mut second), [(6, Status::SUCCESS)]);
}

#[test]
fn a_reset_drops_what_waits() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 1, &mut worker, &[&rig]);
    for round in 0..20 {
        let mut reader = Reader::new(&rig, 1);
        reader.fill(40);
        worker.polls(50);
        assert!(reader.take() <= 1, "round {round}");
        worker.reset(&rig);
    }
    // What was dropped is not to be paid for: one second, one command.
    worker.pass(SECOND + MILLISECOND);
    let mut queue = rig.queue(1, ENTRIES);
    assert!(complete(&mut worker, &mut queue, read(1, 0, rig.buffers(1))).status().is_success());
}

#[test]
fn fused_pairs_wait_as_one() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 10, &mut worker, &[&rig]);
    let mut queue = rig.queue(1, ENTRIES);
    let fused = |opcode, cid, fuse| io(opcode, cid, 0, 1, rig.buffers(1)).with_fuse(fuse);
    for cid in [0, 10, 20, 30] {
        queue.push(fused(NvmOpcode::COMPARE, cid, Fuse::FIRST));
        queue.push(fused(NvmOpcode::WRITE, cid + 1, Fuse::SECOND));
        // Halves that find no other, whatever waits between them.
        queue.push(fused(NvmOpcode::COMPARE, cid + 2, Fuse::FIRST));
        queue.push(read(cid + 3, 0, rig.buffers(1)));
        queue.push(fused(NvmOpcode::WRITE, cid + 4, Fuse::SECOND));
    }
    queue.ring();
    let mut found = std::collections::BTreeMap::new();
    for _ in 0..200 {
        worker.pass(10 * MILLISECOND);
        found.extend(statuses(&mut queue));
    }
    assert_eq!(found.len(), 20);
    for (cid, status) in found {
        let expected = match cid % 10 {
            2 | 4 => Status::ABORTED_MISSING_FUSED,
            _ => Status::SUCCESS,
        };
        assert_eq!(status, expected, "command {cid}");
    }
}

#[test]
fn a_copy_is_paid_for_by_what_follows() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::WriteBandwidth, 64 << 10, &mut worker, &[&rig]);
    let mut queue = rig.queue(1, ENTRIES);
    let source = nvme_spec::nvm::CopyRange {
        slba: nvme_spec::Lba(0),
        // 256 blocks, 128 KiB: two seconds.
        nlb_z: 255,
        ..zerocopy::FromZeros::new_zeroed()
    };
    rig.at(rig.buffers(1), 32).copy_from(zerocopy::IntoBytes::as_bytes(&source));
    let mut copy = io(NvmOpcode::COPY, 1, 1024, 1, rig.buffers(1));
    copy.cdw12 = 0;
    assert!(complete(&mut worker, &mut queue, copy).status().is_success());
    queue.push(io(NvmOpcode::WRITE, 2, 0, 8, rig.buffers(1)));
    queue.push(read(3, 0, rig.buffers(1)));
    queue.ring();
    worker.pass(1500 * MILLISECOND);
    assert!(statuses(&mut queue).is_empty(), "both wait, in the order in which they came");
    worker.pass(600 * MILLISECOND);
    assert_eq!(statuses(&mut queue), [(2, Status::SUCCESS), (3, Status::SUCCESS)]);
}

#[test]
fn accounts_that_make_no_sense_hold_nobody_up_for_ever() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.namespace(0, Rate::Iops, 1000, &mut worker, &[&rig]);
    for nonsense in [u64::MAX, u64::MAX - 1, 1 << 63] {
        limits.0.namespaces[0].due.0.iter().for_each(|due| due.store(nonsense, Ordering::Relaxed));
        let mut queue = rig.queue(1, ENTRIES);
        rig.doorbells.clear();
        rig.add_queue(1, ENTRIES, Some(1));
        rig.at(rig.buffers(1) - vireo_tests::client::rig::BUFFERS_AT, 512 << 10).fill(0);
        worker.settle(&rig);
        queue.push(read(1, 0, rig.buffers(1)));
        queue.ring();
        worker.polls(100);
        worker.pass(65 * SECOND);
        worker.pass(1);
        assert_eq!(statuses(&mut queue), [(1, Status::SUCCESS)]);
    }
}

#[test]
fn a_command_without_a_namespace_is_refused_in_its_turn() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
    limits.controller(0, Rate::Iops, 10, &mut worker, &[&rig]);
    let mut queue = rig.queue(1, ENTRIES);
    for (cid, nsid) in
        [Nsid(1), Nsid(0), Nsid(9), Nsid(257), Nsid::BROADCAST].into_iter().enumerate()
    {
        queue.push(Command { nsid, ..read(cid as u16, 0, rig.buffers(1)) });
    }
    let flush = Command::nvm(NvmOpcode::FLUSH, CommandId(5), Nsid::BROADCAST);
    queue.push(flush);
    queue.ring();
    worker.polls(20);
    assert!(statuses(&mut queue).len() <= 2);
    let mut found = 0;
    for _ in 0..100 {
        worker.pass(10 * MILLISECOND);
        found += statuses(&mut queue).len();
    }
    assert_eq!(found, 4);
}
