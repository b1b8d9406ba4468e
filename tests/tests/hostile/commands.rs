//! Commands that no driver sends.

use nvme_spec::feature::FeatureId;
use nvme_spec::identify::{Cns, CommandSet};
use nvme_spec::log_page::LogPageId;
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{AdminOpcode, Command, CommandId, Iova, Lba, Nsid, NvmOpcode, QueueId, Status};
use vireo_tests::host::memory::PAGE;
use vireo_tests::host::queue::QueuePair;
use vireo_tests::host::{Host, Transport, commands};
use zerocopy::IntoBytes;

use crate::{MEMORY, Stage};

#[track_caller]
fn refused(host: &mut Host, command: Command, wanted: &[Status]) {
    let status = host.io(0, command).status();
    assert!(wanted.contains(&status.code()), "{command:?}: {status}, not one of {wanted:?}");
}

#[test]
fn lists_without_end_are_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    let page = host.memory.allocate(PAGE);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8);
    // A segment that is its own next one.
    let itself = SglDescriptor::segment(page.iova, 16);
    host.memory.write(page.iova, itself.as_bytes());
    let ends = [Status::INVALID_SGL_SEGMENT_DESCRIPTOR, Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS];
    refused(&mut host, read.with_sgl(itself), &ends);
    // The same, with a page full of empty blocks before it.
    let mut blocks = vec![SglDescriptor::data_block(page.iova, 0); 255];
    blocks.push(SglDescriptor::segment(page.iova, 4096));
    host.memory.write(page.iova, blocks.as_bytes());
    refused(&mut host, read.with_sgl(SglDescriptor::segment(page.iova, 4096)), &ends);
    // Lengths that are none.
    for length in [0, 1, 15, 17, u32::MAX] {
        for descriptor in [
            SglDescriptor::segment(page.iova, length),
            SglDescriptor::last_segment(page.iova, length),
        ] {
            let mut all = ends.to_vec();
            all.extend([Status::DATA_TRANSFER_ERROR, Status::DATA_SGL_LENGTH_INVALID]);
            refused(&mut host, read.with_sgl(descriptor), &all);
        }
    }
    // Data that is shorter or longer than the command's.
    for length in [1, 4095, 4097, u32::MAX] {
        let block = SglDescriptor::data_block(page.iova, length);
        let wanted = [Status::DATA_SGL_LENGTH_INVALID, Status::DATA_TRANSFER_ERROR];
        refused(&mut host, read.with_sgl(block), &wanted);
    }
    // A PRP list that is its own next one: it is read as far as the transfer is long.
    let entries: Vec<u8> = (0..512).flat_map(|_| page.iova.0.to_le_bytes()).collect();
    host.memory.write(page.iova, &entries);
    let long = commands::io(NvmOpcode::WRITE, MEMORY, Lba(0), 2048).with_prps(page.iova, page.iova);
    assert!(host.io(0, long).status().is_success());
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn a_tail_past_the_queue_stops_that_queue_alone() {
    let stage = Stage::start();
    let mut host = stage.host();
    host.create_queue_of(2, 16);
    for value in [64, 65, 0xFFFF, u32::MAX] {
        let doorbell = host.queues[0].doorbell();
        host.transport.ring(doorbell, value);
        stage.neighbour_goes_on();
    }
    // The other queue of the same controller goes on, and a reset revives the first.
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1);
    let buffer = host.memory.allocate(512);
    let read = host.memory.with_prps(read, buffer);
    assert!(host.io(1, read).status().is_success());
    host.enable();
    host.create_queues(1, 64);
    assert!(host.io(0, read).status().is_success());
    // A completion queue's head past its end.
    let doorbell = host.queues[0].doorbell();
    host.transport.ring(doorbell + 1, 5000);
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn an_impossible_tail_is_told_by_an_event() {
    let stage = Stage::start();
    let mut host = stage.host();
    let cid = host.post_admin(commands::async_event_request());
    let doorbell = host.queues[0].doorbell();
    host.transport.ring(doorbell, 9999);
    let event = host.await_admin(cid);
    assert!(event.status().is_success());
    // Error status (type 0): write to an invalid doorbell register, or an invalid value.
    assert_eq!(event.dw0 & 7, 0, "{event:?}");
    assert!(matches!(event.dw0 >> 8 & 0xFF, 0 | 1), "{event:?}");
    drop(host);
    stage.end();
}

