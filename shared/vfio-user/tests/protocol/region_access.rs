use vfio_user::framing::MAX_DATA_XFER_SIZE;
use vfio_user::region::RegionIndex;
use vfio_user::server::Outcome;
use vfio_user::{Command, Errno};

use crate::support::{BAR0_SIZE, BROKEN_REGISTER, Bytes, NO_REPLY, Reply, Rig, bytes};

fn access(offset: u64, region: u32, count: u32) -> Bytes {
    bytes().u64(offset).u32(region).u32(count)
}

#[test]
fn registers_are_read_at_any_width_and_alignment() {
    let mut rig = Rig::new();
    for (offset, count) in [(0, 8), (0x14, 4), (3, 7), (0, 0), (0, BAR0_SIZE as u32)] {
        let reply = rig.ok(Command::REGION_READ, access(offset, 0, count));
        assert_eq!(reply[..16], access(offset, 0, count).0);
        let expected: Vec<u8> = (offset..offset + u64::from(count)).map(|at| at as u8).collect();
        assert_eq!(reply[16..], expected);
    }
}

#[test]
fn writes_reach_the_device_and_are_answered_with_their_head() {
    let mut rig = Rig::new();
    let reply = rig.ok(Command::REGION_WRITE, access(0x14, 0, 4).u32(0x0046_0001));
    assert_eq!(reply, access(0x14, 0, 4).0);
    let write = (RegionIndex::BAR0, 0x14, 0x0046_0001_u32.to_ne_bytes().to_vec());
    assert_eq!(rig.device.writes, [write]);
}

#[test]
fn whole_configuration_space_is_read_at_once() {
    let reply = Rig::new().ok(Command::REGION_READ, access(0, 7, 4096));
    assert_eq!(reply.len(), 16 + 4096);
    assert_eq!(reply[16..18], 0x1b36_u16.to_le_bytes());
}

#[test]
fn what_cannot_be_read_reads_ones() {
    for (what, offset, region, count) in [
        ("past the end", BAR0_SIZE, 0, 4),
        ("across the end", BAR0_SIZE - 2, 0, 4),
        ("overflow", u64::MAX, 0, 8),
        ("empty region", 0, 1, 4),
        ("no such region", 0, 77, 4),
        ("the device refuses", BROKEN_REGISTER, 0, 4),
    ] {
        let reply = Rig::new().ok(Command::REGION_READ, access(offset, region, count));
        assert_eq!(reply[..16], access(offset, region, count).0, "{what}");
        assert_eq!(reply[16..], vec![0xff; count as usize], "{what}");
    }
}

#[test]
fn what_cannot_be_written_is_dropped() {
    for (offset, region) in [(BAR0_SIZE - 2, 0), (u64::MAX, 0), (0, 1), (0, 6), (0, 77)] {
        let mut rig = Rig::new();
        let reply = rig.ok(Command::REGION_WRITE, access(offset, region, 4).u32(1));
        assert_eq!(reply, access(offset, region, 4).0);
        assert!(rig.device.writes.is_empty());
    }
    let refused = access(BROKEN_REGISTER, 0, 4);
    let reply = Rig::new().ok(Command::REGION_WRITE, access(BROKEN_REGISTER, 0, 4).u32(1));
    assert_eq!(reply, refused.0);
}

#[test]
fn posted_write_is_done_without_a_reply() {
    let mut rig = Rig::new();
    let outcome = rig.send(Command::REGION_WRITE, NO_REPLY, access(0, 0, 1).raw(&[7]), vec![]);
    assert!(matches!(outcome, Outcome::Silent));
    assert_eq!(rig.device.registers[0], 7);
}

#[test]
fn deferred_write_is_answered_the_same_whatever_it_comes_to() {
    for result in [Ok(()), Err(Errno::EIO)] {
        let mut rig = Rig::new();
        rig.device.defer = true;
        let outcome = rig.send(Command::REGION_WRITE, 0, access(0x14, 0, 4).u32(0), vec![]);
        let reply = Reply::of(rig.finish(outcome, result));
        assert_eq!((reply.errno(), reply.body), (None, access(0x14, 0, 4).0));
    }
}

#[test]
fn counts_that_do_not_agree_are_refused() {
    let mut rig = Rig::new();
    let limit = MAX_DATA_XFER_SIZE;
    for (command, body) in [
        (Command::REGION_READ, bytes().u64(0).u32(0)),
        (Command::REGION_READ, access(0, 0, 4).u32(0)),
        (Command::REGION_READ, access(0, 0, limit + 1)),
        (Command::REGION_READ, access(0, 0, u32::MAX)),
        (Command::REGION_WRITE, bytes().u64(0).u32(0)),
        (Command::REGION_WRITE, access(0, 0, 4).raw(&[1, 2, 3])),
        (Command::REGION_WRITE, access(0, 0, 4).raw(&[1, 2, 3, 4, 5])),
        (Command::REGION_WRITE, access(0, 0, u32::MAX).u32(1)),
    ] {
        assert_eq!(rig.refused(command, body), Errno::EINVAL.0);
    }
    assert!(rig.device.writes.is_empty());
    assert_eq!(rig.ok(Command::REGION_READ, access(0, 0, limit)).len(), 16 + limit as usize);
}
