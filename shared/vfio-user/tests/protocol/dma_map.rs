use vfio_user::dma::Iova;
use vfio_user::server::Outcome;
use vfio_user::{Command, Errno};

use crate::support::{Bytes, Mapping, NO_REPLY, Reply, Rig, bytes, memfd};

fn map(flags: u32, offset: u64, iova: u64, size: u64) -> Bytes {
    bytes().u32(32).u32(flags).u64(offset).u64(iova).u64(size)
}

#[test]
fn memory_is_mapped_with_its_descriptor_and_access() {
    let mut rig = Rig::new();
    let reply = rig.call_with(Command::DMA_MAP, map(3, 0, 0x10_0000, 0x1000), vec![memfd(4096)]);
    assert_eq!((reply.errno(), reply.body.len()), (None, 0));
    let mapping = Mapping { iova: Iova(0x10_0000), size: 0x1000, has_fd: true, writable: true };
    assert_eq!(rig.device.maps, [mapping]);
}

#[test]
fn memory_without_descriptor_is_accepted() {
    let mut rig = Rig::new();
    rig.ok(Command::DMA_MAP, map(1, 0, 0xfffc_0000, 0x4_0000));
    assert!(!rig.device.maps[0].has_fd && !rig.device.maps[0].writable);
}

#[test]
fn same_mapping_again_succeeds_and_an_overlap_does_not() {
    let mut rig = Rig::new();
    rig.ok(Command::DMA_MAP, map(3, 0, 0, 0x2000));
    rig.ok(Command::DMA_MAP, map(3, 0, 0, 0x2000));
    assert_eq!(rig.device.maps.len(), 1);
    assert_eq!(rig.refused(Command::DMA_MAP, map(3, 0, 0x1000, 0x1000)), Errno::EEXIST.0);
}

#[test]
fn last_page_of_the_address_space_can_be_mapped_but_nothing_past_it() {
    let mut rig = Rig::new();
    rig.ok(Command::DMA_MAP, map(3, 0, u64::MAX - 0xfff, 0x1000));
    let past = map(3, 0, u64::MAX - 0xfff, 0x1001);
    assert_eq!(rig.refused(Command::DMA_MAP, past), Errno::EINVAL.0);
}

#[test]
fn malformed_mappings_are_refused() {
    let mut rig = Rig::new();
    for (what, body) in [
        ("empty", map(3, 0, 0, 0)),
        ("offset overflow", map(3, u64::MAX, 0, 0x1000)),
        ("flags", map(4, 0, 0, 0x1000)),
        ("argsz", bytes().u32(31).u32(3).u64(0).u64(0).u64(0x1000)),
        ("short", bytes().u32(32).u32(3)),
        ("long", map(3, 0, 0, 0x1000).u32(0)),
    ] {
        assert_eq!(rig.refused(Command::DMA_MAP, body), Errno::EINVAL.0, "{what}");
    }
    let two = rig.call_with(Command::DMA_MAP, map(3, 0, 0, 0x1000), vec![memfd(1), memfd(1)]);
    assert_eq!(two.errno(), Some(Errno::EINVAL.0));
    assert!(rig.device.maps.is_empty());
}

#[test]
fn no_reply_is_obeyed_for_success_and_error() {
    let mut rig = Rig::new();
    for body in [map(3, 0, 0, 0x1000), map(3, 0, 0, 0)] {
        let outcome = rig.send(Command::DMA_MAP, NO_REPLY, body, Vec::new());
        assert!(matches!(outcome, Outcome::Silent));
    }
    assert_eq!(rig.device.maps.len(), 1);
}

#[test]
fn deferred_mapping_is_answered_when_it_is_done() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    for (result, errno) in [(Ok(()), None), (Err(Errno::ENOMEM), Some(Errno::ENOMEM.0))] {
        let outcome = rig.send(Command::DMA_MAP, 0, map(3, 0, 0, 0x1000), Vec::new());
        let reply = Reply::of(rig.finish(outcome, result));
        assert_eq!(reply.errno(), errno);
    }
}
