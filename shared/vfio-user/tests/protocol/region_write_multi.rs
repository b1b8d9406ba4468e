use vfio_user::server::Outcome;
use vfio_user::{Command, Errno};

use crate::support::{Bytes, Reply, Rig, bytes};

fn rig() -> Rig {
    let mut rig = Rig::fresh();
    let json = b"{\"capabilities\":{\"write_multiple\":true}}\0";
    rig.ok(Command::VERSION, bytes().u16(0).u16(0).raw(json));
    rig
}

fn write(body: Bytes, offset: u64, region: u32, count: u32, data: u64) -> Bytes {
    body.u64(offset).u32(region).u32(count).u64(data)
}

#[test]
fn writes_are_done_in_order() {
    let mut rig = rig();
    let body = write(write(bytes().u64(2), 0x20, 0, 8, 1), 0x20, 0, 4, 2);
    assert_eq!(rig.ok(Command::REGION_WRITE_MULTI, body), 2_u64.to_ne_bytes());
    let offsets: Vec<_> = rig.device.writes.iter().map(|(_, at, data)| (*at, data.len())).collect();
    assert_eq!(offsets, [(0x20, 8), (0x20, 4)]);
    assert_eq!(rig.device.registers[0x20], 2);
}

#[test]
fn write_that_no_region_takes_is_dropped_and_the_rest_is_done() {
    let mut rig = rig();
    let body = write(write(bytes().u64(2), 0, 77, 8, 1), 0, 0, 1, 9);
    assert_eq!(rig.ok(Command::REGION_WRITE_MULTI, body), 2_u64.to_ne_bytes());
    assert_eq!((rig.device.writes.len(), rig.device.registers[0]), (1, 9));
}

#[test]
fn deferred_write_holds_the_later_ones_back() {
    let mut rig = rig();
    rig.device.defer = true;
    let body = write(write(bytes().u64(2), 0, 0, 1, 1), 1, 0, 1, 2);
    let first = rig.send(Command::REGION_WRITE_MULTI, 0, body, Vec::new());
    assert_eq!(rig.device.writes.len(), 1);
    let second = rig.finish(first, Ok(()));
    assert!(matches!(second, Outcome::Deferred(_)));
    assert_eq!(rig.device.writes.len(), 2);
    assert_eq!(Reply::of(rig.finish(second, Ok(()))).body, 2_u64.to_ne_bytes());
}

#[test]
fn malformed_requests_write_nothing() {
    let mut rig = rig();
    for body in [
        bytes().u32(1),
        bytes().u64(1),
        write(bytes().u64(2), 0, 0, 4, 1),
        write(bytes().u64(u64::MAX), 0, 0, 4, 1),
        write(bytes().u64(1), 0, 0, 4, 1).u32(0),
        write(write(bytes().u64(2), 0, 0, 4, 1), 0, 0, 9, 1),
    ] {
        assert_eq!(rig.refused(Command::REGION_WRITE_MULTI, body), Errno::EINVAL.0);
    }
    assert!(rig.device.writes.is_empty());
}

#[test]
fn client_that_did_not_offer_it_is_refused() {
    let body = write(bytes().u64(1), 0, 0, 4, 1);
    assert_eq!(Rig::new().refused(Command::REGION_WRITE_MULTI, body), Errno::ENOTSUP.0);
}
