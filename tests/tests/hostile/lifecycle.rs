//! States in which no driver does what is done here.

use std::time::Duration;

use nvme_spec::feature::FeatureId;
use nvme_spec::register::{Cc, offset};
use nvme_spec::{Lba, Nsid, NvmOpcode};
use vfio_user::pci::config::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use vfio_user::region::RegionIndex;
use vireo_tests::host::{Attach, Host, Transport, commands};

use crate::{MEMORY, SLOW, Stage};

#[test]
fn clients_that_vanish_with_commands_in_flight_leave_nothing() {
    let stage = Stage::start();
    for round in 0..3 {
        let mut host = stage.host();
        let buffer = host.memory.allocate(4096);
        let read = commands::io(NvmOpcode::READ, SLOW, Lba(0), 8);
        let read = host.memory.with_prps(read, buffer);
        for _ in 0..20 {
            host.submit(0, read);
        }
        match round {
            // The connection ends at once, half way through a reset, or after one was asked for.
            0 => {}
            1 => {
                let access = Host::cc().into_bits().to_le_bytes();
                host.transport
                    .client
                    .post_region_write(RegionIndex::BAR0, offset::CC, &access)
                    .unwrap();
            }
            _ => drop(
                host.transport.client.post(vfio_user::Command::DEVICE_RESET, &[], &[]).unwrap(),
            ),
        }
        drop(host);
        stage.neighbour_goes_on();
    }
    stage.end();
}

#[test]
fn doorbells_out_of_state_do_nothing() {
    let stage = Stage::start();
    for map_doorbells in [true, false] {
        let mut host = stage.attach(&Attach { map_doorbells, ..Attach::default() });
        // Before CSTS.RDY.
        for index in [0, 1, 2, 3, 100, 255] {
            host.transport.ring(index, 3);
        }
        stage.neighbour_goes_on();
        host.enable();
        host.create_queues(1, 64);
        // Of queues that are not there.
        for index in [4, 5, 50, 254, 255] {
            host.transport.ring(index, 1);
        }
        host.write(MEMORY, Lba(0), &[7; 512], 512).unwrap();
        // After CC.EN went to 0.
        host.disable();
        for index in [0, 1, 2, 3] {
            host.transport.ring(index, 9);
        }
        stage.neighbour_goes_on();
        host.enable();
        host.create_queues(1, 64);
        assert!(host.read(MEMORY, Lba(0), 1, 512).unwrap() == [7; 512]);
    }
    stage.end();
}

#[test]
fn registers_of_any_value_leave_a_controller_that_a_reset_revives() {
    let stage = Stage::start();
    let mut host = stage.host();
    for value in [u32::MAX, 0x0046_FFF1, 0x8000_0001, 1, 0x0000_C001] {
        host.write32(offset::CC, value);
        host.write32(offset::AQA, value);
        host.write64(offset::ASQ, u64::MAX);
        host.write64(offset::ACQ, u64::from(value) << 32);
        host.write32(offset::CC, value ^ 1);
        host.write32(offset::CC, value | 1);
        stage.neighbour_goes_on();
    }
    // Registers in pieces, across each other, past the end.
    for (at, len) in [(0, 1), (1, 2), (3, 8), (0x1C, 16), (0x14, 3), (0xFF8, 16), (0x2000, 8)] {
        let mut data = vec![0xFF; len];
        host.transport.client.region_write(RegionIndex::BAR0, at, &data).unwrap();
        host.transport.client.region_read(RegionIndex::BAR0, at, &mut data).unwrap();
    }
    host.transport.client.reset().unwrap();
    host.enable();
    host.create_queues(1, 64);
    host.write(MEMORY, Lba(0), &[1; 512], 512).unwrap();
    drop(host);
    stage.end();
}

#[test]
fn a_controller_that_is_switched_on_and_off_all_the_time_harms_nobody() {
    let stage = Stage::start();
    let mut host = stage.host();
    for round in 0..100 {
        let on = Cc::from_bits(Host::cc().into_bits()).with_en(round % 2 == 0).into_bits();
        host.write32(offset::CC, on);
        host.transport.ring(0, round % 32);
        host.transport.ring(2, round % 64);
    }
    stage.neighbour_goes_on();
    host.enable();
    host.create_queues(1, 64);
    host.write(MEMORY, Lba(0), &[1; 512], 512).unwrap();
    drop(host);
    stage.end();
}

#[test]
fn guest_memory_is_in_no_core_file() {
    let stage = Stage::start();
    let mut host = stage.host();
    host.write(MEMORY, Lba(0), &[1; 512], 512).unwrap();
    for name in ["w0", "f0"] {
        let pid = stage.target.pid(name);
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{name}: {core}");
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut guest = false;
        for line in smaps.lines() {
            if line.contains("-") && line.split_whitespace().count() >= 5 && !line.contains("kB") {
                guest = line.contains("/memfd:vireo-test");
            }
            if guest && line.starts_with("VmFlags:") {
                let flags: Vec<&str> = line.split_whitespace().collect();
                assert!(flags.contains(&"dd") && flags.contains(&"dc"), "{name}: {line}");
            }
        }
        assert!(smaps.contains("/memfd:vireo-test"), "{name} maps the memory of the test");
    }
    drop(host);
    stage.end();
}

/// PCI Command register: memory space, and bus mastering or not.
fn command(host: &mut Host, master: bool) {
    let value = COMMAND_MEMORY | if master { COMMAND_BUS_MASTER } else { 0 };
    let client = &mut host.transport.client;
    client.region_write(RegionIndex::CONFIG, COMMAND as u64, &value.to_le_bytes()).unwrap();
}

#[test]
fn without_bus_mastering_nothing_is_fetched_written_or_signalled() {
    let stage = Stage::start();
    for map_doorbells in [true, false] {
        let mut host = stage.attach(&Attach { map_doorbells, ..Attach::default() });
        host.enable();
        host.create_queues(1, 64);
        host.write(MEMORY, Lba(0), &[5; 4096], 512).unwrap();
        host.await_interrupt(1);
        // What is in flight when it is taken away ends before that is answered, or at least fetches nothing more.
        command(&mut host, false);
        let cq = host.queues[0].cq;
        let before = host.memory.read(cq.iova, cq.len as usize);
        let buffer = host.memory.allocate(4096);
        host.memory.fill(buffer, 0xA5);
        let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8);
        let read = host.memory.with_prps(read, buffer);
        let cid = host.submit(0, read);
        let admin =
            host.post_admin(commands::get_features(FeatureId::NUMBER_OF_QUEUES, Nsid::NONE));
        std::thread::sleep(Duration::from_millis(200));
        assert!(host.memory.read(buffer.iova, 4096) == [0xA5; 4096], "data without the right to");
        assert!(host.memory.read(cq.iova, cq.len as usize) == before, "an entry likewise");
        assert_eq!(host.transport.vector_of(1).drain().unwrap(), 0, "an interrupt likewise");
        stage.neighbour_goes_on();
        command(&mut host, true);
        host.await_interrupt(1);
        assert_eq!(host.next_completion(0).cid, cid);
        assert!(host.memory.read(buffer.iova, 4096) == [5; 4096]);
        host.await_admin(admin);
        // Taken away for good, with commands in flight: the next client finds nothing of it.
        host.submit(0, read);
        command(&mut host, false);
        drop(host);
    }
    stage.end();
}
