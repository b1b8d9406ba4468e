//! Get Log Page.

use crate::host::{DATA, Host, admin, namespace};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::log_page::effects::{CommandsSupported, FeaturesSupported, SupportedLogPages};
use nvme_spec::log_page::error::ErrorEntry;
use nvme_spec::log_page::smart::SmartHealth;
use nvme_spec::log_page::{FirmwareSlots, LogPageId};
use nvme_spec::{Iova, Nsid, Status};
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerocopy::FromBytes;

pub fn log(lid: LogPageId, bytes: u32) -> Command {
    let cdw10 = (bytes / 4 - 1) << 16 | u32::from(lid.0);
    let command = Command { cdw10, nsid: Nsid::BROADCAST, ..admin(AdminOpcode::GET_LOG_PAGE) };
    command.with_prps(Iova(DATA), Iova(DATA + 4096))
}

fn fetch<T: FromBytes>(host: &mut Host, lid: LogPageId) -> T {
    let bytes = host.fetch(log(lid, size_of::<T>() as u32), size_of::<T>()).unwrap();
    T::read_from_bytes(&bytes).unwrap()
}

#[test]
fn the_list_of_pages_is_what_can_be_read() {
    let mut host = Host::enabled();
    let list: SupportedLogPages = fetch(&mut host, LogPageId::SUPPORTED_LOG_PAGES);
    for lid in 0..=u8::MAX {
        let status = host.status(log(LogPageId(lid), 512));
        let listed = list.lids[usize::from(lid)].lsupp();
        assert_eq!(listed, matches!(lid, 0..=5 | 0x12 | 0x13), "{lid:#x}");
        let expected = if listed { Status::SUCCESS } else { Status::INVALID_LOG_PAGE };
        assert_eq!(status, expected, "{lid:#x}");
    }
}

#[test]
fn commands_and_features_listed_are_those_that_work() {
    let mut host = Host::enabled();
    let commands: CommandsSupported = fetch(&mut host, LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS);
    for opcode in 0..=u8::MAX {
        let listed = commands.acs[usize::from(opcode)].csupp();
        let expected = matches!(opcode, 0..=2 | 4..=6 | 8..=0xA | 0xC | 0x7C | 0x80);
        assert_eq!(listed, expected, "{opcode:#x}");
        if !listed {
            assert_eq!(
                host.status(admin(AdminOpcode(opcode))),
                Status::INVALID_OPCODE,
                "{opcode:#x}"
            );
        }
        let io = matches!(opcode, 0..=2 | 5 | 8 | 9 | 0xC | 0x19);
        assert_eq!(commands.iocs[usize::from(opcode)].csupp(), io, "i/o {opcode:#x}");
    }
    assert!(commands.acs[0x80].lbcc() && commands.acs[0x80].ncc());
    assert!(commands.iocs[1].lbcc() && !commands.iocs[2].lbcc());
    let features: FeaturesSupported = fetch(&mut host, LogPageId::FEATURES_SUPPORTED_AND_EFFECTS);
    for fid in 0..=u8::MAX {
        let status = host.status(crate::feature::get(nvme_spec::feature::FeatureId(fid), 3));
        assert_eq!(features.fids[usize::from(fid)].fsupp(), status == Status::SUCCESS, "{fid:#x}");
    }
}

#[test]
fn smart_is_the_sum_of_the_workers() {
    let mut host = Host::enabled();
    for (index, seat) in host.workers.iter().enumerate() {
        let counters = &seat.queues.counters[index];
        counters.reads.store(10, Ordering::Relaxed);
        counters.writes.store(5, Ordering::Relaxed);
        counters.read_bytes.store(512_000, Ordering::Relaxed);
        counters.written_bytes.store(1, Ordering::Relaxed);
        counters.media_errors.store(2, Ordering::Relaxed);
    }
    host.now += Duration::from_secs(2 * 3600);
    host.status(admin(AdminOpcode(0xC0)));
    let page: SmartHealth = fetch(&mut host, LogPageId::SMART_HEALTH);
    assert_eq!((page.data_units_read.get(), page.data_units_written.get()), (2, 1));
    assert_eq!((page.host_read_commands.get(), page.host_write_commands.get()), (20, 10));
    assert_eq!((page.power_cycles.get(), page.power_on_hours.get()), (1, 2));
    assert_eq!((page.media_errors.get(), page.error_log_entries.get()), (4, 1));
    assert_eq!((page.available_spare, page.critical_warning.into_bits()), (100, 0));
    let of_namespace = Command { nsid: Nsid(1), ..log(LogPageId::SMART_HEALTH, 512) };
    assert_eq!(host.status(of_namespace), Status::INVALID_FIELD);
    host.reset(nvme::ResetKind::Disconnect);
    host.acknowledge();
    host.call(|controller, cx| controller.power_on(cx));
    host.enable();
    let page: SmartHealth = fetch(&mut host, LogPageId::SMART_HEALTH);
    assert_eq!((page.power_cycles.get(), page.unsafe_shutdowns.get()), (2, 1));
}

