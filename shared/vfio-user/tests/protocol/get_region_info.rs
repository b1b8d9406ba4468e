use vfio_user::Command;
use vfio_user::Errno;

use crate::support::{BAR0_SIZE, Bytes, Reply, Rig, bytes, u32_at, u64_at};

const READ_WRITE: u32 = 3;
const MMAP: u32 = 4;
const CAPS: u32 = 8;
/// Region info, capability head, one area.
const FULL: u32 = 32 + 16 + 16;

fn ask(argsz: u32, index: u32) -> Bytes {
    bytes().u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0)
}

fn info(rig: &mut Rig, argsz: u32, index: u32) -> Reply {
    rig.call(Command::DEVICE_GET_REGION_INFO, ask(argsz, index))
}

#[test]
fn small_argsz_learns_the_size_it_needs_and_gets_no_descriptor() {
    let reply = info(&mut Rig::new(), 32, 0);
    assert_eq!(reply.body.len(), 32);
    assert_eq!([0, 4, 8, 12].map(|at| u32_at(&reply.body, at)), [FULL, READ_WRITE | MMAP, 0, 0]);
    assert_eq!(u64_at(&reply.body, 16), BAR0_SIZE);
    assert!(reply.fds.is_empty());
}

#[test]
fn large_argsz_gets_one_sparse_area_and_one_descriptor() {
    for argsz in [FULL, 4064] {
        let reply = info(&mut Rig::new(), argsz, 0);
        assert_eq!(reply.body.len(), FULL as usize);
        assert_eq!(u32_at(&reply.body, 0), FULL);
        assert_eq!(u32_at(&reply.body, 4), READ_WRITE | MMAP | CAPS);
        assert_eq!(u32_at(&reply.body, 12), 32, "capability offset");
        // id 1, version 1, no next, one area, zero.
        assert_eq!(u32_at(&reply.body, 32), 1 | 1 << 16);
        assert_eq!([36, 40, 44].map(|at| u32_at(&reply.body, at)), [0, 1, 0]);
        assert_eq!([48, 56].map(|at| u64_at(&reply.body, at)), [0x1000, 0x1000]);
        assert_eq!(reply.fds.len(), 1);
    }
}

#[test]
fn padding_up_to_argsz_is_accepted_in_the_request() {
    let padded = ask(FULL, 0).raw(&[0; 32]);
    let reply = Rig::new().call(Command::DEVICE_GET_REGION_INFO, padded);
    assert_eq!((reply.errno(), reply.body.len()), (None, FULL as usize));
}

#[test]
fn regions_without_mapping_have_no_capability() {
    for (index, size) in [(1, 0), (4, 4096), (5, 4096), (6, 0), (7, 4096), (8, 0)] {
        let reply = info(&mut Rig::new(), 4064, index);
        assert_eq!((reply.body.len(), reply.fds.len()), (32, 0), "region {index}");
        assert_eq!(u32_at(&reply.body, 0), 32);
        assert_eq!(u64_at(&reply.body, 16), size, "region {index}");
    }
}

#[test]
fn region_that_is_not_there_is_empty_and_no_error() {
    for index in [9, u32::MAX] {
        let reply = info(&mut Rig::new(), 32, index);
        assert_eq!(reply.errno(), None);
        assert_eq!((u32_at(&reply.body, 4), u64_at(&reply.body, 16)), (0, 0));
    }
}

#[test]
fn client_that_takes_no_descriptors_is_offered_no_mapping() {
    let mut rig = Rig::fresh();
    let json = b"{\"capabilities\":{\"max_msg_fds\":0}}\0";
    rig.ok(Command::VERSION, bytes().u16(0).u16(0).raw(json));
    let reply = info(&mut rig, 4064, 0);
    assert_eq!((u32_at(&reply.body, 4), reply.fds.len()), (READ_WRITE, 0));
}

#[test]
fn malformed_requests_are_refused() {
    let mut rig = Rig::new();
    for body in [bytes().u32(0).u32(0), ask(8, 1), ask(31, 1)] {
        assert_eq!(rig.refused(Command::DEVICE_GET_REGION_INFO, body), Errno::EINVAL.0);
    }
}
