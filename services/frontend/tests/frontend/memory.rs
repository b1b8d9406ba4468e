//! How much of memory one client gets.

use crate::support::{CC, CSTS, Guest, memory, read_write, with_endpoint};
use ipc::layout::MAX_REGIONS;
use nix::unistd::ftruncate;
use std::os::fd::AsFd;
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::message::DmaAccess;
use vireo_proto::handoff::DoorbellMode;

const TIB: u64 = 1 << 40;

#[test]
fn memory_objects_of_one_client_are_bounded_in_number_and_size() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        let mut map = |at: u64, size| {
            let object = memory(size);
            let fd = Some((object.as_fd(), 0));
            guest.client.dma_map(Iova(at << 32), 4096, read_write(), fd).is_ok()
        };
        // Sparse files cost address space, of which other clients want some too.
        assert!(map(1, 3 * TIB));
        assert!(!map(2, 3 * TIB));
        // With the guest's memory and the sparse file; one id is not for clients.
        let mapped = (2..600).filter(|&at| map(at, 4096)).count();
        assert_eq!(mapped, MAX_REGIONS - 1 - 2);
        guest.client.dma_unmap(DmaUnmap::Exact { iova: Iova(1 << 32), size: 4096 }).unwrap();
        let object = memory(3 * TIB);
        let fd = Some((object.as_fd(), 0));
        guest.client.dma_map(Iova(1 << 32), 4096, read_write(), fd).unwrap();
        guest.enable();
    });
}

#[test]
fn memory_that_has_grown_is_mapped_once_more_and_not_again_and_again() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        let object = memory(4096);
        let mut map = |at: u64, offset| {
            let fd = Some((object.as_fd(), offset));
            guest.client.dma_map(Iova(at << 32), 4096, read_write(), fd).is_ok()
        };
        assert!(map(1, 0));
        assert!(!map(2, 4096), "past the end");
        ftruncate(&object, 8192).unwrap();
        let mapped = (2..1000).filter(|&at| map(at, 4096)).count();
        assert_eq!(mapped, 998);
        assert!(map(1000, 0));
    });
}

#[test]
fn memory_that_is_mapped_without_any_access_is_not_read() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        let object = memory(4096);
        let fd = Some((object.as_fd(), 0));
        guest.client.dma_map(Iova(TIB), 4096, DmaAccess::new(), fd).unwrap();
        guest.enable();
        guest.write(CC, &0_u32.to_le_bytes());
        guest.write(0x28, &TIB.to_le_bytes());
        guest.write(CC, &0x0046_0001_u32.to_le_bytes());
        assert_eq!(guest.register(CSTS) & 3, 1);
        guest.write(0x1000, &1_u32.to_le_bytes());
        assert_eq!(guest.register(CSTS) & 2, 2, "a queue that cannot be read is fatal");
    });
}