#[test]
fn errors_of_admin_queue_and_workers_are_in_one_log() {
    let mut host = Host::enabled();
    let failed = host.run(admin(AdminOpcode(0xC0)));
    let queues = host.workers[1].queues.clone();
    queues.errors[0].command.store(3 << 16 | 77, Ordering::Relaxed);
    queues.errors[0]
        .status
        .store(u32::from(Status::LBA_OUT_OF_RANGE.into_bits()), Ordering::Relaxed);
    queues.errors[0].location.store(40, Ordering::Relaxed);
    queues.errors[0].nsid.store(1, Ordering::Relaxed);
    queues.errors[0].lba.store(0x1234, Ordering::Relaxed);
    queues.acknowledged.error_count.store(1, Ordering::Release);
    let entries: [ErrorEntry; 3] = fetch(&mut host, LogPageId::ERROR_INFORMATION);
    assert_eq!((entries[0].error_count, entries[0].sqid.0, entries[0].cid.0), (2, 3, 77));
    assert_eq!(entries[0].status.status().code(), Status::LBA_OUT_OF_RANGE);
    assert_eq!((entries[0].location.byte(), entries[0].nsid.0, entries[0].lba.0), (40, 1, 0x1234));
    assert_eq!((entries[1].error_count, entries[1].sqid.0, entries[1].cid), (1, 0, failed.cid));
    assert_eq!(entries[1].status.status().code(), Status::INVALID_OPCODE);
    assert_eq!(entries[2], ErrorEntry::default());
}

#[test]
fn the_error_log_keeps_the_newest_and_counts_all() {
    let mut host = Host::enabled();
    for _ in 0..70 {
        host.status(admin(AdminOpcode(0xC0)));
    }
    let queues = host.workers[0].queues.clone();
    queues.acknowledged.error_count.store(1000, Ordering::Release);
    let entries: [ErrorEntry; 64] = fetch(&mut host, LogPageId::ERROR_INFORMATION);
    assert_eq!((entries[0].error_count, entries[63].error_count), (1070, 1007));
}

#[test]
fn firmware_is_in_its_one_slot() {
    let mut host = Host::enabled();
    let page: FirmwareSlots = fetch(&mut host, LogPageId::FIRMWARE_SLOT);
    assert_eq!((page.afi.active(), page.afi.next()), (1, 0));
    assert_eq!((&page.frs[0], page.frs[1]), (b"1.0     ", [0; 8]));
}

#[test]
fn offsets_are_of_dwords_within_the_page() {
    let mut host = Host::enabled();
    host.subsystem.add_namespace(namespace(2, 1 << 20)).unwrap();
    let whole = host.fetch(log(LogPageId::FIRMWARE_SLOT, 512), 512).unwrap();
    let at = |lpo: u64| Command {
        cdw12: lpo as u32,
        cdw13: (lpo >> 32) as u32,
        ..log(LogPageId::FIRMWARE_SLOT, 8)
    };
    assert_eq!(host.fetch(at(8), 8).unwrap(), whole[8..16]);
    assert_eq!(host.status(at(512)), Status::SUCCESS);
    for lpo in [1, 2, 516, 4096, 1 << 32, u64::MAX - 3] {
        assert_eq!(host.status(at(lpo)), Status::INVALID_FIELD, "{lpo:#x}");
    }
    let by_index = Command { cdw14: 1 << 23, ..at(0) };
    assert_eq!(host.status(by_index), Status::INVALID_FIELD);
}

#[test]
fn nothing_past_the_page_is_written() {
    let mut host = Host::enabled();
    host.fill(DATA, &[0xEE; 8192]);
    let data = host.fetch(log(LogPageId::SMART_HEALTH, 8192), 8192).unwrap();
    assert!(data[512..].iter().all(|&byte| byte == 0xEE));
    host.fill(DATA, &[0xEE; 64]);
    let data = host.fetch(log(LogPageId::SMART_HEALTH, 8), 64).unwrap();
    assert!(data[8..].iter().all(|&byte| byte == 0xEE));
    let too_long = Command { cdw11: 1, ..log(LogPageId::SMART_HEALTH, 512) };
    assert_eq!(host.status(too_long), Status::INVALID_FIELD);
    let longest = Command { cdw10: 0xFFFF_0002, cdw11: 0xFFFF, ..log(LogPageId::SMART_HEALTH, 4) };
    assert_eq!(host.status(longest), Status::INVALID_FIELD);
}
