use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vfio_user::server::Outcome;
use vfio_user::{Command, Errno};

use crate::support::{Bytes, NO_REPLY, Reply, Rig, bytes};

fn unmap(flags: u32, iova: u64, size: u64) -> Bytes {
    bytes().u32(24).u32(flags).u64(iova).u64(size)
}

fn rig_with_maps(count: u64) -> Rig {
    let mut rig = Rig::new();
    for page in 0..count {
        let body = bytes().u32(32).u32(3).u64(0).u64(page << 12).u64(0x1000);
        rig.ok(Command::DMA_MAP, body);
    }
    rig
}

#[test]
fn exact_range_is_unmapped_and_the_request_comes_back() {
    let mut rig = rig_with_maps(3);
    let reply = rig.ok(Command::DMA_UNMAP, unmap(0, 0x1000, 0x1000));
    assert_eq!(reply, unmap(0, 0x1000, 0x1000).0);
    assert_eq!(rig.device.maps.len(), 2);
}

#[test]
fn all_is_unmapped_by_flag() {
    let mut rig = rig_with_maps(3);
    assert_eq!(rig.ok(Command::DMA_UNMAP, unmap(2, 0, 0)).len(), 24);
    assert!(rig.device.maps.is_empty());
}

#[test]
fn range_that_is_not_mapped_is_answered_with_the_same_24_bytes() {
    let mut rig = rig_with_maps(3);
    for body in [unmap(0, 0, 0x2000), unmap(0, 0x800, 0x800), unmap(0, 0, 0)] {
        let expected = body.0.clone();
        assert_eq!(rig.ok(Command::DMA_UNMAP, body), expected);
    }
    assert_eq!(rig.device.maps.len(), 3);
}

#[test]
fn stray_descriptor_is_closed() {
    let mut rig = rig_with_maps(1);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let reply = rig.call_with(Command::DMA_UNMAP, unmap(0, 0, 0x1000), vec![theirs.into()]);
    assert_eq!((reply.errno(), reply.body.len()), (None, 24));
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the other end is still open");
}

#[test]
fn malformed_unmaps_are_refused() {
    let mut rig = rig_with_maps(1);
    for (what, body, errno) in [
        ("short", bytes().u32(24).u32(0).u64(0), Errno::EINVAL),
        ("all with a range", unmap(2, 0, 0x1000), Errno::EINVAL),
        ("flags", unmap(4, 0, 0x1000), Errno::EINVAL),
        ("dirty bitmap", unmap(1, 0, 0x1000), Errno::ENOTSUP),
    ] {
        assert_eq!(rig.refused(Command::DMA_UNMAP, body), errno.0, "{what}");
    }
    assert_eq!(rig.device.maps.len(), 1);
}

#[test]
fn deferred_unmap_keeps_its_24_bytes_whatever_it_comes_to() {
    for result in [Ok(()), Err(Errno::EIO)] {
        let mut rig = rig_with_maps(1);
        rig.device.defer = true;
        let outcome = rig.send(Command::DMA_UNMAP, 0, unmap(0, 0, 0x1000), Vec::new());
        let reply = Reply::of(rig.finish(outcome, result));
        assert_eq!((reply.errno(), reply.body), (None, unmap(0, 0, 0x1000).0));
    }
}

#[test]
fn deferred_unmap_without_reply_stays_silent() {
    let mut rig = rig_with_maps(1);
    rig.device.defer = true;
    let outcome = rig.send(Command::DMA_UNMAP, NO_REPLY, unmap(2, 0, 0), Vec::new());
    assert!(matches!(rig.finish(outcome, Ok(())), Outcome::Silent));
}
