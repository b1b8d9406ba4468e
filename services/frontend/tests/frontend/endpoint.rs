//! An endpoint as a client sees it: a real socket, a backend that only describes its bdev, no worker.

use crate::support::{CC, CSTS, Guest, MEMORY, read_write, with_endpoint};
use ipc::event::EventFd;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vfio_user::client::Client;
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::irq::IrqIndex;
use vfio_user::region::RegionIndex;
use vireo_frontend::endpoint::MAX_REQUESTS;
use vireo_proto::handoff::DoorbellMode;

#[test]
fn the_admin_queue_runs_by_written_doorbells() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let completion = guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
        assert_eq!(completion[12], 7, "cid");
        assert_eq!(u16::from_le_bytes([completion[14], completion[15]]) >> 1, 0, "status");
        let mut serial = [0; 20];
        guest.memory.read_exact_at(&mut serial, 0x3004).unwrap();
        assert_eq!(&serial, b"SERIAL              ");
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        assert!(info.areas.is_empty(), "doorbells can be mapped though they are not to be");
    });
}

#[test]
fn mapped_doorbells_are_seen_though_no_worker_watches_them() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        let page = std::fs::File::from(info.fd.unwrap().try_clone().unwrap());
        guest.identify(|_| page.write_all_at(&1_u32.to_le_bytes(), 0x1000).unwrap());
    });
}

#[test]
fn clients_come_and_go_and_find_the_controller_disabled() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        for _ in 0..3 {
            let mut guest = Guest::attach(socket);
            assert_eq!(guest.register(CSTS), 0);
            guest.enable();
            guest.client.dma_unmap(DmaUnmap::All).unwrap();
        }
        // One that says nothing at all, and one whose message is cut off.
        drop(Client::connect(socket).unwrap());
        let mut cut = Client::connect(socket).unwrap();
        cut.send_raw(&[0; 7], &[]).unwrap();
        drop(cut);
        assert_eq!(Guest::attach(socket).register(CSTS), 0);
    });
}

#[test]
fn a_reset_disables_and_keeps_memory() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        guest.client.reset().unwrap();
        assert_eq!(guest.register(CSTS), 0);
        assert_eq!(guest.register(CC), 0);
        guest.enable();
        guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
    });
}

#[test]
fn a_reset_forgets_interrupts_that_found_no_eventfd() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        for reset in [false, true] {
            let mut guest = Guest::attach(socket);
            guest.enable();
            guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
            if reset {
                guest.client.reset().unwrap();
            }
            let mut pending = [0; 8];
            guest.client.region_read(RegionIndex::BAR5, 0, &mut pending).unwrap();
            assert_eq!(pending[0] & 1 == 0, reset);
            let event = EventFd::create().unwrap();
            guest.client.set_eventfds(IrqIndex::MSIX, 0, &[&event]).unwrap();
            assert_eq!(event.drain().unwrap() == 0, reset, "after a reset: {reset}");
        }
    });
}

#[test]
fn requests_that_resets_leave_behind_do_not_pile_up() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        // Each normal shutdown asks the backend for a flush, and no reset waits for it.
        for _ in 0..MAX_REQUESTS {
            guest.enable();
            guest.write(CC, &0x0046_4001_u32.to_le_bytes());
            assert_eq!(guest.register(CSTS) & 0xc, 4, "the flush is under way");
            guest.write(CC, &0_u32.to_le_bytes());
        }
        guest.enable();
        guest.write(CC, &0x0046_4001_u32.to_le_bytes());
        assert_eq!(guest.register(CSTS) & 0xc, 8, "one more is not asked for");
    });
}

#[test]
fn memory_that_is_no_memory_is_refused_and_the_client_stays() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        let access = read_write();
        let pipe: OwnedFd = std::io::pipe().unwrap().1.into();
        let short = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap();
        for fd in [&pipe, &short] {
            let mapped = guest.client.dma_map(Iova(MEMORY), 4096, access, Some((fd.as_fd(), 0)));
            assert!(mapped.is_err());
        }
        // Without a descriptor the range exists, and DMA to it fails.
        guest.client.dma_map(Iova(MEMORY), 4096, access, None).unwrap();
        guest.enable();
    });
}

#[test]
fn a_controller_segment_is_sealed_for_its_readers() {
    let segment = Segment::<ipc::layout::controller::ControllerLayout>::create("test", 1).unwrap();
    let reader = std::fs::File::from(segment.read_only_fd().unwrap());
    assert!(reader.write_at(&[1], 0).is_err(), "a worker could write the controller segment");
}