#[test]
fn logs_and_structures_end_where_they_end() {
    let stage = Stage::start();
    let mut host = stage.host();
    // Offsets past the page: refused, or zeroes; never what lies behind.
    for (lid, size) in [
        (LogPageId::SMART_HEALTH, 512),
        (LogPageId::FIRMWARE_SLOT, 512),
        (LogPageId::ERROR_INFORMATION, 16_384),
    ] {
        for offset in [size, size + 4, 1 << 20, u64::MAX - 3] {
            let log = commands::get_log_page(lid, Nsid::BROADCAST, offset, 4096);
            if let Ok(data) = host.admin_read(log, 4096) {
                let nothing = data.iter().all(|&byte| byte == 0 || byte == 0xEE);
                assert!(nothing, "{lid:?} at {offset:#x}");
            }
        }
        // Longer than the page: the rest is not memory of ours.
        let log = commands::get_log_page(lid, Nsid::BROADCAST, 0, 65_536);
        if let Ok(data) = host.admin_read(log, 65_536) {
            let behind = &data[size.max(512) as usize..];
            assert!(behind.iter().all(|&byte| byte == 0 || byte == 0xEE), "{lid:?}");
        }
    }
    // Identify into the last bytes of memory: what does not fit is not written anywhere.
    let end = host.memory.base().0 + host.memory.len();
    let identify = commands::identify(Cns::CONTROLLER, Nsid::NONE, CommandSet::NVM);
    for (first, second) in [(end - 512, end), (end - 4, 0), (end, 0), (end - 4096 + 8, end)] {
        let status = host.admin(identify.with_prps(Iova(first), Iova(second))).status();
        assert_eq!(status.code(), Status::DATA_TRANSFER_ERROR, "{first:#x} {second:#x}");
    }
    assert!(host.admin(identify.with_prps(Iova(end - 4096), Iova(0))).status().is_success());
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn numbers_at_their_limits_are_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    let buffer = host.memory.allocate(2 << 20);
    let blocks = (64 << 20) / 512;
    for (slba, count) in [
        (blocks, 1),
        (blocks - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 7, 8),
        (u64::MAX / 512, 16),
        (1 << 55, 1),
        (u64::MAX - 1, 65_536),
    ] {
        for opcode in [
            NvmOpcode::READ,
            NvmOpcode::WRITE,
            NvmOpcode::COMPARE,
            NvmOpcode::WRITE_ZEROES,
            NvmOpcode::VERIFY,
        ] {
            let command = commands::io(opcode, MEMORY, Lba(slba), count);
            let before = host.memory.mark();
            let command = host.memory.with_prps(command, buffer.part(0, 4096));
            host.memory.release(before);
            refused(&mut host, command, &[Status::LBA_OUT_OF_RANGE, Status::INVALID_FIELD]);
        }
    }
    // More than MDTS.
    let long = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 65_536);
    refused(&mut host, long.with_prps(buffer.iova, buffer.iova), &[Status::INVALID_FIELD]);
    // Queues of sizes and identifiers that cannot be.
    let pair = QueuePair::allocate(&mut host.memory, QueueId(2), 16, 0);
    for size_z in [0, 0xFFFF] {
        let mut command = commands::create_cq(&pair);
        command.cdw10 = command.cdw10 & 0xFFFF | size_z << 16;
        let status = host.admin(command).status();
        assert_eq!(status.code(), Status::INVALID_QUEUE_SIZE);
    }
    for qid in [0, 128, 0xFFFF] {
        let command = commands::create_cq(&QueuePair { qid: QueueId(qid), ..pair.clone() });
        assert_eq!(host.admin(command).status().code(), Status::INVALID_QUEUE_ID);
        let command = commands::create_sq(&QueuePair { qid: QueueId(qid), ..pair.clone() });
        assert!(!host.admin(command).status().is_success());
        assert!(!host.admin(commands::delete_sq(QueueId(qid))).status().is_success());
        assert!(!host.admin(commands::delete_cq(QueueId(qid))).status().is_success());
    }
    let vector = QueuePair { vector: 0xFFFF, ..pair.clone() };
    let status = host.admin(commands::create_cq(&vector)).status();
    assert_eq!(status.code(), Status::INVALID_INTERRUPT_VECTOR);
    // Namespaces that cannot be, or are not there.
    for nsid in [0, 3, 257, 0xFFFF_FFFE, 0xFFFF_FFFF] {
        let read =
            commands::io(NvmOpcode::READ, Nsid(nsid), Lba(0), 1).with_prps(buffer.iova, Iova(0));
        refused(&mut host, read, &[Status::INVALID_NAMESPACE_OR_FORMAT, Status::INVALID_FIELD]);
    }
    // A log of sixteen gigabytes.
    let mut log = commands::get_log_page(LogPageId::SMART_HEALTH, Nsid::BROADCAST, 0, 4);
    (log.cdw10, log.cdw11) = (log.cdw10 | 0xFFFF_0000, 0xFFFF);
    host.admin(log.with_prps(buffer.iova, buffer.iova));
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn misaligned_pointers_are_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    let data = host.memory.allocate(64 * PAGE);
    let at = |offset: u64| Iova(data.iova.0 + offset);
    let io = |blocks| commands::io(NvmOpcode::READ, MEMORY, Lba(0), blocks);
    // Not by dwords; a second page with an offset; a list that is not by eight bytes.
    refused(&mut host, io(1).with_prps(at(2), Iova(0)), &[Status::PRP_OFFSET_INVALID]);
    refused(&mut host, io(16).with_prps(at(0), at(PAGE + 8)), &[Status::PRP_OFFSET_INVALID]);
    refused(&mut host, io(64).with_prps(at(0), at(PAGE + 4)), &[Status::PRP_OFFSET_INVALID]);
    // A list with an entry that has an offset.
    let pages: Vec<Iova> = (1..8).map(|page| at(page * PAGE)).collect();
    let mut bad = pages.clone();
    bad[4].0 += 512;
    let list = host.memory.prp_list(&bad);
    refused(&mut host, io(64).with_prps(at(0), list), &[Status::PRP_OFFSET_INVALID]);
    // A list at the end of its page goes on where its last entry says.
    let tail = host.memory.prp_list(&pages[1..]);
    let page = host.memory.allocate(PAGE);
    let last = Iova(page.iova.0 + PAGE - 16);
    host.memory.write(last, &[pages[0].0.to_le_bytes(), tail.0.to_le_bytes()].concat());
    host.write(MEMORY, Lba(0), &[0x9A; 32_768], 512).unwrap();
    assert!(host.io(0, io(64).with_prps(at(0), last)).status().is_success());
    assert!(host.memory.read(data.iova, 32_768) == [0x9A; 32_768]);
    // Commands that want no data at all take any pointer.
    let flush = commands::flush(MEMORY).with_prps(Iova(u64::MAX), Iova(u64::MAX));
    assert!(host.io(0, flush).status().is_success());
    drop(host);
    stage.end();
}

