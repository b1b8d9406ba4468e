//! Devices and memory that fail, and random work against a model.

use crate::worker::{BLOCKS, ENTRIES, Worker, bytes, io, malloc, null, read, status_of};
use bdev::channel::AnyChannel;
use bdev::fault::{Effect, FaultChannel, Plan, Rule, When};
use bdev::request::{ErrorKind, Op};
use ipc::layout::queues::{FailureReason, SlotState};
use nix::unistd::ftruncate;
use nvme_spec::Status;
use nvme_spec::command::NvmOpcode;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Acquire;
use vireo_tests::random::Random;

#[test]
fn memory_that_is_taken_away_fails_its_controller_alone() {
    let mut worker = Worker::new();
    let (_, channel) = malloc();
    let victim = worker.attach(1, 1, ENTRIES, Some(null(0)));
    let hostile = worker.attach(2, 1, ENTRIES, Some(channel));
    let buffer = hostile.buffers(1);
    {
        let mut queue = hostile.queue(1, ENTRIES);
        assert_eq!(status_of(&mut worker, &mut queue, read(1, 0, buffer)), Status::SUCCESS);
        queue.push(read(2, 0, buffer + (1 << 20)));
        queue.ring();
    }
    // The queues stay, the buffer goes.
    ftruncate(hostile.guest.fd(), 768 << 10).unwrap();
    worker.polls(5);
    let failure = hostile.queues.acknowledged.failure.load(Acquire);
    assert_eq!(failure, FailureReason::MemoryFault as u32);
    assert_eq!(hostile.queues.completion_queues[1].posted.load(Acquire), 1, "nothing is posted");
    let mut queue = victim.queue(1, ENTRIES);
    for cid in 0..100 {
        let command = read(cid, 0, victim.buffers(1));
        assert_eq!(status_of(&mut worker, &mut queue, command), Status::SUCCESS);
    }
}

#[test]
fn errors_of_the_device_become_statuses() {
    let cases = [
        (ErrorKind::Medium, Op::Read, NvmOpcode::READ, Status::UNRECOVERED_READ_ERROR),
        (ErrorKind::Medium, Op::Write, NvmOpcode::WRITE, Status::WRITE_FAULT),
        (ErrorKind::NoSpace, Op::Write, NvmOpcode::WRITE, Status::CAPACITY_EXCEEDED),
        (ErrorKind::ReadOnly, Op::Write, NvmOpcode::WRITE, Status::NAMESPACE_WRITE_PROTECTED),
        (ErrorKind::Fault, Op::Read, NvmOpcode::READ, Status::DATA_TRANSFER_ERROR),
        (ErrorKind::Busy, Op::Read, NvmOpcode::READ, Status::COMMAND_INTERRUPTED),
    ];
    for (kind, op, opcode, status) in cases {
        let mut worker = Worker::new();
        let rule =
            Rule { op: Some(op), range: None, when: When::Nth(1), effect: Effect::Fail(kind) };
        let plan = Plan { seed: 1, rules: vec![rule] };
        let channel = AnyChannel::Fault(FaultChannel::new(malloc().1, plan));
        let rig = worker.attach(1, 1, ENTRIES, Some(channel));
        let mut queue = rig.queue(1, ENTRIES);
        let command = io(opcode, 1, 0, 8, rig.buffers(1));
        assert_eq!(status_of(&mut worker, &mut queue, command), status, "{kind:?}");
        assert_eq!(status_of(&mut worker, &mut queue, command), Status::SUCCESS);
    }
}

/// Random reads and writes of one block each on several queues, through a channel that delays and fails some: each
/// command completes exactly once, reads return what was last written, and the log is empty at the end.
fn random_work(seed: u64) {
    let mut random = Random::new(seed);
    let mut worker = Worker::new();
    let rule = |when, effect| Rule { op: None, range: None, when, effect };
    let plan = Plan {
        seed,
        rules: vec![
            rule(When::PerMillion(20_000), Effect::Fail(ErrorKind::Medium)),
            rule(When::PerMillion(300_000), Effect::Delay(5_000)),
        ],
    };
    let channel = AnyChannel::Fault(FaultChannel::new(malloc().1, plan));
    let entries = 8;
    let rig = worker.attach(1, 3, entries, Some(channel));
    let mut queues: Vec<_> = (1..=3).map(|qid| rig.queue(qid, entries)).collect();
    let mut pending: BTreeMap<(usize, u16), (bool, u64, u8)> = BTreeMap::new();
    let mut model = vec![0_u8; BLOCKS as usize];
    let buffer = |queue: usize, cid: u16| rig.buffers(queue + 1) + u64::from(cid) * 512;
    let mut completed = 0;
    for _ in 0..3000 {
        let at = random.in_range(0..3) as usize;
        let free = (0..7_u16).find(|&cid| !pending.contains_key(&(at, cid)));
        // No two commands in flight touch one block: their order would be anybody's.
        let block = random.in_range(0..64);
        let taken = pending.values().any(|&(_, other, _)| other == block);
        if let (Some(cid), false, true) = (free, taken, random.in_range(0..3) > 0) {
            let write = random.in_range(0..2) == 0;
            let value = random.next() as u8;
            rig.at(buffer(at, cid), 512).fill(if write { value } else { 0xEE });
            let opcode = if write { NvmOpcode::WRITE } else { NvmOpcode::READ };
            queues[at].push(io(opcode, cid, block, 1, buffer(at, cid)));
            queues[at].ring();
            pending.insert((at, cid), (write, block, value));
        }
        worker.clock.0.advance(random.in_range(0..200));
        worker.polls(random.in_range(0..40) as usize);
        let reap = random.in_range(0..3) as usize;
        while let Some(entry) = queues[reap].pop() {
            let command = pending.remove(&(reap, entry.cid.0));
            let (write, block, value) = command.expect("a command that is outstanding");
            completed += 1;
            match (entry.status().is_success(), write) {
                (true, true) => model[block as usize] = value,
                (true, false) => {
                    let found = bytes(&rig.at(buffer(reap, entry.cid.0), 512));
                    assert_eq!(found, [model[block as usize]; 512], "block {block}");
                }
                (false, _) => assert_eq!(entry.status().sct().0, 2),
            }
        }
        queues[reap].acknowledge();
    }
    for _ in 0..100 {
        worker.pass(10_000);
        for (at, queue) in queues.iter_mut().enumerate() {
            while let Some(entry) = queue.pop() {
                assert!(pending.remove(&(at, entry.cid.0)).is_some());
                completed += 1;
            }
            queue.acknowledge();
        }
    }
    assert!(pending.is_empty(), "lost: {pending:?}");
    assert!(completed > 500, "{completed}");
    let used = rig.queues.slots.iter().filter(|s| s.state.load(Acquire) != SlotState::Free as u32);
    assert_eq!(used.count(), 0);
}

#[test]
fn each_command_completes_exactly_once_whatever_the_device_does() {
    for seed in 0..20 {
        println!("seed {seed}");
        random_work(seed);
    }
}
