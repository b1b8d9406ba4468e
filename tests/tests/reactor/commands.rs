//! Commands and their completions.

use crate::worker::{
    BLOCKS, DEVICE, ENTRIES, Worker, bytes, complete, io, malloc, read, status_of,
};
use nvme_spec::command::{Command, Fuse, NvmOpcode};
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{CommandId, Iova, Lba, Nsid, QueueId, Status};
use zerocopy::IntoBytes;

#[test]
fn what_was_written_is_read() {
    let mut worker = Worker::new();
    let (memory, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let (out, back) = (rig.buffers(1), rig.buffers(1) + 0x10_000);
    let data: Vec<u8> = (0..8192_u32).map(|byte| (byte * 7 % 251) as u8).collect();
    rig.at(out, 8192).copy_from(&data);
    let written = complete(&mut worker, &mut queue, io(NvmOpcode::WRITE, 7, 100, 16, out));
    assert_eq!((written.status(), written.sqid, written.sqhd), (Status::SUCCESS, QueueId(1), 1));
    assert_eq!(bytes(&memory.slice(100 * 512, 8192).unwrap()), data);
    let entry = complete(&mut worker, &mut queue, io(NvmOpcode::READ, 8, 100, 16, back));
    assert!(entry.status().is_success());
    assert_eq!(bytes(&rig.at(back, 8192)), data);
    let counters = &rig.queues.counters[0];
    use std::sync::atomic::Ordering::Relaxed;
    assert_eq!((counters.reads.load(Relaxed), counters.read_bytes.load(Relaxed)), (1, 8192));
    assert_eq!((counters.writes.load(Relaxed), counters.written_bytes.load(Relaxed)), (1, 8192));
}

#[test]
fn wrong_commands_get_the_status_that_says_why() {
    let mut worker = Worker::new();
    let (_, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let buffer = rig.buffers(1);
    let good = read(1, 0, buffer);
    let mut too_long = io(NvmOpcode::READ, 1, 0, 8, buffer);
    too_long.cdw12 = 0xFFFF;
    let with = |change: &dyn Fn(&mut Command)| {
        let mut command = good;
        change(&mut command);
        command
    };
    let cases = [
        (read(1, BLOCKS - 8, buffer), Status::SUCCESS),
        (read(1, BLOCKS - 7, buffer), Status::LBA_OUT_OF_RANGE),
        (read(1, u64::MAX - 3, buffer), Status::LBA_OUT_OF_RANGE),
        (with(&|c| c.nsid = Nsid(2)), Status::INVALID_NAMESPACE_OR_FORMAT),
        (with(&|c| c.nsid = Nsid(0)), Status::INVALID_NAMESPACE_OR_FORMAT),
        (with(&|c| c.nsid = Nsid::BROADCAST), Status::INVALID_NAMESPACE_OR_FORMAT),
        (with(&|c| c.cdw0.set_opcode(0x7F)), Status::INVALID_OPCODE),
        (with(&|c| *c = c.with_prps(Iova(buffer + 2), Iova(0))), Status::PRP_OFFSET_INVALID),
        (with(&|c| *c = c.with_prps(Iova(0), Iova(0))), Status::DATA_TRANSFER_ERROR),
        (with(&|c| *c = c.with_fuse(Fuse::SECOND)), Status::ABORTED_MISSING_FUSED),
        (with(&|c| *c = c.with_fuse(Fuse::FIRST)), Status::ABORTED_MISSING_FUSED),
        (with(&|c| *c = c.with_fuse(Fuse(3))), Status::INVALID_FIELD),
        (good, Status::SUCCESS),
    ];
    for (index, (command, status)) in cases.into_iter().enumerate() {
        let found = status_of(&mut worker, &mut queue, command);
        assert_eq!(found, status, "case {index}: {command:?}");
    }
    // A length past MDTS on a namespace that is large enough.
    rig.layout.namespaces[0].blocks.store(1 << 20, std::sync::atomic::Ordering::Relaxed);
    let version = rig.publish();
    worker.polls(4);
    assert!(rig.is_acknowledged(version));
    assert_eq!(status_of(&mut worker, &mut queue, too_long), Status::INVALID_FIELD);
    let errors = rig.queues.acknowledged.error_count.load(std::sync::atomic::Ordering::Acquire);
    assert_eq!(errors, 12, "one record for each command that failed");
}

#[test]
fn flush_of_all_namespaces_flushes_and_needs_one() {
    let mut worker = Worker::new();
    let (_, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let flush = Command::nvm(NvmOpcode::FLUSH, CommandId(3), Nsid::BROADCAST);
    assert_eq!(status_of(&mut worker, &mut queue, flush), Status::SUCCESS);
    rig.layout.namespaces[0].state.store(0, std::sync::atomic::Ordering::Release);
    worker.settle(&rig);
    let status = status_of(&mut worker, &mut queue, flush);
    assert_eq!(status, Status::INVALID_NAMESPACE_OR_FORMAT);
}

#[test]
fn ranges_are_deallocated_and_copied() {
    let mut worker = Worker::new();
    let (memory, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let list = rig.buffers(1);
    memory.slice(0, DEVICE).unwrap().fill(0xAB);
    let range = |slba, length| DatasetRange { slba: Lba(slba), length, ..Default::default() };
    let ranges = [range(8, 8), range(0, 0), range(64, 64)];
    rig.at(list, 48).copy_from(ranges.as_bytes());
    let mut deallocate = Command::nvm(NvmOpcode::DATASET_MANAGEMENT, CommandId(1), Nsid(1))
        .with_prps(Iova(list), Iova(0));
    (deallocate.cdw10, deallocate.cdw11) = (2, 4);
    assert_eq!(status_of(&mut worker, &mut queue, deallocate), Status::SUCCESS);
    let found = bytes(&memory.slice(0, DEVICE).unwrap());
    assert!(found[8 * 512..16 * 512].iter().all(|&byte| byte == 0));
    assert!(found[64 * 512..128 * 512].iter().all(|&byte| byte == 0));
    assert!(found[16 * 512..64 * 512].iter().all(|&byte| byte == 0xAB));

    let outside = [range(BLOCKS, 1)];
    rig.at(list, 16).copy_from(outside.as_bytes());
    deallocate.cdw10 = 0;
    assert_eq!(status_of(&mut worker, &mut queue, deallocate), Status::LBA_OUT_OF_RANGE);

    let source =
        |slba, blocks: u16| CopyRange { slba: Lba(slba), nlb_z: blocks - 1, ..Default::default() };
    memory.slice(20 * 512, 512).unwrap().fill(0x55);
    let sources = [source(20, 1), source(8, 2)];
    rig.at(list, 64).copy_from(sources.as_bytes());
    let mut copy = Command::nvm(NvmOpcode::COPY, CommandId(2), Nsid(1))
        .with_prps(Iova(list), Iova(0))
        .with_slba(Lba(200));
    copy.cdw12 = 1;
    assert_eq!(status_of(&mut worker, &mut queue, copy), Status::SUCCESS);
    let found = bytes(&memory.slice(200 * 512, 3 * 512).unwrap());
    assert!(found[..512].iter().all(|&byte| byte == 0x55));
    assert!(found[512..].iter().all(|&byte| byte == 0));
    let overlapping = copy.with_slba(Lba(18));
    assert_eq!(status_of(&mut worker, &mut queue, overlapping), Status::INVALID_FIELD);
    copy.cdw12 = 0xFF;
    assert_eq!(status_of(&mut worker, &mut queue, copy), Status::COMMAND_SIZE_LIMIT_EXCEEDED);
}

#[test]
fn fused_pair_is_one() {
    let mut worker = Worker::new();
    let (memory, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let (expected, new) = (rig.buffers(1), rig.buffers(1) + 4096);
    rig.at(new, 512).fill(9);
    let compare = io(NvmOpcode::COMPARE, 1, 5, 1, expected).with_fuse(Fuse::FIRST);
    let write = io(NvmOpcode::WRITE, 2, 5, 1, new).with_fuse(Fuse::SECOND);
    let mut run = |compare: Command, write: Command| {
        queue.push(compare);
        queue.push(write);
        queue.ring();
        worker.polls(3);
        let pair = [queue.pop().expect("of the first"), queue.pop().expect("of the second")];
        queue.acknowledge();
        assert_eq!(pair.map(|entry| entry.cid), [CommandId(1), CommandId(2)]);
        pair.map(|entry| entry.status().code())
    };
    assert_eq!(run(compare, write), [Status::SUCCESS; 2]);
    assert_eq!(bytes(&memory.slice(5 * 512, 512).unwrap()), [9; 512]);
    let failed = [Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED];
    assert_eq!(run(compare, write), failed, "the block is another one now");
    let elsewhere = write.with_slba(Lba(6));
    let apart = [Status::ABORTED_FAILED_FUSED, Status::INVALID_FIELD];
    assert_eq!(run(compare, elsewhere), apart);
}

#[test]
fn fused_pair_waits_for_room_for_both() {
    let mut worker = Worker::new();
    let (_, channel) = malloc();
    let rig = worker.attach(1, 1, 4, Some(channel));
    rig.layout.settings.arbitration_burst.store(1, std::sync::atomic::Ordering::Relaxed);
    worker.settle(&rig);
    let mut queue = rig.queue(1, 4);
    let buffer = rig.buffers(1);
    queue.push(read(1, 0, buffer));
    queue.push(read(2, 0, buffer));
    queue.ring();
    worker.polls(4);
    queue.push(io(NvmOpcode::COMPARE, 3, 0, 1, buffer).with_fuse(Fuse::FIRST));
    queue.ring();
    // One entry is free in the completion queue, and the second half is not there.
    assert!(queue.pop().is_some() && queue.pop().is_some());
    queue.push(io(NvmOpcode::WRITE, 4, 0, 1, buffer).with_fuse(Fuse::SECOND));
    queue.ring();
    worker.polls(4);
    queue.acknowledge();
    worker.polls(4);
    let pair = [queue.pop().unwrap(), queue.pop().unwrap()];
    assert!(pair.iter().all(|entry| entry.status().is_success()), "{pair:?}");
}

#[test]
fn bit_bucket_takes_what_nobody_wants() {
    let mut worker = Worker::new();
    let (memory, channel) = malloc();
    let rig = worker.attach(1, 1, ENTRIES, Some(channel));
    let mut queue = rig.queue(1, ENTRIES);
    let (list, buffer) = (rig.buffers(1), rig.buffers(1) + 0x10_000);
    memory.slice(0, 512).unwrap().fill(1);
    memory.slice(512, 512).unwrap().fill(2);
    let descriptors =
        [SglDescriptor::bit_bucket(512), SglDescriptor::data_block(Iova(buffer), 512)];
    rig.at(list, 32).copy_from(descriptors.as_bytes());
    let sgl = SglDescriptor::last_segment(Iova(list), 32);
    let command = io(NvmOpcode::READ, 1, 0, 2, 0).with_sgl(sgl);
    assert_eq!(status_of(&mut worker, &mut queue, command), Status::SUCCESS);
    assert_eq!(bytes(&rig.at(buffer, 512)), [2; 512]);
}