#[test]
fn opcodes_and_fields_that_are_not_there_are_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    for opcode in 0..=255 {
        let known = [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C, 0x19];
        if !known.contains(&opcode) {
            let command = Command::nvm(NvmOpcode(opcode), CommandId(0), MEMORY);
            refused(&mut host, command, &[Status::INVALID_OPCODE]);
        }
    }
    for opcode in [0x0D, 0x10, 0x11, 0x14, 0x15, 0x18, 0x1C, 0x20, 0x7F, 0x82, 0x84, 0xC0, 0xFF] {
        let command = Command::admin(AdminOpcode(opcode), CommandId(0));
        assert_eq!(host.admin(command).status().code(), Status::INVALID_OPCODE, "{opcode:#x}");
    }
    for fid in [0x00, 0x03, 0x0C, 0x0D, 0x7F, 0xC0, 0xFF] {
        let command = commands::get_features(FeatureId(fid), Nsid::NONE);
        assert!(!host.admin(command).status().is_success(), "feature {fid:#x}");
    }
    for lid in [0x06, 0x0D, 0x70, 0xC0, 0xFF] {
        let log = commands::get_log_page(LogPageId(lid), Nsid::BROADCAST, 0, 512);
        assert!(host.admin_read(log, 512).is_err(), "log {lid:#x}");
    }
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn event_requests_are_bounded() {
    let stage = Stage::start();
    let mut host = stage.host();
    let mut refusals = 0;
    for _ in 0..1000 {
        host.post_admin(commands::async_event_request());
        // The queue is no longer than that.
        (0..4).for_each(|_| host.poll_admin());
        refusals += host
            .events
            .drain(..)
            .filter(|event| {
                assert_eq!(event.status().code(), Status::AER_LIMIT_EXCEEDED);
                true
            })
            .count();
        if host.admin.tail.is_multiple_of(8) {
            let completion =
                host.admin_ok(commands::get_features(FeatureId::NUMBER_OF_QUEUES, Nsid::NONE));
            assert!(completion.status().is_success());
        }
    }
    host.admin_ok(commands::get_features(FeatureId::NUMBER_OF_QUEUES, Nsid::NONE));
    refusals += host.events.len();
    assert!((900..1000).contains(&refusals), "{refusals} of 1000 refused");
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn aborts_of_what_is_not_there_do_nothing() {
    let stage = Stage::start();
    let mut host = stage.host();
    for (sqid, cid) in [(0, 5), (1, 9999), (99, 1), (0xFFFF, 0xFFFF)] {
        let completion = host.admin(commands::abort(QueueId(sqid), CommandId(cid)));
        assert!(!completion.status().is_success() || completion.dw0 & 1 == 1, "{completion:?}");
    }
    drop(host);
    stage.end();
}
